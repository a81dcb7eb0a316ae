"""Which numbers of replicas cost least, misses included."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale.choice import Kind, best, fleet, options
from fairlead_operator.decide.autoscale.demand import Outlook
from tests.builders.autoscale import USD, variant

SURE = 1.0


def at(rate: float) -> Outlook:
    """A demand that is known exactly."""
    return Outlook(((rate, SURE),))


def test_the_cheapest_number_is_the_one_that_just_serves() -> None:
    using = fleet((variant(),), 0.99, (1.0,), 30.0)
    found = best(using, options(using.kinds, 1, 20, 100.0), at(37.0))
    assert found is not None
    assert found[0] == (4,)


def test_the_dearer_a_miss_the_more_replicas() -> None:
    demand = Outlook(((30.0, 0.8), (40.0, 0.15), (60.0, 0.05)))

    def number(price: float) -> int:
        using = fleet((variant(),), 0.99, (1.0,), price)
        found = best(using, options(using.kinds, 1, 20, 100.0), demand)
        assert found is not None
        return found[0][0]

    found = [number(price) for price in (0.5, 5.0, 50.0, 500.0)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_beyond_all_capacity_one_more_still_helps() -> None:
    using = fleet((variant(),), 0.99, (1.0,), 20.0)
    assert using.cost((3,), at(500.0)) < using.cost((2,), at(500.0))


def test_no_replica_misses_everything() -> None:
    using = fleet((variant(),), 0.99, (1.0,), 20.0)
    assert using.misses((0,), at(12.0)) == 12.0


def test_replicas_that_were_learned_to_do_more_are_needed_less() -> None:
    def misses(factor: float) -> float:
        return fleet((variant(),), 0.99, (factor,), 20.0).misses((3,), at(33.0))

    assert misses(1.2) < misses(1.0) < misses(0.8)


def test_of_two_variants_the_cheaper_by_the_request_is_taken() -> None:
    using = fleet((variant("h100"), variant("l40s", price=USD)), 0.99, (1.0, 1.0), 30.0)
    found = best(using, options(using.kinds, 1, 20, 60.0), at(37.0))
    assert found is not None
    assert found[0] == (0, 4)


def test_every_variant_is_used_to_the_same_part() -> None:
    using = fleet((variant("h100"), variant("l40s", price=USD)), 0.99, (1.0, 1.0), 30.0)
    assert using.misses((2, 2), at(44.0)) == pytest.approx(using.misses((4, 0), at(44.0)))


KINDS = st.lists(
    st.builds(
        Kind,
        price=st.sampled_from([1.0, 2.0, 3.5, 4.0]),
        load=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
        least=st.integers(0, 1),
        most=st.integers(1, 4),
    ),
    min_size=1,
    max_size=3,
)


@given(KINDS, st.integers(0, 3), st.integers(3, 8), st.floats(0.1, 12))
def test_no_set_that_takes_enough_is_cheaper_than_the_listed_ones(
    kinds: list[Kind], least: int, most: int, load: float
) -> None:
    listed = options(tuple(kinds), least, most, load)
    for one in product(*(range(kind.least, kind.most + 1) for kind in kinds)):
        if least <= sum(one) <= most and _able(one, kinds) >= load:
            assert min(_paid(found, kinds) for found in listed if _able(found, kinds) >= load) <= _paid(one, kinds)


@given(KINDS, st.integers(0, 3), st.integers(3, 8), st.floats(0.1, 12))
def test_every_listed_set_is_within_the_bounds(kinds: list[Kind], least: int, most: int, load: float) -> None:
    for one in options(tuple(kinds), least, most, load):
        assert least <= sum(one) <= most
        assert all(kind.least <= number <= kind.most for kind, number in zip(kinds, one, strict=True))


def _able(numbers: tuple[int, ...], kinds: list[Kind]) -> float:
    return sum(kind.load * number for kind, number in zip(kinds, numbers, strict=True))


def _paid(numbers: tuple[int, ...], kinds: list[Kind]) -> float:
    return sum(kind.price * number for kind, number in zip(kinds, numbers, strict=True))
