"""The cheapest whole numbers of replicas over variants."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.variants import VariantOption, cost_per_hour, distribute, variant_options
from tests.builders.decisions import option
from tests.builders.resources import make_pool

L40S = option("l40s", 0, price=1_550_000_000)


def test_growing_keeps_what_runs_and_adds_the_cheapest() -> None:
    assert distribute(5, (option("h100", 3), L40S)).counts == (("h100", 3), ("l40s", 2))


def test_shrinking_drops_the_dearest_that_runs() -> None:
    running = (option("h100", 2), option("l40s", 3, price=1_550_000_000))
    assert distribute(4, running).counts == (("h100", 1), ("l40s", 3))


def test_reserved_capacity_comes_first_whatever_it_costs() -> None:
    assert distribute(2, (option("h100", 0, minimum=2), L40S)).counts == (("h100", 2), ("l40s", 0))


def test_a_price_that_is_not_known_counts_as_the_dearest() -> None:
    options = (option("new", 0, price=None), L40S, option("h100", 0))
    assert distribute(1, options).counts == (("new", 0), ("l40s", 1), ("h100", 0))
    assert cost_per_hour((("new", 1), ("l40s", 1)), options) is None
    assert cost_per_hour((("new", 0), ("l40s", 2)), options) == 3_100_000_000


def test_what_finds_no_room_is_said() -> None:
    split = distribute(9, (option("h100", 1, maximum=2), option("l40s", 0, maximum=3)))
    assert (split.total, split.short) == (5, 4)


def test_options_are_the_specs_variants() -> None:
    spec = make_pool("chat").variant("a", minReplicas=1).variant("b", maxReplicas=4).autoscaling(8).parsed().spec
    assert variant_options(spec, {"b": 2, "gone": 7}, {"a": 5}) == (
        VariantOption("a", 0, 1, None, 5),
        VariantOption("b", 2, 0, 4, None),
    )


prices = st.integers(1, 5)


@given(st.integers(0, 6), st.lists(st.tuples(prices, st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=3))
def test_a_fresh_distribution_is_the_cheapest_of_all(total: int, rows: list[tuple[int, int, int]]) -> None:
    options = tuple(
        option(f"v{place}", 0, price=price, minimum=low, maximum=low + room)
        for place, (price, room, low) in enumerate(rows)
    )
    if not sum(one.minimum for one in options) <= total <= sum(one.maximum or 0 for one in options):
        return
    ranges = [range(one.minimum, (one.maximum or 0) + 1) for one in options]
    costs = [
        sum(count * (one.price or 0) for count, one in zip(counts, options, strict=True))
        for counts in product(*ranges)
        if sum(counts) == total
    ]
    assert cost_per_hour(distribute(total, options).counts, options) == min(costs)
