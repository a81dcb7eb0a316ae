"""PURE: what a budget does now, and which changes of it are worth an Event.

The ledger decides which actions are in force, with its own hysteresis; here it is decided what of them is shown, and
what differs between what was shown last and what is true now. What was shown last is read from the object's status, so
a change is told once, whoever leads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from fairlead_operator.api.v1alpha1 import EventReason
from fairlead_operator.api.v1alpha1.costbudget import STRENGTH, Action
from fairlead_router.contract import SpendAnswer

FORECAST_CLEAR_PERCENT = 98
"""A forecast that was above the limit must fall below this share of it before it counts as within: no flapping."""


def shown_action(spend: SpendAnswer) -> str:
    """The strongest of what the fullest account's requests meet now; refusal is above all."""
    refused = ("Reject",) if spend.action == "Reject" else ()
    shown: tuple[str, ...] = ("None", *spend.active, *refused)
    return max(shown, key=STRENGTH.index)


def acted_percent(spend: SpendAnswer, actions: Sequence[Action]) -> int | None:
    """The highest atPercent in force: the ledger names those in force from the lowest on. None: none is."""
    percents = sorted(action.at_percent for action in actions)[: len(spend.active)]
    return percents[-1] if percents else None


def above_limit(at_end: int, limit: int, *, was_above: bool) -> bool:
    """Whether a forecast is above the limit, given what was said last."""
    return at_end > limit or (was_above and at_end * 100 >= limit * FORECAST_CLEAR_PERCENT)


NO_INCREASE: Final = "0"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a status says of a budget, as far as changes of it are told; amounts as they are printed, times RFC 3339."""

    action: str = "None"
    at_percent: int = 0
    """The highest atPercent in force; 0 = none."""
    limit: str = ""
    """With the increase; empty: nothing was counted yet."""
    increase: str = NO_INCREASE
    """One that is smaller than what is printed is "0.00"."""
    spent: str = "0"
    used_percent: int = 0
    fullest: str = ""
    start: str = ""
    end: str = ""
    counted_from: str = ""

    @property
    def base(self) -> Decimal:
        """The limit without the increase."""
        return Decimal(self.limit or "0") - Decimal(self.increase)

    @property
    def window(self) -> tuple[str, str, str]:
        """What makes it the same count: its window, and since when it is counted."""
        return self.start, self.end, self.counted_from


def standing(status: Mapping[str, Any]) -> Standing:
    """What a status says; an empty one says that nothing was counted yet."""
    window = status.get("window") or {}
    return Standing(
        action=status.get("activeAction") or "None",
        at_percent=status.get("activeAtPercent") or 0,
        limit=status.get("limit") or "",
        increase=status.get("increase") or NO_INCREASE,
        spent=status.get("spent") or "0",
        used_percent=status.get("usedPercent") or 0,
        fullest=status.get("fullest") or "",
        start=window.get("start") or "",
        end=window.get("end") or "",
        counted_from=window.get("countedFrom") or "",
    )


def changes(before: Standing, now: Standing) -> tuple[EventReason, ...]:
    """What of the difference is told, one Event each. A new object's own limit and window are no change."""
    if not now.limit:
        return ()
    acted = before.action != now.action or now.at_percent > before.at_percent
    restarted = bool(before.limit) and before.window != now.window and now.start < before.end
    raised, before_raised = Decimal(now.increase), Decimal(before.increase)
    moved = bool(before.limit) and (_base_moved(before, now) or 0 < raised < before_raised)
    told = (
        (EventReason.COUNTING_RESTARTED, restarted),
        (EventReason.LIMIT_CHANGED, moved),
        (EventReason.LIMIT_RAISED, raised > before_raised),
        (EventReason.LIMIT_RESTORED, 0 == raised < before_raised),
        (EventReason.BUDGET_ACTION, acted),
    )
    return tuple(reason for reason, happened in told if happened)


def _base_moved(before: Standing, now: Standing) -> bool:
    """Whether the limits differ, their increases apart: each amount was rounded to the places that it prints with."""
    printed = [Decimal(text) for one in (before, now) for text in (one.limit, one.increase)]
    places = max((int(amount.as_tuple().exponent) for amount in printed if amount), default=0)
    exact = places == 0 or before.increase == now.increase == NO_INCREASE
    return abs(before.base - now.base) > (0 if exact else 2 * Decimal(1).scaleb(places))


def increase_used(before: Standing, now: Standing) -> Decimal:
    """How much of an increase that ended was used: by this window's count, or by the last one's if that is over."""
    spent = Decimal(before.spent)
    if now.window == before.window:
        spent = max(spent, Decimal(now.spent))
    return min(Decimal(before.increase), max(Decimal(0), spent - before.base))


def increase_writer(raw: Mapping[str, Any]) -> str:
    """The field manager that wrote the object's temporary increase last; empty when the object does not say."""
    owners: list[Mapping[str, Any]] = [
        entry
        for entry in raw["metadata"].get("managedFields") or ()
        if "f:temporaryIncrease" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    newest = max(owners, key=lambda entry: str(entry.get("time", "")), default=None)
    return "" if newest is None else str(newest.get("manager", ""))
