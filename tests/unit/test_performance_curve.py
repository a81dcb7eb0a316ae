"""The share of its requests that a replica serves in time, by load."""

import csv
import gzip
import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.performance import curve as module
from fairlead_operator.performance.curve import Curve, curve
from fairlead_operator.performance.step import Engine, Mix, Objectives, StepTime

ENGINE = Engine(StepTime(base=0.0118, per_context_token=1.26e-8, per_token=2.88e-5), kv_tokens=1_200_000)
OBJECTIVES = Objectives(ttft=2.0, tpot=0.05)
CHANCE = random.Random(1)  # noqa: S311 - chance, not a secret
CHAT: Mix = tuple((CHANCE.randint(50, 2200), CHANCE.randint(20, 400)) for _ in range(200))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the requests, where precision does not matter."""
    monkeypatch.setattr(module, "COUNTED", 400)
    monkeypatch.setattr(module, "WARMING", 50)


@pytest.fixture(scope="module")
def chat() -> Curve:
    return curve(ENGINE, CHAT, OBJECTIVES)


def test_the_shares_fall_from_all_to_what_the_replica_can_do_as_the_load_rises(chat: Curve) -> None:
    assert chat.shares[0] == 1.0
    assert 0.6 < chat.shares[-1] < 0.9
    assert list(chat.shares) == sorted(chat.shares, reverse=True)
    assert list(chat.loads) == sorted(set(chat.loads))
    assert 10 <= len(chat.loads) <= 12


def test_the_loads_lie_close_about_the_capacity(chat: Curve) -> None:
    capacity = chat.capacity(0.99)
    below = max(load for load in chat.loads if load < capacity)
    above = min(load for load in chat.loads if load >= capacity)
    assert above - below < 0.1 * capacity


def test_a_capacity_is_a_load_with_that_share(chat: Curve) -> None:
    for attainment in (0.9, 0.95, 0.99):
        capacity = chat.capacity(attainment)
        assert chat.share(capacity) == pytest.approx(attainment)
        assert chat.share(capacity * 1.05) < attainment


def test_the_curve_is_the_same_for_the_same_seed_and_nearly_for_another(chat: Curve) -> None:
    assert curve(ENGINE, CHAT, OBJECTIVES, seed=1) == chat
    other = curve(ENGINE, CHAT, OBJECTIVES, seed=2)
    assert other != chat
    assert other.capacity(0.99) == pytest.approx(chat.capacity(0.99), rel=0.12)


def test_each_of_several_replicas_can_take_more_than_one_alone(chat: Curve) -> None:
    together = curve(ENGINE, CHAT, OBJECTIVES, replicas=4)
    assert chat.capacity(0.99) * 1.03 < together.capacity(0.99) < chat.capacity(0.99) * 1.5
    assert together.loads[-1] == chat.loads[-1]


@pytest.mark.usefixtures("quick")
def test_the_capacity_is_close_to_the_formula_where_every_request_is_alike() -> None:
    mix: Mix = ((1, 200),)
    engine = replace(ENGINE, step=StepTime(base=0.02, per_context_token=0.0, per_token=1e-4), max_sequences=128)
    # A step of b sequences takes base + b per_token; the objective allows b = 60, which is 60 / (200 t) requests/s.
    found = curve(engine, mix, Objectives(ttft=None, tpot=0.026), replicas=8).capacity(0.99)
    assert found == pytest.approx(60 / (200 * 0.026), rel=0.05)


@pytest.mark.parametrize(
    ("trace", "replicas", "least", "most"), [("conv", 4, 15.0, 16.8), ("code", 4, 5.2, 6.6), ("code", 1, 2.7, 3.6)]
)
def test_real_lengths_on_a_large_model_give_its_known_capacity(
    trace: str, replicas: int, least: float, most: float
) -> None:
    """Llama-3.1-70B in FP8 on four H100: another simulator found 15.5 and 5.8 requests/s for each of several."""
    path = Path(__file__).parents[1] / "bench" / "data" / f"azure2023_{trace}.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [(int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"]))) for row in csv.DictReader(file)]
    mix = tuple(random.Random(1).sample(rows, 512))  # noqa: S311 - chance, not a secret
    bandwidth = 4 * 3.35e12 * 0.97
    step = StepTime(6.2e-3 + 70.6e9 / bandwidth, 163_840 / bandwidth, 2 * 70.6e9 / (4 * 1978e12 * 0.62))
    engine = Engine(step, kv_tokens=int((4 * 80e9 * 0.9 - 84.6e9) / 163_840))
    assert least < curve(engine, mix, OBJECTIVES, replicas=replicas).capacity(0.99) < most


@pytest.mark.usefixtures("quick")
def test_without_objectives_a_replica_takes_what_its_queue_can_bear() -> None:
    found = curve(ENGINE, CHAT, Objectives(ttft=None, tpot=None))
    assert found.capacity(0.99) == pytest.approx(found.loads[-1] / 1.1, rel=0.05)
    assert found.share(found.loads[-1]) == pytest.approx(1 / 1.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "engine",
    [
        replace(ENGINE, max_sequences=4),
        replace(ENGINE, kv_tokens=8000),
        replace(ENGINE, token_budget=64),
        ENGINE,
    ],
)
def test_every_bound_of_an_engine_bounds_its_load(engine: Engine) -> None:
    found = curve(engine, CHAT, Objectives(ttft=20.0, tpot=None))
    assert found.capacity(0.99) < found.loads[-1]
    assert found.capacity(0.95) > 0.5 * found.loads[-1]
    assert found.slots <= engine.max_sequences


@pytest.mark.usefixtures("quick")
def test_a_mix_that_an_idle_replica_misses_has_no_capacity() -> None:
    found = curve(ENGINE, ((100_000, 10),), OBJECTIVES)
    assert found.capacity(0.99) == 0.0
    assert found.share(0.001) == 0.0


@pytest.mark.usefixtures("quick")
def test_requests_larger_than_the_kv_cache_have_missed() -> None:
    found = curve(ENGINE, (*CHAT, *((2_000_000, 10) for _ in range(200))), OBJECTIVES)
    assert found.share(0.1) == pytest.approx(0.5, abs=0.1)
    assert curve(ENGINE, ((2_000_000, 10),), OBJECTIVES).share(0.001) == 0.0


def test_no_mix_and_no_time_are_errors() -> None:
    with pytest.raises(ValueError, match="mix has no requests"):
        curve(ENGINE, (), OBJECTIVES)
    with pytest.raises(ValueError, match="takes no time"):
        curve(replace(ENGINE, step=StepTime(0.0, 0.0, 0.0)), CHAT, OBJECTIVES)


steps = st.builds(StepTime, st.floats(0.0, 0.1), st.floats(1e-9, 1e-5), st.floats(1e-6, 1e-3))
engines = st.builds(Engine, steps, st.integers(100, 2_000_000), max_sequences=st.sampled_from((1, 16, 256)))
mixes = st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 3000)), min_size=1, max_size=20).map(tuple)


@settings(max_examples=25)
@given(engines, mixes, st.integers(1, 3))
def test_any_mix_on_any_engine_has_a_falling_curve(engine: Engine, mix: Mix, replicas: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COUNTED", 60)
        patch.setattr(module, "WARMING", 5)
        found = curve(engine, mix, OBJECTIVES, replicas=replicas)
    assert all(0 <= share <= 1 for share in found.shares)
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert all(math.isfinite(load) and load > 0 for load in found.loads)
    assert 0 <= found.capacity(0.99) <= found.loads[-1]


# --- curves


KNOWN = Curve((1.0, 2.0, 4.0), (1.0, 0.99, 0.0))


def test_after_the_last_load_as_many_are_served_in_time_as_there() -> None:
    assert Curve((1.0, 2.0), (1.0, 0.8)).share(4.0) == pytest.approx(0.4)


def test_shares_lie_on_lines_between_the_loads() -> None:
    assert [KNOWN.share(load) for load in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)] == pytest.approx(
        [1.0, 1.0, 0.995, 0.99, 0.495, 0.0, 0.0]
    )


def test_a_capacity_lies_on_the_same_lines() -> None:
    assert [KNOWN.capacity(share) for share in (1.0, 0.995, 0.99, 0.495, 0.0)] == pytest.approx(
        [1.0, 1.5, 2.0, 3.0, 4.0]
    )
    assert Curve((1.0, 2.0), (0.9, 0.0)).capacity(0.95) == 0.0


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_smoothed_shares_never_rise_and_keep_their_mean(shares: list[float]) -> None:
    smooth = module._falling(shares)
    assert len(smooth) == len(shares)
    assert all(before >= after - 1e-12 for before, after in pairwise(smooth))
    assert sum(smooth) == pytest.approx(sum(shares))


def test_shares_that_fall_already_stay_as_they_are() -> None:
    assert module._falling([1.0, 0.9, 0.9, 0.2]) == [1.0, 0.9, 0.9, 0.2]
    assert module._falling([1.0, 0.8, 0.9, 0.2]) == pytest.approx([1.0, 0.85, 0.85, 0.2])
