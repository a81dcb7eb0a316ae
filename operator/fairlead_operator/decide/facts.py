"""Pods and nodes as the API server gives them, cut down to what decisions and conditions read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from fairlead_operator.decide.last_words import names_cause, telling_line
from fairlead_operator.decide.notices import notice_of
from fairlead_operator.decide.unplaced import unplaced_text
from fairlead_router.contract import DrainReport

LABEL_POOL = "fairlead.dev/pool"
LABEL_VARIANT = "fairlead.dev/variant"
LABEL_REVISION = "fairlead.dev/revision"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
ENGINE = "engine"
ROUTER = "router"
NEWS_MS = 300_000
"""How long after a pod's end it is worth telling why and how it went; its object may stay for days."""
LONGEST_DRAIN_S = 1e7
"""A report of more is none: somebody else wrote it."""
TROUBLE_CHARS = 400
"""What a condition quotes of an engine's last words; the rest is one ``kubectl logs`` away."""

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_ENDED_PHASES = frozenset({"Succeeded", "Failed"})

_INTEGER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_DISRUPTIONS: Mapping[str, str] = {
    "EvictionByEvictionAPI": "it was evicted, as kubectl drain and autoscalers of nodes do",
    "PreemptionByScheduler": "a pod of higher priority takes its place",
    "DeletionByTaintManager": "its node has a taint that it does not tolerate",
    "DeletionByPodGC": "its node is gone",
}
"""By the reason of a pod's condition DisruptionTarget; for others the condition's message says more."""
_LATER_MS = 5_000
"""A pod is not ready from its start; one that turns so this much later had been ready."""

TroubleKind = Literal["ImagePull", "CrashLoop", "Pending", "Config", "Exited", "NodeLost"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not serve, in the words of whoever knows: scheduler, kubelet or the engine itself."""

    kind: TroubleKind
    container: str
    message: str
    vague: bool = False
    """Whether a program ended and its last words name no cause: that is further up in its log."""


@dataclass(frozen=True, slots=True)
class PodFact:
    """One pod of a pool. Times are ``None`` until they have happened."""

    namespace: str
    name: str
    uid: str
    pool: str
    """namespace/name of its pool; empty for a gateway's pod."""
    variant: str
    ip: str
    node: str
    phase: str
    ready: bool
    router_ready: bool
    terminating: bool
    scheduled_ms: int | None
    started_ms: int | None
    ready_ms: int | None
    ended_ms: int | None
    restarts: int
    trouble: Trouble | None
    deletion_cost: int = 0
    """A ReplicaSet that shrinks takes the pods with the lowest first."""
    revision: str = ""
    """The pool's revision that the pod was made from; empty for pods of an earlier release."""
    unready_ms: int | None = None
    """Since when it is not ready any more, though nothing is wrong with its containers."""
    taken: str = ""
    """Why somebody takes or took it away, as a clause; empty for one that stays or was simply deleted."""
    drained: DrainReport | None = None
    """How the last requests at its engine ended, once its router has ended too."""

    @property
    def key(self) -> str:
        """namespace/name, as routers report themselves."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A node's labels, and the quantity of each resource that it can allocate at all.

    ``silent_ms``: since when its kubelet has not been heard, ``None`` if it is. ``notice``: why it is about to go, as a
    clause; empty if nothing says so.
    """

    name: str
    labels: Mapping[str, str]
    resources: Mapping[str, str]
    silent_ms: int | None = None
    notice: str = ""


def time_ms(text: str | None) -> int | None:
    """Kubernetes' RFC 3339 time as epoch milliseconds."""
    if not text:
        return None
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def time_text(at_ms: int) -> str:
    """Epoch milliseconds as Kubernetes writes a time: whole seconds, UTC."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock_text(at_ms: int) -> str:
    """Epoch milliseconds as a time of day, for messages about the last minutes."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%H:%M:%SZ")


def node_fact(node: Mapping[str, Any]) -> NodeFact:
    """What is read of a Node."""
    meta, status = node.get("metadata") or {}, node.get("status") or {}
    present = {name: str(amount) for name, amount in (status.get("allocatable") or {}).items() if str(amount) != "0"}
    conditions = status.get("conditions") or ()
    ready = next((one for one in conditions if one.get("type") == "Ready"), None)
    silent = ready is not None and ready.get("status") == "Unknown"
    return NodeFact(
        name=str(meta.get("name", "")),
        labels=dict(meta.get("labels") or {}),
        resources=present,
        silent_ms=(time_ms(ready.get("lastTransitionTime")) or 0) if ready is not None and silent else None,
        notice=notice_of((node.get("spec") or {}).get("taints") or (), conditions),
    )


def pod_fact(pod: Mapping[str, Any]) -> PodFact:
    """What is read of a Pod."""
    meta, spec, status = pod.get("metadata") or {}, pod.get("spec") or {}, pod.get("status") or {}
    labels = meta.get("labels") or {}
    pool = labels.get(LABEL_POOL, "")
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    phase = str(status.get("phase") or "Pending")
    return PodFact(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        pool=f"{meta.get('namespace', '')}/{pool}" if pool else "",
        variant=str(labels.get(LABEL_VARIANT, "")),
        ip=str(status.get("podIP") or ""),
        node=str(spec.get("nodeName") or ""),
        phase=phase,
        ready=_is_true(conditions.get("Ready")) and phase == "Running",
        router_ready=any(item.get("name") == ROUTER and item.get("ready") for item in _container_statuses(status)),
        terminating=bool(meta.get("deletionTimestamp")),
        scheduled_ms=_true_since(conditions.get("PodScheduled")),
        started_ms=time_ms(status.get("startTime")),
        ready_ms=_true_since(conditions.get("Ready")),
        ended_ms=_ended_ms(status, conditions) if phase in _ENDED_PHASES else None,
        restarts=sum(int(item.get("restartCount") or 0) for item in _container_statuses(status)),
        trouble=_trouble(status, conditions, spec.get("nodeSelector") or {}),
        deletion_cost=_whole((meta.get("annotations") or {}).get(DELETION_COST)),
        revision=str(labels.get(LABEL_REVISION, "")),
        unready_ms=_unready_ms(status, conditions.get("Ready")),
        taken=_taken(status, conditions.get("DisruptionTarget")),
        drained=_drained(status),
    )


def live_pods(pods: Iterable[PodFact], pool: str) -> tuple[PodFact, ...]:
    """The pool's pods that exist and have not ended, terminating ones among them."""
    return tuple(pod for pod in pods if pod.pool == pool and pod.phase not in _ENDED_PHASES)


def taken_pods(pods: Iterable[PodFact], pool: str, now_ms: int) -> tuple[PodFact, ...]:
    """The pool's pods that somebody takes away or took away, those that have just ended among them."""
    taken = [pod for pod in pods if pod.pool == pool and pod.taken]
    return tuple(pod for pod in taken if pod.ended_ms is None or pod.ended_ms >= now_ms - NEWS_MS)


def drained_pods(pods: Iterable[PodFact], pool: str, now_ms: int) -> tuple[PodFact, ...]:
    """The pool's pods that have just ended and whose routers said how it went; not those that ran nothing by then."""
    return tuple(
        pod
        for pod in pods
        if pod.pool == pool and pod.drained is not None and pod.drained.requests
        if pod.ended_ms is not None and pod.ended_ms >= now_ms - NEWS_MS
    )


def on_nodes(pods: Iterable[PodFact], nodes: Mapping[str, NodeFact]) -> tuple[PodFact, ...]:
    """The pods, those on nodes that are silent or gone with that as their trouble: of them nothing newer is known."""
    return tuple(_on_node(pod, nodes.get(pod.node)) for pod in pods)


def _on_node(pod: PodFact, node: NodeFact | None) -> PodFact:
    if not pod.node or pod.ready:
        return pod
    if node is None:
        return replace(pod, trouble=Trouble("NodeLost", "", "is gone"))
    if node.silent_ms is None:
        return pod
    return replace(pod, trouble=Trouble("NodeLost", "", f"has been silent since {clock_text(node.silent_ms)}"))


def _unready_ms(status: Mapping[str, Any], ready: Mapping[str, Any] | None) -> int | None:
    turned, started = time_ms((ready or {}).get("lastTransitionTime")), time_ms(status.get("startTime"))
    if ready is None or _is_true(ready) or turned is None or started is None:
        return None
    return turned if turned - started >= _LATER_MS else None


def _taken(status: Mapping[str, Any], disruption: Mapping[str, Any] | None) -> str:
    """By the condition that whoever disrupts a pod sets, else by why the kubelet refused or ended it."""
    if disruption is not None and _is_true(disruption):
        message = _short(str(disruption.get("message") or disruption.get("reason") or "")).rstrip(".")
        return _DISRUPTIONS.get(str(disruption.get("reason")), message)
    if status.get("phase") != "Failed":
        return ""
    return _short(": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))).rstrip(".")


def _drained(status: Mapping[str, Any]) -> DrainReport | None:
    """What the router left as its last words; ``None`` while it runs, and for words that are no such report."""
    routers = [one for one in status.get("initContainerStatuses") or () if one.get("name") == ROUTER]
    ended = [((one.get("state") or {}).get("terminated") or {}).get("message") for one in routers]
    try:
        told = msgspec.json.decode(str(ended[0] or "") if ended else "", type=DrainReport)
    except msgspec.DecodeError:
        return None
    sound = 0 <= told.left <= told.requests and max(told.took_s, told.timeout_s) <= LONGEST_DRAIN_S
    return told if sound and min(told.took_s, told.timeout_s) >= 0 else None


def _whole(text: object) -> int:
    """An integer that somebody may have written; 0 for anything else."""
    found = _INTEGER.fullmatch(str(text))
    return int(found[0]) if found else 0


def _is_true(condition: Mapping[str, Any] | None) -> bool:
    return condition is not None and condition.get("status") == "True"


def _true_since(condition: Mapping[str, Any] | None) -> int | None:
    return time_ms(condition.get("lastTransitionTime")) if condition and _is_true(condition) else None


def _container_statuses(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _ended_ms(status: Mapping[str, Any], conditions: Mapping[Any, Mapping[str, Any]]) -> int | None:
    """When the last container ended. A pod that was evicted may list none: then when it was last said to be unready."""
    ends = [
        ended
        for item in _container_statuses(status)
        if (ended := time_ms(((item.get("state") or {}).get("terminated") or {}).get("finishedAt"))) is not None
    ]
    turned = [time_ms(item.get("lastTransitionTime")) for item in conditions.values() if not _is_true(item)]
    known = [at for at in turned if at is not None] or [time_ms(status.get("startTime")) or 0]
    return max(ends or known)


def _trouble(
    status: Mapping[str, Any], conditions: Mapping[Any, Mapping[str, Any]], selector: Mapping[str, str]
) -> Trouble | None:
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        said = str(scheduled.get("message") or "the scheduler has found no node yet")
        return Trouble("Pending", "", _short(unplaced_text(said, selector)))
    for item in _container_statuses(status):
        found = _container_trouble(item)
        if found is not None:
            return found
    return None


def _container_trouble(item: Mapping[str, Any]) -> Trouble | None:
    name, state = str(item.get("name", "")), item.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), _short(str(waiting.get("message") or ""))
    if reason in _IMAGE_REASONS:
        return Trouble("ImagePull", name, f"image {item.get('image', '')}: {message or reason}")
    if reason in _CONFIG_REASONS:
        return Trouble("Config", name, message or reason)
    if reason == "CrashLoopBackOff":
        return _ended(item, "CrashLoop", "lastState")
    place = "state" if state.get("terminated") else "lastState"
    ended = (
        int(item.get("restartCount") or 0) > 0 and not item.get("ready") and (item.get(place) or {}).get("terminated")
    )
    return _ended(item, "Exited", place) if ended else None


def _ended(item: Mapping[str, Any], kind: TroubleKind, state: str) -> Trouble:
    ended = (item.get(state) or {}).get("terminated") or {}
    words, reason = telling_line(str(ended.get("message") or "")), str(ended.get("reason") or "")
    code = f"exit code {ended.get('exitCode')}" if "exitCode" in ended else reason or "no exit code"
    killed = reason == "OOMKilled" and "exitCode" in ended
    how = f"{reason}, {code}" if killed else code
    message = f"{how}: {_short(words)}" if words else how
    return Trouble(kind, str(item.get("name", "")), message, vague=not killed and not names_cause(words))


def explained(pod: PodFact, log: str) -> PodFact:
    """A pod whose last words were vague, with the cause that its log names; as it was if that names none either."""
    line = telling_line(log)
    if pod.trouble is None or not names_cause(line):
        return pod
    how = pod.trouble.message.partition(": ")[0]
    return replace(pod, trouble=replace(pod.trouble, message=f"{how}: {_short(line)}", vague=False))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TROUBLE_CHARS else flat[: TROUBLE_CHARS - 1] + "…"
