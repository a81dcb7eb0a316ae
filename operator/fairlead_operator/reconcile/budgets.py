"""Which budgets go to the ledger, and whom each covers."""

from fairlead_operator.reconcile.configuration import Picture
from fairlead_operator.render.ledger_budgets import ledger_budget
from fairlead_router.contract import LedgerBudget


def wanted_budgets(picture: Picture) -> tuple[LedgerBudget, ...]:
    """Every budget that can be counted, in one order."""
    return tuple(ledger_budget(one.budget, one.namespaces) for one in picture.countable)
