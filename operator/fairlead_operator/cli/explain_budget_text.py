"""PURE: how a budget stands, what it will do and when, and what would help: the lines of ``fairlead explain budget``.

Amounts are in the budget's unit (nano-USD, tokens or requests), times in ms since the epoch. What is not known is left
out, or the line says why.
"""

import json

from fairlead_operator.api.v1alpha1 import CostBudget
from fairlead_operator.cli.ask import minute_text
from fairlead_operator.cli.cost import aligned, shown
from fairlead_operator.cli.explain_budget_facts import HOUR_MS, Known, Step, help_of, looks, parts_of, steps_of
from fairlead_operator.decide.facts import time_ms
from fairlead_operator.status.events import whole
from fairlead_operator.units import format_duration

LONG_MS = 48 * HOUR_MS
SHOWN = 5
_STATES = {
    "Done": "done",
    "WouldBeInForce": "would be in force",
    "HeldByPace": "not reached while Pace holds",
    "NotReached": "not reached by the forecast",
    "Unknown": "",
}


def explain_budget(known: Known, silence: str = "") -> list[str]:
    """The lines that are printed; ``silence`` is what the ledger did not say, and why."""
    budget, status, limit = known.budget, known.budget.status, known.budget.spec.limit
    if status.limit is None or status.window is None:
        text = f"{limit.amount} {limit.unit} per {limit.per} and {limit.period} ({limit.time_zone})"
        lines = [f"{budget.key}: {text}. Nothing is counted yet. {_enforced(budget)}"]
    elif known.left <= 0:
        lines = [_first(known), _sum(known)]
    else:
        lines = [_first(known), _sum(known), *_increase(known), _burn(known), *_steps(known)]
        lines += [*_accounts(known), *_shares(known), *_helps(known)]
    ledger = [f"  ledger   {silence}"] if silence else []
    return [*lines, *ledger, *[f"  LOOK     {text}" for text in looks(known)]]


def _first(known: Known) -> str:
    budget, status, (start, end) = known.budget, known.budget.status, known.span
    share = _percent(known.spent, known.limit) if known.limit else "closed"
    whose = f" by {shown(status.fullest)}" if status.fullest not in {None, budget.namespace} else ""
    window, zone = status.window.id if status.window else "", budget.spec.limit.time_zone
    counted = time_ms(status.window.counted_from) if status.window else None
    since = f", counted since {minute_text(counted)}" if counted and counted > start else ""
    gone = f"{_percent(known.now - start, end - start)} of {window} gone ({zone}, {_length(known.left)} left{since})"
    spent = f"{known.text(known.spent)} of {whole(known.text(known.limit))} {budget.spec.limit.unit}"
    when = gone if known.left > 0 else f"in {window}"
    return f"{budget.key}: {spent} ({share}){whose}, {when}. Action: {status.active_action}. {_enforced(budget)}"


def _enforced(budget: CostBudget) -> str:
    routers, audit = budget.status.routers, budget.spec.enforcement == "Audit"
    first = "Audit: every request passes. Counted" if audit else "Enforced"
    if routers is None:
        return f"{first} by: the operator has not said yet."
    if routers.total == 0:
        return f"{first} by no router: none is ready."
    return f"{first} by {routers.enforcing} of {routers.total} routers."


def _sum(known: Known) -> str:
    """All that the limit is made of; it adds up as it is printed. Below 0 is free where the limit was lowered."""
    parts, text = parts_of(known), known.text
    lost = f" ({', '.join(parts.lost[:SHOWN])}: given back when the journal is read)" if parts.lost else ""
    idles = f" + idle {text(parts.idle)}" if parts.idle is not None else ""
    settled = f"settled {text(parts.settled)} + unreconciled {text(parts.unreconciled)}{lost}{idles}"
    holders = f" ({_count(parts.holders, 'router')})" if parts.holders else ""
    held = f"reserved {text(parts.reserved)}" if parts.leased is None else f"leased {text(parts.leased)}{holders}"
    return f"  sum      {settled} = spent {text(parts.spent)}; + {held} + free {text(parts.free)} = {text(known.limit)}"


def _increase(known: Known) -> list[str]:
    extra, written = known.units(known.budget.status.increase), known.budget.spec.temporary_increase
    if not extra or written is None:
        return []
    added, before = whole(known.text(extra)), whole(known.text(known.limit - extra))
    return [f"  increase {added} until {written.until} ({shown(written.reason)}); then the limit is {before}"]


def _burn(known: Known) -> str:
    status, usage, limit = known.budget.status, known.usage, known.budget.spec.limit
    if status.burn_per_hour is None or status.forecast is None:
        why = "usage is not kept by workflow" if limit.per == "Workflow" else "nothing was forecast for this window yet"
        return f"  burn     not known: {why}"
    burn, end, low, high = (known.text(known.units(text)) for text in (
        status.burn_per_hour, status.forecast.at_window_end, status.forecast.low, status.forecast.high
    ))  # fmt: skip
    mean = sum(amount for _name, amount in usage.shares) // (24 * usage.days) if usage else 0
    means = f", {known.text(mean)} mean of {_count(usage.days, 'day')}" if usage else ""
    return f"  burn     {burn} {limit.unit}/h last hour{means}; forecast {end} ({low} to {high}) if nothing acted"


def _steps(known: Known) -> list[str]:
    """The actions and the refusal: those in force and since when, the others and about when they are expected."""
    steps = steps_of(known)
    rows = [
        ["" if one.at is None else f"about {minute_text(one.at)}", f"{one.percent}%", known.text(one.amount)]
        for one in steps
    ]
    lines = [
        f"{row}  {f'{one.action:12}  {_state(known, one)}'.rstrip()}"
        for row, one in zip(aligned(rows, 1), steps, strict=True)
    ]
    return [f"  {'' if place else 'actions':8} {line}" for place, line in enumerate(lines)]


def _state(known: Known, step: Step) -> str:
    rate = "" if step.per_hour is None else f"{known.text(step.per_hour)} {known.budget.spec.limit.unit}/h"
    if step.state == "InForce" and step.action == "Reject":
        return f"in force: what does not fit is refused until {minute_text(known.span[1])}"
    if step.state == "InForce":
        return f"in force: admits {rate}" if rate else "in force"
    if step.state == "Expected":
        return f"expected: will admit {rate}" if rate else "expected"
    return _STATES[step.state]


def _accounts(known: Known) -> list[str]:
    """The fullest of several accounts."""
    found = known.budget.status.allowances
    if found is None or found.total <= 1:
        return []
    top = [f"{shown(one.key)} {known.text(known.units(one.spent))} ({one.used_percent}%)" for one in found.top[:SHOWN]]
    return [f"  fullest  {', '.join(top)}; {found.total:,} accounts, {found.limited:,} used up"]


def _shares(known: Known) -> list[str]:
    """Who spent it."""
    usage = known.usage
    if usage is None or not usage.shares:
        return []
    rows = [(shown(name) or f"no {usage.who}", amount) for name, amount in usage.shares[:SHOWN]]
    rest = usage.shares[SHOWN:]
    rows += [(_count(len(rest), "other"), sum(amount for _name, amount in rest))] if rest else []
    amounts = [amount for _name, amount in rows]
    texts = known.printed(*amounts)
    told = ", ".join(
        f"{name} {known.text(text)} ({100 * amount / max(1, sum(amounts)):.1f}%)"
        for (name, amount), text in zip(rows, texts, strict=True)
    )
    return [f"  {_count(usage.days, 'day'):8} {told} = {known.text(sum(texts))}"]


def _helps(known: Known) -> list[str]:
    """The least limit that keeps the forecast below what holds requests back, and the command that sets it."""
    budget, found = known.budget, help_of(known)
    if found is None:
        return []
    limit = whole(known.text(found.limit))
    text = f"  helps    a limit of {limit} keeps the forecast below {found.percent}% ({found.action})"
    if found.increase is None:
        return [text]
    patch = json.dumps({"spec": {"temporaryIncrease": found.increase}}, separators=(",", ":"))
    command = f"kubectl patch cbudget {budget.name} -n {budget.namespace} --type merge -p '{patch}'"
    return [f"{text}; for this window (role fairlead-budget-editor):", f"           {command}"]


def _percent(part: int, whole_of: int) -> str:
    """With one place, rounded down, so that 100.0% means all."""
    return f"{max(0, part) * 1000 // max(1, whole_of) / 10:.1f}%"


def _length(ms: int) -> str:
    """``252h``; below two days to the minute, below an hour to the second."""
    unit = 60_000 if ms >= HOUR_MS else 1000
    return f"{ms // HOUR_MS}h" if ms >= LONG_MS else format_duration(max(0, ms) // unit * unit)


def _count(count: int, name: str) -> str:
    return f"1 {name}" if count == 1 else f"{count:,} {name}s"
