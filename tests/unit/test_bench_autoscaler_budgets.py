"""S9: what a budget leaves is spent and no more, and its end is felt in the order of the priorities."""

from dataclasses import replace

import pytest

from fairlead_operator.decide.autoscale import Settings
from fairlead_router.contract import Priority
from tests.bench.autoscaler.budgets import HOUR, NANO, PRICE, ZERO_AFTER, Job, Outcome, day, tenants, upside_down
from tests.builders.autoscale import settings, variant

SECONDS = 2 * HOUR
TAKES = 10.0
POOL: Settings = replace(settings(variant(price=PRICE)), minimum=0, zero_after_ms=ZERO_AFTER * 1000)
COUNTS: dict[Priority, list[int]] = {
    "Interactive": [5] * SECONDS,
    "Standard": [6] * SECONDS,
    "Batch": [7] * SECONDS,
}


def two_hours(dollars: float) -> Outcome:
    return day(round(dollars * NANO), COUNTS, TAKES, POOL)


@pytest.fixture(scope="module")
def poor() -> Outcome:
    """Under a budget that pays less than one of the two hours."""
    return two_hours(40.0)


def test_replicas_cost_no_more_than_the_budget(poor: Outcome) -> None:
    assert 0.9 * poor.limit < poor.spent <= poor.limit
    assert poor.charged <= poor.limit


def test_when_money_ends_the_higher_priority_is_served_more(poor: Outcome) -> None:
    interactive, standard, batch = (poor.tallies[one] for one in ("Interactive", "Standard", "Batch"))
    assert interactive.share > standard.share > batch.share
    assert batch.refused > 0
    assert poor.upside_down == 0


def test_with_money_enough_all_are_served_and_all_requests_are_accounted_for() -> None:
    rich = two_hours(1000.0)
    for tally in rich.tallies.values():
        assert tally.refused == 0
        assert tally.share > 0.95
        assert tally.served + tally.late <= tally.asked <= tally.served + tally.late + 40 * 10


def test_who_is_served_before_a_higher_priority_that_waits_is_noticed() -> None:
    interactive, batch = Job("Interactive", 1, 0, 1), Job("Batch", 1, 0, 1)
    assert upside_down([batch], [interactive])
    assert not upside_down([interactive], [batch])
    assert not upside_down([batch], [])


def test_the_tenants_are_those_of_s3_and_share_its_demand() -> None:
    counts = tenants(mean=0.5)
    assert sum(map(sum, counts.values())) / 86_400 == pytest.approx(0.5, rel=0.03)
    assert all(sum(own) > 0 for own in counts.values())
