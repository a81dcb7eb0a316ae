"""Tests of the step's time fitted to what a running engine shows."""

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.performance.fit import (
    BOUNDS,
    LEAST_ROUNDS,
    Fit,
    Memory,
    Round,
    Sample,
    fitted,
    observe,
    round_between,
    start,
)
from fairlead_operator.performance.step import StepTime

SEED = StepTime(base=0.010, per_context_token=4e-8, per_token=3e-5)
FACTORS = st.floats(min_value=0.4, max_value=2.5)


def engine(base: float = 1.0, context: float = 1.0, tokens: float = 1.0) -> StepTime:
    return StepTime(SEED.base * base, SEED.per_context_token * context, SEED.per_token * tokens)


def shown(step: StepTime, sequences: float, context: float, prompts: float, noise: float = 1.0) -> Round:
    """What the engine shows: the step's time that is its own consequence, as prompts come by the second."""
    time = (step.base + step.per_context_token * context + step.per_token * sequences) / (1 - step.per_token * prompts)
    return Round(time * noise, sequences, context, prompts)


def day(step: StepTime, count: int, seed: int, noise: float = 0.03) -> Iterator[Round]:
    """Rounds under changing loads."""
    chance = random.Random(seed)  # noqa: S311
    for _ in range(count):
        sequences = chance.uniform(1, 120)
        context = sequences * chance.uniform(400, 1500)
        yield shown(step, sequences, context, chance.uniform(0, 8000), math.exp(chance.gauss(0, noise)))


def after(rounds: Iterator[Round], memory: Memory | None = None) -> Memory:
    memory = memory or start(SEED)
    for one in rounds:
        memory = observe(memory, [one], 5)
    return memory


def step_of(fit: Fit) -> StepTime:
    assert fit.step is not None
    return fit.step


LOADS = ((1, 0, 500), (20, 50, 20_000), (50, 100, 40_000), (110, 100, 110_000))
PROMPT = (50, 2048, 40_000)


def worst_error(step: StepTime, truth: StepTime, loads: tuple[tuple[int, int, int], ...] = LOADS) -> float:
    """Over steps from light to heavy."""
    return max(abs(step.step(*load) / truth.step(*load) - 1) for load in loads)


@given(FACTORS, FACTORS, FACTORS, st.integers(0, 1000))
@settings(max_examples=25)
def test_an_engine_unlike_its_seed_is_known_after_ten_minutes(
    base: float, context: float, tokens: float, chance: int
) -> None:
    truth = engine(base, context, tokens)
    fit = fitted(after(day(truth, 120, chance)))
    assert worst_error(step_of(fit), truth) < 0.04
    assert worst_error(step_of(fit), truth, (PROMPT,)) < 0.35


def test_a_fit_says_over_what_time_and_how_wrong_it_is() -> None:
    fit = fitted(after(day(engine(2, 2, 2), 144, 1)))
    assert fit.reason == "fitted over 12 m, error 2% (seed 50%)"
    assert fit.error == pytest.approx(0.03, abs=0.01)


def test_the_seed_holds_until_enough_rounds_were_seen() -> None:
    memory = after(day(engine(2), LEAST_ROUNDS - 1, 1))
    assert fitted(memory) == Fit(SEED, None, "seed; 11 of 12 rounds seen")
    assert fitted(observe(memory, list(day(engine(2), 1, 2)), 5)).step != SEED


def test_the_seed_holds_where_it_foretells_better_than_the_fit() -> None:
    memory = replace(after(day(SEED, 100, 1)), error=0.09, seed_error=0.04)
    assert fitted(memory) == Fit(SEED, 0.04, "seed, error 4%; the fit has 9%")
    assert fitted(replace(memory, given=False)).reason == "fitted over 8 m, error 9% (first round 4%)"


def test_what_the_load_never_varied_stays_as_the_seed_says() -> None:
    truth = engine(1.5)
    fit = fitted(after(iter([shown(truth, 8, 8_000, 0)] * 200)))
    assert step_of(fit).step(8, 0, 8_000) == pytest.approx(truth.step(8, 0, 8_000), rel=0.02)
    assert step_of(fit).per_token == pytest.approx(SEED.per_token, rel=0.05)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 4.0, 20.0]))
@settings(max_examples=20)
def test_one_stray_round_in_ten_moves_the_fit_little(chance: int, factor: float) -> None:
    truth = engine(1.3, 1.3, 0.8)
    rounds = [
        replace(one, inter_token=one.inter_token * factor) if at % 10 == 5 else one
        for at, one in enumerate(day(truth, 240, chance))
    ]
    assert worst_error(step_of(fitted(after(iter(rounds)))), truth) < 0.06


def test_an_engine_that_becomes_another_is_known_again() -> None:
    memory = after(day(engine(1.2), 400, 1))
    changed = engine(0.6, 1.0, 0.5)
    fit = fitted(after(day(changed, 240, 2), memory))
    assert worst_error(step_of(fit), changed) < 0.1


def test_without_a_seed_an_engine_that_becomes_another_makes_a_new_one() -> None:
    memory = after(day(engine(0.2, 0.2, 0.2), 100, 1), start(None))
    changed = engine(5, 5, 5)
    assert worst_error(step_of(fitted(after(day(changed, 240, 2), memory))), changed) < 0.2


def test_rounds_of_several_replicas_age_the_memory_once() -> None:
    rounds = list(day(engine(1.4), 40, 1))
    together = observe(start(SEED), rounds, 5)
    assert together.rounds == 40
    assert observe(together, [], 5).seconds == 5
    assert sum(observe(together, [], 1200).moments) == pytest.approx(sum(together.moments) / 2)


def test_without_a_seed_the_first_round_makes_one_and_the_rest_correct_it() -> None:
    assert fitted(start(None)) == Fit(None, None, "nothing known: no seed, and no round with decoding sequences")
    truth = engine()
    memory = after(day(truth, 1, 1), start(None))
    assert fitted(memory) == Fit(None, None, "first round; 1 of 12 rounds seen"), "one round is no reason to decide"
    assert worst_error(step_of(fitted(after(day(truth, 240, 2), memory))), truth) < 0.2


@pytest.mark.parametrize("field", ["inter_token", "sequences", "context_tokens", "prompt_tokens_per_second"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_round_that_cannot_be_true_is_ignored_and_counted(field: str, value: float) -> None:
    good = Round(0.02, 10, 10_000, 100)
    wrong = replace(good, **{field: value})
    memory = observe(start(SEED), [wrong, good], 5)
    assert (memory.rounds, memory.ignored) == (1, 1)
    assert fitted(memory).reason.endswith("; 1 rounds ignored, as they cannot be true")


@pytest.mark.parametrize("field", ["inter_token", "sequences"])
def test_a_round_in_which_nothing_was_decoded_says_nothing(field: str) -> None:
    memory = observe(start(SEED), [replace(Round(0.02, 10, 10_000, 100), **{field: 0.0})], 5)
    assert memory == start(SEED)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(min_value=0, max_value=100)


@given(st.lists(st.builds(Round, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=40), st.sampled_from([SEED, None]))
def test_no_rounds_lead_out_of_the_bounds_or_grow_the_memory(rounds: list[Round], seed: StepTime | None) -> None:
    memory = start(seed)
    for one in rounds:
        memory = observe(memory, [one], 5)
    assert all(BOUNDS[0] <= one <= BOUNDS[1] for one in memory.coefficients)
    assert all(math.isfinite(one) for one in (*memory.moments, *memory.targets, memory.error, memory.seed_error))
    assert memory.ignored == sum(not one.usable and not one.idle for one in rounds)
    assert sys.getsizeof(memory.moments) == sys.getsizeof(start(seed).moments)
    assert fitted(memory).reason


def test_a_round_is_read_from_two_samples_of_an_engines_metrics() -> None:
    before = Sample(inter_token_sum=10.0, inter_token_count=1000, prompt_tokens=5000, running=10, kv_tokens=9000)
    later = Sample(inter_token_sum=60.0, inter_token_count=3500, prompt_tokens=9000, running=10, kv_tokens=11_000)
    assert round_between(before, later, 5.0) == Round(
        inter_token=0.02, sequences=10.0, context_tokens=10_000, prompt_tokens_per_second=800.0
    )


@pytest.mark.parametrize(
    ("change", "seconds"),
    [({"inter_token_count": 1000}, 5.0), ({"inter_token_sum": 3.0}, 5.0), ({"prompt_tokens": 0}, 5.0), ({}, 0.0)],
)
def test_an_engine_that_decoded_nothing_or_began_anew_shows_no_round(change: dict[str, float], seconds: float) -> None:
    before = Sample(inter_token_sum=10.0, inter_token_count=1000, prompt_tokens=5000, running=1, kv_tokens=100)
    later = replace(before, inter_token_sum=12.0, inter_token_count=1100, prompt_tokens=6000)
    assert round_between(before, replace(later, **change), seconds) is None
