"""Our law in the simulator: when it measures what a replica can do, and on which requests."""

from collections.abc import Sequence

import pytest

from fairlead_operator.decide.autoscale.mix import MAX_MIX
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Engine, Mix, Objectives, StepTime
from fairlead_operator.simulate import fairlead
from fairlead_operator.simulate.fairlead import REFRESH, SOME, UNKNOWN_MIX, Fairlead
from fairlead_operator.simulate.model import Variant
from fairlead_operator.simulate.policy import Recent, View

ENGINE = Engine(StepTime(0.02, 0.0, 1e-4), kv_tokens=100_000)
EACH = 60
"""Requests that finish in a round: 512 of them in nine rounds, all that are kept in 35."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Mix]:
    """The mixes that curves were measured on."""
    found: list[Mix] = []

    def curve(_engine: Engine, mix: Mix, _objectives: Objectives, replicas: int) -> Curve:
        found.append(mix)
        return Curve((5.0, 10.0, 20.0), (1.0, 0.99, 0.5), replicas)

    monkeypatch.setattr(fairlead, "curve", curve)
    return found


USUAL = (1000, 100)


def view(now: float, samples: Sequence[tuple[int, int]]) -> View:
    count = len(samples)
    return View(
        now=now, ready=(1,), starting=(0,), draining=(0,), start_ages=((),), arrivals=count, finished=count, met=count,
        missed=0, met_ttft=count, missed_ttft=0, met_tpot=count, missed_tpot=0, prompt_tokens=0, output_tokens=0,
        running=0, waiting=0, held=0, waiting_tokens=0, kv_use=(0.0,), running_by=(0,), waiting_by=(0,),
        recent=Recent((), ()), samples=tuple(samples),
    )  # fmt: skip


def driven(rounds: int, each: int = EACH, seconds: float = 5.0, later: tuple[int, int] = USUAL) -> None:
    """The policy after so many rounds; requests of the second half have the later sizes."""
    policy = Fairlead((Variant(ENGINE, 10.0, 60.0, 1, 1),), Objectives(2.0, 0.05), interval=seconds)
    for turn in range(1, rounds + 1):
        policy.desired(view(turn * seconds, ((later if turn > rounds / 2 else USUAL),) * each))


def test_capacities_are_measured_before_there_are_requests_on_some_and_on_as_many_as_are_kept(
    measured: list[Mix],
) -> None:
    driven(100)
    assert [len(mix) for mix in measured] == [EACH, 540, MAX_MIX]
    assert 540 - EACH < SOME <= 540
    del measured[:]
    driven(10, each=0)
    assert measured == [UNKNOWN_MIX]


def test_they_are_not_measured_again_while_the_sizes_stay(measured: list[Mix]) -> None:
    driven(200, seconds=60.0)
    assert 3 * REFRESH < 200 * 60.0
    assert len(measured) == 3


def test_they_are_measured_again_where_the_sizes_changed(measured: list[Mix]) -> None:
    driven(360, seconds=60.0, later=(2000, 200))
    assert 4 <= len(measured) <= 9
    assert set(measured[2]) == {USUAL}
    assert set(measured[-1]) == {(2000, 200)}


def test_a_pool_that_few_ask_is_measured_on_what_is_known_of_it(measured: list[Mix]) -> None:
    driven(1100, each=1, seconds=60.0, later=(3000, 100))
    assert [len(mix) for mix in measured[:2]] == [1, SOME]
    assert len(measured) >= 3
