"""A CostBudget goes to the ledger and to the routers; its status says what is spent and whether all enforce it."""

from collections.abc import Mapping

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.kube.api import Object
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import COST_BUDGETS
from fairlead_operator.reconcile.configuration import Picture, unpriced
from fairlead_operator.reconcile.context import Confirmed, Context, confirmations, publish
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.status.events import events_of_costbudget
from fairlead_router.contract import Signals


class BudgetReconciler:
    """Reconciles one budget at a time."""

    def __init__(self, context: Context) -> None:
        self._c = context

    async def __call__(self, key: Key) -> None:
        """Report on one budget; all budgets go to the ledger in one message of LedgerSync."""
        # 1. Gather: the configuration must be of the same moment as what is judged by it.
        compiled = self._c.compiler.refresh()
        raw = compiled.snapshot.raw.get(key)
        budget = compiled.snapshot.budgets.get(f"{key.namespace}/{key.name}")
        if raw is None or budget is None:
            self._c.statuses.forget(key)
            return
        # 2. Decide.
        status = self._status(compiled, budget, raw)
        # 3. Report.
        events = events_of_costbudget(self._c.statuses.present(raw), status)
        await publish(self._c, COST_BUDGETS, raw, status, events)

    def _status(self, compiled: Picture, budget: CostBudget, raw: Object) -> Mapping[str, object]:
        routers, now = self._routers(compiled, budget), self._c.clock.now_ms()
        covered = compiled.budgets[budget.key].namespaces
        view = BudgetView(
            budget=budget,
            spend=self._c.books.spend.get(budget.key),
            ledger_silent_s=(now - self._c.books.ledger_answered_ms) // 1000,
            routers_total=routers.total,
            routers_enforcing=routers.confirmed,
            price_unknown_pools=unpriced(compiled.snapshot, compiled.inputs, compiled.callers, covered),
            problems=compiled.refused[budget.key],
        )
        return costbudget_status(view, self._c.statuses.present(raw), now)

    def _routers(self, compiled: Picture, budget: CostBudget) -> Confirmed:
        """Enforcing: has the budget as it is now in its configuration, and heard of it from the ledger."""
        since = self._c.books.budget_in.get(budget.key)
        places = {*self._c.feed.platform, *compiled.budgets[budget.key].namespaces}

        def has(namespace: str, signals: Signals) -> bool:
            known = self._c.feed.knows_budget(namespace, signals.config_version, budget.key)
            return known and since is not None and signals.budgets_version >= since

        return confirmations(self._c, places, has)
