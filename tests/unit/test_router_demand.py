"""What a router tells the autoscaler: who asked, who was served in time, and what is under way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_router.contract import FallbackConfig, PoolConfig, PoolSignals, RouterConfig
from fairlead_router.telemetry import MAX_SAMPLES, Demand, Telemetry
from tests.builders.router import (
    CARD,
    LONG_POOL,
    POOL,
    Station,
    budget,
    chat,
    configuration,
    policy,
    post,
    route,
    station,
    until,
)
from tests.fakes.engine import Behaviour, FakeEngine

STRICT = PoolConfig(pool=POOL, max_context_tokens=4096, slots=2, card=CARD, ttft_ms=2_000, tpot_ms=50)


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    made = FakeEngine()
    yield made
    await made.stop()


def config(ttft_ms: int = 60_000, tpot_ms: int = 60_000, slots: int = 4, **changes: Any) -> RouterConfig:
    """A pool whose objectives every answer meets, unless they say otherwise."""
    pool = PoolConfig(pool=POOL, max_context_tokens=4096, slots=slots, card=CARD, ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    return configuration(**({"pools": (pool,)} | changes))


def told(at: Station, pool: str = POOL) -> PoolSignals:
    return next(one for one in at.router.signals("operator", ("", ""), 0).pools if one.pool == pool)


def idle(signals: PoolSignals) -> bool:
    return (signals.waiting_tokens, signals.decoding, signals.context_tokens) == (0, 0, 0)


# --- judging ---


@pytest.mark.parametrize(
    ("ttft_s", "stream_s", "output", "kept"),
    [(2.0, 0.05 * 9, 10, (1, 1)), (2.001, 0.1, 10, (0, 1)), (0.1, 0.4501, 10, (1, 0)), (3.0, 9.0, 2, (0, 0))],
)
def test_a_stream_meets_the_objectives_if_it_meets_each(
    ttft_s: float, stream_s: float, output: int, kept: tuple[int, int]
) -> None:
    demand = Demand()
    demand.streamed(STRICT, ttft_s, stream_s, output)
    assert (demand.met_ttft, demand.met_tpot) == kept
    assert (demand.missed_ttft, demand.missed_tpot) == (1 - kept[0], 1 - kept[1])
    assert (demand.met, demand.missed) == (int(kept == (1, 1)), int(kept != (1, 1)))


@pytest.mark.parametrize(("took_s", "met"), [(2.45, 1), (2.46, 0)])
def test_an_answer_that_is_no_stream_must_come_within_what_both_objectives_allow(took_s: float, met: int) -> None:
    demand = Demand()
    demand.answered(STRICT, took_s, 10)
    assert (demand.met, demand.missed) == (met, 1 - met)


@pytest.mark.parametrize("pool", [PoolConfig(pool=POOL, ttft_ms=5), PoolConfig(pool=POOL, tpot_ms=5)])
def test_of_an_answer_that_is_no_stream_one_objective_alone_says_nothing(pool: PoolConfig) -> None:
    demand = Demand()
    demand.answered(pool, 100.0, 10)
    assert (demand.met, demand.missed) == (0, 0)


def test_without_objectives_nobody_is_judged() -> None:
    demand, pool = Demand(), PoolConfig(pool=POOL)
    demand.streamed(pool, 100.0, 100.0, 2)
    demand.answered(pool, 100.0, 2)
    demand.turned_away(pool)
    assert (demand.met, demand.missed, demand.missed_ttft) == (0, 0, 0)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 400)), max_size=20))
def test_every_judged_stream_is_met_or_missed_and_so_is_each_of_its_objectives(
    streams: list[tuple[float, float, int]],
) -> None:
    demand = Demand()
    for one in streams:
        demand.streamed(STRICT, *one)
    assert demand.met + demand.missed == len(streams)
    assert demand.met_ttft + demand.missed_ttft == demand.met_tpot + demand.missed_tpot == len(streams)
    assert demand.met <= min(demand.met_ttft, demand.met_tpot)


def test_the_judged_requests_are_a_metric() -> None:
    telemetry = Telemetry()
    telemetry.pool(POOL).demand.streamed(STRICT, 1.0, 0.1, 10)
    text = b"".join(telemetry.render()).decode()
    assert f'fairlead_objective_requests_total{{met="true",pool="{POOL}"}} 1.0' in text
    assert f'fairlead_objective_requests_total{{met="false",pool="{POOL}"}} 0.0' in text


# --- counting ---


async def test_a_stream_counts_as_waiting_until_its_first_token_and_then_as_decoding(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate, gap_s=0.05, output_tokens=6)
    async with station(config(), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await until(lambda: told(at).arrivals_total == 1, "the arrival")
        waits = told(at)
        assert waits.waiting_tokens == waits.arrived_tokens_total > 0
        assert (waits.decoding, waits.finished_total) == (0, 0)
        gate.set()
        await until(lambda: told(at).decoding == 1, "the first token")
        assert (told(at).waiting_tokens, told(at).context_tokens) == (0, waits.waiting_tokens)
        await wire.answer()
        await until(lambda: told(at).finished_total == 1, "the end")
        done = told(at)
        assert idle(done)
        assert (done.met_total, done.missed_total, done.met_ttft_total, done.met_tpot_total) == (1, 0, 1, 1)
        assert done.samples == ((10, 6),)


async def test_what_is_no_stream_is_judged_as_a_whole_and_cached_tokens_are_no_work(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(prompt_tokens=10, cached_tokens=8, output_tokens=4)
    async with station(config(), {POOL: (await engine.start(),)}) as at:
        assert (await at.ask(chat())).status == 200
        await until(lambda: told(at).finished_total == 1, "the end")
        done = told(at)
    assert (done.arrivals_total, done.met_total, done.met_ttft_total, done.samples) == (1, 1, 0, ((2, 4),))
    assert idle(done)


async def test_a_slow_first_token_and_slow_tokens_miss(engine: FakeEngine) -> None:
    engine.behaviour = Behaviour(first_s=0.02, gap_s=0.02, output_tokens=3)
    async with station(config(ttft_ms=1, tpot_ms=1), {POOL: (await engine.start(),)}) as at:
        await at.ask(chat(stream=True))
        await until(lambda: told(at).missed_total == 1, "the end")
        done = told(at)
    assert (done.missed_ttft_total, done.missed_tpot_total, done.met_total) == (1, 1, 0)


async def test_held_requests_have_arrived_and_one_that_nobody_took_in_time_missed(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    short = policy(routes=(route(max_wait_ms=50),))
    async with station(config(slots=1, policies=(short,)), {POOL: (await engine.start(),)}) as at:
        first = asyncio.create_task(at.ask(chat()))
        await until(lambda: engine.running == 1, "the first request")
        assert (await at.ask(chat())).status == 429
        held = told(at)
        assert (held.arrivals_total, held.missed_total, held.missed_ttft_total, held.waiting_tokens) == (2, 1, 1, 0)
        gate.set()
        assert (await first).status == 200
        await until(lambda: told(at).finished_total == 1, "the end")
        assert idle(told(at))


async def test_a_pool_at_zero_that_does_not_wake_in_time_missed() -> None:
    cold = policy(routes=(route(max_cold_start_wait_ms=50),))
    async with station(config(policies=(cold,))) as at:
        assert (await at.ask(chat())).status == 503
        done = told(at)
    assert (done.arrivals_total, done.missed_total) == (1, 1)
    assert idle(done)


@pytest.mark.parametrize(("ttft_ms", "missed"), [(1, 1), (60_000, 0)])
async def test_a_client_that_leaves_before_a_first_token_missed_it_if_it_was_late(
    engine: FakeEngine, ttft_ms: int, missed: int
) -> None:
    engine.behaviour = Behaviour(hold=asyncio.Event())
    async with station(config(ttft_ms=ttft_ms), {POOL: (await engine.start(),)}) as at:
        wire = await at.connect()
        await wire.send(post(chat(stream=True)))
        await until(lambda: engine.running == 1, "the request")
        await asyncio.sleep(0.02)
        wire.close()
        await until(lambda: idle(told(at)), "its end")
        assert (told(at).missed_total, told(at).finished_total) == (missed, 0)


async def test_a_request_that_moves_to_another_pool_arrives_there_too_and_is_under_way_once(
    engine: FakeEngine,
) -> None:
    gate = asyncio.Event()
    engine.behaviour = Behaviour(hold=gate)
    pools = (
        PoolConfig(pool=POOL, max_context_tokens=4096, card=CARD),
        PoolConfig(pool=LONG_POOL, max_context_tokens=4096, card=CARD),
    )
    moved = route(fallbacks=(FallbackConfig(pool=LONG_POOL, when=("ScaledToZero",)),))
    both = configuration(pools=pools, policies=(policy(routes=(moved,)),))
    async with station(both, {LONG_POOL: (await engine.start(),)}) as at:
        asked = asyncio.create_task(at.ask(chat()))
        await until(lambda: engine.running == 1, "the request")
        assert (told(at).arrivals_total, told(at, LONG_POOL).arrivals_total) == (1, 1)
        assert idle(told(at))
        assert told(at, LONG_POOL).decoding == 1
        gate.set()
        await asked
        await until(lambda: told(at, LONG_POOL).finished_total == 1, "the end")
        assert idle(told(at, LONG_POOL))
        assert told(at).finished_total == 0


async def test_a_request_that_is_tried_again_arrived_once(engine: FakeEngine) -> None:
    second = FakeEngine()
    engine.behaviour = second.behaviour = Behaviour(status=503)
    second.plan.append(Behaviour())
    engine.plan.append(Behaviour(status=503))
    try:
        async with station(config(), {POOL: (await engine.start(), await second.start())}) as at:
            await at.ask(chat())
            await until(lambda: idle(told(at)), "the end")
            assert told(at).arrivals_total == 1
    finally:
        await second.stop()


async def test_a_request_that_the_budget_refuses_is_no_demand(engine: FakeEngine) -> None:
    poor = config(budgets=(budget(),))
    async with station(poor, {POOL: (await engine.start(),)}, lease={"support/support": 0}) as at:
        assert (await at.ask(chat())).status != 200
        assert (told(at).arrivals_total, told(at).missed_total) == (0, 0)


async def test_counting_tokens_is_no_demand(engine: FakeEngine) -> None:
    async with station(config(), {POOL: (await engine.start(),)}) as at:
        await at.ask(b'{"model":"chat","prompt":"hi"}', "/tokenize")
        assert told(at).arrivals_total == 0


def test_the_samples_are_bounded() -> None:
    demand = Demand()
    for place in range(100):
        demand.samples.append((place, 1))
    assert len(demand.samples) == MAX_SAMPLES
