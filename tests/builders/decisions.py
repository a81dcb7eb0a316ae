"""Builders of what decisions and statuses are made from."""

from collections.abc import Mapping
from typing import Any

from fairlead_operator.decide.facts import PodFact, pod_fact, time_text
from fairlead_operator.decide.replicas import Bounds, Inputs, Memory, Peak
from fairlead_operator.decide.signals import Load, Missing
from fairlead_operator.decide.variants import VariantOption
from fairlead_router.contract import KeySpend, SpendAnswer, Window

NOW = 1_795_172_400_000
"""2026-11-20T11:00:00Z."""
USD = 1_000_000_000
GONE = Missing("ai-platform/chat-8b-h100-2mwq8", NOW - 47_000)


def option(name: str = "h100", current: int = 1, price: int | None = 2_950_000_000, **fields: Any) -> VariantOption:
    """A variant to choose from; an H100 at 2.95 USD an hour unless it says otherwise."""
    return VariantOption(name=name, current=current, price=price, **fields)


def bounds(minimum: int = 1, maximum: int = 10, queue_depth: int = 2, zero_after_ms: int | None = None) -> Bounds:
    """Bounds of an autoscaled pool."""
    return Bounds(None, minimum, maximum, queue_depth, zero_after_ms)


def load(running: int = 0, held: int = 0, **fields: Any) -> Load:
    """What is asked of a pool, with every router reporting."""
    return Load(**{"running": running, "held": held, "peak": running + held, **fields})


def memory(*demands: int, minutes: int = 60, last_request_ms: int = 0) -> Memory:
    """A memory that is known for some minutes and holds these demands, all of them in the window."""
    peaks = tuple(Peak(NOW - 1000 * (len(demands) - place), demand) for place, demand in enumerate(demands))
    return Memory(NOW - minutes * 60_000, peaks, last_request_ms)


def inputs(**fields: Any) -> Inputs:
    """Inputs of a quiet pool with one replica that runs four requests at once."""
    usual: dict[str, Any] = {
        "bounds": bounds(),
        "options": (option(),),
        "slots": 4,
        "load": load(),
        "memory": memory(0),
        "cold_start_ms": 92_000,
        "now_ms": NOW,
    }
    return Inputs(**(usual | fields))


def pod(name: str = "chat-8b-h100-2mwq8", **fields: Any) -> PodFact:
    """A ready pod of pool ai-platform/chat-8b on node gpu-1, scheduled an hour ago."""
    return pod_fact(pod_object(name, **fields))


def pod_object(
    name: str = "chat-8b-h100-2mwq8",
    *,
    variant: str = "h100",
    ready: bool = True,
    node: str = "gpu-1",
    waiting: Mapping[str, str] | None = None,
    ended: Mapping[str, Any] | None = None,
    unscheduled: str = "",
    deleting: bool = False,
    last_words: str | None = None,
) -> dict[str, Any]:
    """A pod as the API server returns it; with ``last_words`` of its router, one whose containers have ended."""
    hour_ago = time_text(NOW - 3_600_000)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": hour_ago}
    if unscheduled:
        scheduled |= {"status": "False", "message": unscheduled}
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": hour_ago}
    engine = {"name": "engine", "image": "vllm:1", "ready": ready, "restartCount": 3 if waiting else 0}
    state = {"waiting": dict(waiting)} if waiting else {"running": {}}
    over = {"terminated": {"exitCode": 0, "finishedAt": time_text(NOW), "message": last_words}}
    router = {"name": "router", "ready": last_words is None, "restartCount": 0}
    return {
        "metadata": {
            "name": name,
            "namespace": "ai-platform",
            "uid": f"uid-{name}",
            "labels": {"fairlead.dev/pool": "chat-8b", "fairlead.dev/variant": variant},
            **({"deletionTimestamp": time_text(NOW)} if deleting else {}),
        },
        "spec": {"nodeName": "" if unscheduled else node},
        "status": {
            "phase": "Succeeded" if last_words is not None else "Running" if ready else "Pending",
            "podIP": "10.0.0.7",
            "startTime": hour_ago,
            "conditions": [scheduled, condition],
            "initContainerStatuses": [{**router, "state": {"running": {}} if last_words is None else over}],
            "containerStatuses": [
                {**engine, "state": state, "lastState": {"terminated": dict(ended)} if ended else {}}
            ],
        },
    }


def spend(charged: int = 1610 * USD, **fields: Any) -> SpendAnswer:
    """The ledger's answer about support/support: 1610.50 of 2300 USD a month, two days of which are the window."""
    key = KeySpend(
        namespace="support",
        key="",
        charged=charged,
        leased=5 * USD,
        reserved=2 * USD,
        unreconciled=USD // 2,
        unbacked=0,
        counted_from=NOW - 86_400_000,
    )
    usual: dict[str, Any] = {
        "namespace": "support",
        "name": "support",
        "unit": "USD",
        "per": "Namespace",
        "limit": 2300 * USD,
        "extra": 0,
        "charged": charged,
        "leased": 5 * USD,
        "reserved": 2 * USD,
        "unreconciled": USD // 2,
        "unbacked": 0,
        "remaining": 0,
        "window": Window(id=3, start=NOW - 86_400_000, end=NOW + 86_400_000),
        "window_label": "2026-11",
        "counted_from": NOW - 86_400_000,
        "action": "None",
        "keys": (key,),
        "keys_total": 1,
    }
    return SpendAnswer(**(usual | fields))
