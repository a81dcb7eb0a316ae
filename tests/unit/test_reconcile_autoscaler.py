"""The law of latency in the operator: what it is given each round, what comes of it, and what happens without."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead_operator.decide.autoscale import History
from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.replicas import Spending, bounds_of
from fairlead_operator.decide.rounds import Counts, Round, Seen
from fairlead_operator.decide.signals import Load, Report
from fairlead_operator.decide.variants import variant_options
from fairlead_operator.performance.curve import Curve, curve
from fairlead_operator.performance.step import Mix, Objectives
from fairlead_operator.reconcile.autoscaler import (
    MEASURED_ROUNDS,
    Past,
    PoolLaw,
    Scene,
    concurrency_of,
    figures_of,
    objectives_of,
    observation_of,
    wish_of,
)
from fairlead_operator.reconcile.curves import Curves, Question
from fairlead_router.contract import EngineSignals, Signals
from tests.builders.decisions import GONE, NOW, pod
from tests.builders.resources import PoolBuilder, make_pool

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
MIX: Mix = ((1_000, 100),) * 20
TEN = Curve((1.0, 10.0, 12.0), (1.0, 0.99, 0.0))
"""Ten requests a second of one replica meet the objectives."""
ROUND_MS = 5_000


class KnownCurves(Curves):
    """Answers at once; ``asked`` are the questions."""

    def __init__(self, curve: Curve | None = TEN) -> None:
        super().__init__()
        self.asked: list[Question] = []
        self.curve = curve

    def find(self, question: Question) -> Curve | None:
        self.asked.append(question)
        return self.curve

    def waits(self, question: Question) -> bool:
        return self.curve is None and question in self.asked


@pytest.fixture
def curves() -> KnownCurves:
    return KnownCurves()


def chat(maximum: int = 20, minimum: int = 1, **scaling: Any) -> PoolBuilder:
    objectives = {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}
    usual = {"objectives": objectives} | scaling
    built = make_pool("chat-8b").model(uri="hf://meta-llama/Llama-3.1-8B-Instruct")
    return built.variant("h100", nodeSelector=H100).autoscaling(maximum, minimum, **usual)


def scene(builder: PoolBuilder, current: int = 1, **fields: Any) -> Scene:
    """A pool whose replicas all serve, in the first round."""
    pool = builder.parsed()
    names = [variant.name for variant in pool.spec.variants]
    pods = [pod(f"{names[0]}-{place}", variant=names[0]) for place in range(current)]
    usual: dict[str, Any] = {
        "pool": pool,
        "pods": pods,
        "nodes": {},
        "created_ms": {one.key: NOW - 3_600_000 for one in pods},
        "reports": {},
        "load": Load(),
        "seen": Seen(NOW, {}, (Round(NOW),), MIX),
        "bounds": bounds_of(pool.spec),
        "options": variant_options(pool.spec, {names[0]: current}, dict.fromkeys(names, 2_950_000_000)),
        "cold_starts": dict.fromkeys(names, 120_000),
        "spending": Spending(),
        "now_ms": NOW,
    }
    return Scene(**(usual | fields))


def later(one: Scene, rounds: int, arrivals: int, **fields: Any) -> Scene:
    """So many rounds after the first, in the last of which so many requests came."""
    at = NOW + rounds * ROUND_MS
    counts = Counts(arrivals=arrivals, arrived_tokens=arrivals * 1_000, finished=arrivals, met=arrivals)
    return replace(one, now_ms=at, seen=Seen(at, {}, (Round(at, counts),), MIX), **fields)


def driven(law: PoolLaw, builder: PoolBuilder, curves: Curves, rounds: int, arrivals: int, **fields: Any) -> list[int]:
    """The number of replicas wished in each round; what is wished serves in the next."""
    wished, current = [], 1
    for turn in range(rounds):
        wish = wish_of(law, later(scene(builder, current), turn, arrivals, **fields), curves)
        assert wish is not None
        current = wish.replicas
        wished.append(current)
    return wished


# --- requests at once ---


def measured_law(builder: PoolBuilder, curves: Curves, rounds: int = MEASURED_ROUNDS, error: float = 0.05) -> PoolLaw:
    """A law that knows a variant's curves, and whose engine's speed was measured in so many rounds."""
    law = PoolLaw()
    wish_of(law, scene(builder), curves)
    known = law.engines["h100"]
    law.engines["h100"] = replace(known, memory=replace(known.memory, rounds=rounds, error=error))
    return law


def test_a_replica_should_run_what_its_curves_were_measured_with_at_most() -> None:
    bounded = KnownCurves(replace(TEN, slots=150))
    assert concurrency_of(measured_law(chat(), bounded), chat().parsed()) == {"h100": 150}


@pytest.mark.parametrize(("rounds", "error"), [(MEASURED_ROUNDS - 1, 0.05), (MEASURED_ROUNDS, 0.2)])
def test_an_engine_that_was_not_measured_well_is_not_bounded(rounds: int, error: float) -> None:
    law = measured_law(chat(), KnownCurves(replace(TEN, slots=150)), rounds, error)
    assert concurrency_of(law, chat().parsed()) == {}


def test_a_pool_without_objectives_of_latency_is_not_bounded() -> None:
    law = measured_law(chat(), KnownCurves(replace(TEN, slots=150)))
    assert concurrency_of(law, make_pool("chat-8b").variant("h100").replicas(8).parsed()) == {}


# --- when there is a wish ---


def test_a_pool_without_objectives_of_latency_has_no_wish(curves: KnownCurves) -> None:
    law = PoolLaw()
    assert wish_of(law, scene(make_pool("chat-8b").variant("h100").autoscaling(8)), curves) is None
    assert wish_of(law, scene(make_pool("chat-8b").variant("h100").replicas(8)), curves) is None
    assert (law.reason, law.stepped_ms, curves.asked) == ("", 0, [])


def test_objectives_are_in_seconds_and_shares() -> None:
    assert objectives_of(chat().parsed()) == Objectives(2.0, 0.05, 0.99)
    only = chat(objectives={"timeToFirstToken": "1500ms", "attainmentPercent": 95}).parsed()
    assert objectives_of(only) == Objectives(1.5, None, 0.95)


def test_demand_above_what_the_replicas_take_adds_some_and_says_why(curves: KnownCurves) -> None:
    law = PoolLaw()
    assert driven(law, chat(), curves, 60, 150)[-1] >= 3
    wish = law.wish
    assert wish is not None
    assert wish.rate == pytest.approx(30, rel=0.1)
    assert wish.message
    assert law.reason == ""


def test_a_quiet_pool_goes_to_its_minimum_and_stays_there(curves: KnownCurves) -> None:
    assert set(driven(PoolLaw(), chat(minimum=2), curves, 40, 0)[1:]) == {2}


def test_the_law_is_stepped_once_a_round_however_often_the_pool_is_looked_at(curves: KnownCurves) -> None:
    law = PoolLaw()
    first = wish_of(law, scene(chat()), curves)
    memory = law.memory
    assert wish_of(law, scene(chat()), curves) is first
    assert law.memory is memory
    wish_of(law, later(scene(chat()), 1, 5), curves)
    assert law.memory is not memory


def test_nothing_goes_while_a_router_is_silent(curves: KnownCurves) -> None:
    law = PoolLaw()
    for turn in range(400):
        silent = Load(missing=(GONE,))
        wish = wish_of(law, later(scene(chat(), 5), turn, 0, load=silent), curves)
        assert wish is not None
        assert wish.replicas >= 5


def test_what_budgets_leave_is_not_passed(curves: KnownCurves) -> None:
    law, cap = PoolLaw(), Spending(per_hour=2 * 2_950_000_000)
    assert max(driven(law, chat(), curves, 60, 110, spending=cap)) == 2
    assert law.wish is not None
    assert law.wish.bound_by == "SpendCap"


# --- what is not known ---


def test_without_sizes_of_requests_there_is_no_wish_and_it_says_why(curves: KnownCurves) -> None:
    law = PoolLaw()
    assert wish_of(law, scene(chat(), seen=Seen(NOW, {}, (Round(NOW),), MIX[:7])), curves) is None
    assert law.reason == "fewer than 8 requests have finished yet, so the usual sizes are not known"


def test_the_sizes_of_days_past_stand_in_until_enough_requests_have_finished(curves: KnownCurves) -> None:
    past = Past(History(NOW - 900_000, 900_000, (1.0,)), (700, 60))
    assert wish_of(PoolLaw(), scene(chat(), seen=Seen(NOW, {}, (Round(NOW),), ()), past=past), curves) is not None
    assert curves.asked[0].mix == ((700, 60),)


def test_an_engine_whose_speed_nobody_knows_leaves_the_decision_to_the_queue(curves: KnownCurves) -> None:
    law = PoolLaw()
    assert wish_of(law, scene(chat().variant("h100", nodeSelector={"zone": "a"})), curves) is None
    assert law.reason.startswith("the speed of variant h100 is not known: No label of the variant's nodes names")


def test_a_capacity_that_is_being_computed_is_waited_for(curves: KnownCurves) -> None:
    law = PoolLaw()
    curves.curve = None
    assert wish_of(law, scene(chat()), curves) is None
    assert law.reason == "the capacity of variant h100 is being computed"
    curves.curve = TEN
    assert wish_of(law, later(scene(chat()), 1, 0), curves) is not None


def test_other_capacities_are_asked_for_once_one_is_known(curves: KnownCurves) -> None:
    law, four = PoolLaw(), scene(chat(), 4)
    curves.curve = None
    assert wish_of(law, four, curves) is None
    assert [question.replicas for question in curves.asked] == [1]
    curves.curve = TEN
    assert wish_of(law, later(four, 1, 0), curves) is not None
    assert [question.replicas for question in curves.asked[1:]] == [1, 4]


def test_a_capacity_that_was_known_holds_while_the_next_is_computed(curves: KnownCurves) -> None:
    law = PoolLaw()
    wish_of(law, scene(chat()), curves)
    curves.curve = None
    longer = later(scene(chat()), 1, 0)
    longer = replace(longer, seen=replace(longer.seen, mix=((9_000, 900),) * 20))
    assert wish_of(law, longer, curves) is not None


def test_while_a_capacity_is_computed_nothing_else_is_asked_and_its_answer_counts(curves: KnownCurves) -> None:
    law, first = PoolLaw(), scene(chat(maximum=1))
    curves.curve = None
    wish_of(law, first, curves)
    for turn in range(1, 4):
        moved = later(scene(chat(maximum=1)), turn, 0)
        moved = replace(moved, seen=replace(moved.seen, mix=((1_000 * 2**turn, 100),) * 20))
        assert wish_of(law, moved, curves) is None
    assert curves.asked == [curves.asked[0]] * 4
    curves.curve = TEN
    moved = replace(moved, seen=replace(moved.seen, at_ms=moved.seen.at_ms + ROUND_MS))
    assert wish_of(law, moved, curves) is not None
    assert curves.asked[-1].mix == moved.seen.mix


# --- what it is given ---


def test_capacities_are_known_for_one_replica_for_some_and_for_as_many_as_there_are(curves: KnownCurves) -> None:
    wish_of(PoolLaw(), scene(chat(maximum=20), 9), curves)
    assert [question.replicas for question in curves.asked] == [1, 4, 8]
    curves.asked.clear()
    wish_of(PoolLaw(), scene(chat(maximum=2), 1), curves)
    assert [question.replicas for question in curves.asked] == [1]


def test_the_engine_is_seeded_by_the_nodes_that_the_pods_run_on(curves: KnownCurves) -> None:
    builder = chat().variant("h100", nodeSelector={"zone": "a"})
    nodes = {"gpu-1": NodeFact("gpu-1", {"zone": "a", **H100}, {})}
    assert wish_of(PoolLaw(), scene(builder, nodes=nodes), curves) is not None
    unused = {"gpu-9": replace(nodes["gpu-1"], name="gpu-9")}
    assert wish_of(PoolLaw(), scene(builder, nodes=unused), curves) is not None


def test_a_changed_engine_is_learned_anew(curves: KnownCurves) -> None:
    law = PoolLaw()
    reports = {}
    for one in scene(chat()).pods:
        signals = Signals(router=one.key, config_version="", endpoints_version="", engine=EngineSignals(kv_tokens=777))
        reports[one.key] = Report(one.key, NOW, signals)
    wish_of(law, scene(chat(), reports=reports), curves)
    assert law.engines["h100"].kv_tokens == 777
    wish_of(law, later(scene(chat().engine(maxSequences=8)), 1, 0), curves)
    assert law.engines["h100"].kv_tokens == -1
    assert curves.asked[-1].engine.max_sequences == 8


def test_a_variant_that_is_gone_is_forgotten(curves: KnownCurves) -> None:
    law, both = PoolLaw(), chat().variant("l40s", nodeSelector={"nvidia.com/gpu.product": "NVIDIA-L40S"})
    wish_of(law, scene(both), curves)
    assert {name for name, _ in law.curves} == {"h100", "l40s"}
    wish_of(law, later(scene(chat()), 1, 0), curves)
    assert {name for name, _ in law.curves} == {name for name, _ in law.questions} == set(law.engines) == {"h100"}


def test_the_round_is_what_routers_counted_and_the_load_of_now() -> None:
    counts = Counts(arrivals=7, arrived_tokens=70, finished=9, output_tokens=50, met=4, missed=1)
    load = Load(running=3, waiting=2, held=1, last_request_ms=NOW + 999_999, missing=(GONE,))
    given = scene(chat(), load=load, seen=Seen(NOW, {}, (Round(NOW, counts, waiting_tokens=33),), MIX))
    seen = observation_of(given)
    assert (seen.arrivals, seen.prompt_tokens, seen.finished, seen.output_tokens) == (7, 70, 5, 50)
    assert (seen.met, seen.missed, seen.waiting_tokens) == (4, 1, 33)
    assert (seen.running, seen.waiting, seen.held, seen.complete) == (3, 2, 1, False)
    assert seen.last_request_ms == NOW, "a router whose clock is ahead keeps nothing awake"


def test_figures_are_those_of_the_last_wish(curves: KnownCurves) -> None:
    law, pool = PoolLaw(), chat().parsed()
    assert figures_of(law, pool) is None
    driven(law, chat(), curves, 30, 50)
    figures = figures_of(law, pool)
    assert figures is not None
    assert law.wish is not None
    assert figures.capacity == {"h100": pytest.approx(law.wish.capacity)}
    assert figures.have == pytest.approx(law.wish.capacity * law.wish.replicas)
    assert figures.rate == law.wish.rate


def test_the_capacity_of_a_seeded_engine_is_what_such_an_engine_does(curves: KnownCurves) -> None:
    wish_of(PoolLaw(), scene(chat()), curves)
    asked = curves.asked[0]
    assert 5 < curve(asked.engine, asked.mix, asked.objectives).capacity(0.99) < 60
