"""What of a budget cannot be counted as it is written."""

from collections.abc import Collection, Sequence

from fairlead_operator.api.v1alpha1 import CostBudget, Reason
from fairlead_operator.decide.problems import Problem
from fairlead_operator.units import NANO_PER_USD

MAX_UNITS = 1 << 60
"""The ledger's own bound: sums of amounts must fit its 64-bit columns."""
UNCOUNTABLE = frozenset({Reason.LIMIT_TOO_LARGE, Reason.UNKNOWN_TIME_ZONE})
"""Reasons for which neither ledger nor routers are told of a budget."""


def budget_problems(
    budget: CostBudget, platform_namespaces: Sequence[str], zones: Collection[str]
) -> tuple[Problem, ...]:
    """Findings about the budget; ``zones`` are the time zones that this release knows."""
    return (
        *_limit_problems(budget),
        *_zone_problems(budget, zones),
        *_increase_problems(budget),
        *_selector_problems(budget, platform_namespaces),
    )


def _limit_problems(budget: CostBudget) -> tuple[Problem, ...]:
    limit, where = budget.spec.limit, "spec.limit.amount"
    if limit.units <= MAX_UNITS:
        return ()
    most = MAX_UNITS // NANO_PER_USD if limit.unit == "USD" else MAX_UNITS
    text = (
        f"{where} is {limit.amount} {limit.unit}, and at most {most} can be counted. "
        "The budget is not counted and refuses nobody. Lower the amount."
    )
    return (Problem(Reason.LIMIT_TOO_LARGE, text, where),)


def _increase_problems(budget: CostBudget) -> tuple[Problem, ...]:
    increase, limit, where = budget.spec.temporary_increase, budget.spec.limit, "spec.temporaryIncrease"
    if increase is None:
        return ()
    rest = "The budget is counted without the increase."
    if increase.until_ms is None:
        text = f"{where}.until is {increase.until}, which is no time. {rest} Write one such as 2026-12-01T08:00:00Z."
        return (Problem(Reason.INVALID_ARGUMENT, text, f"{where}.until"),)
    if limit.units + limit.counted(increase.amount) > MAX_UNITS:
        text = f"{where}.amount is {increase.amount} {limit.unit}, more than can be counted. {rest} Lower the amount."
        return (Problem(Reason.INVALID_ARGUMENT, text, f"{where}.amount"),)
    return ()


def _selector_problems(budget: CostBudget, platform_namespaces: Sequence[str]) -> tuple[Problem, ...]:
    if budget.spec.applies_to.namespace_selector is None or budget.namespace in platform_namespaces:
        return ()
    where = "spec.appliesTo.namespaceSelector"
    text = (
        f"{where} is set, and namespace {budget.namespace} is not one of the chart's platformNamespaces. "
        "Only its own callers are covered. Remove the selector, or have the namespace added."
    )
    return (Problem(Reason.NAMESPACE_NOT_ALLOWED, text, where),)


def _zone_problems(budget: CostBudget, zones: Collection[str]) -> tuple[Problem, ...]:
    zone, where = budget.spec.limit.time_zone, "spec.limit.timeZone"
    if zone in zones:
        return ()
    text = (
        f"{where} is {zone}, which is no IANA time zone. "
        "The budget is not counted and refuses nobody. Write one such as Europe/Berlin."
    )
    return (Problem(Reason.UNKNOWN_TIME_ZONE, text, where),)
