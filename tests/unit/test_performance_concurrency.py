"""How many requests a replica should run at once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.performance import concurrency as module
from fairlead_operator.performance.concurrency import concurrency
from fairlead_operator.performance.step import Engine, Mix, Objectives, StepTime

ENGINE = Engine(StepTime(base=0.02, per_context_token=0.0, per_token=1e-4), kv_tokens=1_000_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the requests."""
    monkeypatch.setattr(module, "COUNTED", 200)


def test_alike_requests_run_as_many_as_the_formula_says() -> None:
    # A step of b sequences takes 0.02 + b 1e-4 seconds; the objective allows 60 of them.
    assert concurrency(ENGINE, ((1, 200),), Objectives(ttft=None, tpot=0.026)) == pytest.approx(60, abs=2)


def test_the_kv_cache_bounds_it_before_requests_must_wait_in_the_engine() -> None:
    small = replace(ENGINE, kv_tokens=20_000)
    found = concurrency(small, ((1000, 1000),), Objectives(ttft=1.0, tpot=None))
    assert 8 <= found <= 14  # of a mean context of 1,500 tokens


def test_an_engine_that_keeps_its_objectives_full_runs_what_it_may() -> None:
    assert concurrency(replace(ENGINE, max_sequences=32), ((1, 200),), Objectives(ttft=None, tpot=1.0)) == 32


def test_a_mix_that_one_alone_misses_still_runs_one() -> None:
    assert concurrency(ENGINE, ((1, 200),), Objectives(ttft=None, tpot=0.001)) == 1


def test_a_mix_that_fits_nowhere_bounds_nothing() -> None:
    assert concurrency(ENGINE, ((2_000_000, 1),), Objectives(ttft=1.0, tpot=0.1)) == 256


mixes = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 300)), min_size=1, max_size=8).map(tuple)


@settings(max_examples=10, deadline=None)
@given(mixes, st.floats(0.02, 0.06), st.floats(0.5, 0.999))
def test_it_lies_between_one_and_the_engines_own_bound(mix: Mix, tpot: float, attainment: float) -> None:
    engine = replace(ENGINE, max_sequences=(1, 16, 64)[len(mix) % 3])
    assert 1 <= concurrency(engine, mix, Objectives(2.0, tpot, attainment)) <= engine.max_sequences
