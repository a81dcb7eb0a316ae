"""What of a budget cannot be counted as it is written."""

from collections.abc import Collection, Sequence

from fairlead_operator.api.v1alpha1 import CostBudget, Reason
from fairlead_operator.decide.problems import Problem


def budget_problems(
    budget: CostBudget, platform_namespaces: Sequence[str], zones: Collection[str]
) -> tuple[Problem, ...]:
    """Findings about the budget; ``zones`` are the time zones that this release knows."""
    return (*_selector_problems(budget, platform_namespaces), *_zone_problems(budget, zones))


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
    text = f"{where} is {zone}, which is no IANA time zone. The budget is not counted. Write one such as Europe/Berlin."
    return (Problem(Reason.UNKNOWN_TIME_ZONE, text, where),)
