"""The law that scales a pool: up, down, to zero, within its limits, and what it says."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.v1alpha1 import ScalingReason
from fairlead_operator.decide.autoscale import STEADY, CapBound, Memory, Observation, VariantState, Wish, step
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Objectives
from tests.builders.autoscale import START, TICK_MS, USD, Pool, observation, settings, variant

HOUR = 3600.0


def settled(rate: float, hours: float = 1.0, current: int = 1, **fields: object) -> Pool:
    """A pool that has served this rate for a while."""
    pool = Pool(settings(variant(current=current), **fields))
    pool.run(hours * HOUR, rate)
    return pool


# --- how many ---


def test_a_steady_demand_gets_the_replicas_that_its_curve_asks_for() -> None:
    pool = settled(37.0, hours=4)
    assert pool.current == 4
    assert pool.wish is not None
    assert pool.wish.reason == STEADY


def test_a_step_is_answered_within_half_a_minute() -> None:
    pool = settled(37.0, hours=2)
    pool.run(30, 75.0)
    assert pool.current >= 7


@pytest.mark.parametrize(("attainment", "left"), [(0.99, 4), (0.9, 3)])
def test_nothing_is_taken_away_that_would_soon_be_taken_back(attainment: float, left: int) -> None:
    # Three replicas would let 9 % miss: more than 5 %, and less than twice what 90 % allow. A miss is hardly paid for.
    pool = settled(34.5, current=4, objectives=Objectives(2.0, 0.05, attainment))
    cheap = replace(pool.memory.misses, finished=1e7, missed=0.0, age_s=86_400.0, base=math.log(1.5))
    pool.memory = replace(pool.memory, misses=cheap)
    assert pool.run(HOUR / 2, 34.5).replicas == left


def test_slow_swings_are_served_with_few_changes_and_at_little_more_than_they_need() -> None:
    pool = Pool(settings(variant(current=5)), tick_ms=20_000)

    def swing(now: float) -> float:
        return 40 + 30 * math.sin(now / 86400 * 2 * math.pi)

    pool.run(24 * HOUR, swing)
    needed = sum(swing(second) / 10 * 60 for second in range(0, 86400, 60))
    assert pool.missed <= 0.01 * pool.finished
    assert pool.replica_seconds < 1.15 * needed
    assert pool.events <= 40


def test_where_much_would_miss_a_start_is_not_waited_for() -> None:
    slow, fast = settled(37.0), settled(37.0)
    slow.run(15, 39.0)
    fast.run(15, 90.0)
    assert slow.current < fast.current


def test_a_backlog_adds_replicas_that_the_rate_alone_does_not_ask_for() -> None:
    pool = settled(19.0, hours=2)
    pool.waiting = 5000.0
    more = [wish for wish in (pool.tick(19.0), pool.tick(19.0)) if wish.replicas > wish.current]
    assert [wish.reason for wish in more] == [ScalingReason.BACKLOG]
    assert "wait" in more[0].because


def test_an_overload_beyond_all_replicas_within_reach_still_adds_them() -> None:
    pool = settled(10.0, hours=1, current=2)
    pool.waiting = 50_000.0
    pool.run(10, 400.0)
    assert pool.current >= 4


def test_what_can_be_spent_on_misses_is_spent_and_not_more() -> None:
    loose = Pool(settings(variant(current=4)), tick_ms=15_000)
    loose.run(20 * HOUR, 41.5)
    assert 0.98 < 1 - loose.missed / loose.finished < 0.999
    assert loose.replica_seconds / (20 * HOUR) < 5.0


def test_of_bursts_that_never_last_it_is_learned_what_replicas_can_do_under_them() -> None:
    pool = Pool(settings(variant(current=2)))
    pool.run(2 * HOUR, lambda now: 26.0 if now % 90 < 30 else 2.0)
    assert pool.memory.service.factors[0] < 0.9
    before, finished = pool.missed, pool.finished
    pool.run(HOUR, lambda now: 26.0 if now % 90 < 30 else 2.0)
    assert pool.missed - before < 0.02 * (pool.finished - finished)


def test_misses_count_from_when_a_decision_could_have_avoided_them() -> None:
    pool = Pool()
    pool.run(255, 75.0)
    assert pool.missed > 1000
    assert pool.memory.misses.finished == 0
    pool.run(10, 75.0)
    assert pool.memory.misses.finished > 0


# --- down ---


def test_a_replica_goes_only_after_staying_has_cost_more_than_a_start() -> None:
    pool = settled(75.0, hours=2, current=8)
    before = pool.current
    pool.run(60, 37.0)
    assert pool.current == before
    pool.run(HOUR, 37.0)
    assert pool.current < before


def lasts(cold_start_ms: int, events: float = 0.0) -> int:
    """Ticks for which replicas stay after the demand halved, where so many changes were made lately."""
    pool = settled(75.0, hours=0.5, current=8)
    pool.given = settings(variant(current=pool.current, cold_start_ms=cold_start_ms))
    pool.memory = replace(pool.memory, events=events)
    before, ticks = pool.current, 0
    while pool.current >= before and ticks < 2000:
        pool.tick(37.0)
        ticks += 1
    return ticks


def test_a_longer_start_makes_the_law_more_patient() -> None:
    assert lasts(30_000) < lasts(300_000)


def test_many_changes_make_it_more_patient_unless_a_start_costs_more_than_they() -> None:
    assert lasts(120_000, events=20) > lasts(120_000)
    assert lasts(300_000, events=17.5) == lasts(300_000)
    assert lasts(300_000, events=24) > lasts(300_000)


def test_nothing_goes_while_a_router_is_silent() -> None:
    pool = settled(75.0, hours=2, current=8)
    before = pool.current
    pool.run(2 * HOUR, 10.0, complete=False)
    assert pool.current >= before


def test_a_silent_router_teaches_the_forecast_nothing() -> None:
    pool = settled(40.0)
    pool.run(600, 0.0, complete=False)
    wish = pool.tick(40.0)
    assert wish.forecast == pytest.approx(40.0, rel=0.2)


def test_nothing_goes_while_requests_miss_or_wait() -> None:
    pool = settled(75.0, hours=2, current=8)
    before = pool.current
    for _ in range(int(HOUR / 5)):
        pool.tick(37.0, missed=50, met=100, finished=150)
    assert pool.current >= before


def test_at_most_one_decision_a_minute_takes_replicas_away() -> None:
    pool = settled(150.0, hours=1, current=15)
    times = []
    for _ in range(int(HOUR / 5)):
        before = pool.current
        pool.tick(5.0)
        if pool.current < before:
            times.append(pool.at_ms)
    assert times
    assert all(later - earlier >= 60_000 for earlier, later in pairwise(times))


def test_a_replica_that_never_becomes_ready_does_not_keep_the_others() -> None:
    def lasting(age_ms: int) -> int:
        memory, given_ = settled(75.0, hours=2, current=8).memory, None
        at_ms = START + int(2 * HOUR * 1000)
        current = 9
        for _ in range(1000):
            at_ms += TICK_MS
            given_ = settings(variant(current=current, ready=current - 1, start_ages_ms=(age_ms,)))
            memory, wish = step(memory, observation(at_ms, 50), given_)
            if wish.replicas < current:
                return wish.replicas
        return current

    assert lasting(10_000) == 9
    assert lasting(10**6) < 9


# --- zero ---


def test_a_pool_that_nobody_asks_goes_to_zero_after_its_time() -> None:
    pool = settled(5.0, zero_after_ms=600_000, minimum=0)
    pool.run(595, 0.0)
    assert pool.current == 1
    wish = pool.run(10, 0.0)
    assert pool.current == 0
    assert wish.message.startswith("No request for 10m (scaleToZeroAfter).")


def test_a_pool_without_that_time_keeps_its_last_replica() -> None:
    pool = settled(5.0, minimum=0)
    pool.run(6 * HOUR, 0.0)
    assert pool.current == 1


def test_a_held_request_starts_the_first_replica_at_once() -> None:
    pool = settled(5.0, zero_after_ms=600_000, minimum=0)
    pool.run(2 * HOUR, 0.0)
    wish = pool.tick(0.0, held=1, arrivals=1)
    assert wish.replicas == 1
    assert wish.reason == ScalingReason.HELD_REQUESTS


def test_a_pool_at_zero_that_nobody_asks_stays_there() -> None:
    pool = settled(5.0, zero_after_ms=600_000, minimum=0)
    wish = pool.run(5 * HOUR, 0.0)
    assert (wish.replicas, wish.reason) == (0, STEADY)


# --- limits ---


def test_below_the_minimum_replicas_are_added_at_once() -> None:
    _, wish = step(Memory(START), observation(START + TICK_MS, 1), settings(variant(current=1), minimum=3))
    assert (wish.replicas, wish.reason) == (3, ScalingReason.MIN_REPLICAS)


def test_above_the_maximum_replicas_go_whatever_is_asked() -> None:
    pool = settled(75.0, hours=1, current=8)
    pool.given = replace(pool.given, maximum=5)
    wish = pool.tick(30.0)
    assert (wish.replicas, wish.reason) == (5, ScalingReason.MAX_REPLICAS)


def test_the_maximum_bounds_and_is_named() -> None:
    pool = settled(75.0, hours=1, maximum=6)
    wish = pool.tick(75.0)
    assert wish.replicas == 6
    assert wish.wanted > 6
    assert wish.bound_by == "MaxReplicas"
    assert "autoscaling.maxReplicas is 6" in wish.message


def test_budgets_bound_what_is_added() -> None:
    pool = settled(75.0, hours=1, spend_cap_per_hour=12 * USD)
    wish = pool.tick(75.0)
    assert wish.replicas == 4
    assert wish.bound_by == CapBound.SPEND
    assert "The budgets leave 12.000000 USD/h." in wish.message


def test_what_budgets_do_not_leave_goes_at_once_whatever_is_asked() -> None:
    pool = settled(75.0, hours=1, current=8)
    pool.given = replace(pool.given, spend_cap_per_hour=12 * USD)
    wish = pool.tick(300.0, waiting=5000, complete=False)
    assert (wish.replicas, wish.reason, wish.bound_by) == (4, ScalingReason.MAX_REPLICAS, CapBound.SPEND)
    assert wish.because == "the budgets leave 12.000000 USD/h"
    assert "The budgets leave 12.000000 USD/h." in wish.message


def test_without_money_the_minimum_stays_or_a_single_replica() -> None:
    for minimum, left in ((0, 1), (3, 3)):
        pool = settled(75.0, hours=1, current=8, minimum=minimum)
        pool.given = replace(pool.given, spend_cap_per_hour=0)
        assert pool.tick(75.0).replicas == left


def test_a_pool_without_a_minimum_goes_to_zero_while_what_runs_can_still_be_paid_until_it_is_gone() -> None:
    pool = settled(75.0, hours=1, current=8, minimum=0)
    pool.given = replace(pool.given, spend_cap_per_hour=USD, pays_a_replica=False)
    wish = pool.tick(75.0, waiting=500, complete=False)
    assert (wish.replicas, wish.reason, wish.bound_by) == (0, ScalingReason.MAX_REPLICAS, CapBound.SPEND)
    assert wish.because == "the budgets do not pay for a replica until it is gone again"
    assert "The budgets do not pay for a replica until it is gone again." in wish.message
    assert "scaleToZeroAfter" not in wish.message


def test_what_a_start_would_cost_without_use_is_not_spent_even_while_requests_wait() -> None:
    given_ = settings(variant(current=0), minimum=0, spend_cap_per_hour=USD, pays_a_replica=False)
    _, wish = step(Memory(START), observation(START + TICK_MS, 1, held=1), given_)
    assert (wish.replicas, wish.wanted, wish.bound_by) == (0, 1, CapBound.SPEND)


def test_a_minimum_runs_even_where_the_budgets_do_not_pay_for_it() -> None:
    pool = settled(75.0, hours=1, current=8, minimum=3)
    pool.given = replace(pool.given, spend_cap_per_hour=0, pays_a_replica=False)
    assert pool.tick(75.0).replicas == 3


def test_of_two_variants_the_set_stays_that_the_budgets_pay_and_costs_least() -> None:
    dear, cheap = variant("h100", 3), variant("l40s", 3, price=USD, curves=((1, Curve((2.0, 3.0), (1.0, 0.0))),))
    given_ = settings(dear, cheap, spend_cap_per_hour=7 * USD)
    _, wish = step(Memory(START), observation(START + TICK_MS, 100), given_)
    assert sum(number * price for (_, number), price in zip(wish.counts, (3, 1), strict=True)) <= 7
    assert wish.replicas >= 2


def test_the_cost_of_a_thousand_requests_bounds_what_is_added() -> None:
    # 75 requests/s are 270 thousand an hour: at 0.05 USD a thousand they pay for 13.50 USD/h.
    pool = settled(75.0, hours=1, max_cost_per_thousand=USD // 20)
    wish = pool.tick(75.0)
    assert wish.replicas == 4
    assert wish.bound_by == CapBound.COST
    assert "maxCostPerThousandRequests" in wish.message


def test_the_first_replica_needs_no_permission() -> None:
    given_ = settings(variant(current=0), minimum=0, max_cost_per_thousand=1, spend_cap_per_hour=1)
    _, wish = step(Memory(START), observation(START + TICK_MS, 1, held=1), given_)
    assert wish.replicas == 1


def test_one_wild_figure_does_at_most_double_the_pool() -> None:
    pool = settled(75.0, hours=2, current=8)
    before = pool.current
    pool.given = replace(pool.given, maximum=1000)
    wish = pool.run(10, 1e6)
    assert before < wish.replicas <= 2 * before
    assert wish.bound_by == CapBound.STEP
    assert "more are added once these are ready" in wish.message


def test_a_figure_that_is_a_hundredfold_in_one_round_of_each_minute_runs_up_no_bill() -> None:
    pool = settled(37.0, hours=2, current=4)
    memory, most = pool.memory, 0
    for round_ in range(120):
        arrivals = 18_500 if round_ % 12 == 0 else 185
        seen = observation(pool.at_ms + (round_ + 1) * TICK_MS, arrivals)
        memory, wish = step(memory, seen, pool.given)
        most = max(most, wish.replicas)
    assert most <= 8


# --- variants ---


def test_the_cheaper_variant_is_added() -> None:
    dear, cheap = variant("h100", 1), variant("l40s", 1, price=USD)
    wish = after_minutes(5, 35.0, (dear, cheap))
    counts = dict(wish.counts)
    assert counts["h100"] == 1
    assert counts["l40s"] > 1
    assert "l40s" in wish.message


def test_a_variant_at_its_maximum_leaves_the_rest_to_the_others() -> None:
    dear, cheap = variant("h100", 1), variant("l40s", 1, price=USD, maximum=1)
    counts = dict(after_minutes(5, 35.0, (dear, cheap)).counts)
    assert counts["l40s"] == 1
    assert counts["h100"] >= 3


def test_a_variant_without_a_price_counts_as_the_dearest() -> None:
    unknown, known = variant("h100", 1, price=None), variant("l40s", 1, price=USD)
    wish = after_minutes(5, 35.0, (unknown, known))
    assert dict(wish.counts)["h100"] == 1
    assert wish.cost_per_hour_before is None


def test_a_cheaper_variant_takes_the_place_of_a_dearer_one_when_it_is_ready() -> None:
    wish = after_minutes(60, 4.0, (variant("h100", 1, price=12 * USD), variant("l40s", 0, price=2 * USD)))
    assert dict(wish.counts) == {"h100": 1, "l40s": 1}
    assert wish.reason == ScalingReason.CHEAPER_VARIANT
    assert "serves it for less" in wish.because
    assert "takes the place of dearer replicas" in wish.message
    assert "cost least" not in wish.message
    after = after_minutes(60, 4.0, (variant("h100", 1, price=12 * USD), variant("l40s", 1, price=2 * USD)))
    assert dict(after.counts) == {"h100": 0, "l40s": 1}


def test_what_an_exchange_replaces_goes_at_once_however_many_changes_there_were() -> None:
    fleet, memory = {"h100": 1, "l40s": 0}, replace(Memory(START), events=40.0)
    changes: list[tuple[float, str]] = []
    for tick in range(1, 8 * 720):
        memory, wish = step(memory, observation(START + tick * TICK_MS, 20), settings(*priced(fleet)))
        if dict(wish.counts) != fleet:
            changes.append((tick * 5.0, wish.reason))
        fleet = dict(wish.counts)
    assert fleet == {"h100": 0, "l40s": 1}
    assert [reason for _, reason in changes] == [ScalingReason.CHEAPER_VARIANT, ScalingReason.UNNEEDED]
    assert changes[1][0] - changes[0][0] <= 120


def test_what_is_too_many_goes_before_another_variant_is_started() -> None:
    wish = after_minutes(60, 4.0, priced({"h100": 3, "l40s": 0}))
    assert wish.reason == ScalingReason.UNNEEDED
    assert dict(wish.counts)["l40s"] == 0


def priced(numbers: dict[str, int]) -> tuple[VariantState, ...]:
    """So many ready replicas, of which an H100 costs six times as much as an L40S."""
    return tuple(variant(name, number, price=(12 if name == "h100" else 2) * USD) for name, number in numbers.items())


def test_variants_that_cost_the_same_are_not_exchanged() -> None:
    wish = after_minutes(120, 4.0, (variant("h100", 1), variant("h200", 0)))
    assert dict(wish.counts) == {"h100": 1, "h200": 0}


def test_an_exchange_that_the_bounds_do_not_allow_is_not_made() -> None:
    variants = (variant("h100", 1, price=12 * USD), variant("l40s", 0, price=2 * USD))
    assert dict(after_minutes(60, 4.0, variants, maximum=1).counts) == {"h100": 1, "l40s": 0}
    assert dict(after_minutes(60, 4.0, variants, spend_cap_per_hour=13 * USD).counts) == {"h100": 1, "l40s": 0}


def test_a_variant_keeps_its_minimum() -> None:
    reserved = variant("h100", 2, minimum=2)
    cheap = variant("l40s", 2, price=USD)
    assert dict(after_minutes(120, 5.0, (reserved, cheap)).counts)["h100"] == 2


def after_minutes(minutes: int, rate: float, variants: tuple, **fields: object) -> Wish:  # type: ignore[type-arg]
    """The first change after so many minutes at a rate, or the last decision."""
    memory, wish = Memory(START), None
    for tick in range(1, minutes * 12 + 1):
        seen = observation(START + tick * TICK_MS, round(rate * 5))
        memory, wish = step(memory, seen, settings(*variants, **fields))
        if wish.changed:
            return wish
    assert wish is not None
    return wish


# --- what it says ---


def test_a_decision_tells_what_it_was_made_from() -> None:
    pool = settled(37.0, hours=4)
    wish = pool.tick(37.0)
    assert wish.rate == pytest.approx(37.0, rel=0.1)
    assert wish.forecast == pytest.approx(37.0, rel=0.1)
    assert wish.forecast_high >= wish.forecast
    assert wish.horizon_ms == 130_000
    assert wish.capacity == pytest.approx(10.0, rel=0.3)
    assert 0.98 < wish.attainment <= 1
    assert wish.miss_price > 0
    assert wish.cost_per_hour_before == 12 * USD
    assert "expected in 2m10s" in wish.message
    assert "of the day's requests met the objectives" in wish.message


def test_a_scale_down_says_that_it_saves_more_than_a_start_costs() -> None:
    pool = settled(75.0, hours=2, current=8)
    wish = pool.wish
    while wish is None or not wish.changed:
        wish = pool.tick(20.0)
    assert wish.reason == ScalingReason.UNNEEDED
    assert "saves more than a start costs" in wish.message
    assert wish.cost_per_hour_after is not None
    assert wish.cost_per_hour_before is not None
    assert wish.cost_per_hour_after < wish.cost_per_hour_before


def test_the_same_inputs_make_the_same_decision() -> None:
    pool = settled(37.0)
    seen = observation(pool.at_ms + TICK_MS, 300)
    assert step(pool.memory, seen, pool.given) == step(pool.memory, seen, pool.given)


# --- whatever is told ---

ROUNDS = st.lists(
    st.builds(
        Observation,
        at_ms=st.integers(0, 86_400_000).map(lambda ms: START + ms),
        arrivals=st.integers(0, 10**6),
        finished=st.integers(0, 10**6),
        met=st.integers(0, 10**6),
        missed=st.integers(0, 10**6),
        waiting=st.integers(0, 10**6),
        held=st.integers(0, 10**6),
        running=st.integers(0, 10**6),
        last_request_ms=st.integers(0, 2**62),
        complete=st.booleans(),
    ),
    max_size=30,
)


@given(ROUNDS, st.integers(0, 3), st.integers(3, 9), st.sampled_from([None, 0, 10 * USD]))
def test_whatever_routers_say_the_bounds_hold(rounds: list[Observation], low: int, high: int, cap: int | None) -> None:
    memory, current = Memory(START), low
    for seen in rounds:
        given_ = settings(
            variant(current=current), minimum=low, maximum=high, zero_after_ms=60_000, spend_cap_per_hour=cap
        )
        memory, wish = step(memory, seen, given_)
        assert low <= wish.replicas <= high
        if wish.replicas > max(low, 1) and cap is not None:
            assert wish.replicas * 3 * USD <= cap
        if not seen.complete and (cap is None or current * 3 * USD <= cap):
            assert wish.replicas >= current
        assert wish.message
        assert math.isfinite(wish.forecast_high)
        current = wish.replicas
