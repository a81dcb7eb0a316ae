"""A CostBudget goes to the ledger and to the routers; its status says what is spent and whether all enforce it."""

from functools import cache

from fairlead_operator.api.v1alpha1 import CostBudget, EventReason
from fairlead_operator.decide.actions import changes, increase_writer, standing
from fairlead_operator.decide.signals import STALE_MS
from fairlead_operator.errors import ApiError
from fairlead_operator.kube.queue import Key
from fairlead_operator.kube.resources import COST_BUDGETS
from fairlead_operator.reconcile.configuration import Picture, unpriced
from fairlead_operator.reconcile.context import Confirmed, Context, confirmations, publish, publish_events
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_operator.status.events import events_of_costbudget
from fairlead_router.contract import Signals

SETTLE_MS = STALE_MS
"""After a change of leader: routers hear of the new version, sync with the ledger, and are asked three times."""


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
        view, old = self._view(compiled, budget), self._c.statuses.present(raw)
        status = costbudget_status(view, old, self._c.clock.now_ms())
        writer = await self._writer(key) if EventReason.LIMIT_RAISED in changes(standing(old), standing(status)) else ""
        # 3. Report; the Events after the status, or a status that was not written would have them told again.
        await publish(self._c, COST_BUDGETS, raw, status, ())
        await publish_events(self._c, raw, events_of_costbudget(old, status, view, writer))

    async def _writer(self, key: Key) -> str:
        """Who wrote the temporary increase, as the API server keeps it; empty when that cannot be read now."""
        try:
            return increase_writer(await self._c.api.get(COST_BUDGETS, key.namespace, key.name))
        except ApiError:
            return ""

    def _view(self, compiled: Picture, budget: CostBudget) -> BudgetView:
        routers, now, books = self._routers(compiled, budget), self._c.clock.now_ms(), self._c.books
        covered = compiled.budgets[budget.key].namespaces
        return BudgetView(
            budget=budget,
            spend=books.spend.get(budget.key),
            ledger_silent_s=(now - books.ledger_answered_ms) // 1000,
            routers_total=routers.total,
            routers_enforcing=routers.confirmed,
            price_unknown_pools=unpriced(compiled, covered, budget.spec.applies_to.models),
            problems=compiled.refused[budget.key],
            outlook=books.outlooks.get(budget.key),
            settling=now - books.led_since_ms < SETTLE_MS,
        )

    def _routers(self, compiled: Picture, budget: CostBudget) -> Confirmed:
        """Enforcing: has the budget as it is now in its configuration, and heard of it from the ledger."""
        since = self._c.books.budget_in.get(budget.key)
        places = {*self._c.feed.platform, *compiled.budgets[budget.key].namespaces}

        @cache
        def knows(namespace: str, version: str) -> bool:
            return self._c.feed.knows_budget(namespace, version, budget.key)

        def has(namespace: str, signals: Signals) -> bool:
            known = knows(namespace, signals.config_version)
            return known and since is not None and signals.budgets_version >= since

        return confirmations(self._c, places, has)
