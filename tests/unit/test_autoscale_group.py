"""What replicas of several variants miss together."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.group import Group, groups
from fairlead_operator.decide.autoscale.service import pools
from fairlead_operator.performance.curve import Curve
from tests.builders.autoscale import CURVE

STEEP = Curve((28.0, 30.0, 30.5, 31.0), (1.0, 0.99, 0.8, 0.6))
"""A large replica: all is well until it is full."""
FLAT = Curve((2.0, 4.0, 6.0, 7.0), (0.995, 0.99, 0.96, 0.7))
"""A small one, where a few requests miss at any load."""


def group(steep: int, flat: int, *, factors: tuple[float, float] = (1.0, 1.0)) -> Group:
    """So many of each; the router sends by what they take at 99 %."""
    return groups((pools(((1, STEEP),)), pools(((1, FLAT),))), (30.0, 4.0), factors).of((steep, flat))


def test_a_pool_of_one_variant_misses_as_its_curve_says() -> None:
    one = groups((pools(((1, CURVE),)),), (10.0,), (1.0,)).of((3,))
    for load in (9.0, 9.5, 10.0, 11.0, 13.0):
        assert one.missed(3 * load) == pytest.approx(3 * load * (1 - CURVE.share(load)), rel=0.1, abs=0.05)


def test_beyond_what_is_served_in_time_all_that_is_more_misses() -> None:
    one = group(1, 2)
    end = one.loads[-1]
    assert one.missed(end + 50) == pytest.approx(one.missed(end) + 50)


def test_what_a_full_replica_cannot_serve_in_time_goes_to_one_that_can() -> None:
    # By their parts the large one would get 31.8 of 36, far beyond what it can do.
    assert STEEP.loads[-1] < 36 * 30 / 34
    assert group(1, 1).missed(36.0) < 1.0


def test_below_that_each_gets_its_part() -> None:
    steep, flat = group(1, 1).missed_by(17.0)
    assert steep == 0
    assert flat == pytest.approx(2.0 * 0.005, rel=0.1)


def test_a_variant_that_takes_more_than_its_curve_says_misses_less() -> None:
    for load in (33.0, 35.0, 38.0):
        worse, usual, better = (group(1, 1, factors=(one, one)).missed(load) for one in (0.9, 1.0, 1.1))
        assert better < usual < worse


@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.tuples(st.floats(0.4, 2.5), st.floats(0.4, 2.5)),
    st.lists(st.floats(0, 400), min_size=2, max_size=8),
)
def test_more_load_never_misses_less_and_never_more_than_came(
    steep: int, flat: int, factors: tuple[float, float], loads: list[float]
) -> None:
    if not steep + flat:
        return
    one = group(steep, flat, factors=factors)
    found = [one.missed(load) for load in sorted(loads)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(found))
    for load, missed in zip(sorted(loads), found, strict=True):
        assert 0 <= missed <= load + 1e-9
        assert sum(one.missed_by(load)) == pytest.approx(missed)
        assert all(number or not by for number, by in zip((steep, flat), one.missed_by(load), strict=True))
    assert list(one.loads) == sorted(set(one.loads))


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.floats(0, 300))
def test_one_more_replica_never_misses_more(steep: int, flat: int, which: int, load: float) -> None:
    if not steep + flat:
        return
    more = (steep + (which == 0), flat + (which == 1))
    # A replica that misses a few at any load may bring those few.
    assert group(*more).missed(load) <= group(steep, flat).missed(load) + 0.01 * load + 1e-6


def test_each_group_is_made_once() -> None:
    assert group(2, 1) is group(2, 1)
