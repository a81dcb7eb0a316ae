"""What budgets' statuses say, as metrics: how much is spent of what, what it will be, and what is done about it."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.api.v1alpha1.costbudget import STRENGTH

LABELS: Final = ("tenant", "budget")
AMOUNTS: Final = {
    "limit": "Limit of a window, a temporary increase included",
    "spent": "Settled and unreconciled spending of the fullest account in this window",
    "reserved": "What its running requests may still cost",
    "unreconciled": "What lost routers left unknown; counted as spent",
    "idle": "Idle cost that counts as spent",
}
BOUNDS: Final = {"at_window_end": "expected", "low": "low", "high": "high"}
UNITS: Final = ("USD", "Tokens", "Requests")


def budget_families(budgets: Mapping[str, CostBudget]) -> Iterator[Metric]:
    """All families; a figure that a status does not have is no sample."""
    for unit in UNITS:
        counted = [one for one in budgets.values() if one.spec.limit.unit == unit]
        for name, text in AMOUNTS.items():
            yield _amounts(counted, name, text, unit)
        yield _forecasts(counted, unit)
    yield _actions(budgets)
    yield _routers(budgets)


def _amounts(budgets: list[CostBudget], name: str, text: str, unit: str) -> Metric:
    family = GaugeMetricFamily(f"fairlead_budget_{name}_{unit.lower()}", text, labels=LABELS)
    for budget in budgets:
        amount = getattr(budget.status, name)
        if amount is not None:
            family.add_metric(_place(budget), float(amount))
    return family


def _forecasts(budgets: list[CostBudget], unit: str) -> Metric:
    text = "Spending at the window's end if no action holds it back"
    family = GaugeMetricFamily(f"fairlead_budget_forecast_{unit.lower()}", text, labels=(*LABELS, "bound"))
    for budget in budgets:
        forecast = budget.status.forecast
        for name, bound in BOUNDS.items() if forecast is not None else ():
            family.add_metric((*_place(budget), bound), float(getattr(forecast, name)))
    return family


def _actions(budgets: Mapping[str, CostBudget]) -> Metric:
    text = "1 for what a budget does now, 0 for what it does not"
    family = GaugeMetricFamily("fairlead_budget_action", text, labels=(*LABELS, "action"))
    for budget in budgets.values():
        active = budget.status.active_action
        for action in STRENGTH if active is not None else ():
            family.add_metric((*_place(budget), action), action == active)
    return family


def _routers(budgets: Mapping[str, CostBudget]) -> Metric:
    text = "Routers that serve callers of a budget, and those that have confirmed it"
    family = GaugeMetricFamily("fairlead_budget_routers", text, labels=(*LABELS, "state"))
    for budget in budgets.values():
        routers = budget.status.routers
        if routers is not None:
            family.add_metric((*_place(budget), "serving"), routers.total)
            family.add_metric((*_place(budget), "enforcing"), routers.enforcing)
    return family


def _place(budget: CostBudget) -> tuple[str, str]:
    return budget.namespace, budget.name
