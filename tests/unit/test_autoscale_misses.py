"""The price of a missed objective, and the violation budget behind it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.misses import HIGHEST_PRICE, LOWEST_PRICE, Misses, count, reserve

DAY = 86_400.0


def after(share: float, hours: float, misses: Misses | None = None) -> Misses:
    """The account after so many hours in which this share of 100 requests a second missed."""
    misses = misses or Misses()
    for _ in range(round(hours * 60)):
        misses = count(misses, 6000, round(6000 * share), 60.0, 0.99)
    return misses


def test_more_misses_than_allowed_make_them_dearer() -> None:
    assert after(0.012, 2).price(0.99) > after(0.01, 2).price(0.99) > after(0.008, 2).price(0.99)


def test_at_the_allowed_share_the_price_moves_slowly() -> None:
    assert after(0.01, 3).price(0.99) == pytest.approx(after(0.01, 1).price(0.99), rel=0.5)


def test_the_misses_of_a_young_account_hardly_move_the_price_and_those_of_a_day_do() -> None:
    assert after(0.02, 0.5).price(0.99) < 1.3 * Misses().price(0.99)
    assert after(0.02, 6).price(0.99) > 1.5 * Misses().price(0.99)


def test_an_account_in_balance_makes_misses_a_little_dearer_to_build_a_reserve() -> None:
    assert after(0.01, 6).base > Misses().base


def test_where_replicas_start_slowly_more_is_kept_back() -> None:
    assert reserve(30.0) == reserve(120.0) == 0.16 < reserve(200.0) < reserve(300.0) == reserve(3000.0) == 0.2
    account = after(0.008, 2)
    assert account.price(0.99, reserve(300.0)) > account.price(0.99, reserve(120.0))
    slow, quick = (count(account, 6000, 48, 60.0, 0.99, reserve(start)) for start in (300.0, 120.0))
    assert slow.base > quick.base


def test_what_is_left_is_what_the_objective_allows_less_what_missed() -> None:
    account = count(Misses(), 10_000, 40, 5.0, 0.99)
    assert account.left(0.99) == pytest.approx(60)
    assert account.attainment == pytest.approx(0.996)


def test_a_day_ago_counts_half() -> None:
    old = count(Misses(), 10_000, 100, 1.0, 0.99)
    assert count(old, 0, 0, DAY, 0.99).missed == pytest.approx(50)


def test_before_any_request_the_objectives_are_met() -> None:
    assert Misses().attainment == 1
    assert Misses().left(0.99) == 0


def test_a_longer_night_of_misses_at_the_highest_price_makes_the_day_after_it_no_dearer() -> None:
    short, long = after(0.02, 7), after(0.02, 12)
    assert short.price(0.99) == long.price(0.99) == pytest.approx(HIGHEST_PRICE)
    assert long.base == pytest.approx(short.base)


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 60)), max_size=200),
    st.floats(0.5, 1.0),
)
def test_the_price_stays_within_its_bounds(rounds: list[tuple[int, int, float]], attainment: float) -> None:
    account = Misses()
    for finished, missed, seconds in rounds:
        account = count(account, finished, missed, seconds, attainment)
        assert LOWEST_PRICE * 0.999 <= account.price(attainment) <= HIGHEST_PRICE * 1.001
        assert math.isfinite(account.left(attainment))


def test_a_system_that_spends_by_its_price_ends_near_what_is_allowed() -> None:
    # Misses fall with their price, here as its power of -0.7, at three levels that the law does not know.
    for level in (0.02, 0.05, 0.1):
        account = Misses()
        for _ in range(24 * 60):
            share = level * account.price(0.99) ** -0.7
            account = count(account, 6000, round(6000 * share), 60.0, 0.99)
        assert 0.985 < account.attainment < 0.9965
