"""``fairlead explain budget``: what is left of a budget, who spent it, what it will do and when, and what would help.

It asks the API server for the budget, and the ledger for the figures of now and for who spent them. Without an answer
of the ledger it tells what the status has, and the exit status is 3.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.cli.ask import DAY_MS, FINE, LOOK, UsageError, add_ledger, ledger, trouble
from fairlead_operator.cli.explain_budget_facts import HOUR_MS, QUIET, Known, Usage, troubles
from fairlead_operator.cli.explain_budget_json import explanation_json
from fairlead_operator.cli.explain_budget_text import explain_budget
from fairlead_operator.cli.key import add_cluster
from fairlead_operator.cli.simulate import amount_of
from fairlead_operator.decide.outlook import Scope, covers, points_of, scope_of
from fairlead_operator.errors import ApiError, LedgerError
from fairlead_operator.kube.api import Api, Object
from fairlead_operator.kube.resources import COST_BUDGETS, NAMESPACES
from fairlead_operator.ledger_client import LedgerClient
from fairlead_operator.render.ledger_budgets import covered_namespaces, ledger_budget
from fairlead_operator.status.costbudget import BudgetView, costbudget_status
from fairlead_router.contract import SpendAnswer, Unit, UsageRow

DAYS = 7
"""How far back it is told who spent."""
UNTOLD = "Not told: what routers hold, when actions began, who spent it."


@dataclass(slots=True)
class Answers:
    """What the ledger said, as far as it got; ``now`` by its clock, ``status``: the exit status that this calls for."""

    now: int
    spend: SpendAnswer | None = None
    usage: Usage | None = None
    silence: str = ""
    status: int = FINE


def add_parser(what: "argparse._SubParsersAction[argparse.ArgumentParser]", environment: Mapping[str, str]) -> None:
    """The command line of ``fairlead explain budget``."""
    text = "what is left of a budget, who spent it, what it will do and when"
    budget = what.add_parser("budget", help=text, description=__doc__)
    budget.add_argument("name", help="name of the CostBudget")
    budget.add_argument("-o", "--output", choices=["table", "json"], default="table", help="table (default), or json")
    add_cluster(budget)
    add_ledger(budget, environment)


async def answer(api: Api, namespace: str, options: argparse.Namespace) -> tuple[str, int]:
    """What to print, and the exit status. Raises UsageError, ApiError."""
    raw = await api.get(COST_BUDGETS, namespace, options.name)
    try:
        budget = CostBudget.parse(raw)
    except ValidationError as error:
        raise UsageError(f"CostBudget {namespace}/{options.name} cannot be read: {error}") from error
    answers = Answers(time.time_ns() // 1_000_000)
    try:
        async with ledger(options) as client:
            await _ask(client, api, budget, answers)
    except LedgerError as error:
        text, answers.status = trouble(error)
        answers.silence = f"{text}. {UNTOLD}"
    known = Known(_as_of_now(raw, budget, answers), answers.now, answers.spend, answers.usage)
    look = bool(troubles(budget)) or known.budget.status.active_action not in {None, *QUIET} or known.left <= 0
    silence, as_json = answers.silence, options.output == "json"
    text = explanation_json(known, silence) if as_json else "\n".join(explain_budget(known, silence))
    return text, max(answers.status, LOOK if look else FINE)


def _as_of_now(raw: Object, budget: CostBudget, answers: Answers) -> CostBudget:
    """The budget with the figures that the operator would write now; forecast, routers and conditions are its last."""
    if answers.spend is None:
        return budget
    old: dict[str, Any] = raw.get("status") or {}
    fresh = costbudget_status(BudgetView(budget, answers.spend, 0, 0, 0), old, answers.now)
    kept = {name: old[name] for name in ("conditions", "routers") if name in old}
    return CostBudget.parse({**raw, "status": {**fresh, **kept}})


async def _ask(client: LedgerClient, api: Api, budget: CostBudget, answers: Answers) -> None:
    """Fill in what the ledger says. Raises LedgerError."""
    told = await client.spend()
    answers.now = told.now or answers.now
    answers.spend = next((one for one in told.budgets if f"{one.namespace}/{one.name}" == budget.key), None)
    if answers.spend is None:
        answers.silence = f"it has no such budget, or does not show it to this token. {UNTOLD}"
        answers.status = LOOK
        return
    namespaces = await _namespaces(api, budget)
    if namespaces is None:
        answers.silence = "who spent it is not told: you may not list the namespaces that it selects from"
        return
    answers.usage = await _usage(client, budget, answers.spend, namespaces, answers.now)


async def _namespaces(api: Api, budget: CostBudget) -> Mapping[str, Mapping[str, str]] | None:
    """The labels of those that the budget may cover; ``None`` if they may not be listed."""
    if budget.spec.applies_to.namespace_selector is None:
        return {budget.namespace: {}}
    try:
        found = (await api.list(NAMESPACES)).items
    except ApiError:
        return None
    return {one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in found}


async def _usage(
    client: LedgerClient, budget: CostBudget, spend: SpendAnswer, namespaces: Mapping[str, Mapping[str, str]], now: int
) -> Usage | None:
    """Usage of the fullest account; ``None`` where none is kept by it."""
    applies = budget.spec.applies_to
    # The API server admits selectors in platform namespaces only, so whoever has one may have it.
    covered = covered_namespaces(budget, namespaces, (budget.namespace,))
    # Without a selector one namespace was looked at, but it is not the only one.
    everywhere = namespaces if applies.namespace_selector is not None else (*namespaces, "")
    scope = scope_of(ledger_budget(budget, covered), spend, applies.models, everywhere)
    if scope is None:
        return None
    hour, unit, only = now - now % HOUR_MS, budget.spec.limit.unit, dict(scope.filters)
    since = max(min(spend.window.start, now - DAYS * DAY_MS), hour - scope.hours * HOUR_MS)
    hours = await client.usage(scope.by, since, hour + HOUR_MS, step=str(HOUR_MS), **only)
    who, days = "caller" if spend.per == "Feature" else "feature", min(DAYS, scope.hours // 24)
    by = scope.by.replace("time", who)
    shares = await client.usage(by, now - days * DAY_MS, now, **only)
    return Usage(points_of(hours.rows, scope, unit), who, shares_of(shares.rows, by.split(","), scope, unit), days)


def shares_of(rows: Sequence[UsageRow], by: Sequence[str], scope: Scope, unit: Unit) -> tuple[tuple[str, int], ...]:
    """Who spent how much of what the scope covers, most first; the first dimension is who."""
    sums: dict[str, int] = {}
    for row in rows:
        if covers(scope, dict(zip(by, row.group, strict=True))):
            sums[row.group[0]] = sums.get(row.group[0], 0) + amount_of(row, unit)
    return tuple(sorted(sums.items(), key=lambda one: (-one[1], one[0])))
