"""Events: one for each change, in the words of the conditions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairlead_operator.api.v1alpha1 import BudgetCondition, EventReason, PolicyCondition, PoolCondition, Reason
from fairlead_operator.api.v1alpha1.costbudget import STRENGTH
from fairlead_operator.decide.actions import Standing, changes, increase_used, standing
from fairlead_operator.decide.facts import NodeFact, PodFact, time_ms
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.replicas import Decision, cost_text, price_text
from fairlead_operator.decide.variants import VariantOption, change_text
from fairlead_operator.status.conditions import find
from fairlead_operator.status.costbudget import BudgetView
from fairlead_operator.status.pods import drain_text, pod_text, reclaim_text, taken_text
from fairlead_operator.units import format_duration
from fairlead_router.contract import DrainReport


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object; ``key`` tells apart what may happen to it at the same time.

    ``fields`` are its numbers for the log line.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)


def scaled(decision: Decision, options: tuple[VariantOption, ...]) -> Event | None:
    """``3 to 4 replicas (+1 l40s), 8.85 to 10.40 USD/h: …``; nothing when all numbers stay.

    Replicas that change to another variant are started before others go: that counts as up.
    """
    if not decision.changed:
        return None
    up = decision.replicas >= decision.current
    change = f" ({change_text(decision.counts, options)})" if len(options) > 1 else ""
    count = f"{decision.current} to {decision.replicas} replicas{change}"
    text = f"{count}, {cost_text(decision)}: {decision.because}"
    reason = EventReason.SCALED_UP if up else EventReason.SCALED_DOWN
    return Event("Normal", reason, text, fields=_scaled_fields(decision))


def _scaled_fields(decision: Decision) -> dict[str, object]:
    before, after = decision.cost_per_hour_before, decision.cost_per_hour_after
    return {
        "from": decision.current,
        "to": decision.replicas,
        "wanted": decision.wanted,
        "set": ",".join(f"{name}:{count}" for name, count in decision.counts if count),
        "usd_h_from": None if before is None else price_text(before),
        "usd_h_to": None if after is None else price_text(after),
        "cause": str(decision.reason),
        "bound_by": str(decision.bound_by) or None,
    }


def replica_ready(pod: PodFact, start_ms: int) -> Event:
    """A pod that takes requests from now on, and how long its start took."""
    took = format_duration(max(0, start_ms) // 1000 * 1000)
    text, fields = f"{pod.name} is ready after {took}", {"pod": pod.key, "start_ms": start_ms}
    return Event("Normal", EventReason.REPLICA_READY, text, pod.name, fields)


def warnings_of(problems: Iterable[Problem]) -> tuple[Event, ...]:
    """What is odd in a spec but stops nothing."""
    return tuple(Event("Warning", one.reason, one.message, one.path) for one in problems if one.warning)


def events_of_pods(pods: Iterable[PodFact]) -> tuple[Event, ...]:
    """Pods that cannot start: of each variant and kind of trouble the first one, so that many pods tell it once."""
    first: dict[str, PodFact] = {}
    for pod in sorted(pods, key=lambda one: one.name):
        if pod.trouble is not None and not pod.terminating:
            first.setdefault(f"{pod.variant}/{pod.trouble.kind}", pod)
    return tuple(
        Event("Warning", EventReason.REPLICA_TROUBLED, pod_text(pod), key, {"pod": pod.key})
        for key, pod in first.items()
    )


def events_of_taken(pods: Iterable[PodFact]) -> tuple[Event, ...]:
    """Pods that somebody took away: evicted, preempted, refused by their node."""
    return tuple(
        Event("Warning", EventReason.REPLICA_TAKEN, taken_text(pod), pod.name, {"pod": pod.key}) for pod in pods
    )


def events_of_reclaimed(pods: Iterable[PodFact], nodes: Mapping[str, NodeFact]) -> tuple[Event, ...]:
    """Pods that were replaced because their nodes are about to go."""
    reason = EventReason.REPLICA_RECLAIMED
    texts = [(pod, reclaim_text(pod, nodes[pod.node].notice)) for pod in pods if pod.node in nodes]
    return tuple(Event("Normal", reason, text, pod.name, {"pod": pod.key}) for pod, text in texts)


def events_of_drained(pods: Iterable[PodFact]) -> tuple[Event, ...]:
    """Pods that are gone, and how the last requests at their engines ended."""
    return tuple(_drain_event(pod, pod.drained) for pod in pods if pod.drained is not None)


def _drain_event(pod: PodFact, told: DrainReport) -> Event:
    fields = {"pod": pod.key, "requests": told.requests, "left": told.left, "took_s": told.took_s}
    kind: Literal["Normal", "Warning"] = "Warning" if told.left else "Normal"
    reason = EventReason.DRAIN_TIMED_OUT if told.left else EventReason.DRAIN_FINISHED
    return Event(kind, reason, drain_text(pod.name, told), pod.name, fields)


def events_of_modelpool(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """What the difference of two statuses of a pool is worth telling."""
    refused = _turned(old, new, PoolCondition.ACCEPTED, "False")
    bare = _turned(old, new, PoolCondition.PRICE_KNOWN, "False")
    blocked = _turned(old, new, PoolCondition.SCALING_LIMITED, "True")
    return (
        *_warning(refused, str(refused.get("reason", ""))),
        *_warning(bare, EventReason.PRICE_UNKNOWN),
        *(_warning(blocked, EventReason.SCALE_UP_BLOCKED) if blocked.get("reason") == Reason.NO_CAPACITY else ()),
        *_rollout_events(old, new),
    )


def events_of_routingpolicy(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """What the difference of two statuses of a policy is worth telling."""
    refused = _turned(old, new, PolicyCondition.ACCEPTED, "False")
    loose = _turned(old, new, PolicyCondition.RESOLVED_REFS, "False")
    return (*_warning(refused, str(refused.get("reason", ""))), *_warning(loose, str(loose.get("reason", ""))))


def events_of_costbudget(
    old: Mapping[str, Any], new: Mapping[str, Any], view: BudgetView, writer: str = ""
) -> tuple[Event, ...]:
    """What the difference of two statuses of a budget is worth telling; ``writer`` is who wrote the increase."""
    refused = _turned(old, new, BudgetCondition.ACCEPTED, "False")
    bare = _turned(old, new, BudgetCondition.PRICE_KNOWN, "False")
    silent = _turned(old, new, BudgetCondition.ENFORCED, "False")
    lost = silent.get("reason") == Reason.LEDGER_UNREACHABLE and bool(old.get("conditions"))
    before, now = standing(old), standing(new)
    return (
        *_warning(refused, str(refused.get("reason", ""))),
        *_warning(bare, EventReason.PRICE_UNKNOWN),
        *(_warning(silent, EventReason.LEDGER_UNREACHABLE) if lost else ()),
        *(_CHANGED[reason](BudgetChange(before, now, view, writer)) for reason in changes(before, now)),
    )


@dataclass(frozen=True, slots=True)
class BudgetChange:
    """How a budget stood and stands."""

    before: Standing
    now: Standing
    view: BudgetView
    writer: str = ""

    @property
    def unit(self) -> str:
        """What is counted."""
        return str(self.view.budget.spec.limit.unit)

    @property
    def until(self) -> str:
        """End of the window, to the minute."""
        return minute_text(self.now.end)


def _action_event(change: BudgetChange) -> Event:
    """``Alert to Pace: 1955.00 of 2300 USD (85%); 1.38 USD/h are admitted until …, 9.61 are asked``."""
    before, now = change.before, change.now
    percent = now.used_percent
    step = f"{before.action} to {now.action}" if before.action != now.action else f"{now.action}, {now.at_percent}%"
    own = now.fullest in {"", change.view.budget.namespace}
    spent = f"{now.spent} of {whole(now.limit)} {change.unit} ({percent}%){'' if own else f' by {now.fullest}'}"
    grows = STRENGTH.index(now.action) >= STRENGTH.index(before.action)
    loud = grows and now.action not in {"None", "Alert"}
    effect = _effect(change) if grows else ""
    fields = {
        "from": before.action,
        "to": now.action,
        "spent": now.spent,
        "limit": now.limit,
        "usedPercent": percent,
        "fullest": now.fullest or None,
    }
    kind: Literal["Normal", "Warning"] = "Warning" if loud else "Normal"
    return Event(kind, EventReason.BUDGET_ACTION, f"{step}: {spent}{effect}", now.fullest, fields)


def _effect(change: BudgetChange) -> str:
    """What the action does to requests."""
    if change.view.budget.spec.enforcement == "Audit" and change.now.action not in {"None", "Alert"}:
        return "; enforcement is Audit, so requests are let pass"
    if change.now.action == "Pace":
        return _pace_text(change)
    effects = {
        "Deprioritize": "requests are served as priority Batch until {}",
        "Downgrade": "requests take their routes' fallbacks for Downgraded until {}",
        "RejectBatch": "what is left is kept for priorities above Batch until {}",
        "Reject": "requests that do not fit are refused until {}",
    }
    text = effects.get(change.now.action, "")
    return f"; {text.format(change.until)}" if text else ""


def _pace_text(change: BudgetChange) -> str:
    admitted, asked = change.view.pace_text, change.view.burn_text
    wanted = f", {asked} are asked" if asked else ""
    return f"; {admitted} {change.unit}/h are admitted until {change.until}{wanted}"


def _raised_event(change: BudgetChange) -> Event:
    """``2300 to 2800 USD until 2026-12-01T08:00Z (temporaryIncrease: launch; written by kubectl-edit)``."""
    written = change.view.budget.spec.temporary_increase
    until = f" until {minute_text(written.until)}" if written else ""
    by = f"; written by {change.writer}" if change.writer else ""
    why = f" (temporaryIncrease: {written.reason}{by})" if written else ""
    start = whole(change.before.limit or str(change.now.base))
    text = f"{start} to {whole(change.now.limit)} {change.unit}{until}{why}"
    return Event("Warning", EventReason.LIMIT_RAISED, text)


def _restored_event(change: BudgetChange) -> Event:
    used, extra = increase_used(change.before, change.now), whole(change.before.increase)
    text = f"{whole(change.before.limit)} to {whole(change.now.limit)} {change.unit}: {used} of the extra {extra}"
    return Event("Normal", EventReason.LIMIT_RESTORED, f"{text} {change.unit} were used")


def _limit_event(change: BudgetChange) -> Event:
    now = change.now
    text = f"{whole(change.before.limit)} to {whole(now.limit)} {change.unit}; {now.spent} are spent in this window"
    return Event("Normal", EventReason.LIMIT_CHANGED, text)


def _restarted_event(change: BudgetChange) -> Event:
    """The period or the time zone was changed: another series counts."""
    limit, now = change.view.budget.spec.limit, change.now
    text = (
        f"counts by {limit.period} in {limit.time_zone} since {now.counted_from}: {now.spent} of {whole(now.limit)} "
        f"{change.unit} in this window. The {change.before.spent} {change.unit} of the former one do not count in it; "
        "they do again if the change is undone"
    )
    return Event("Warning", EventReason.COUNTING_RESTARTED, text)


_CHANGED: Mapping[EventReason, Callable[[BudgetChange], Event]] = {
    EventReason.BUDGET_ACTION: _action_event,
    EventReason.LIMIT_RAISED: _raised_event,
    EventReason.LIMIT_RESTORED: _restored_event,
    EventReason.LIMIT_CHANGED: _limit_event,
    EventReason.COUNTING_RESTARTED: _restarted_event,
}


def whole(amount: str) -> str:
    """An amount as people write a limit: ``2300.00`` is 2300, ``0.500000`` is 0.5."""
    return amount.rstrip("0").rstrip(".") if "." in amount else amount


def minute_text(time: str) -> str:
    """A time to the minute when it has no seconds: ``2026-11-30T23:00Z``."""
    return f"{time.removesuffix(':00Z')}Z" if time.endswith(":00Z") else time


def _rollout_events(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    before = find(old.get("conditions") or (), PoolCondition.PROGRESSING)
    now = find(new.get("conditions") or (), PoolCondition.PROGRESSING)
    if before.get("reason") == now.get("reason"):
        return ()
    message = str(now.get("message", ""))
    if now.get("reason") == Reason.ROLLING_OUT:
        return (Event("Normal", EventReason.ROLLOUT_STARTED, message),)
    if now.get("reason") == Reason.COMPLETE and before.get("reason") == Reason.ROLLING_OUT:
        return (Event("Normal", EventReason.ROLLOUT_FINISHED, f"{message} It took {_between(before, now)}."),)
    if now.get("reason") == Reason.UNDONE:
        return (Event("Normal", EventReason.ROLLOUT_UNDONE, message),)
    stuck = now.get("reason") in {Reason.STARTUP_TIMED_OUT, Reason.NO_CAPACITY_FOR_SURGE, Reason.ROLLED_BACK}
    return _warning(now, str(now["reason"])) if stuck else ()


def _between(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The time from one flip of a condition to the next."""
    start, end = (time_ms(str(one.get("lastTransitionTime", ""))) or 0 for one in (before, now))
    return format_duration(max(0, end - start))


def _turned(old: Mapping[str, Any], new: Mapping[str, Any], kind: str, status: str) -> Mapping[str, Any]:
    """The condition if it has this status now and had another, or another reason, before; else empty."""
    before, now = find(old.get("conditions") or (), kind), find(new.get("conditions") or (), kind)
    same = (before.get("status"), before.get("reason")) == (now.get("status"), now.get("reason"))
    return {} if same or now.get("status") != status else now


def _warning(condition: Mapping[str, Any], reason: str) -> tuple[Event, ...]:
    return (Event("Warning", reason, str(condition["message"])),) if condition else ()
