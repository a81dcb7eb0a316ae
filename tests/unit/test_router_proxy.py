"""Requests through a router with real sockets to a fake engine: forwarding, streams, faults, waiting."""

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from fairlead_router.contract import PoolConfig, RouterConfig
from fairlead_router.policy import build_index
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Station,
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


def unpaid(**changes: Any) -> RouterConfig:
    """A pool whose budgets do not pay for a replica."""
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=4, card=CARD, unpaid=True),)
    return configuration(pools=pools, **changes)


def events(body: bytes) -> list[str]:
    return [event for event in body.decode().split("\n\n") if event]


async def test_an_answer_comes_back_with_cost_pool_and_request_id(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat())
    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] == 4
    # 10 × 0.032 + 4 × 0.096 micro-USD
    assert answer.headers["x-fairlead-cost-usd"] == "0.000001"
    assert answer.headers["x-fairlead-pool"] == "chat-8b"
    assert answer.headers["x-fairlead-cache"] == "off"
    assert answer.headers["x-request-id"].startswith("fl-gw1-")


async def test_the_engine_gets_its_own_model_name_the_cap_and_nothing_of_the_caller(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        await at.ask(chat("héllo", temperature=0.1), x_fairlead_feature="f", cookie="secret")
    (receipt,) = engine.receipts
    assert receipt.body["model"] == "chat-8b"
    assert receipt.body["max_tokens"] == 16
    assert receipt.body["temperature"] == 0.1
    assert receipt.body["messages"] == [{"role": "user", "content": "héllo"}]
    assert not {"authorization", "cookie", "x-fairlead-feature"} & set(receipt.headers)


async def test_a_stream_without_usage_asked_carries_its_cost_in_a_comment(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(stream=True))
    found = events(answer.body)
    assert engine.receipts[0].body["stream_options"] == {"include_usage": True}
    assert len(found) == 6
    assert found[-2:] == [": fairlead cost_usd=0.000001 pool=chat-8b", "data: [DONE]"]
    assert not any('"usage"' in event for event in found)


async def test_a_stream_with_usage_asked_carries_its_cost_in_the_usage_chunk(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(stream=True, stream_options={"include_usage": True}))
    found = events(answer.body)
    assert found[-1] == "data: [DONE]"
    usage = json.loads(found[-2].removeprefix("data: "))
    assert usage["usage"]["prompt_tokens"] == 10
    assert usage["fairlead"] == {"cost_usd": "0.000001", "budget_remaining": {}, "pool": "chat-8b"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_a_stream_is_the_same_however_its_bytes_are_split(engine: FakeEngine, size: int) -> None:
    engine.behaviour = Behaviour(split_bytes=size)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat(stream=True))
    assert len(events(answer.body)) == 6
    assert events(answer.body)[-2].startswith(": fairlead cost_usd=0.000001")


async def test_connections_to_the_engine_are_used_again(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        for _ in range(5):
            assert (await at.ask(chat())).status == 200
    assert engine.connections == 1


async def test_a_client_that_leaves_stops_the_engine_and_frees_its_slot(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=10_000, gap_s=0.01)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await wire.head()
        await wire.chunk()
        wire.close()
        await until(lambda: engine.running == 0, "the engine's abort")
        assert engine.receipts[0].aborted
        await until(lambda: at.router._lines[POOL].running == 0, "the slot's release")


async def test_a_replica_that_refuses_connections_is_passed_over(engine: FakeEngine, other: FakeEngine) -> None:
    dead = await other.start()
    await other.stop()
    async with station(addresses={POOL: (dead, await engine.start())}) as at:
        answers = [await at.ask(chat()) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4


@pytest.mark.parametrize(
    "fault",
    [Behaviour(status=503), Behaviour(status=502), Behaviour(cut_after=0), Behaviour(finish_reason="abort")],
    ids=["busy", "bad gateway", "dies", "aborts"],
)
async def test_a_fault_before_the_first_byte_is_tried_elsewhere(
    engine: FakeEngine, other: FakeEngine, fault: Behaviour
) -> None:
    engine.behaviour = fault
    async with station(addresses={POOL: (await engine.start(), await other.start())}) as at:
        answers = [await at.ask(chat()) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert len(other.receipts) == 3


async def test_no_replica_that_answers_is_a_502_that_costs_nothing(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(status=500)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert at.router.telemetry.pool(POOL).totals().nano_usd == 0


async def test_a_stream_that_breaks_is_seen_by_the_client_and_charged_for_what_ran(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=8, cut_after=3)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await wire.head()
        assert b"0\r\n\r\n" not in await wire.closed()
        await until(lambda: at.router.telemetry.pool(POOL).totals().output == 3, "the charge")


async def test_an_idle_connection_that_died_is_replaced_without_the_client_noticing(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        await at.ask(chat())
        for writer in list(engine._writers):
            writer.transport.abort()
        assert (await at.ask(chat())).status == 200


async def test_requests_wait_for_a_slot_and_are_served_in_order(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    pools = (PoolConfig(pool=POOL, max_context_tokens=4096, slots=1, card=CARD),)
    async with station(configuration(pools=pools), {POOL: (await engine.start(),)}) as at:
        waiting = []
        for name in "abcd":
            waiting.append(asyncio.create_task(at.ask(chat(name))))
            place = len(waiting) - 1
            await until(partial(in_line, at, place), "a place in the line")
        gate.set()
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 4
    assert [receipt.body["messages"][0]["content"] for receipt in engine.receipts] == list("abcd")
    assert engine.peak == 1


def in_line(at: Station, count: int) -> bool:
    return at.router._lines[POOL].held.value == count


async def test_a_request_that_waited_too_long_gets_429(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    config = configuration(
        pools=(PoolConfig(pool=POOL, slots=1, card=CARD),), policies=(policy(routes=(route(max_wait_ms=50),)),)
    )
    async with station(config, {POOL: (await engine.start(),)}) as at:
        first = asyncio.create_task(at.ask(chat()))
        await until(lambda: engine.running == 1, "the first request")
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (429, "queue_full")
        assert answer.headers["x-should-retry"] == "true"
        first.cancel()


async def test_a_pool_at_zero_holds_requests_until_a_replica_comes(engine: FakeEngine) -> None:
    async with station() as at:
        waiting = asyncio.create_task(at.ask(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        signals = at.router.signals("operator", ("", ""), 0).pools[0]
        assert (signals.held, signals.peak_held) == (1, 1)
        at.router.set_endpoints(endpoints({POOL: (await engine.start(),)}))
        assert (await waiting).status == 200


async def test_a_pool_that_stays_at_zero_answers_503_after_the_cold_start_wait() -> None:
    config = configuration(policies=(policy(routes=(route(max_cold_start_wait_ms=50),)),))
    async with station(config) as at:
        answer = await at.ask(chat())
    assert (answer.status, answer.code) == (503, "pool_waking")
    assert 100 < int(answer.headers["retry-after"]) <= 120


async def test_a_pool_at_zero_that_nobody_pays_for_refuses_at_once() -> None:
    async with station(unpaid()) as at:
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (429, "pool_unpaid")
        assert f"ScalingLimited of ModelPool {POOL}" in answer.json()["error"]["message"]
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("60", "false")
        assert at.router._lines[POOL].held.value == 0


async def test_a_pool_that_nobody_pays_for_any_more_serves_while_it_has_a_replica(engine: FakeEngine) -> None:
    async with station(unpaid(), {POOL: (await engine.start(),)}) as at:
        assert (await at.ask(chat())).status == 200


async def test_who_waits_for_a_pool_that_turns_out_not_to_be_paid_is_not_told_that_it_wakes() -> None:
    routes = (route(max_cold_start_wait_ms=200),)
    async with station(configuration(policies=(policy(routes=routes),))) as at:
        waiting = asyncio.create_task(at.ask(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        at.router.configure(build_index(unpaid(policies=(policy(routes=routes),))))
        assert (await waiting).code == "pool_unpaid"


async def test_a_client_that_leaves_the_line_gives_up_its_place() -> None:
    async with station() as at:
        wire = await at.connect()
        await wire.send(post(chat()))
        await until(lambda: at.router._lines[POOL].held.value == 1, "the hold")
        wire.close()
        await until(lambda: at.router._lines[POOL].held.value == 0, "the place's release")


async def test_a_prompt_that_was_misjudged_moves_to_the_larger_route(engine: FakeEngine, other: FakeEngine) -> None:
    engine.behaviour = Behaviour(status=400, error="This model's maximum context length is 512 tokens.")
    config = configuration(
        pools=(PoolConfig(pool=POOL, card=CARD), PoolConfig(pool=LONG_POOL, card=CARD)),
        policies=(policy(routes=(route("short", 512), route("long", 4096, LONG_POOL))),),
    )
    async with station(config, {POOL: (await engine.start(),), LONG_POOL: (await other.start(),)}) as at:
        answer = await at.ask(chat())
    assert answer.status == 200
    assert answer.headers["x-fairlead-pool"] == "chat-8b-long"
    assert other.receipts[0].body["model"] == "chat-8b-long"


async def test_an_engine_error_of_the_request_passes_with_its_words(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(status=400, error="bad tool choice")
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        answer = await at.ask(chat())
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "bad tool choice"
    assert answer.headers["x-request-id"].startswith("fl-")


async def test_a_slow_reader_slows_the_engine_instead_of_filling_memory(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(output_tokens=300, padding=64 * 1024)
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await until(lambda: engine.running == 1, "the request")
        await asyncio.sleep(0.3)
        assert engine.running == 1, "20 MB fitted somewhere"
        body = await wire.answer()
        assert body.body.endswith(b"data: [DONE]\n\n")


async def test_models_lists_what_the_caller_may_use() -> None:
    private = policy(name="private", models=("secret",), namespaces=("ai-platform",))
    async with station(configuration(policies=(policy(), private))) as at:
        wire = await at.connect()
        await wire.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n" % token().encode())
        answer = await wire.answer()
        assert [model["id"] for model in answer.json()["data"]] == ["chat"]
        refused = await at.ask(chat(model="secret"))
        assert (refused.status, refused.code) == (403, "model_not_allowed")
        missing = await at.ask(chat(model="nope"))
        assert (missing.status, missing.code) == (404, "model_not_found")


async def test_a_stream_that_dies_before_its_first_event_leaves_nothing_to_the_next_try(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = Behaviour(dies_after_head=True)
    other.behaviour = Behaviour(status=400, error="bad tool choice")
    async with station(addresses={POOL: (await engine.start(), await other.start())}) as at:
        answer = await at.ask(chat(stream=True))
        while not engine.receipts:
            answer = await at.ask(chat(stream=True))
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "bad tool choice"


async def test_a_router_that_does_not_know_us_is_a_failed_replica_and_not_the_clients_fault(
    engine: FakeEngine, other: FakeEngine
) -> None:
    engine.behaviour = Behaviour(status=401, error="No valid token")
    async with station(addresses={POOL: (await engine.start(), await other.start())}) as at:
        answers = [await at.ask(chat()) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3


async def test_a_router_without_a_configuration_blames_itself_and_not_the_caller(engine: FakeEngine) -> None:
    async with station(addresses={POOL: (await engine.start(),)}) as at:
        at.router.configured = False
        answer = await at.ask(chat())
        assert (answer.status, answer.code) == (503, "not_configured")
        assert answer.headers["retry-after"] == "2"
        at.router.configured = True
        assert (await at.ask(chat())).status == 200
    assert len(engine.receipts) == 1
