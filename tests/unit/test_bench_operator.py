"""The operator's bench: its plan of a fleet, what its routers count, and its statistics."""

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import ModelPool
from fairlead_router.contract import PoolSignals
from tests.bench.operator import figures, fleet, real, recorded, stopwatch
from tests.bench.operator.figures import Timed, Usage
from tests.bench.operator.fleet import Plan
from tests.bench.operator.traffic import Each, Traffic
from tests.e2e.lifecycle.traffic import Seen as Answer
from tests.e2e.lifecycle.traffic import read_stream

KIND = fleet.KINDS[0]
PLAN = Plan(name="pool-000", kind=0, prompt=KIND.prompt, output=KIND.output, peak=50.0, phase=0.0)
DAY = 3600.0


def traffic() -> Traffic:
    return Traffic(PLAN, random.Random(1))  # noqa: S311 - chance, not a secret


def test_a_day_runs_from_a_quarter_of_the_peak_to_the_peak_and_back() -> None:
    rates = [PLAN.rate(part * DAY, DAY) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([12.5, 31.25, 50.0, 31.25, 12.5])


def test_the_same_seed_plans_the_same_fleet_of_all_kinds_and_every_object_is_a_pool() -> None:
    planned = fleet.plans(8, 1)
    assert planned == fleet.plans(8, 1)
    assert planned != fleet.plans(8, 2)
    assert {plan.kind for plan in planned} == set(range(len(fleet.KINDS)))
    assert len({ModelPool.parse(fleet.pool(plan).obj()).name for plan in planned}) == 8


def test_the_nodes_hold_all_pools_at_their_largest() -> None:
    planned = fleet.plans(40, 1)
    room: dict[str, int] = {}
    for node in fleet.nodes(planned):
        product = node["metadata"]["labels"][fleet.GPU]
        room[product] = room.get(product, 0) + int(node["status"]["allocatable"]["nvidia.com/gpu"])
    for product in {kind.product for kind in fleet.KINDS}:
        kinds = [fleet.KINDS[plan.kind] for plan in planned]
        most = sum(fleet.MAX_REPLICAS * kind.accelerators for kind in kinds if kind.product == product)
        assert room[product] >= most


@pytest.mark.parametrize("kind", fleet.KINDS, ids=lambda kind: kind.model)
def test_a_replica_of_every_kind_takes_its_capacity_within_the_objectives(kind: fleet.Kind) -> None:
    each = Each(fleet.engine(kind), kind.prompt, kind.output)
    capacity = fleet.capacity(kind)
    assert 0 < capacity < each.most
    assert each.step(capacity) <= kind.tpot


def test_the_counters_of_a_pool_add_up_and_its_engines_tell_the_step_that_its_load_makes() -> None:
    one, seconds = traffic(), 200
    for second in range(seconds):
        one.advance(1.0, 20.0, ("fleet/a", "fleet/b"), second)
    totals = one.totals
    assert totals.arrivals == pytest.approx(20 * seconds, rel=0.1)
    assert totals.finished == totals.met == pytest.approx(totals.arrivals, abs=1)
    assert totals.missed == 0
    _, engine = one.sidecar("fleet/pool-000", "fleet/a")
    step = Each(fleet.engine(KIND), KIND.prompt, KIND.output).step(10.0)
    assert engine.gaps_us_total / engine.gaps_total / 1e6 == pytest.approx(step, rel=0.1)
    assert engine.computed_total == pytest.approx(10 * KIND.prompt * seconds, rel=0.1)
    assert 0 < engine.kv_permille < 1000


def test_too_much_for_the_engines_waits_misses_and_is_worked_off_by_more_of_them() -> None:
    one = traffic()
    for second in range(30):
        one.advance(1.0, 200.0, ("fleet/a",), second)
    assert one.waiting > 0
    assert one.totals.missed > 0
    for second in range(30, 120):
        one.advance(1.0, 20.0, tuple(f"fleet/{name}" for name in "abcdefgh"), second)
    assert one.waiting == 0


def test_without_an_engine_every_request_waits() -> None:
    one = traffic()
    one.advance(1.0, 100.0, (), 1)
    assert one.waiting == one.totals.arrivals > 0
    assert one.totals.finished == 0


@given(gateways=st.integers(1, 5), rate=st.floats(0.0, 500.0), engines=st.integers(0, 3))
def test_what_the_gateways_tell_is_all_there_is(gateways: int, rate: float, engines: int) -> None:
    one = traffic()
    for second in range(3):
        one.advance(1.0, rate, tuple(map(str, range(engines))), second)
    told = [one.entry("fleet/pool-000", place, gateways) for place in range(gateways)]
    assert sum(each.arrivals_total for each in told) == one.totals.arrivals
    assert sum(each.finished_total for each in told) == one.totals.finished
    assert sum(each.held for each in told) == int(one.waiting)
    assert [msgspec.json.decode(msgspec.json.encode(each), type=PoolSignals) for each in told] == told


POOLS = {"fleet/a", "fleet/b"}


def rounds(*ends: float) -> list[Timed]:
    return [Timed("round", "", at, 0.1) for at in ends]


def decisions(pool: str, *ends: float) -> list[Timed]:
    return [Timed("decision", pool, at, 0.001) for at in ends]


def test_every_pool_that_is_decided_in_every_round_is_in_time() -> None:
    timed = [*rounds(0, 5, 10), *decisions("fleet/a", 0.5, 2.0, 5.5), *decisions("fleet/b", 1.0, 6.0, 11.0)]
    found = figures.punctuality(timed, POOLS, 15)
    assert found["decisions_in_time"] == found["decisions_expected"] == 4
    assert found["decided_percent"] == 100
    assert found["decided_after_p50_ms"] == 500
    assert found["decided_after_p99_ms"] == 1000


def test_a_round_without_a_decision_of_a_pool_is_seen() -> None:
    timed = [*rounds(0, 5, 10), *decisions("fleet/a", 0.5, 5.5), *decisions("fleet/b", 1.0)]
    assert figures.punctuality(timed, POOLS, 15)["decided_percent"] == 75


def test_a_round_that_was_never_held_is_seen() -> None:
    timed = [*rounds(0, 10), *decisions("fleet/a", 0.5), *decisions("fleet/b", 1.0)]
    assert figures.punctuality(timed, POOLS, 15)["decided_percent"] == 50


def test_the_time_of_each_thing_is_told_by_how_often_it_took_how_long() -> None:
    timed = [Timed("decision", "fleet/a", 1.0, took / 1000) for took in range(1, 101)]
    found = figures.times_ms(timed)["decision"]
    assert found == {"count": 100, "p50_ms": 50, "p99_ms": 99, "max_ms": 100, "total_s": 5.05}
    assert figures.times_ms(())["decision"]["max_ms"] == 0


def test_a_share_is_of_one_core_and_memory_is_that_of_now() -> None:
    before, after = Usage(10.0, 2.0, 1, 1), Usage(14.0, 7.0, 100 * 1024**2, 120 * 1024**2)
    assert figures.share(before, after, 10.0) == {
        "cpu_percent": 40.0, "children_percent": 50.0, "resident_mib": 100, "highest_mib": 120,
    }  # fmt: skip


def test_the_series_of_a_metric_are_told_from_those_whose_names_begin_like_it() -> None:
    text = '# TYPE a gauge\na{pool="x"} 1.5\na{pool="y"} 2\na_total{pool="x"} 7\nb 3\n'
    assert figures.metric(text, "a") == {'pool="x"': 1.5, 'pool="y"': 2.0}
    assert figures.metric(text, "b") == {"": 3.0}


class Worker:
    def add(self, one: int, two: int) -> int:
        return one + two

    async def wait(self, name: str) -> str:
        await asyncio.sleep(0)
        return name


async def test_stopwatches_change_nothing_and_write_a_line_for_each_call() -> None:
    out = io.StringIO()
    note = stopwatch.into(out)
    add = stopwatch.timed(note, "add", Worker.add, lambda _, one, __: str(one))
    wait = stopwatch.awaited(note, "wait", Worker.wait, lambda _, name: str(name))
    assert add(Worker(), 1, 2) == 3
    assert await wait(Worker(), "x") == "x"
    with pytest.raises(TypeError):
        add(Worker(), 1, None)
    found = figures.read(out.getvalue().splitlines(keepends=True))
    assert [(one.what, one.of) for one in found] == [("add", "1"), ("wait", "x"), ("add", "1")]
    assert figures.read(['["add","1",1.0,0.1]']) == []


def test_what_is_timed_exists() -> None:
    for _, owner, name, _of in (*stopwatch.PAUSELESS, *stopwatch.AWAITED):
        assert callable(getattr(owner, name))


def test_the_recorded_hour_keeps_its_rhythm_with_fewer_and_smaller_requests() -> None:
    hour, seconds = recorded.recorded(), 480.0
    sent = recorded.calls(hour, seconds)
    assert sent == recorded.calls(hour, seconds)
    assert len(sent) == pytest.approx(recorded.RATE * seconds, rel=0.1)
    assert all(0 <= one.at <= seconds and 2 <= one.prompt <= 1200 and 2 <= one.output <= 500 for one in sent)
    middle = [
        sum(0.4 <= one.at / end < 0.6 for one in some) / len(some) for some, end in ((hour, 3600), (sent, seconds))
    ]
    assert middle[0] == pytest.approx(middle[1], rel=0.15)
    assert middle[0] > 0.2 * 1.2


def seen(*counts: tuple[int, int]) -> list[real.Seen]:
    return [real.Seen(2.0 * number, desired, ready, None) for number, (desired, ready) in enumerate(counts)]


def test_the_first_look_and_every_change_of_replicas_is_told() -> None:
    looks = seen((1, 1), (1, 1), (2, 1), (2, 2), (2, 2), (1, 1))
    assert [one.at for one in real.changes(looks)] == [0.0, 4.0, 6.0, 10.0]
    assert real.mean_replicas(looks) == 1.5
    assert real.changes([]) == []


def test_a_request_without_an_answer_missed_the_objectives() -> None:
    good, slow, lost = (
        {"ttft": ttft, "tpot": 0.01, "error": error} for ttft, error in ((0.2, ""), (9.0, ""), (None, "500"))
    )
    found = real.service([good, good, slow, lost])
    assert (found["requests"], found["failed"], found["attainment_percent"]) == (4, 1, 50.0)
    assert found["ttft_ms"] == {"p50": 200, "p99": 9000}
    assert found["errors"] == ["500"]
    assert real.service([])["attainment_percent"] == 0


async def test_an_answer_may_hold_what_ends_a_line_elsewhere_and_comes_in_any_pieces() -> None:
    chunk = {"choices": [{"delta": {"content": "a\u2028b\u0085c"}}]}
    data = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\ndata: [DONE]\n\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 7):
            yield data[at : at + 7]

    seen = Answer()
    await read_stream(httpx.Response(200, content=pieces()), seen)
    assert seen.whole
    assert seen.first_s


def test_the_time_of_an_answer_counts_only_when_it_is_whole() -> None:
    call = recorded.Call(3.0, 10, 11)
    whole = recorded.outcome(call, 100.0, 102.0, Answer(status=200, first_s=101.0, whole=True), "")
    assert (whole["ttft"], whole["tpot"], whole["at"]) == (1.0, 0.1, 3.0)
    broken = recorded.outcome(call, 100.0, 102.0, Answer(status=200, first_s=101.0), "ReadError")
    assert (broken["ttft"], broken["tpot"]) == (None, None)
