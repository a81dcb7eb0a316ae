"""A decision of the law in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairlead_operator.api.v1alpha1 import Reason, ScalingReason
from fairlead_operator.decide.autoscale.demand import Outlook
from fairlead_operator.decide.autoscale.misses import Misses
from fairlead_operator.decide.autoscale.values import STEADY, CapBound, Settings, Wish
from fairlead_operator.decide.variants import VariantOption, change_text, cost_per_hour
from fairlead_operator.units import format_duration, format_usd

HIGH = 0.9
MORE: Final[Mapping[str, str]] = {
    ScalingReason.UNNEEDED: " One less for now saves more than a start costs.",
    ScalingReason.CHEAPER_VARIANT: " What is started takes the place of dearer replicas once it is ready.",
}
"""What is said besides, by the reason."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided: replicas by variant, how many are wanted, why, and what allows fewer."""

    numbers: tuple[int, ...]
    wanted: int
    reason: str
    bound_by: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What it was decided from; rates are requests/s, money is nano-USD."""

    rate: float
    outlook: Outlook
    horizon_ms: int
    capacity: float
    backlog: int
    misses: Misses
    miss_price: int
    zero_after_ms: int | None


def wish(judgement: Judgement, shown: Shown, settings: Settings) -> Wish:
    """The decision with its reasons."""
    counts = tuple((one.name, number) for one, number in zip(settings.variants, judgement.numbers, strict=True))
    priced = [VariantOption(one.name, one.current, price=one.price) for one in settings.variants]
    attainment = settings.objectives.attainment
    texts = (_why(judgement, shown, settings), _bound_text(judgement, settings), _account_text(shown, attainment))
    changes = change_text(counts, priced) if len(priced) > 1 else ""
    return Wish(
        counts=counts,
        current=settings.current,
        wanted=judgement.wanted,
        reason=judgement.reason,
        message=" ".join(text for text in (*texts, f"Change: {changes}." if changes else "") if text),
        because=_because(judgement, shown, settings),
        bound_by=judgement.bound_by,
        rate=shown.rate,
        forecast=shown.outlook.quantile(0.5),
        forecast_high=shown.outlook.quantile(HIGH),
        horizon_ms=shown.horizon_ms,
        capacity=shown.capacity,
        backlog=shown.backlog,
        attainment=shown.misses.attainment,
        misses_left=round(shown.misses.left(attainment)),
        miss_price=shown.miss_price,
        cost_per_hour_before=cost_per_hour(((one.name, one.current) for one in settings.variants), priced),
        cost_per_hour_after=cost_per_hour(counts, priced),
    )


def rate_text(rate: float) -> str:
    """Such as ``0.25``, ``5.1`` or ``112``: three digits say enough."""
    return f"{rate:.2f}" if rate < 1 else f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"  # noqa: PLR2004 - digits


def _why(judgement: Judgement, shown: Shown, settings: Settings) -> str:
    """What is expected, and what that means for the replicas."""
    if judgement.bound_by == CapBound.SPEND and not any(judgement.numbers):
        return f"{_expected(shown)}."
    if judgement.reason == ScalingReason.IDLE or not any(judgement.numbers):
        return f"No request for {format_duration(shown.zero_after_ms or 0)} (scaleToZeroAfter)."
    expected = _expected(shown)
    waiting = f" {_requests(shown.backlog)} wait." if shown.backlog else ""
    more = MORE.get(judgement.reason, "")
    return f"{expected}.{waiting} {_told(judgement, settings)}: one takes {rate_text(shown.capacity)}/s.{more}"


def _told(judgement: Judgement, settings: Settings) -> str:
    """What becomes of the replicas."""
    total = sum(judgement.numbers)
    if judgement.reason == ScalingReason.CHEAPER_VARIANT:
        return f"{_replicas(total)} for now"
    if judgement.reason == STEADY and total == settings.current:
        return f"{_replicas(total)} {'stay' if total > 1 else 'stays'}"
    return f"{_replicas(total)} cost least with the misses to expect"


def _expected(shown: Shown) -> str:
    middle, high = shown.outlook.quantile(0.5), shown.outlook.quantile(HIGH)
    ahead = format_duration(shown.horizon_ms)
    return (
        f"{rate_text(shown.rate)} requests/s, {rate_text(middle)} expected in {ahead}, "
        f"one time in ten above {rate_text(high)}"
    )


def _account_text(shown: Shown, attainment: float) -> str:
    """How much of the violation budget is left."""
    if not shown.misses.finished:
        return ""
    left = round(shown.misses.left(attainment))
    met = f"{shown.misses.attainment * 100:.2f} % of the day's requests met the objectives"
    rest = f"{_requests(left)} may still miss" if left >= 0 else f"{_requests(-left)} too many missed"
    return f"{met}: {rest}, and avoiding one may cost {format_usd(shown.miss_price)} USD."


def _because(judgement: Judgement, shown: Shown, settings: Settings) -> str:
    match judgement.reason:
        case ScalingReason.IDLE:
            return f"no request for {format_duration(shown.zero_after_ms or 0)}"
        case ScalingReason.HELD_REQUESTS:
            return "requests wait and no replica runs"
        case ScalingReason.BACKLOG:
            return f"{_requests(shown.backlog)} wait"
        case ScalingReason.MIN_REPLICAS | ScalingReason.MAX_REPLICAS:
            bounds = f"the bounds are {settings.minimum} to {settings.maximum} replicas"
            return f"the {_budgets_text(settings)}" if judgement.bound_by == CapBound.SPEND else bounds
        case ScalingReason.FORECAST | ScalingReason.UNNEEDED | ScalingReason.CHEAPER_VARIANT:
            other = "another variant serves it for less: " if judgement.reason == ScalingReason.CHEAPER_VARIANT else ""
            return f"{other}{_expected(shown)}; one replica takes {rate_text(shown.capacity)}/s"
        case _:
            return "demand is steady"


def _bound_text(judgement: Judgement, settings: Settings) -> str:
    match judgement.bound_by:
        case Reason.MAX_REPLICAS:
            return f"autoscaling.maxReplicas is {settings.maximum}; {judgement.wanted} would cost least."
        case CapBound.COST:
            most = format_usd(settings.max_cost_per_thousand or 0)
            return f"More would cost above {most} USD for a thousand requests (maxCostPerThousandRequests)."
        case CapBound.SPEND:
            return f"The {_budgets_text(settings)}."
        case CapBound.STEP:
            return f"{judgement.wanted} are wanted: more are added once these are ready."
        case _:
            return ""


def _budgets_text(settings: Settings) -> str:
    if not settings.pays_a_replica and not settings.minimum:
        return "budgets do not pay for a replica until it is gone again"
    return f"budgets leave {format_usd(settings.spend_cap_per_hour or 0)} USD/h"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"
