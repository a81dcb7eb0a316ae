"""What will be asked of a pool at the horizon, with the spread of the forecast's errors."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.demand import MAX_RECENT, MAX_TOLD, Demand, observe, outlook, started
from fairlead_operator.decide.autoscale.values import History

HORIZON = 130.0
HOUR = 3600.0
DAY = 86_400.0


def after(
    seconds: float, rate: Callable[[float], float], demand: Demand | None = None, history: History | None = None
) -> Demand:
    """The memory after so long of Poisson arrivals, seen every 5 s."""
    demand = demand or started(0.0)
    chance = random.Random(1)  # noqa: S311 - chance, not a secret
    begin = demand.at_s
    for tick in range(1, int(seconds / 5) + 1):
        at_s = begin + 5.0 * tick
        expected = 5 * rate(at_s)
        arrivals = max(0, round(chance.gauss(expected, expected**0.5)))
        demand = observe(demand, at_s, arrivals, HORIZON, history)
    return demand


def test_a_constant_rate_is_expected_to_stay_within_its_own_noise() -> None:
    seen = outlook(after(3 * HOUR, lambda _: 50.0), HORIZON)
    assert seen.quantile(0.5) == pytest.approx(50.0, rel=0.03)
    assert seen.quantile(0.9) < 56.0
    assert seen.quantile(0.1) > 44.0


def test_of_a_new_pool_a_wide_spread_is_expected() -> None:
    young, old = after(60, lambda _: 50.0), after(3 * HOUR, lambda _: 50.0)

    def width(demand: Demand) -> float:
        return outlook(demand, HORIZON).quantile(0.95) - outlook(demand, HORIZON).quantile(0.05)

    assert width(young) > width(old)


@pytest.mark.parametrize("factor", [0.4, 1.5, 3.0])
def test_a_step_is_believed_within_half_a_minute(factor: float) -> None:
    before = after(HOUR, lambda _: 40.0)
    stepped = after(30, lambda _: 40.0 * factor, before)
    assert outlook(stepped, HORIZON).quantile(0.5) == pytest.approx(40.0 * factor, rel=0.15)


def test_what_scatters_by_the_minute_is_not_taken_for_steps() -> None:
    chance = random.Random(2)  # noqa: S311 - chance, not a secret
    minutes = [40.0 * chance.uniform(0.8, 1.2) for _ in range(361)]
    seen = after(6 * HOUR, lambda now: minutes[int(now / 60)])
    assert seen.run.dispersion[-1] > 3
    assert outlook(seen, HORIZON).quantile(0.5) == pytest.approx(40.0, rel=0.12)
    assert outlook(seen, HORIZON).quantile(0.95) > 44.0


def test_a_pool_is_restless_once_no_step_lasts_and_calm_again_when_they_do() -> None:
    bursts = after(HOUR, lambda now: 20.0 if now % 90 < 30 else 1.0)
    assert bursts.restless
    assert not after(2 * HOUR, lambda now: 20.0 if now % 1200 < 600 else 5.0, bursts).restless
    assert not after(HOUR, lambda now: 20.0 if now % 600 < 300 else 5.0).restless


def test_after_hours_of_small_steps_a_large_one_is_still_seen_at_once() -> None:
    chance = random.Random(3)  # noqa: S311 - chance, not a secret
    windows = [60.0 * chance.uniform(0.94, 1.06) for _ in range(37)]
    unsteady = after(6 * HOUR, lambda now: windows[int(now / 600)])
    assert max(unsteady.run.dispersion) < 1.5
    assert after(20, lambda _: 90.0, unsteady).run.since_s >= 6 * HOUR - 10


@pytest.mark.parametrize(("seconds", "late"), [(60.0, 0.0), (5.0, 0.02), (5.0, 0.4)])
def test_scatter_is_measured_in_rounds_of_any_length(seconds: float, late: float) -> None:
    demand, chance, at_s = started(0.0), random.Random(4), 0.0  # noqa: S311 - chance, not a secret
    while at_s < 4 * HOUR:
        at_s += seconds + chance.uniform(0.0, late)
        demand = observe(demand, at_s, round(40 * seconds * chance.uniform(0.5, 1.5)), HORIZON)
    assert min(demand.run.dispersion) > 3


def test_a_rate_that_steps_often_is_expected_to_step_again() -> None:
    stepping = after(4 * HOUR, lambda now: 40.0 if int(now / 700) % 2 else 60.0)
    calm = after(4 * HOUR, lambda _: 50.0)

    def width(demand: Demand) -> float:
        return outlook(demand, HORIZON).quantile(0.95) / outlook(demand, HORIZON).quantile(0.5)

    assert width(stepping) > 1.2 > width(calm)


def test_no_more_is_expected_than_a_third_above_the_highest_rate_of_the_day() -> None:
    stepping = after(4 * HOUR, lambda now: 20.0 if int(now / 600) % 2 else 60.0)
    assert outlook(stepping, HORIZON).quantile(1.0) <= 1.3 * 66


def test_a_steady_rise_is_followed_ahead() -> None:
    rising = after(2 * HOUR, lambda now: 20.0 + now / 120)  # 0.5 requests/s more every minute
    ahead = 20.0 + (2 * HOUR + HORIZON) / 120
    assert outlook(rising, HORIZON).quantile(0.5) == pytest.approx(ahead, rel=0.05)


def test_a_day_that_repeats_is_foreseen_from_past_days() -> None:
    # Every hour starts with a burst of ten minutes, which nothing but the days before announces.
    def rate(now: float) -> float:
        return 80.0 if now % HOUR < 600 else 20.0

    bins = tuple(rate(300.0 * place) for place in range(int(3 * DAY / 300)))
    history = History(start_ms=-round(3 * DAY * 1000), step_ms=300_000, rates=bins)
    before_burst = 11 * HOUR - 60
    knowing = after(before_burst, rate, history=history)
    assert outlook(knowing, HORIZON, history).quantile(0.5) > 60
    assert outlook(after(before_burst, rate), HORIZON).quantile(0.5) < 30


@pytest.mark.parametrize("days", [0, 1])
def test_fewer_than_two_known_days_say_nothing(days: int) -> None:
    bins = (40.0,) * (288 * days)
    history = History(start_ms=-round(days * DAY * 1000), step_ms=300_000, rates=bins)
    demand = after(600, lambda _: 20.0, history=history)
    assert demand.told[-1].rates[-1] is None


def test_unknown_hours_of_past_days_say_nothing() -> None:
    history = History(start_ms=-round(3 * DAY * 1000), step_ms=300_000, rates=(None,) * 864)
    assert after(600, lambda _: 20.0, history=history).told[-1].rates[-1] is None


def test_the_scatter_of_a_quiet_night_hardly_widens_a_busy_day() -> None:
    def above(demand: Demand) -> float:
        seen = outlook(demand, HORIZON)
        return seen.quantile(0.9) / seen.quantile(0.5) - 1

    night = after(8 * HOUR, lambda _: 3.0)
    rising = after(2 * HOUR, lambda now: 3.0 + 37.0 * (now - night.at_s) / (2 * HOUR), night)
    day = after(0.5 * HOUR, lambda _: 40.0, rising)
    assert above(day) < above(night) / 2


def test_what_waits_is_added_to_every_rate() -> None:
    demand = after(HOUR, lambda _: 20.0)
    with_queue, without = outlook(demand, HORIZON, None, 7.0), outlook(demand, HORIZON)
    assert [rate for rate, _ in with_queue.points] == pytest.approx([rate + 7 for rate, _ in without.points])


def test_a_round_that_is_not_later_counts_nothing() -> None:
    demand = after(600, lambda _: 20.0)
    assert observe(demand, demand.at_s, 10**6, HORIZON) is demand
    assert observe(demand, demand.at_s - 5, 10**6, HORIZON) is demand


def test_a_silent_pool_expects_nothing() -> None:
    assert outlook(after(HOUR, lambda _: 0.0), HORIZON).quantile(1.0) == 0


@given(
    st.lists(st.tuples(st.floats(0.001, 10**6), st.integers(0, 10**9)), max_size=60),
    st.floats(1, 10**5),
)
def test_any_rounds_make_a_bounded_memory_and_finite_rates(rounds: list[tuple[float, int]], horizon: float) -> None:
    demand, at_s = started(0.0), 0.0
    for seconds, arrivals in rounds:
        at_s += seconds
        demand = observe(demand, at_s, arrivals, horizon)
    seen = outlook(demand, horizon)
    assert sum(weight for _, weight in seen.points) == pytest.approx(1.0)
    assert all(math.isfinite(rate) and rate >= 0 for rate, _ in seen.points)
    assert len(demand.recent) <= MAX_RECENT
    assert len(demand.told) <= MAX_TOLD
