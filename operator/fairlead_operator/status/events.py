"""Events: one for each change, in the words of the conditions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairlead_operator.api.v1alpha1 import BudgetCondition, EventReason, PolicyCondition, PoolCondition, Reason
from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.problems import Problem
from fairlead_operator.decide.replicas import Decision, change_text, cost_text, price_text
from fairlead_operator.decide.variants import VariantOption
from fairlead_operator.status.conditions import find
from fairlead_operator.status.pods import pod_text
from fairlead_operator.units import format_duration


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
    """``3 to 4 replicas (+1 l40s), 8.85 to 10.40 USD/h: …``; nothing when the number stays."""
    if not decision.changed:
        return None
    up = decision.replicas > decision.current
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


def events_of_costbudget(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    """What the difference of two statuses of a budget is worth telling."""
    refused = _turned(old, new, BudgetCondition.ACCEPTED, "False")
    bare = _turned(old, new, BudgetCondition.PRICE_KNOWN, "False")
    silent = _turned(old, new, BudgetCondition.ENFORCED, "False")
    lost = silent.get("reason") == Reason.LEDGER_UNREACHABLE and bool(old.get("conditions"))
    return (
        *_warning(refused, str(refused.get("reason", ""))),
        *_warning(bare, EventReason.PRICE_UNKNOWN),
        *(_warning(silent, EventReason.LEDGER_UNREACHABLE) if lost else ()),
        *_action_events(old, new),
    )


def _action_events(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    before, now = old.get("activeAction") or "None", new.get("activeAction") or "None"
    if before == now:
        return ()
    spent = f"{new.get('spent')} of {new.get('limit')} ({new.get('usedPercent')}%)"
    where = f" by {new['fullest']}" if new.get("fullest") else ""
    until = f"; requests that do not fit are refused until {new['window']['end']}" if now == "Reject" else ""
    kind: Literal["Normal", "Warning"] = "Warning" if now == "Reject" else "Normal"
    figures = {name: new.get(name) for name in ("spent", "limit", "usedPercent", "fullest")}
    fields = {"from": before, "to": now, **figures}
    return (Event(kind, EventReason.BUDGET_ACTION, f"{before} to {now}: {spent}{where}{until}", fields=fields),)


def _rollout_events(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Event, ...]:
    before = find(old.get("conditions") or (), PoolCondition.PROGRESSING)
    now = find(new.get("conditions") or (), PoolCondition.PROGRESSING)
    if before.get("reason") == now.get("reason"):
        return ()
    message = str(now.get("message", ""))
    if now.get("reason") == Reason.ROLLING_OUT:
        return (Event("Normal", EventReason.ROLLOUT_STARTED, message),)
    if now.get("reason") == Reason.COMPLETE and before.get("reason") == Reason.ROLLING_OUT:
        return (Event("Normal", EventReason.ROLLOUT_FINISHED, message),)
    stuck = now.get("reason") in {Reason.STARTUP_TIMED_OUT, Reason.NO_CAPACITY_FOR_SURGE}
    return _warning(now, str(now["reason"])) if stuck else ()


def _turned(old: Mapping[str, Any], new: Mapping[str, Any], kind: str, status: str) -> Mapping[str, Any]:
    """The condition if it has this status now and had another, or another reason, before; else empty."""
    before, now = find(old.get("conditions") or (), kind), find(new.get("conditions") or (), kind)
    same = (before.get("status"), before.get("reason")) == (now.get("status"), now.get("reason"))
    return {} if same or now.get("status") != status else now


def _warning(condition: Mapping[str, Any], reason: str) -> tuple[Event, ...]:
    return (Event("Warning", reason, str(condition["message"])),) if condition else ()
