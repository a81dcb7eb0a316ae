"""A CostBudget as the ledger keeps it, and whom it covers."""

from collections.abc import Mapping, Sequence

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.decide.budgets import MAX_UNITS
from fairlead_router.contract import BudgetAction, LedgerBudget, TemporaryIncrease


def may_select(budget: CostBudget, platform_namespaces: Sequence[str]) -> bool:
    """Whether the budget's namespaceSelector counts: only platform namespaces cover others."""
    return budget.spec.applies_to.namespace_selector is None or budget.namespace in platform_namespaces


def covered_namespaces(
    budget: CostBudget, namespaces: Mapping[str, Mapping[str, str]], platform_namespaces: Sequence[str]
) -> tuple[str, ...]:
    """The namespaces whose callers the budget covers: those selected, else its own."""
    selector = budget.spec.applies_to.namespace_selector
    if selector is None or not may_select(budget, platform_namespaces):
        return (budget.namespace,)
    return tuple(sorted(name for name, labels in namespaces.items() if selector.matches(labels)))


def ledger_budget(budget: CostBudget, namespaces: tuple[str, ...]) -> LedgerBudget:
    """The budget for ``PUT /v1/budgets``; ``namespaces`` are those that it covers."""
    limit = budget.spec.limit
    actions = sorted(budget.spec.actions, key=lambda one: (one.at_percent, one.action))
    return LedgerBudget(
        namespace=budget.namespace,
        name=budget.name,
        uid=budget.metadata.uid,
        unit=limit.unit,
        per=limit.per,
        period=limit.period,
        time_zone=limit.time_zone,
        limit=limit.units,
        enforcement=budget.spec.enforcement,
        namespaces=namespaces,
        actions=tuple(BudgetAction(at_percent=one.at_percent, action=one.action) for one in actions),
        idle_namespaces=namespaces if budget.spec.idle_cost == "Included" else (),
        temporary_increase=temporary_increase(budget),
    )


def temporary_increase(budget: CostBudget) -> TemporaryIncrease | None:
    """The increase in the budget's unit, until when; None if there is none or it cannot be counted.

    One that has ended is told too: the ledger ends it by its own clock.
    """
    written = budget.spec.temporary_increase
    if written is None or written.until_ms is None:
        return None
    limit = budget.spec.limit
    amount = limit.counted(written.amount)
    return TemporaryIncrease(amount=amount, until=written.until_ms) if limit.units + amount <= MAX_UNITS else None
