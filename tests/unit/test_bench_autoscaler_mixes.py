"""S10's reference: the cheapest mixes are those that trying all of them finds, and its schedule is the cheapest."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.simulate.clairvoyant import Table
from fairlead_operator.simulate.model import Variant
from tests.bench.autoscaler.mixes import GRID, Choice, Kind, Level, expected, levels, missing, scheduled
from tests.bench.autoscaler.scenarios import LLAMA

TABLE = Table((5.0, 10.0), ((1.0, 0.5),) * 4, ((1.0, 2.0),) * 4)


def kind(price: float, capacity: float) -> Kind:
    return Kind("any", Variant(LLAMA, price, 120.0, 0, 40), TABLE, capacity)


KINDS = st.lists(
    st.builds(kind, st.integers(1, 30).map(float), st.integers(60, 500).map(float)), min_size=1, max_size=3
)


@given(KINDS, st.integers(1, GRID))
def test_the_cheapest_mix_for_a_demand_is_the_one_that_trying_all_finds(using: list[Kind], need: int) -> None:
    # The unit is 1 request/s here, so that rounding capacities down changes none.
    found = next(one for one in levels(using, float(GRID)) if one.capacity >= need)
    most = [-(-need // int(one.capacity)) for one in using]
    enough = (
        sum(number * one.variant.price_per_hour for number, one in zip(mix, using, strict=True))
        for mix in product(*(range(number + 1) for number in most))
        if sum(number * one.capacity for number, one in zip(mix, using, strict=True)) >= need
    )
    assert found.price == min(enough)


@given(KINDS, st.floats(1.0, 5000.0))
def test_levels_rise_in_price_and_capacity_and_are_what_their_replicas_are(using: list[Kind], most: float) -> None:
    found = levels(using, most)
    assert [one.price for one in found] == sorted({one.price for one in found})
    assert [one.capacity for one in found] == sorted({one.capacity for one in found})
    assert found[-1].capacity >= most * (1 - 1e-9)
    for one in found:
        assert one.price == sum(n * of.variant.price_per_hour for n, of in zip(one.mix, using, strict=True))
        assert one.capacity == sum(n * of.capacity for n, of in zip(one.mix, using, strict=True))


def test_all_miss_where_nothing_runs_and_none_below_what_is_safe() -> None:
    using = [kind(1.0, 5.0)]
    assert missing(3.0, Level((0,), 0.0, 0.0), using) == 3.0
    assert missing(0.0, Level((2,), 10.0, 2.0), using) == 0.0
    assert missing(20.0, Level((2,), 10.0, 2.0), using) == pytest.approx(10.0)


@given(st.lists(st.sampled_from([2.0, 8.0]), min_size=1, max_size=5), st.floats(0.0, 0.1))
def test_a_schedule_is_the_cheapest_of_all_paths(rates: list[float], price: float) -> None:
    using = [kind(3.6, 5.0)]
    of_one = [Level((number,), 5.0 * number, 3.6 * number) for number in (1, 2)]
    misses = [[missing(rate, one, using) for one in of_one] for rate in rates]
    choice = Choice(of_one, using, rates, misses, [[0.0, 0.0], [0.12, 0.0]])

    def cost(path: tuple[int, ...]) -> float:
        paid = sum(60 * (of_one[at].price / 3600 + price * lost[at]) for at, lost in zip(path, misses, strict=True))
        return paid + sum(choice.changing[to][was] for was, to in pairwise(path))

    best = scheduled(choice, price)
    assert cost(tuple(best)) == pytest.approx(min(map(cost, product((0, 1), repeat=len(rates)))))
    assert expected(choice, best) == 1 - sum(lost[at] for at, lost in zip(best, misses, strict=True)) / sum(rates)
