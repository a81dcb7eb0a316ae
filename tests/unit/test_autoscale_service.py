"""What replicas can do: curves of pools of every size, and what is learned from misses."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.service import SHARES, STEADY_S, Done, Service, learn, measured, pools
from fairlead_operator.performance.curve import Curve
from tests.builders.autoscale import CURVE

WIDE = Curve(tuple(load * 1.2 for load in CURVE.loads), CURVE.shares)


def test_the_curve_of_a_known_size_is_that_curve() -> None:
    one = pools(((1, CURVE), (4, WIDE))).of(1)
    for load in (5.0, 9.5, 10.0, 11.0, 13.0):
        assert one.share(load) == pytest.approx(CURVE.share(load), abs=0.02)
    assert one.capacity(0.99) == pytest.approx(10.0, rel=0.01)


def test_between_two_sizes_the_capacity_lies_between_and_nearer_to_the_larger() -> None:
    found = [pools(((1, CURVE), (4, WIDE))).of(size).capacity(0.99) for size in (1, 2, 3, 4, 9)]
    assert found == sorted(found)
    assert found[1] - found[0] > found[2] - found[1]
    assert found[3] == found[4] == pytest.approx(12.0, rel=0.01)


def test_beyond_the_last_load_as_many_are_served_in_time_as_there() -> None:
    one = pools(((1, CURVE),)).of(3)
    for load in (14.0, 40.0, 1000.0):
        assert load * one.share(load) == pytest.approx(14.0 * 0.75, rel=0.05)


def test_a_curve_that_starts_below_one_falls_from_there() -> None:
    low = pools(((1, Curve((4.0, 8.0), (0.9, 0.0))),)).of(1)
    assert low.share(0.0) == 1
    assert 0.9 < low.share(2.0) < 1


@given(
    st.lists(st.tuples(st.floats(0.01, 1e3), st.floats(0, 1)), min_size=1, max_size=12, unique_by=lambda one: one[0]),
    st.integers(1, 50),
    st.lists(st.floats(0, 2e3), min_size=2, max_size=10),
)
def test_shares_never_rise_with_the_load(points: list[tuple[float, float]], size: int, loads: list[float]) -> None:
    shares = sorted((share for _, share in points), reverse=True)
    curve = Curve(tuple(sorted(load for load, _ in points)), tuple(shares))
    pool = pools(((1, curve), (4, curve))).of(size)
    found = [pool.share(load) for load in sorted(loads)]
    assert found == sorted(found, reverse=True)
    assert all(0 <= share <= 1 for share in found)
    assert pool.capacity(0.99) > 0
    assert len(pool.loads) == len(SHARES)


ONE = (("h100", 10.0),)
TWO = (("h100", 30.0), ("l40s", 10.0))


def fresh(*loads: tuple[str, float]) -> Service:
    """Nothing was learned; each variant's replica takes so many requests/s by its curves."""
    return measured(Service(), loads or ONE)


def taught(
    missed: float,
    predicted: float | tuple[float, ...],
    rounds: int = 2000,
    service: Service | None = None,
    ready: tuple[int, ...] = (4,),
) -> Service:
    """What is known after many steady rounds with these shares of misses, the predicted ones by variant."""
    service = service or fresh()
    shares = (predicted,) if isinstance(predicted, float) else predicted
    for tick in range(rounds):
        service = learn(service, ready, 5.0 * tick, Done(100, round(100 * missed), shares), steady=True)
    return service


def test_more_misses_than_predicted_make_every_load_heavier() -> None:
    assert taught(missed=0.05, predicted=0.01).by_name["h100"] < 0.9


def test_fewer_misses_than_predicted_make_every_load_lighter() -> None:
    assert taught(missed=0.0, predicted=0.03).by_name["h100"] > 1.1


def test_as_many_misses_as_predicted_change_nothing() -> None:
    assert taught(missed=0.02, predicted=0.02).factors == pytest.approx((1.0,))


def test_misses_that_come_in_bursts_by_chance_hardly_move_what_is_known() -> None:
    chance = random.Random(1)  # noqa: S311 - chance, not a secret
    for burst in (1, 4, 10):
        service, factors = fresh(), []
        for tick in range(4000):
            missed = sum(burst for _ in range(10) if chance.random() < 0.25 / burst)
            service = learn(service, (4,), 5.0 * tick, Done(250, missed, (0.01,)), steady=True)
            factors.append(service.factors[0])
        assert 0.85 < min(factors[500:]) <= max(factors[500:]) < 1.2


def test_what_is_learned_first_counts_for_more() -> None:
    def step(service: Service) -> tuple[float, Service]:
        after = learn(service, (4,), 1e6, Done(100, 100, (0.0,)), steady=True)
        after = learn(after, (4,), 1e6, Done(100, 100, (0.0,)), steady=True)
        return service.corrections[0] - after.corrections[0], after

    known, steps = replace(fresh(), ready=(4,)), []
    for _ in range(20):
        one, known = step(known)
        steps.append(one)
    assert steps[0] > 3 * steps[-1] > 0


def test_what_is_learned_is_bounded() -> None:
    assert taught(0.5, 0.0, rounds=20_000).factors == pytest.approx((math.exp(-1),))
    assert taught(0.0, 0.5, rounds=20_000).factors == pytest.approx((math.e,))


def test_nothing_is_learned_while_replicas_come_and_go_or_the_rate_moves() -> None:
    service = fresh()
    for tick in range(2000):
        service = learn(service, (4 + tick // 20 % 2,), 5.0 * tick, Done(100, 50, (0.0,)), steady=True)
    assert service.factors == (1,)
    assert learn(service, (5,), 1e6, Done(10**6, 10**6, (0.0,)), steady=False).factors == (1,)


def test_the_first_minutes_after_a_change_teach_nothing() -> None:
    service = learn(fresh(), (4,), 0.0, Done(0, 0, (0.0,)), steady=True)
    service = learn(service, (4,), STEADY_S, Done(1000, 1000, (0.0,)), steady=True)
    assert service.finished == 0
    assert learn(service, (4,), STEADY_S + 5, Done(1000, 1000, (0.0,)), steady=True).factors[0] < 1


def test_a_variant_learns_of_what_was_predicted_to_miss_there_and_the_other_keeps_what_it_knows() -> None:
    service = taught(0.0, (0.0, 0.04), service=fresh(*TWO), ready=(1, 2))
    assert service.by_name["l40s"] > 1.1
    assert service.by_name["h100"] == pytest.approx(1, abs=0.01)
    assert taught(0.04, (0.02, 0.0), service=service, ready=(2, 0)).by_name["l40s"] == service.by_name["l40s"]


def test_where_none_was_predicted_to_miss_all_learn_by_their_load() -> None:
    found = taught(0.02, (0.0, 0.0), rounds=100, service=fresh(*TWO), ready=(1, 1)).by_name
    assert found["h100"] < found["l40s"] < 1


def test_a_variant_that_never_served_may_be_as_much_worse_as_the_others_but_no_better() -> None:
    worse = taught(0.05, (0.01, 0.0), service=fresh(*TWO), ready=(1, 0))
    assert worse.by_name["l40s"] == worse.by_name["h100"] < 0.9
    better = taught(0.0, (0.03, 0.0), service=fresh(*TWO), ready=(1, 0))
    assert better.by_name["l40s"] == 1 < better.by_name["h100"]


@pytest.mark.parametrize(
    ("missed", "ratio", "left"),
    [
        (0.05, 0.8, "some"),
        (0.05, 0.01, "none"),
        (0.05, 1.5, "all"),
        (0.0, 1.1, "some"),
        (0.0, 50.0, "none"),
        (0.0, 0.5, "all"),
    ],
)
def test_curves_that_are_measured_anew_take_over_what_was_learned_in_their_place(
    missed: float, ratio: float, left: str
) -> None:
    # A ratio below 1: a replica takes less by the new curves, as more misses than predicted had already said.
    service = taught(missed=missed, predicted=0.02, rounds=400)
    after = measured(service, (("h100", 10.0 * ratio),))
    assert after.finished == 0
    if left == "none":
        assert after.corrections == (0,)
    elif left == "all":
        assert after.corrections == service.corrections
    else:
        assert after.factors[0] * ratio == pytest.approx(service.factors[0])


def test_the_same_curves_leave_what_is_known() -> None:
    service = taught(missed=0.05, predicted=0.01)
    assert measured(service, ONE) is service


def test_a_variant_that_comes_or_goes_leaves_what_is_known_of_the_others() -> None:
    service = taught(missed=0.05, predicted=0.01)
    both = measured(service, (("l40s", 3.0), *ONE))
    assert both.by_name["h100"] == service.by_name["h100"]
    assert [one.name for one in measured(both, (("l40s", 3.0),)).learned] == ["l40s"]
