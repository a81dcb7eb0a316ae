"""What is bounded beyond one request: silence of engines, memory of all requests, waiting for a pool that sleeps."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fairlead_router.app import Place
from fairlead_router.contract import AUDIENCE_ROUTER, PoolConfig, RouterConfig
from fairlead_router.policy import build_index
from fairlead_router.server import Limits
from fairlead_router.upstream import Patience
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Station,
    budget,
    chat,
    configuration,
    endpoints,
    policy,
    post,
    route,
    station,
    token,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

SHORT = Patience(first_s=0.1, between_s=0.1)


def money(at: Station) -> tuple[int, int]:
    """(charged, reserved) over all holdings."""
    holdings = at.router.wallet.holdings.values()
    return sum(holding.charged for holding in holdings), sum(holding.reserved for holding in holdings)


# --- silence ---


@pytest.mark.parametrize("how", ["whole", "stream", "stream after its head"])
async def test_an_engine_that_hangs_before_its_first_byte_costs_nothing_and_is_not_tried_elsewhere(
    engine: FakeEngine, other: FakeEngine, how: str
) -> None:
    silent = Behaviour(stall_after=0) if "head" in how else Behaviour(hold=asyncio.Event())
    engine.behaviour = other.behaviour = silent
    config = configuration(budgets=(budget(unit="Tokens"),))
    addresses = {POOL: (await engine.start(), await other.start())}
    async with station(config, addresses, lease={"support/support": 10**6}, patience=SHORT) as at:
        answer = await at.ask(chat(stream=how != "whole"))
        assert (answer.status, answer.code) == (502, "upstream_error")
        assert "nothing for 0.1s" in answer.json()["error"]["message"]
        assert money(at) == (0, 0)
        assert at.router._lines[POOL].running == 0
        await until(lambda: engine.running + other.running == 0, "the engine's abort")
        assert len(engine.receipts) + len(other.receipts) == 1


async def test_an_engine_that_hangs_within_a_stream_is_charged_for_what_ran(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=8, stall_after=3)
    config = configuration(budgets=(budget(unit="Tokens"),))
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**6}, patience=SHORT) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await wire.head()
        assert b"0\r\n\r\n" not in await wire.closed()
        await until(lambda: at.router.telemetry.pool(POOL).totals().output == 3, "the charge")
        assert money(at)[1] == 0
        await until(lambda: engine.running == 0, "the engine's abort")


async def test_a_client_that_stops_reading_is_cut_off_and_the_replica_keeps_its_name(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=400, padding=64 * 1024)
    async with station(addresses={POOL: (await engine.start(),)}, patience=Patience(5.0, 0.3)) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await until(lambda: engine.running == 1, "the request")
        await until(lambda: at.router._lines[POOL].running == 0, "the slot's release")
        assert not at.router._lines[POOL].replicas[0].troubled
        await until(lambda: engine.running == 0, "the engine's abort")


async def test_a_hop_whose_engine_hangs_ends_too(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("run") / "engine.sock")
    await engine.start(path)
    engine.behaviour = Behaviour(hold=asyncio.Event())
    async with station(place=Place(pod="ai-platform/p", pool=POOL, engine=path), patience=SHORT) as at:
        bearer = token("fairlead", "fairlead-gateway", AUDIENCE_ROUTER)
        answer = await at.ask(chat(), x_fairlead_hop=f"fl-gw1-1;{POOL}", x_fairlead_router_token=bearer, bearer="")
        assert (answer.status, answer.code) == (502, "upstream_error")
        assert at.router.own_engine.value == 0


# --- memory ---


async def test_bodies_beyond_the_bound_are_refused_for_a_second_and_then_taken_again(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    big = chat("x" * 1_000)
    async with station(addresses={POOL: (await engine.start(),)}, limits=replace(Limits(), bodies=2_500)) as at:
        waiting = [asyncio.create_task(at.ask(big)) for _ in range(2)]
        await until(lambda: engine.running == 2, "the first requests")
        refused = await at.ask(big)
        assert (refused.status, refused.code) == (503, "overloaded")
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
        chunked = await at.connect()
        head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
        await chunked.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(big), big))
        assert (await chunked.answer()).code == "overloaded"
        gate.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await at.ask(big)).status == 200
        await until(lambda: at.clients.bodies.used == 0, "the end of all bodies")


async def test_bodies_of_clients_that_leave_are_forgotten(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat()) + post(chat())[:-5])
        await until(lambda: engine.running, "the request")
        assert at.clients.bodies.used == 2 * len(chat()) - 5
        wire.close()
        await until(lambda: at.clients.bodies.used == 0, "the end of all bodies")


async def test_answers_beyond_the_bound_together_are_refused_and_cost_nothing(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(padding=3_000_000)
    config = configuration(budgets=(budget(),))
    limits = replace(Limits(), answers=4_000_000)
    async with station(config, {POOL: (await engine.start(),)}, lease={"support/support": 10**9}, limits=limits) as at:
        assert (await at.ask(chat())).status == 200
        charged = money(at)[0]
        assert at.router.answers.take(2_000_000)
        refused = await at.ask(chat())
        assert (refused.status, refused.code) == (503, "overloaded")
        at.router.answers.give(2_000_000)
        assert money(at) == (charged, 0)
        assert (await at.ask(chat())).status == 200
        engine.behaviour = Behaviour(padding=5_000_000)
        assert (await at.ask(chat())).code == "upstream_error"
        assert at.router.answers.used == 0


# --- a pool that sleeps and never told its context ---


def unknown(**changes: Any) -> RouterConfig:
    """A pool and a route whose context nobody has told."""
    pools = (PoolConfig(pool=POOL, card=CARD, max_context_tokens=0),)
    return configuration(pools=pools, policies=(policy(routes=(route(context=0, **changes),)),), budgets=(budget(),))


def known() -> RouterConfig:
    return configuration(budgets=(budget(),))


async def test_a_pool_that_sleeps_and_never_told_its_context_holds_requests_until_it_does(engine: FakeEngine) -> None:
    async with station(unknown(), lease={"support/support": 10**9}) as at:
        waiting = [asyncio.create_task(at.ask(chat())) for _ in range(2)]
        await until(lambda: at.router._lines[POOL].held.value == 2, "the hold")
        signals = at.router.signals("operator", ("", ""), 0).pools[0]
        assert (signals.held, signals.peak_held) == (2, 2)
        assert signals.last_request_ms > 0
        assert money(at) == (0, 0)
        at.router.set_endpoints(endpoints({POOL: (await engine.start(),)}))
        at.router.configure(build_index(unknown()))
        assert at.router._lines[POOL].held.value == 2, "a replica came, its context did not"
        at.router.configure(build_index(known()))
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert at.router._lines[POOL].held.value == 0


async def test_a_pool_that_stays_asleep_without_a_context_answers_after_the_cold_start_wait() -> None:
    async with station(unknown(max_cold_start_wait_ms=50)) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (503, "pool_waking")
        assert at.router._lines[POOL].held.value == 0


async def test_a_pool_that_sleeps_without_a_context_and_is_not_paid_refuses_who_waits_and_who_comes() -> None:
    asleep = unknown()
    unpaid = unknown()
    unpaid = msgspec.structs.replace(unpaid, pools=(msgspec.structs.replace(unpaid.pools[0], unpaid=True),))
    async with station(asleep) as at:
        waiting = asyncio.create_task(at.ask(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        at.router.configure(build_index(unpaid))
        assert [(await waiting).code, (await at.ask(chat())).code] == ["pool_unpaid"] * 2
        assert at.router._lines[POOL].held.value == 0


async def test_a_pool_that_runs_and_never_told_its_context_answers_at_once(engine: FakeEngine) -> None:
    async with station(unknown(), {POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (503, "pool_waking")
    assert answer.headers["retry-after"] == "10"


async def test_what_fits_no_known_route_waits_for_the_one_that_sleeps() -> None:
    pools = (PoolConfig(pool=POOL, max_context_tokens=64), PoolConfig(pool=LONG_POOL))
    routes = (route("short", 64), route("long", 0, LONG_POOL))
    async with station(configuration(pools=pools, policies=(policy(routes=routes),))) as at:
        wire = await at.connect()
        await wire.send(post(chat("x" * 1_000)))
        await until(lambda: at.router._lines[LONG_POOL].held.value == 1, "the hold")
        wire.close()
        await until(lambda: at.router._lines[LONG_POOL].held.value == 0, "the place's release")


async def test_a_pool_that_disappears_sends_away_who_waits_for_its_context() -> None:
    async with station(unknown()) as at:
        waiting = asyncio.create_task(at.ask(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        at.router.configure(build_index(configuration(pools=(), policies=())))
        assert (await waiting).code == "model_not_found"
