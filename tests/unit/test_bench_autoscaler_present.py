"""The plan of a law that is told the present."""

import pytest

from fairlead_operator.simulate.clairvoyant import POOLS, Table
from tests.bench.autoscaler.present import (
    HIGHEST,
    LOWEST,
    RATES,
    REPLICAS,
    Prices,
    Told,
    bin_of,
    chances,
    plan,
    rate_of,
    rates,
    window_cost,
)

TABLE = Table((10.0, 12.0, 14.0), ((1.0, 0.9, 0.2),) * len(POOLS), ((5.0, 6.0, 7.0),) * len(POOLS))
STARTS = 120.0


def test_each_rate_lies_in_its_bin() -> None:
    assert [bin_of(rate_of(place)) for place in range(RATES)] == list(range(RATES))
    assert (bin_of(LOWEST / 2), bin_of(HIGHEST * 2)) == (0, RATES - 1)


def test_the_chances_of_the_next_rate_add_up_and_lie_near_the_present_one() -> None:
    for row in chances(5):
        assert sum(row) == pytest.approx(1.0)
    middle = RATES // 2
    assert sum(chances(5)[middle][middle - 4 : middle + 5]) > 0.6


def test_a_day_of_rates_has_the_scenarios_mean() -> None:
    assert len(rates(8)) == 144
    assert sum(rates(8)) / 144 == pytest.approx(60.0)


def test_what_is_added_serves_only_once_it_has_started() -> None:
    prices = Prices(miss=1.0, change=50.0)
    quick = window_cost(TABLE, 60.0, (4, 6), 30.0, prices)
    slow = window_cost(TABLE, 60.0, (4, 6), 300.0, prices)
    assert slow > quick
    assert window_cost(TABLE, 60.0, (6, 6), 300.0, prices) == pytest.approx(6 * 600.0)


def test_a_dearer_miss_buys_more_and_a_dearer_change_moves_less() -> None:
    cheap = plan(TABLE, 5, STARTS, Prices(miss=0.05, change=0.0))
    dear = plan(TABLE, 5, STARTS, Prices(miss=5.0, change=0.0))
    still = plan(TABLE, 5, STARTS, Prices(miss=0.05, change=5000.0))
    assert sum(map(sum, dear)) > sum(map(sum, cheap))

    def stays(one: list[list[int]]) -> int:
        return sum(row[at] == at for row in one for at in range(len(REPLICAS)))

    assert stays(still) > stays(cheap)


def test_the_policy_decides_once_in_a_window() -> None:
    up = [[min(len(REPLICAS) - 1, at + 1) for at in range(len(REPLICAS))] for _ in range(RATES)]
    policy = Told(up, (60.0, 60.0, 60.0), 4)

    class Now:
        now = 0.0

    seen = []
    for now in (5.0, 25.0, 600.0, 625.0, 1225.0, 9999.0):
        Now.now = now
        seen.append(policy.desired(Now())[0])  # type: ignore[arg-type]
    assert seen == [5, 5, 5, 6, 7, 7]
