"""A budget's status as metrics: what alerts ask for, under the names that they use."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.budget_gauges import budget_families
from tests.builders.resources import BudgetBuilder, make_budget

STATUS: dict[str, Any] = {
    "limit": "2800.00",
    "spent": "1942.20",
    "reserved": "0.32",
    "unreconciled": "0.18",
    "forecast": {"atWindowEnd": "3326.16", "low": "3215.00", "high": "3437.00"},
    "activeAction": "Pace",
    "routers": {"total": 8, "enforcing": 7},
}
SUPPORT = {"tenant": "support", "budget": "support"}


class Budgets(Collector):
    def __init__(self, *budgets: BudgetBuilder) -> None:
        self.parsed: dict[str, CostBudget] = {one.key: one for one in (budget.parsed() for budget in budgets)}

    def collect(self) -> list[Metric]:
        return list(budget_families(self.parsed))


def registry(*budgets: BudgetBuilder) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(Budgets(*budgets))
    return found


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("limit_usd", {}, 2800.0),
        ("spent_usd", {}, 1942.2),
        ("unreconciled_usd", {}, 0.18),
        ("forecast_usd", {"bound": "expected"}, 3326.16),
        ("forecast_usd", {"bound": "low"}, 3215.0),
        ("forecast_usd", {"bound": "high"}, 3437.0),
        ("action", {"action": "Pace"}, 1.0),
        ("action", {"action": "Alert"}, 0.0),
        ("action", {"action": "Reject"}, 0.0),
        ("routers", {"state": "serving"}, 8.0),
        ("routers", {"state": "enforcing"}, 7.0),
        ("idle_usd", {}, None),
        ("spent_requests", {}, None),
    ],
)
def test_a_figure_of_the_status_is_a_sample(name: str, labels: dict[str, str], value: float | None) -> None:
    found = registry(make_budget("support", "support").status(**STATUS))
    assert found.get_sample_value(f"fairlead_budget_{name}", SUPPORT | labels) == value


def test_a_budget_is_counted_under_its_own_unit() -> None:
    loop = make_budget("loop", "support").limit(200, unit="Requests").status(spent="200", idle="0")
    found = registry(loop)
    place = {"tenant": "support", "budget": "loop"}
    assert found.get_sample_value("fairlead_budget_spent_requests", place) == 200.0
    assert found.get_sample_value("fairlead_budget_spent_usd", place) is None


def test_a_budget_that_nothing_is_known_of_has_no_samples() -> None:
    assert [sample for family in registry(make_budget("new")).collect() for sample in family.samples] == []


def test_exactly_one_action_is_in_force() -> None:
    families = budget_families(Budgets(make_budget("b").status(activeAction="Downgrade")).parsed)
    samples = [one for family in families if family.name == "fairlead_budget_action" for one in family.samples]
    assert len(samples) == 7
    assert sum(one.value for one in samples) == 1
