"""The faults of the autoscaler's benchmark do what they say, and nothing is taken away while signals are incomplete."""

import random
from array import array

import pytest

from fairlead_operator.decide.autoscale import Observation
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Variant, Workload
from fairlead_operator.simulate.workloads import poisson
from tests.bench.autoscaler import faults
from tests.bench.autoscaler.faults import FAULTS, LATE_ROUNDS, Deceived
from tests.bench.autoscaler.scenarios import CHAT, LLAMA
from tests.builders.autoscale import CURVE

SEEN = Observation(
    at_ms=60_000,
    arrivals=50,
    finished=40,
    met=39,
    missed=1,
    prompt_tokens=5000,
    output_tokens=900,
    running=12,
    waiting=4,
    held=2,
    waiting_tokens=300,
    last_request_ms=59_000,
)
MINUTES = 20


def told(name: str, seen: Observation = SEEN, before: tuple[Observation, ...] = ()) -> Observation:
    return FAULTS[name](seen, before)


def test_lost_signals_are_incomplete_and_count_less() -> None:
    assert told("silent") == Observation(at_ms=60_000, last_request_ms=59_000, complete=False)
    half = told("half")
    assert (half.arrivals, half.missed, half.running, half.complete) == (25, 0, 6, False)


def test_routers_that_count_nothing_look_complete() -> None:
    assert told("nothing") == Observation(at_ms=60_000, last_request_ms=59_000)


def test_late_signals_are_a_minute_old_and_carry_the_time_of_now() -> None:
    before = tuple(Observation(at_ms=60_000 - 5_000 * age, arrivals=age) for age in range(1, 20))
    late = told("late", before=before)
    assert (late.at_ms, late.arrivals) == (60_000, LATE_ROUNDS)
    assert LATE_ROUNDS * 5_000 == 60_000
    assert told("late", before=before[:3]) == SEEN


def test_what_is_told_twice_counts_twice_everywhere() -> None:
    double = told("doubled")
    assert (double.arrivals, double.finished, double.met, double.missed) == (100, 80, 78, 2)
    assert (double.running, double.waiting, double.held, double.waiting_tokens) == (24, 8, 4, 600)


def test_a_wild_round_comes_once_a_minute() -> None:
    rounds = [Observation(at_ms=60_000 + 5_000 * number, arrivals=3) for number in range(24)]
    assert [told("wild", one).arrivals for one in rounds].count(300) == 2


def test_replicas_that_lie_change_what_was_met_and_nothing_else() -> None:
    assert (told("flattering").met, told("flattering").missed, told("flattering").waiting) == (40, 0, 0)
    bad = told("complaining")
    assert (bad.met, bad.missed, bad.finished, bad.arrivals) == (27, 13, 40, 50)


def taken(name: str, monkeypatch: pytest.MonkeyPatch) -> Deceived:
    """The law on three replicas too many, under a fault from the beginning."""
    monkeypatch.setattr(faults, "SINCE_MS", (0,))
    seconds = MINUTES * 60.0
    variant = Variant(LLAMA, 27.52, 60.0, 1, 4, initial=4)
    arrivals = poisson([(0.0, seconds, 2.0)], random.Random(name))  # noqa: S311 - choices that can be repeated
    sizes = array("i", [100] * len(arrivals)), array("i", [20] * len(arrivals))
    policy = Deceived((variant,), CHAT, told=FAULTS[name], lasts_ms=10**9)
    # Known, so that none is simulated.
    policy._curves = {LLAMA: ((1, CURVE),)}
    monkeypatch.setattr(Deceived, "_due", lambda _self, _now: False)
    run(Workload(arrivals, *sizes, seconds), (variant,), CHAT, policy, count_from=0.0)
    return policy


@pytest.mark.parametrize("name", ["silent", "half"])
def test_nothing_is_taken_away_while_signals_are_incomplete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = taken(name, monkeypatch)
    assert policy.taken_unknown == 0
    assert policy.wish is not None
    assert policy.wish.replicas == 4


def test_what_nobody_asks_for_is_taken_away_where_all_signals_come(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = taken("late", monkeypatch)
    assert policy.wish is not None
    assert policy.wish.replicas == 1
