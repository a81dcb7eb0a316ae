"""The forecast: never below what is spent, right where the future is like the past, and honest where it cannot be."""

import math
import random
import statistics

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.decide.forecast import DAY, HOUR_MS, Forecast, forecast
from tests.bench.forecast import WINDOWS, cases, error, linear_burn, read, shipped

MIDNIGHT = 20_000 * DAY * HOUR_MS
MONTH = 30 * DAY * HOUR_MS


def told(hours: list[int], *, spent: int = 0, left: float = 24.0, length: float = 720.0, part: float = 0.0) -> Forecast:
    """A forecast with hours up to midnight as history, and ``part`` of the next hour gone."""
    history = [(MIDNIGHT + (at - len(hours)) * HOUR_MS, amount) for at, amount in enumerate(hours)]
    now = MIDNIGHT + round(part * HOUR_MS)
    end = now + round(left * HOUR_MS)
    return forecast(history, spent=spent, now=now, start=end - round(length * HOUR_MS), end=end)


amounts = st.integers(0, 10**15)
histories = st.lists(amounts, max_size=200)


@settings(deadline=None)
@given(histories, amounts, st.floats(0, 800), st.floats(0, 1, exclude_max=True))
def test_the_end_is_never_below_what_is_spent_and_lies_in_its_interval(
    hours: list[int], spent: int, left: float, part: float
) -> None:
    answer = told(hours, spent=spent, left=left, part=part)
    assert spent <= answer.low <= answer.at_end <= answer.high


@settings(deadline=None)
@given(histories, st.integers(0, 2**32))
def test_the_order_of_the_history_does_not_matter(hours: list[int], seed: int) -> None:
    history = [(MIDNIGHT + at * HOUR_MS, amount) for at, amount in enumerate(hours)]
    mixed = random.Random(seed).sample(history, len(history))  # noqa: S311 - an order for a test, no secret
    window = {"spent": 5, "now": MIDNIGHT + 201 * HOUR_MS, "start": MIDNIGHT, "end": MIDNIGHT + MONTH}
    assert forecast(mixed, **window) == forecast(history, **window)


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(48, 700), st.floats(0.5, 700))
def test_constant_spending_goes_on(rate: int, length: int, left: float) -> None:
    answer = told([rate] * length, spent=7, left=left)
    assert answer.method == "FadingLevel"
    assert math.isclose(answer.at_end, 7 + rate * left, rel_tol=1e-6, abs_tol=2)


@settings(deadline=None)
@given(st.integers(1, 1000), histories.filter(lambda hours: len(hours) >= 48), st.floats(0, 100))
def test_ten_times_the_spending_is_ten_times_the_forecast(times: int, hours: list[int], left: float) -> None:
    one, many = told(hours, left=left), told([times * hour for hour in hours], left=left)
    for name in ("low", "at_end", "high"):
        assert math.isclose(getattr(many, name), times * getattr(one, name), rel_tol=1e-6, abs_tol=times)


def test_a_day_like_those_before_is_told_hour_by_hour() -> None:
    office = [0] * 8 + [1000] * 10 + [0] * 6
    morning = told(office * 14, left=8)
    noon = told(office * 14 + office[:12], left=12, part=0)
    assert morning.at_end < 1000
    whole = told(office * 14, left=24)
    assert abs(whole.at_end - 10_000) < 1_000
    assert noon.high >= noon.at_end


def test_noise_makes_no_profile() -> None:
    chance = random.Random(1)  # noqa: S311 - a series for a test, no secret
    hours = [chance.randint(0, 2000) for _ in range(14 * DAY)]
    first, second = told(hours, left=12).at_end, told(hours, left=24).at_end - told(hours, left=12).at_end
    assert abs(first - second) < first * 0.25


def test_a_level_that_rose_fades_into_the_old_one_the_further_ahead() -> None:
    hours = [100] * (20 * DAY) + [400] * 12
    soon, late = told(hours, left=1).at_end, told(hours, left=241).at_end - told(hours, left=240).at_end
    assert 200 < soon <= 400
    assert late < 150


def test_a_calm_history_narrows_the_interval_and_a_wild_one_widens_it() -> None:
    chance = random.Random(2)  # noqa: S311 - a series for a test, no secret
    calm = told([1000] * (28 * DAY))
    wild = told([round(1000 * math.exp(chance.gauss(0, 2))) for _ in range(28 * DAY)])
    assert (calm.high - calm.low) / calm.at_end < (wild.high - wild.low) / wild.at_end


def test_less_than_a_day_of_history_burns_on_as_the_window_did() -> None:
    answer = told([50] * 23, spent=1_000, left=30, length=40)
    assert (answer.at_end, answer.low, answer.high, answer.method) == (4_000, 2_500, 7_000, "LinearBurn")
    assert "as in the 10h so far" in answer.reason


def test_a_window_of_an_hour_burns_on_whatever_the_history() -> None:
    answer = told([50] * 200, spent=1_000, left=0.5, length=1.0, part=0.5)
    assert (answer.at_end, answer.method) == (2_000, "LinearBurn")


def test_nothing_gone_and_nothing_known_is_nothing_spent() -> None:
    assert told([], spent=0, left=720).at_end == 0


def test_a_window_that_is_over_has_spent_what_it_spent() -> None:
    answer = told([50] * 100, spent=900, left=-5)
    assert (answer.low, answer.at_end, answer.high) == (900, 900, 900)


def test_missing_hours_after_the_first_are_hours_without_spending() -> None:
    history = [(MIDNIGHT - 48 * HOUR_MS, 100), (MIDNIGHT - 24 * HOUR_MS, 100)]
    answer = forecast(history, spent=0, now=MIDNIGHT, start=MIDNIGHT - MONTH, end=MIDNIGHT + 24 * HOUR_MS)
    assert answer.at_end < 400
    assert answer.method == "FadingLevel"


def test_on_recorded_demand_it_beats_linear_burn_and_its_interval_holds_four_of_five() -> None:
    every = [case for length in WINDOWS for gone in (25, 50, 75) for case in cases(read(), length, gone)]
    answers = [(case, shipped(case)) for case in every]
    ours = statistics.mean(error(case, one.at_end) for case, one in answers)
    burn = statistics.mean(error(case, case.spent + linear_burn(case)) for case in every)
    assert ours < 0.85 * burn
    assert statistics.mean(one.low <= case.total <= one.high for case, one in answers) >= 0.8
