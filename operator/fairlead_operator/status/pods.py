"""What keeps pods from serving, and how far a rollout is, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead_operator.decide.facts import LABEL_VARIANT, PodFact
from fairlead_operator.units import format_duration

DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
PODS_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a variant's Deployment is: pods of the new template, of all that exist."""

    variant: str
    wanted: int
    existing: int
    updated: int
    overdue: bool

    @property
    def running(self) -> bool:
        """Whether pods of an older template are still there."""
        return self.existing > self.updated


def rollout_of(deployment: Mapping[str, Any]) -> Rollout:
    """What a live Deployment's status says."""
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    conditions = status.get("conditions") or ()
    return Rollout(
        variant=str(((deployment.get("metadata") or {}).get("labels") or {}).get(LABEL_VARIANT, "")),
        wanted=int(spec.get("replicas") or 0),
        existing=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        overdue=any(item.get("reason") == DEADLINE_EXCEEDED for item in conditions),
    )


def serving(pods: Sequence[PodFact]) -> int:
    """Pods that take requests."""
    return sum(pod.ready and not pod.terminating for pod in pods)


def trouble_text(pods: Sequence[PodFact], now_ms: int) -> str:
    """Why pods are not ready: what is wrong with the first ones, else since when they have been starting."""
    waiting = [pod for pod in pods if not pod.ready and not pod.terminating]
    troubled = [pod for pod in waiting if pod.trouble is not None]
    if troubled:
        shown = " ".join(pod_text(pod) for pod in troubled[:PODS_SHOWN])
        more = len(troubled) - PODS_SHOWN
        return f"{shown} ({more} more {'pod' if more == 1 else 'pods'})" if more > 0 else shown
    ages = [now_ms - pod.started_ms for pod in waiting if pod.started_ms is not None]
    if not ages:
        return ""
    longest = format_duration(max(0, *ages) // 1000 * 1000)
    return f"{len(waiting)} {'is' if len(waiting) == 1 else 'are'} starting, the oldest for {longest}."


def pod_text(pod: PodFact) -> str:
    """One pod's trouble as a sentence that names the pod."""
    trouble = pod.trouble
    if trouble is None:
        return ""
    ended = f"container {trouble.container} ended {_times(pod.restarts)} ({trouble.message})"
    words = {
        "Pending": f"has no node: {trouble.message}",
        "ImagePull": f"cannot get its {trouble.message}",
        "CrashLoop": ended,
        "Exited": ended,
        "Config": f"container {trouble.container} cannot be made: {trouble.message}",
    }
    return f"Pod {pod.name} {words[trouble.kind].rstrip('.')}."


def _times(restarts: int) -> str:
    return "once" if restarts <= 1 else f"{restarts} times"
