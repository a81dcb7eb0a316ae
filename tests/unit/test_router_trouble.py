"""Pools in trouble: fallbacks and what they cost, retries within a budget, priorities, clients that leave."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fairlead_router.contract import (
    Card,
    FallbackConfig,
    PoolConfig,
    Priority,
    RouterConfig,
    Trouble,
    UsageLine,
    WeightedPool,
)
from fairlead_router.exchange import MAX_TRIES
from fairlead_router.policy import build_index
from fairlead_router.retries import SHARE_DIVISOR
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Answer,
    Station,
    Wire,
    api_key,
    budget,
    chat,
    configuration,
    endpoints,
    policy,
    post,
    route,
    station,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

DEAR = Card(version=9, prompt_pico=64_000, cached_pico=6_400, output_pico=192_000)
CHEAP_ONE, DEAR_ONE = 704, 1_408
"""Nano-USD of one request of the fake engine in either pool: 10 prompt and 4 output tokens."""
BUSY = Behaviour(status=503, extra_headers=("x-fairlead-retry: overloaded",))
"""A refusal that is not held against a replica."""


def backed(*when: Trouble, slots: int = 4, other: str = LONG_POOL, **changes: Any) -> RouterConfig:
    """A pool with a dearer one behind it."""
    pools = (
        PoolConfig(pool=POOL, max_context_tokens=4096, slots=slots, card=CARD),
        PoolConfig(pool=LONG_POOL, max_context_tokens=4096, slots=4, card=DEAR),
    )
    routed = {"fallbacks": (FallbackConfig(pool=other, when=when),), **changes.pop("route", {})}
    return configuration(pools=pools, policies=(policy(routes=(route(**routed),)),), **changes)


def money(at: Station) -> tuple[int, int]:
    """(charged, reserved) over all holdings."""
    holdings = at.router.wallet.holdings.values()
    return sum(holding.charged for holding in holdings), sum(holding.reserved for holding in holdings)


def usage(at: Station) -> list[UsageLine]:
    """What was booked since somebody last looked."""
    return list(at.router.book.take())


def metrics(at: Station) -> str:
    return b"".join(at.router.telemetry.render()).decode()


def shown(metric: str, at: Station) -> list[str]:
    return [line for line in metrics(at).splitlines() if line.startswith(metric)]


@pytest.fixture
async def third() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    await engine.stop()


@pytest.fixture
async def fourth() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    await engine.stop()


# --- fallbacks ---


async def test_a_pool_whose_replicas_all_fail_is_stood_in_for_at_the_other_pools_price(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = Behaviour(status=503)
    addresses = {POOL: (await engine.start(), "127.0.0.1:1"), LONG_POOL: (await other.start(),)}
    config = backed("Unavailable", budgets=(budget(),))
    async with station(config, addresses, lease={"support/support": 10**9}) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.headers["x-fairlead-pool"]) == (200, "chat-8b-long")
        assert other.receipts[0].body["model"] == "chat-8b-long"
        assert money(at) == (DEAR_ONE, 0)
        totals = {pool: at.router.telemetry.pool(pool).totals().requests for pool in (POOL, LONG_POOL)}
        assert totals == {POOL: 0, LONG_POOL: 1}


async def test_what_a_fallback_served_is_booked_as_that_and_at_its_card(engine: FakeEngine, other: FakeEngine) -> None:
    engine.behaviour = Behaviour(cut_after=0)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(backed("Unavailable"), addresses) as at:
        assert (await at.ask(chat())).status == 200
        engine.behaviour = Behaviour()
        at.router.set_endpoints(endpoints({POOL: (), LONG_POOL: addresses[LONG_POOL]}))
        at.router.set_endpoints(endpoints(addresses))
        assert (await at.ask(chat())).status == 200
        lines = {line.pool: line for line in usage(at)}
    assert (lines[LONG_POOL].attempt, lines[LONG_POOL].card, lines[LONG_POOL].nano_usd) == ("Fallback", 9, DEAR_ONE)
    assert (lines[POOL].attempt, lines[POOL].card, lines[POOL].nano_usd) == ("Primary", 7, CHEAP_ONE)


async def test_a_fallback_that_the_budgets_cannot_pay_is_refused_by_them(engine: FakeEngine, other: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate, status=500)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    config = backed("Unavailable", budgets=(budget(),))
    async with station(config, addresses, lease={"support/support": 10**9}) as rich:
        asked = asyncio.create_task(rich.ask(chat()))
        await until(lambda: engine.running, "the request")
        needed = money(rich)[1]
        gate.set()
        assert (await asked).status == 200
    async with station(config, addresses, lease={"support/support": 2 * needed - 1}) as poor:
        refused = await poor.ask(chat())
        assert (refused.status, refused.code) == (400, "request_exceeds_budget")
        assert money(poor) == (0, 0)
    async with station(config, addresses, lease={"support/support": 2 * needed}) as just:
        assert (await just.ask(chat())).status == 200
    assert len(other.receipts) == 2


async def test_the_words_of_a_trouble_that_the_fallback_is_not_for_stay(engine: FakeEngine, other: FakeEngine) -> None:
    engine.behaviour = Behaviour(status=500)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(backed("Saturated", "ScaledToZero"), addresses) as at:
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert not other.receipts


async def test_a_fallback_without_replicas_is_passed_over(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(status=500)
    async with station(backed("Unavailable"), {POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (502, "upstream_error")
        assert at.router._lines[LONG_POOL].held.value == 0


async def test_a_fallback_that_fails_too_ends_the_search(engine: FakeEngine, other: FakeEngine) -> None:
    engine.behaviour = other.behaviour = Behaviour(status=500)
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096), PoolConfig(pool=LONG_POOL, max_context_tokens=4096))
    each = (FallbackConfig(pool=LONG_POOL, when=("Unavailable",)), FallbackConfig(pool=POOL, when=("Unavailable",)))
    config = configuration(pools=pools, policies=(policy(routes=(route(fallbacks=each),)),))
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(config, addresses) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (502, "upstream_error")
        assert {line.running for line in at.router._lines.values()} == {0}
    assert len(other.receipts) == 1
    assert len(engine.receipts) <= 2


async def test_what_was_begun_for_the_client_is_not_begun_again_elsewhere(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = Behaviour(output_tokens=4, cut_after=2)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(backed("Unavailable", "Saturated"), addresses) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        assert (await wire.head())[0] == 200
        assert b"0\r\n\r\n" not in await wire.closed()
        assert [(line.pool, line.attempt, line.basis) for line in usage(at)] == [(POOL, "Primary", "Streamed")]
    assert not other.receipts


async def test_a_pool_at_zero_is_stood_in_for_and_woken(engine: FakeEngine) -> None:
    async with station(backed("ScaledToZero"), {LONG_POOL: (await engine.start(),)}) as at:
        at.router.signals("operator", ("", ""), 0)
        answer = await at.ask(chat())
        assert (answer.status, answer.headers["x-fairlead-pool"]) == (200, "chat-8b-long")
        told = {pool.pool: pool for pool in at.router.signals("operator", ("", ""), 0).pools}
        assert (told[POOL].held, told[POOL].peak_held) == (0, 1)
        assert told[POOL].last_request_ms > 0
        assert (told[LONG_POOL].held, told[LONG_POOL].peak_held) == (0, 0)
        again = {pool.pool: pool for pool in at.router.signals("operator", ("", ""), 0).pools}
        assert again[POOL].peak_held == 0


async def test_a_pool_at_zero_whose_fallback_sleeps_too_holds_the_request(engine: FakeEngine) -> None:
    async with station(backed("ScaledToZero")) as at:
        asked = asyncio.create_task(at.ask(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        at.router.set_endpoints(endpoints({POOL: (await engine.start(),)}))
        assert (await asked).headers["x-fairlead-pool"] == "chat-8b"


async def test_a_pool_without_room_is_stood_in_for_after_the_routes_wait(engine: FakeEngine, other: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(backed("Saturated", slots=1, route={"max_wait_ms": 50}), addresses) as at:
        first = asyncio.create_task(at.ask(chat()))
        await until(lambda: engine.running == 1, "the first request")
        answer = await at.ask(chat())
        assert (answer.status, answer.headers["x-fairlead-pool"]) == (200, "chat-8b-long")
        gate.set()
        assert (await first).headers["x-fairlead-pool"] == "chat-8b"


async def test_a_pool_whose_line_is_full_is_stood_in_for_at_once(engine: FakeEngine, other: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    addresses = {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}
    async with station(backed("Saturated", slots=1), addresses) as at:
        at.router._lines[POOL].most = 1
        waiting = [asyncio.create_task(at.ask(chat())) for _ in range(2)]
        await until(lambda: at.router._lines[POOL].held.value == 1, "a full line")
        assert (await at.ask(chat())).headers["x-fairlead-pool"] == "chat-8b-long"
        gate.set()
        assert [answer.headers["x-fairlead-pool"] for answer in await asyncio.gather(*waiting)] == ["chat-8b"] * 2


@pytest.mark.parametrize("status", [500, 503])
async def test_a_replica_that_is_left_alone_does_not_keep_a_request_from_the_fallback(
    engine: FakeEngine, other: FakeEngine, third: FakeEngine, status: int
) -> None:
    engine.behaviour = third.behaviour = Behaviour(status=status)
    addresses = {POOL: (await engine.start(), await third.start()), LONG_POOL: (await other.start(),)}
    config = backed("Unavailable", route={"max_wait_ms": 200})
    async with station(config, addresses) as at:
        answers = [await at.ask(chat()) for _ in range(30)]
        assert {answer.headers.get("x-fairlead-pool") for answer in answers} == {"chat-8b-long"}


# --- retries ---


async def test_a_pool_that_refuses_everything_is_not_hit_several_times_over(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = other.behaviour = BUSY
    async with station(addresses={POOL: (await engine.start(), await other.start())}) as at:
        at.router.retries_of(POOL).floor_per_s = 0
        answers = [await at.ask(chat()) for _ in range(60)]
        assert {(answer.status, answer.code) for answer in answers} == {(502, "upstream_error")}
        sent = len(engine.receipts) + len(other.receipts)
        assert sent == 60 + 60 // SHARE_DIVISOR
        assert sorted(shown("fairlead_retries_total", at)) == [
            f'fairlead_retries_total{{pool="{POOL}",result="no_budget"}} 48.0',
            f'fairlead_retries_total{{pool="{POOL}",result="tried"}} 12.0',
        ]


async def test_a_request_is_tried_a_few_times_only(
    engine: FakeEngine, other: FakeEngine, third: FakeEngine, fourth: FakeEngine
) -> None:
    engines = (engine, other, third, fourth)
    for one in engines:
        one.behaviour = BUSY
    async with station(addresses={POOL: tuple([await one.start() for one in engines])}) as at:
        answer = await at.ask(chat())
        assert f"({MAX_TRIES} tried;" in answer.json()["error"]["message"]
    assert sum(len(one.receipts) for one in engines) == MAX_TRIES < len(engines)


# --- priority ---


async def crowd(at: Station, engine: FakeEngine) -> asyncio.Task[Answer]:
    """One request that occupies the pool's only slot."""
    first = asyncio.create_task(at.ask(chat("first")))
    await until(lambda: engine.running == 1, "the first request")
    return first


async def held(at: Station, count: int) -> None:
    await until(lambda: at.router._lines[POOL].held.value == count, "the place")


def narrow(priority: Priority = "Interactive") -> RouterConfig:
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=1, card=CARD),)
    return configuration(pools=pools, policies=(policy(priority=priority),))


async def test_a_header_lowers_a_requests_priority_and_slots_go_by_it(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.plan.append(Behaviour(hold=gate))
    async with station(narrow(), {POOL: (await engine.start(),)}) as at:
        tasks = [await crowd(at, engine)]
        for index, name in enumerate(["batch", "Standard", "INTERACTIVE"]):
            tasks.append(asyncio.create_task(at.ask(chat(name), x_fairlead_priority=name)))
            await held(at, index + 1)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    order = [receipt.body["messages"][0]["content"] for receipt in engine.receipts]
    assert order == ["first", "INTERACTIVE", "Standard", "batch"]


async def test_a_header_does_not_raise_a_priority_above_its_policys(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.plan.append(Behaviour(hold=gate))
    async with station(narrow("Standard"), {POOL: (await engine.start(),)}) as at:
        tasks = [await crowd(at, engine)]
        for index, name in enumerate(["standard", "interactive"]):
            tasks.append(asyncio.create_task(at.ask(chat(name), x_fairlead_priority=name)))
            await held(at, index + 1)
        gate.set()
        await asyncio.gather(*tasks)
        assert 'priority="Interactive"' not in metrics(at)
    assert [receipt.body["messages"][0]["content"] for receipt in engine.receipts][1:] == ["standard", "interactive"]


@pytest.mark.parametrize("value", ["", "high", "batch,interactive"])
async def test_a_priority_that_is_none_is_refused_before_anything_runs(engine: FakeEngine, value: str) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(), x_fairlead_priority=value)
    assert answer.status == 400
    assert "Interactive, Standard or Batch" in answer.json()["error"]["message"]
    assert not engine.receipts


async def test_a_full_line_sheds_batch_for_who_has_more_right_to_wait(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.plan.append(Behaviour(hold=gate))
    async with station(narrow(), {POOL: (await engine.start(),)}) as at:
        at.router._lines[POOL].most = 1
        first = await crowd(at, engine)
        batch = asyncio.create_task(at.ask(chat("batch"), x_fairlead_priority="Batch"))
        await until(lambda: at.router._lines[POOL].held.value == 1, "a full line")
        urgent = asyncio.create_task(at.ask(chat("urgent")))
        shed = await batch
        assert (shed.status, shed.code) == (429, "queue_full")
        assert (shed.headers["retry-after"], shed.headers["x-should-retry"]) == ("2", "true")
        refused = await at.ask(chat("late"), x_fairlead_priority="Batch")
        assert (refused.status, refused.code) == (429, "queue_full")
        gate.set()
        assert {(await first).status, (await urgent).status} == {200}
        assert shown("fairlead_shed_total", at) == [f'fairlead_shed_total{{pool="{POOL}",priority="Batch"}} 1.0']
    assert [receipt.body["messages"][0]["content"] for receipt in engine.receipts] == ["first", "urgent"]


# --- clients that leave, and some that only seem to ---


async def final(wire: Wire) -> Answer:
    """The answer after the interim ones."""
    status, headers = await wire.head()
    while status < 200:
        status, headers = await wire.head()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while piece := await wire.chunk():
            body += piece
    else:
        body = await wire.reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers, body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_ended_its_side_still_gets_its_answer(engine: FakeEngine, stream: bool) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=stream)))
        await until(lambda: engine.running == 1, "the request")
        wire.writer.write_eof()
        await asyncio.sleep(0.1)  # the router looks three times within 30 ms whether the client is gone
        assert engine.running == 1
        gate.set()
        answer = await final(wire)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}")
        assert await wire.closed() == b""


async def test_requests_behind_the_first_are_answered_too_before_the_connection_closes(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.plan.append(Behaviour(hold=gate))
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat("one")) + post(chat("two")))
        await until(lambda: engine.running == 1, "the request")
        wire.writer.write_eof()
        gate.set()
        first, second = await final(wire), await final(wire)
        assert (first.status, second.status) == (200, 200)
        assert await wire.closed() == b""


async def test_a_client_that_closes_while_the_engine_reads_its_prompt_stops_it_and_frees_everything(
    engine: FakeEngine,
) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    config = configuration(budgets=(budget(),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await until(lambda: engine.running == 1, "the request")
        assert money(at)[1] > 0
        wire.writer.close()  # no reset: the router has to find out
        await until(lambda: engine.receipts[0].aborted, "the engine's abort")
        assert at.router._lines[POOL].running == 0
        assert money(at)[1] == 0
        assert 'outcome="cancelled"' in metrics(at)


async def test_a_configuration_that_takes_a_key_away_stops_it_on_a_connection_that_stays(engine: FakeEngine) -> None:
    address = {POOL: (await engine.start(),)}
    async with station(configuration(keys=(api_key("fl-old"),)), address) as at:
        wire = await at.connect()
        for _ in range(3):
            await wire.send(post(chat(), bearer="fl-old"))
            assert (await wire.answer()).status == 200
        at.router.configure(build_index(configuration(keys=(api_key("fl-new"),))))
        await wire.send(post(chat(), bearer="fl-old"))
        refused = await wire.answer()
        assert (refused.status, refused.code) == (401, "invalid_api_key")
        assert (await at.ask(chat(), bearer="fl-new")).status == 200
    assert len(engine.receipts) == 4


async def test_a_pool_that_goes_while_a_body_comes_is_not_asked_for(engine: FakeEngine) -> None:
    both = policy(routes=(route(pools=(WeightedPool(pool=POOL), WeightedPool(pool=LONG_POOL))),))
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=4), PoolConfig(pool=LONG_POOL, slots=4))
    async with station(configuration(pools=pools, policies=(both,)), {POOL: (await engine.start(),)}) as at:
        assert (await at.ask(chat())).status == 200
        wire = await at.connect()
        whole = post(chat())
        await wire.send(whole[:-5])
        await until(at.clients.busy, "the head")
        at.router.configure(build_index(configuration()))
        await wire.send(whole[-5:])
        assert (await wire.answer()).status == 200
