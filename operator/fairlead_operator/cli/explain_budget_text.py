"""PURE: how a budget stands, what it will do and when, and what would help: the lines of ``fairlead explain budget``.

Amounts are in the budget's unit (nano-USD, tokens or requests), times in ms since the epoch. What is not known is left
out, or the line says why.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from fairlead_operator.api.v1alpha1 import BudgetCondition, CostBudget, Reason
from fairlead_operator.api.v1alpha1.costbudget import STRENGTH
from fairlead_operator.cli.ask import minute_text
from fairlead_operator.cli.cost import aligned, rounded, shown
from fairlead_operator.decide.budgets import MAX_UNITS
from fairlead_operator.decide.facts import time_ms, time_text
from fairlead_operator.status.events import whole
from fairlead_operator.units import NANO_PER_USD, format_duration, format_usd, usd_places
from fairlead_router.contract import SpendAnswer

HOUR_MS = 3_600_000
NEAR_MS = 6 * HOUR_MS
"""What the last hour's burn reaches within this time is expected then; the forecast is about the window's end."""
BY_HAND_MS = 15 * 60_000
"""In a window that ends sooner nobody raises a limit by hand in time."""
LONG_MS = 48 * HOUR_MS
FULL = 100
SHOWN = 5
QUIET = ("None", "Alert")
"""What a budget does that holds no request back."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the ledger keeps of the fullest account: by hour, and of the last ``days`` by ``who`` (feature, caller)."""

    points: Mapping[int, int]
    who: str
    shares: tuple[tuple[str, int], ...]
    days: int


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out about a budget that is counted.

    ``spend`` is the ledger's answer, of which the budget's status is made then; ``None``: the operator wrote it.
    """

    budget: CostBudget
    now: int
    spend: SpendAnswer | None = None
    usage: Usage | None = None

    def units(self, text: str | None) -> int:
        """An amount of the status; nothing is 0."""
        return int(Decimal(text or "0") * (NANO_PER_USD if self.usd else 1))

    def text(self, amount: int) -> str:
        """An amount as the limit is printed: whole cents, millionths below 10 USD."""
        return format_usd(amount, usd_places(self.limit)) if self.usd else f"{amount:,}"

    def printed(self, *amounts: int) -> list[int]:
        """Amounts as precise as they are printed, so that they add up in print."""
        return rounded(amounts, usd_places(self.limit)) if self.usd else list(amounts)

    @property
    def usd(self) -> bool:
        """Whether it counts money."""
        return self.budget.spec.limit.unit == "USD"

    @property
    def limit(self) -> int:
        """What the window admits, with an increase."""
        return self.units(self.budget.status.limit)

    @property
    def spent(self) -> int:
        """What counts against the limit."""
        status = self.budget.status
        return self.units(status.spent) + self.units(status.idle)

    @property
    def span(self) -> tuple[int, int]:
        """The window."""
        window = self.budget.status.window
        return (0, 0) if window is None else (time_ms(window.start) or 0, time_ms(window.end) or 0)

    @property
    def left(self) -> int:
        """How much of the window is left; below 0: the status was written before it ended, and by nobody since."""
        return self.span[1] - self.now


def troubles(budget: CostBudget) -> list[str]:
    """The conditions that need a look, as ``Type=Status/Reason: message``."""
    return [
        f"{one.type}={one.status}/{one.reason}: {one.message}"
        for one in budget.status.conditions
        if one.status == "False" and one.type != BudgetCondition.READY and one.reason != Reason.AUDIT
    ]


def explain_budget(known: Known, silence: str = "") -> list[str]:
    """The lines that are printed; ``silence`` is what the ledger did not say, and why."""
    budget, status, limit = known.budget, known.budget.status, known.budget.spec.limit
    if status.limit is None or status.window is None:
        text = f"{limit.amount} {limit.unit} per {limit.per} and {limit.period} ({limit.time_zone})"
        lines = [f"{budget.key}: {text}. Nothing is counted yet. {_enforced(budget)}"]
    elif known.left <= 0:
        old = f"  LOOK     These are the last figures of {status.window.id}, which is over. Is the operator up?"
        lines = [_first(known), _sum(known), old]
    else:
        lines = [_first(known), _sum(known), *_increase(known), _burn(known), *_steps(known)]
        lines += [*_accounts(known), *_shares(known), *_helps(known)]
    ledger = [f"  ledger   {silence}"] if silence else []
    return [*lines, *ledger, *[f"  LOOK     {text}" for text in troubles(budget)]]


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
    status, spend = known.budget.status, known.spend
    unknown, idle = known.units(status.unreconciled), known.units(status.idle)
    # Sessions hold of all accounts: of several it is not known which one's they are.
    sessions = spend.sessions if spend is not None and spend.keys_total <= 1 else ()
    lost = [one.pod for one in sessions if one.state != "Open"] if unknown else []
    where = f" ({', '.join(lost[:SHOWN])}: given back when the journal is read)" if lost else ""
    idles = f" + idle {known.text(idle)}" if status.idle is not None else ""
    settled = f"settled {known.text(known.spent - idle - unknown)} + unreconciled {known.text(unknown)}{where}{idles}"
    held, name = known.units(status.reserved), f"reserved {known.text(known.units(status.reserved))}"
    if spend is not None:
        (held,) = known.printed(spend.leased)
        routers = sum(one.state == "Open" for one in sessions)
        holders = f" ({_count(routers, 'router')})" if routers else ""
        name = f"leased {known.text(held)}{holders}"
    rest = f"{name} + free {known.text(known.limit - known.spent - held)}"
    return f"  sum      {settled} = spent {known.text(known.spent)}; + {rest} = {known.text(known.limit)}"


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
    spec, status, paced, rows, notes = known.budget.spec, known.budget.status, False, [], []
    written = sorted(spec.actions, key=lambda one: (one.at_percent, STRENGTH.index(one.action)))
    for percent, action in (*((one.at_percent, str(one.action)) for one in written), (FULL, "Reject")):
        amount, at = known.limit * percent // FULL, None
        rejects = status.active_action == "Reject"
        if rejects if action == "Reject" else percent <= (status.active_at_percent or 0):
            at, note = _begun(known, amount), _in_force(known, action)
        elif paced:
            note = "not reached while Pace holds"
        else:
            at = _expected(known, amount)
            note = _to_come(known, action, amount, at)
        paced = paced or (action == "Pace" and spec.enforcement == "Enforce")
        when = "" if at is None else f"about {minute_text(at)}"
        rows.append([when, f"{percent}%", known.text(amount)])
        notes.append(f"{action:12}  {note}".rstrip())
    lines = [f"{row}  {note}" for row, note in zip(aligned(rows, 1), notes, strict=True)]
    return [f"  {'' if place else 'actions':8} {line}" for place, line in enumerate(lines)]


def _in_force(known: Known, action: str) -> str:
    if action == "Alert":
        return "done"
    if known.budget.spec.enforcement == "Audit":
        return "would be in force"
    if action == "Pace" and known.spend is not None:
        return f"in force: admits {known.text(known.spend.pace_per_hour)} {known.budget.spec.limit.unit}/h"
    until = f": what does not fit is refused until {minute_text(known.span[1])}" if action == "Reject" else ""
    return f"in force{until}"


def _to_come(known: Known, action: str, amount: int, at: int | None) -> str:
    if known.budget.status.forecast is None:
        return ""
    if at is None:
        return "not reached by the forecast"
    if action != "Pace":
        return "expected"
    rate = (known.limit - amount) * HOUR_MS // max(1, known.span[1] - at)
    return f"expected: will admit {known.text(rate)} {known.budget.spec.limit.unit}/h"


def _begun(known: Known, amount: int) -> int | None:
    """When the spending passed an amount, going back from now by what each hour spent; ``None``: that is not kept."""
    level = known.spent
    if known.usage is None or known.budget.status.idle is not None:
        return None
    for hour in sorted(known.usage.points, reverse=True):
        spent = known.usage.points[hour]
        if level - spent < amount <= level and hour + HOUR_MS > known.span[0]:
            length = min(HOUR_MS, max(0, known.now - hour))
            return max(known.span[0], hour + length * (amount - level + spent) // spent)
        level -= spent
    return None


def _expected(known: Known, amount: int) -> int | None:
    """When it will be spent: soon by what the last hour spent, later as if the forecast were spent evenly."""
    status, gap = known.budget.status, max(0, amount - known.spent)
    if status.forecast is None:
        return None
    soon = gap * HOUR_MS // max(1, known.units(status.burn_per_hour))
    more = known.units(status.forecast.at_window_end) - known.spent
    wait = soon if soon <= NEAR_MS else known.left * gap // max(1, more)
    return known.now + wait if wait < known.left else None


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
    budget, forecast = known.budget, known.budget.status.forecast
    holding = [(one.at_percent, str(one.action)) for one in budget.spec.actions if one.action not in QUIET]
    percent, action = min(holding, default=(FULL, "Reject"))
    at_end = 0 if forecast is None else known.units(forecast.at_window_end)
    grain = (NANO_PER_USD if known.limit >= 10 * NANO_PER_USD else 1000) if known.usd else 1
    limit = (at_end * FULL // percent // grain + 1) * grain
    if not at_end or at_end * FULL < percent * known.limit or limit > MAX_UNITS:
        return []
    text = f"  helps    a limit of {whole(known.text(limit))} keeps the forecast below {percent}% ({action})"
    if known.left < BY_HAND_MS:
        return [text]
    extra = limit - budget.spec.limit.units
    amount, until = whole(format_usd(extra)) if known.usd else str(extra), time_text(known.span[1])
    increase = {"amount": amount, "until": until, "reason": f"forecast {known.text(at_end)}"}
    patch = json.dumps({"spec": {"temporaryIncrease": increase}}, separators=(",", ":"))
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
