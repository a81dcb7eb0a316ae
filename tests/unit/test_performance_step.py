"""Tests of the step's time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.performance.step import Engine, Objectives, StepTime

WORK = st.tuples(*[st.integers(min_value=0, max_value=1_000_000)] * 3)
STEP = StepTime(base=0.01, per_context_token=2e-8, per_token=3e-5)


def test_a_step_is_its_base_and_what_context_and_tokens_cost() -> None:
    assert STEP.step(10, 1000, 50_000) == pytest.approx(0.01 + 0.001 + 0.0303)


@given(WORK, WORK)
def test_more_work_never_makes_a_step_shorter(work: tuple[int, ...], more: tuple[int, ...]) -> None:
    both = [one + other for one, other in zip(work, more, strict=True)]
    assert STEP.step(*both) >= STEP.step(*work) >= STEP.base


@pytest.mark.parametrize("field", ["base", "per_context_token", "per_token"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_a_coefficient_that_is_no_duration_is_refused_by_name(field: str, value: float) -> None:
    coefficients = {"base": 0.01, "per_context_token": 0.0, "per_token": 0.0, field: value}
    with pytest.raises(ValueError, match=field):
        StepTime(**coefficients)


@pytest.mark.parametrize("field", ["kv_tokens", "token_budget", "max_sequences"])
def test_an_engine_without_room_for_a_token_is_refused_by_name(field: str) -> None:
    sizes = {"kv_tokens": 1000, "token_budget": 2048, "max_sequences": 256, field: 0}
    with pytest.raises(ValueError, match=field):
        Engine(step=STEP, **sizes)


@pytest.mark.parametrize(
    ("ttft", "tpot", "attainment", "name"),
    [
        (0.0, None, 0.99, "ttft"),
        (math.nan, None, 0.99, "ttft"),
        (None, -0.05, 0.99, "tpot"),
        (None, None, 0.0, "attainment"),
        (None, None, 1.1, "attainment"),
    ],
)
def test_objectives_that_cannot_be_met_or_missed_are_refused_by_name(
    ttft: float | None, tpot: float | None, attainment: float, name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        Objectives(ttft=ttft, tpot=tpot, attainment=attainment)


def test_an_objective_may_be_absent() -> None:
    assert Objectives(ttft=None, tpot=0.05) == Objectives(None, 0.05, 0.99)
