"""PURE: what is known of a budget, and what follows from it: the parts of its limit, its steps, what would help.

Amounts are in the budget's unit (nano-USD, tokens or requests), times in ms since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from fairlead_operator.api.v1alpha1 import BudgetCondition, CostBudget, Reason
from fairlead_operator.api.v1alpha1.costbudget import STRENGTH
from fairlead_operator.cli.cost import rounded
from fairlead_operator.decide.budgets import MAX_UNITS
from fairlead_operator.decide.facts import time_ms, time_text
from fairlead_operator.status.events import whole
from fairlead_operator.units import NANO_PER_USD, format_usd, usd_places
from fairlead_router.contract import SpendAnswer

HOUR_MS = 3_600_000
NEAR_MS = 6 * HOUR_MS
"""What the last hour's burn reaches within this time is expected then; the forecast is about the window's end."""
BY_HAND_MS = 15 * 60_000
"""In a window that ends sooner nobody raises a limit by hand in time."""
FULL = 100
QUIET = ("None", "Alert")
"""What a budget does that holds no request back."""

State = Literal["Done", "InForce", "WouldBeInForce", "HeldByPace", "Expected", "NotReached", "Unknown"]
"""How far a step is: taken; taken, but for Audit; kept off by Pace; foretold; not foretold; nothing was forecast."""


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What the limit is made of: spent (settled, unreconciled and idle), leased or reserved, and free.

    settled + unreconciled + idle = spent; spent + (leased, or without it reserved) + free = limit.

    ``leased``: what routers hold, running requests' included; ``None`` without the ledger's answer. ``free`` is below 0
    where the limit was lowered. ``lost``: the pods that left ``unreconciled``, as far as that is known.
    """

    settled: int
    unreconciled: int
    idle: int | None
    spent: int
    reserved: int
    leased: int | None
    free: int
    lost: tuple[str, ...] = ()
    holders: int = 0


def parts_of(known: Known) -> Parts:
    """The parts of the limit, as precise as they are printed, so that they add up in print."""
    status, spend = known.budget.status, known.spend
    unknown, idle = known.units(status.unreconciled), known.units(status.idle)
    # Sessions hold of all accounts: of several it is not known which one's they are.
    sessions = spend.sessions if spend is not None and spend.keys_total <= 1 else ()
    reserved, leased = known.units(status.reserved), None
    if spend is not None:
        (leased,) = known.printed(spend.leased)
    return Parts(
        settled=known.spent - idle - unknown,
        unreconciled=unknown,
        idle=idle if status.idle is not None else None,
        spent=known.spent,
        reserved=reserved,
        leased=leased,
        free=known.limit - known.spent - (reserved if leased is None else leased),
        lost=tuple(one.pod for one in sessions if one.state != "Open") if unknown else (),
        holders=sum(one.state == "Open" for one in sessions),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """An action or the refusal: at which spending, how far it is, and about when it began or is expected.

    ``per_hour``: what Pace admits, or will admit, in an hour.
    """

    percent: int
    amount: int
    action: str
    state: State
    at: int | None = None
    per_hour: int | None = None


def steps_of(known: Known) -> list[Step]:
    """The actions in the order in which they come, and the refusal."""
    spec, status, paced, found = known.budget.spec, known.budget.status, False, []
    written = sorted(spec.actions, key=lambda one: (one.at_percent, STRENGTH.index(one.action)))
    for percent, action in (*((one.at_percent, str(one.action)) for one in written), (FULL, "Reject")):
        rejects = status.active_action == "Reject"
        if rejects if action == "Reject" else percent <= (status.active_at_percent or 0):
            found.append(_taken(known, percent, action))
        elif paced:
            found.append(Step(percent, known.limit * percent // FULL, action, "HeldByPace"))
        else:
            found.append(_to_come(known, percent, action))
        paced = paced or (action == "Pace" and spec.enforcement == "Enforce")
    return found


def _taken(known: Known, percent: int, action: str) -> Step:
    amount = known.limit * percent // FULL
    at = _begun(known, amount)
    if action == "Alert":
        return Step(percent, amount, action, "Done", at)
    if known.budget.spec.enforcement == "Audit":
        return Step(percent, amount, action, "WouldBeInForce", at)
    per_hour = known.spend.pace_per_hour if action == "Pace" and known.spend is not None else None
    return Step(percent, amount, action, "InForce", at, per_hour)


def _to_come(known: Known, percent: int, action: str) -> Step:
    amount = known.limit * percent // FULL
    if known.budget.status.forecast is None:
        return Step(percent, amount, action, "Unknown")
    at = _expected(known, amount)
    if at is None:
        return Step(percent, amount, action, "NotReached")
    rate = (known.limit - amount) * HOUR_MS // max(1, known.span[1] - at) if action == "Pace" else None
    return Step(percent, amount, action, "Expected", at, rate)


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


@dataclass(frozen=True, slots=True)
class Help:
    """The least limit that keeps the forecast below the first action that holds requests back.

    ``increase`` is the temporaryIncrease that makes it so for this window; ``None`` where that is soon over.
    """

    limit: int
    percent: int
    action: str
    increase: Mapping[str, str] | None


def help_of(known: Known) -> Help | None:
    """What limit would help; ``None`` if none is needed, or nothing was forecast."""
    budget, forecast = known.budget, known.budget.status.forecast
    holding = [(one.at_percent, str(one.action)) for one in budget.spec.actions if one.action not in QUIET]
    percent, action = min(holding, default=(FULL, "Reject"))
    at_end = 0 if forecast is None else known.units(forecast.at_window_end)
    grain = (NANO_PER_USD if known.limit >= 10 * NANO_PER_USD else 1000) if known.usd else 1
    limit = (at_end * FULL // percent // grain + 1) * grain
    if not at_end or at_end * FULL < percent * known.limit or limit > MAX_UNITS:
        return None
    if known.left < BY_HAND_MS:
        return Help(limit, percent, action, None)
    extra = limit - budget.spec.limit.units
    amount, until = whole(format_usd(extra)) if known.usd else str(extra), time_text(known.span[1])
    return Help(limit, percent, action, {"amount": amount, "until": until, "reason": f"forecast {known.text(at_end)}"})


def troubles(budget: CostBudget) -> list[str]:
    """The conditions that need a look, as ``Type=Status/Reason: message``."""
    return [
        f"{one.type}={one.status}/{one.reason}: {one.message}"
        for one in budget.status.conditions
        if one.status == "False" and one.type != BudgetCondition.READY and one.reason != Reason.AUDIT
    ]


def looks(known: Known) -> list[str]:
    """What needs a look, in words."""
    window = known.budget.status.window
    old = f"These are the last figures of {window.id}, which is over. Is the operator up?" if window else ""
    return [*([old] if old and known.left <= 0 else []), *troubles(known.budget)]
