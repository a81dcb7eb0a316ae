"""Who else writes the replicas of a pool's Deployment, and when Fairlead gives way.

A number that somebody wrote once is put right: it was a slip. Whoever writes it again within minutes is a controller,
such as a HorizontalPodAutoscaler, and two that correct each other start and stop pods without end. So Fairlead stops
scaling that pool, until the other has written nothing for an hour or the pool's spec is changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairlead_operator.decide.facts import clock_text

AGAIN_MS = 600_000
PAUSE_MS = 3_600_000
SCALE = "scale"
CONTROLLERS = "kube-controller-manager"
SOMEBODY = "Somebody"


@dataclass(frozen=True, slots=True)
class Write:
    """One foreign write of a Deployment's replicas."""

    writer: str
    deployment: str
    before: int
    after: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class ForeignWrites:
    """What is remembered of a pool. ``paused_until_ms`` 0 = never; ``generation`` is the spec's at the pause."""

    last_ms: int = 0
    paused_until_ms: int = 0
    generation: int = 0
    text: str = ""


def writer_of(raw: Mapping[str, Any], ours: str) -> str:
    """Who but us owns the Deployment's replicas by its managed fields, the newest; ``Somebody`` if it does not say."""
    owners: list[Mapping[str, Any]] = [
        entry
        for entry in raw["metadata"].get("managedFields") or ()
        if entry.get("manager") != ours
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    newest = max(owners, key=lambda entry: str(entry.get("time", "")), default=None)
    if newest is None:
        return SOMEBODY
    manager = str(newest.get("manager") or SOMEBODY)
    scaled = manager == CONTROLLERS and newest.get("subresource") == SCALE
    return f"A HorizontalPodAutoscaler ({manager})" if scaled else manager


def noted(known: ForeignWrites, write: Write, generation: int) -> ForeignWrites:
    """What is known after one more write; a pause that is under way only grows."""
    if write.at_ms < known.paused_until_ms and generation == known.generation:
        return replace(known, last_ms=write.at_ms, paused_until_ms=write.at_ms + PAUSE_MS)
    again = known.last_ms > 0 and write.at_ms - known.last_ms <= AGAIN_MS
    if not again:
        return ForeignWrites(write.at_ms, 0, generation, text(write, stops=False))
    return ForeignWrites(write.at_ms, write.at_ms + PAUSE_MS, generation, text(write, stops=True))


def paused(known: ForeignWrites, generation: int, now_ms: int) -> bool:
    """Whether Fairlead leaves the number of replicas alone."""
    return now_ms < known.paused_until_ms and generation == known.generation


def text(write: Write, *, stops: bool) -> str:
    """What happened, what follows and what can be done."""
    change = f"set Deployment {write.deployment} from {write.before} to {write.after} at {clock_text(write.at_ms)}"
    if not stops:
        return f"{write.writer} {change}. Fairlead sets it back to what it decided, once"
    return (
        f"{write.writer} {change}, again. Fairlead stops scaling this pool for an hour after the last such write: "
        "delete the other writer, or set spec.replicas for spec.autoscaling and aim it at the ModelPool"
    )
