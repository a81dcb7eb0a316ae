"""CostBudget's status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairlead_operator.api.v1alpha1 import BudgetCondition, CostBudget, Reason
from fairlead_operator.decide.actions import above_limit, acted_percent, shown_action
from fairlead_operator.decide.budgets import UNCOUNTABLE
from fairlead_operator.decide.facts import time_text
from fairlead_operator.decide.outlook import Outlook
from fairlead_operator.decide.problems import Problem
from fairlead_operator.status.conditions import Finding, accepted, all_true, find, merge
from fairlead_operator.units import format_duration, format_usd, usd_places, used_percent
from fairlead_router.contract import KeySpend, SpendAnswer

LEDGER_SILENT_S = 15
POOLS_SHOWN = 3
NO_ROUTERS = "No router is ready, so nothing is served and nothing spent. See kubectl get pods of the gateway."
_LEDGER_FIELDS = (
    "limit",
    "increase",
    "window",
    "fullest",
    "spent",
    "reserved",
    "unreconciled",
    "idle",
    "remaining",
    "usedPercent",
    "burnPerHour",
    "forecast",
    "activeAction",
    "activeAtPercent",
    "allowances",
)


@dataclass(frozen=True, slots=True)
class BudgetView:
    """Everything that a budget's status is made from; ``spend`` is the ledger's last answer, ``None`` before one.

    ``settling``: this process leads since a moment ago, and routers had no time yet to confirm to it what they have.
    """

    budget: CostBudget
    spend: SpendAnswer | None
    ledger_silent_s: int
    routers_total: int
    routers_enforcing: int
    price_unknown_pools: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    outlook: Outlook | None = None
    settling: bool = False

    @property
    def idle(self) -> int:
        """The idle cost that counts as spent."""
        return self.spend.idle if self.spend is not None and self.budget.spec.idle_cost == "Included" else 0

    @property
    def pace_text(self) -> str:
        """How much an hour may be held more while the budget is paced, in its unit."""
        return "" if self.spend is None else _amount(self.spend.pace_per_hour, self.spend)

    @property
    def burn_text(self) -> str:
        """What the last hour spent, in the budget's unit; empty while that is not known."""
        ahead = _outlook(self)
        return "" if self.spend is None or ahead is None else _amount(ahead.burn_per_hour, self.spend)

    @property
    def ledger_answers(self) -> bool:
        """Whether the figures are of now."""
        return self.spend is not None and self.ledger_silent_s <= LEDGER_SILENT_S

    @property
    def counted(self) -> bool:
        """Whether ledger and routers are told of it at all."""
        return not any(problem.reason in UNCOUNTABLE for problem in self.problems)


def costbudget_status(view: BudgetView, old: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The whole status; without an answer of the ledger the figures stay, and the conditions say that they are old."""
    generation = view.budget.metadata.generation
    before = old.get("conditions") or ()
    kept = {key: old[key] for key in _LEDGER_FIELDS if key in old} if view.counted else {}
    figures = kept if view.spend is None or not view.counted else _figures(view, view.spend, old)
    routers = {"total": view.routers_total, "enforcing": view.routers_enforcing}
    return {
        "conditions": merge(before, findings(view, old), now_ms, generation),
        "observedGeneration": generation,
        **figures,
        "routers": old["routers"] if _still_enforced(view, before) and "routers" in old else routers,
    }


def findings(view: BudgetView, old: Mapping[str, Any]) -> list[Finding]:
    """All conditions, in the order of the API; ``old`` is the status that the object has."""
    before = old.get("conditions") or ()
    taken, enforced = accepted_finding(view), _still_enforced(view, before) or enforced_finding(view)
    as_asked = Finding(enforced.type, "True", Reason.AUDIT, enforced.message)
    parts = (taken, as_asked if enforced.reason == Reason.AUDIT else enforced)
    ready = all_true(BudgetCondition.READY, parts, Reason.READY, enforced.message)
    forecast = forecast_finding(view, old)
    return [ready, taken, enforced, within_finding(view), forecast, price_known_finding(view)]


def _still_enforced(view: BudgetView, before: Sequence[Mapping[str, Any]]) -> Finding | None:
    """What the last leader had confirmed of this generation, until the routers could confirm it to this one."""
    last, now = find(before, BudgetCondition.ENFORCED), enforced_finding(view)
    same = last.get("status") == "True" and last.get("observedGeneration") == view.budget.metadata.generation
    unheard = now.reason in {Reason.ROUTERS_LAGGING, Reason.LEDGER_UNREACHABLE}
    if not (view.settling and same and unheard):
        return None
    return Finding(BudgetCondition.ENFORCED, "True", str(last["reason"]), str(last["message"]))


def accepted_finding(view: BudgetView) -> Finding:
    """Whether the budget can be counted as it is written."""
    limit = view.budget.spec.limit
    fine = f"{limit.amount} {limit.unit} per {limit.per} and {limit.period}, in {limit.time_zone}."
    return accepted(BudgetCondition.ACCEPTED, view.problems, fine)


def enforced_finding(view: BudgetView) -> Finding:
    """True only when every serving router has confirmed the budget as it is now."""
    kind, total, have = BudgetCondition.ENFORCED, view.routers_total, view.routers_enforcing
    if view.budget.spec.enforcement == "Audit":
        text = "enforcement is Audit: requests above the limit are counted, reported and let pass."
        return Finding(kind, "False", Reason.AUDIT, text)
    if not view.counted:
        return Finding(kind, "False", Reason.NOT_ACCEPTED, "It is not counted and refuses nobody: see Accepted.")
    if not view.ledger_answers:
        return Finding(kind, "False", Reason.LEDGER_UNREACHABLE, _silent_text(view))
    if total == 0:
        return Finding(kind, "False", Reason.NO_ROUTERS, NO_ROUTERS)
    if have < total:
        text = (
            f"{have} of {total} routers have confirmed generation {view.budget.metadata.generation}; the others count "
            "what they had. If it stays so, see the routers' logs."
        )
        return Finding(kind, "False", Reason.ROUTERS_LAGGING, text)
    return Finding(kind, "True", Reason.ENFORCED, f"All {total} routers hold their callers to it.")


def within_finding(view: BudgetView) -> Finding:
    """Whether no account of the budget has used up its limit."""
    kind, spend = BudgetCondition.WITHIN_BUDGET, view.spend
    if not view.counted:
        return Finding(kind, "Unknown", Reason.NOT_ACCEPTED, "It is not counted: see Accepted.")
    if spend is None:
        return Finding(kind, "Unknown", Reason.LEDGER_UNREACHABLE, _silent_text(view))
    limit = spend.limit + spend.extra
    idle = f" + {_amount(view.idle, spend)} idle" if view.idle else ""
    spent = f"{_amount(_spent(_fullest(spend)), spend)}{idle}"
    full = f"{spent} of {_amount(limit, spend)} {spend.unit} in {spend.window_label}"
    where = _account_text(spend)
    if spend.keys_limited == 0 and spend.action != "Reject":
        return Finding(kind, "True", Reason.WITHIN_LIMIT, f"{full}{where}.")
    count = max(1, spend.keys_limited)
    many = f"{count} of {spend.keys_total} accounts used up their limit; fullest: " if spend.keys_total > 1 else ""
    verb = "are let pass" if view.budget.spec.enforcement == "Audit" else "are refused"
    text = f"{many}{full}{where}. Requests that do not fit {verb} until {time_text(spend.window.end)}."
    return Finding(kind, "False", Reason.LIMIT_REACHED, text)


def forecast_finding(view: BudgetView, old: Mapping[str, Any]) -> Finding:
    """Whether the window will end within the limit if no action holds the spending back."""
    kind, spend, ahead = BudgetCondition.FORECAST_WITHIN_BUDGET, view.spend, _outlook(view)
    last = find(old.get("conditions") or (), kind)
    if not view.counted:
        return Finding(kind, "Unknown", Reason.NOT_ACCEPTED, "It is not counted: see Accepted.")
    if last and ahead is None and _same_window(view, old):
        return Finding(kind, last["status"], str(last["reason"]), str(last["message"]))
    if spend is None or ahead is None:
        return Finding(kind, "Unknown", Reason.NO_FORECAST, "Nothing was forecast for this window yet.")
    limit = spend.limit + spend.extra
    amounts = f"{_amount(ahead.at_end, spend)} ({_amount(ahead.low, spend)} to {_amount(ahead.high, spend)})"
    text = f"{amounts} of {_amount(limit, spend)} {spend.unit} are expected at the end of {spend.window_label}"
    text = f"{text}{_account_text(spend)} if no action holds it back; {_amount(ahead.burn_per_hour, spend)} an hour now"
    if above_limit(ahead.at_end, limit, was_above=last.get("status") == "False"):
        return Finding(kind, "False", Reason.FORECAST_ABOVE_LIMIT, f"{text}{_reached_text(view, spend, ahead)}.")
    return Finding(kind, "True", Reason.WITHIN_LIMIT, f"{text}.")


def _reached_text(view: BudgetView, spend: SpendAnswer, ahead: Outlook) -> str:
    """When the limit is reached if spending goes on evenly as forecast."""
    limit, spent = spend.limit + spend.extra, _spent(_fullest(spend)) + view.idle
    if ahead.at_end <= limit or spent >= limit or ahead.at_end <= spent:
        return ""
    at = ahead.made_ms + (spend.window.end - ahead.made_ms) * (limit - spent) // (ahead.at_end - spent)
    return f". The limit is reached about {time_text(at)}"


def _same_window(view: BudgetView, old: Mapping[str, Any]) -> bool:
    """Whether the status is about the window that is counted now."""
    return view.spend is not None and (old.get("window") or {}).get("end") == time_text(view.spend.window.end)


def _outlook(view: BudgetView) -> Outlook | None:
    """The forecast, unless it was made for another window; what was spent since it was made raises it."""
    ahead, spend = view.outlook, view.spend
    if ahead is None or spend is None or ahead.window_end != spend.window.end:
        return None
    spent = _spent(_fullest(spend)) + view.idle
    at_end, low, high = (max(spent, one) for one in (ahead.at_end, ahead.low, ahead.high))
    return replace(ahead, at_end=at_end, low=low, high=high)


def price_known_finding(view: BudgetView) -> Finding:
    """Whether every pool that the budget's callers may use has a price."""
    kind, pools = BudgetCondition.PRICE_KNOWN, view.price_unknown_pools
    unit = view.budget.spec.limit.unit
    if unit != "USD":
        return Finding(kind, "True", Reason.PRICED, f"The limit is in {unit}; prices do not matter to it.")
    if not pools:
        return Finding(kind, "True", Reason.PRICED, "Every pool that its callers may use has a price.")
    more = f" and {len(pools) - POOLS_SHOWN} more" if len(pools) > POOLS_SHOWN else ""
    named = f"{', '.join(pools[:POOLS_SHOWN])}{more}"
    text = f"No price for {named}: requests there are refused (price_unknown). See PriceKnown of the ModelPool."
    return Finding(kind, "False", Reason.NO_PRICE, text)


def _figures(view: BudgetView, spend: SpendAnswer, old: Mapping[str, Any]) -> dict[str, Any]:
    fullest, limit = _fullest(spend), spend.limit + spend.extra
    spent = _spent(fullest)
    acted = acted_percent(spend, view.budget.spec.actions)
    return {
        "limit": _amount(limit, spend),
        **({"increase": _amount(spend.extra, spend)} if spend.extra else {}),
        "window": {
            "id": spend.window_label,
            "start": time_text(spend.window.start),
            "end": time_text(spend.window.end),
            "countedFrom": time_text(spend.counted_from),
        },
        **({"fullest": name} if (name := account_name(fullest)) else {}),
        "spent": _amount(spent, spend),
        "reserved": _amount(fullest.reserved, spend),
        "unreconciled": _amount(fullest.unreconciled, spend),
        **({"idle": _amount(view.idle, spend)} if view.budget.spec.idle_cost == "Included" else {}),
        "remaining": _amount(limit - spent - fullest.reserved - view.idle, spend),
        "usedPercent": used_percent(_taken(spend, fullest) + view.idle, limit),
        **_ahead(view, spend, old),
        "activeAction": shown_action(spend),
        **({"activeAtPercent": acted} if acted else {}),
        "allowances": {
            "total": spend.keys_total,
            "limited": spend.keys_limited,
            "top": [_account(key, spend) for key in spend.keys],
        },
    }


def _ahead(view: BudgetView, spend: SpendAnswer, old: Mapping[str, Any]) -> dict[str, Any]:
    """Burn and forecast: a new leader's first ones are the last leader's. A blank is "not known"."""
    ahead = _outlook(view)
    if ahead is None:
        kept = ("burnPerHour", "forecast") if _same_window(view, old) else ()
        return {name: old[name] for name in kept if name in old}
    bounds = {"atWindowEnd": ahead.at_end, "low": ahead.low, "high": ahead.high}
    forecast = {name: _amount(value, spend) for name, value in bounds.items()}
    return {"burnPerHour": _amount(ahead.burn_per_hour, spend), "forecast": forecast}


def account_name(key: KeySpend) -> str:
    """An account as people name it: the value of ``per``, within its namespace when that says more."""
    return "/".join(part for part in (key.namespace, key.key) if part)


def _account(key: KeySpend, spend: SpendAnswer) -> dict[str, Any]:
    spent = _spent(key)
    return {
        "key": account_name(key) or "total",
        "spent": _amount(spent, spend),
        "usedPercent": used_percent(spent, spend.limit + spend.extra),
    }


def _fullest(spend: SpendAnswer) -> KeySpend:
    if spend.keys:
        return spend.keys[0]
    return KeySpend(
        namespace="",
        key="",
        charged=spend.charged,
        leased=spend.leased,
        reserved=spend.reserved,
        unreconciled=spend.unreconciled,
        unbacked=spend.unbacked,
        counted_from=spend.counted_from,
    )


def _taken(spend: SpendAnswer, key: KeySpend) -> int:
    """What is spent; while requests are refused, with what routers hold: it is refused because that is not free."""
    held = max(key.leased, key.reserved) if spend.action == "Reject" else 0
    return _spent(key) + held


def _spent(key: KeySpend) -> int:
    return key.charged + key.unreconciled


def _account_text(spend: SpendAnswer) -> str:
    name = account_name(_fullest(spend))
    return f" ({name})" if name else ""


def _amount(value: int, spend: SpendAnswer) -> str:
    """An amount in the budget's unit, as precise as its limit is printed."""
    if spend.unit != "USD":
        return str(value)
    return format_usd(value, usd_places(spend.limit + spend.extra))


def _silent_text(view: BudgetView) -> str:
    if view.spend is None and view.ledger_silent_s <= LEDGER_SILENT_S:
        return "The ledger has not said yet what is spent."
    age = format_duration(max(0, view.ledger_silent_s) * 1000)
    return (
        f"The ledger has not answered for {age}. Routers spend what they hold on lease, then answer 503 "
        "ledger_unreachable. The figures are the last known ones. See the log of Deployment fairlead-ledger."
    )
