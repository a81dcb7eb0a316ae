"""Pods and nodes as the API server gives them, cut down to what decisions and conditions read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

LABEL_POOL = "fairlead.dev/pool"
LABEL_VARIANT = "fairlead.dev/variant"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
ENGINE = "engine"
ROUTER = "router"
TROUBLE_CHARS = 400
"""What a condition quotes of an engine's last words; the rest is one ``kubectl logs`` away."""

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_ENDED_PHASES = frozenset({"Succeeded", "Failed"})

_INTEGER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_PREFIX = re.compile(r"^(?:\([^()\s]+ pid=\d+\)\s*)?(?:(?:ERROR|CRITICAL|WARNING|INFO|DEBUG)\s+\S+ \S+ \[[^\]]*\]\s?)?")
"""What vLLM writes before each line: the process, then level, time and place in the source."""
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b: |^[\w ./-]*\berror: ")
_POINTER = re.compile(r"root cause above|Engine core initialization failed|Failed core proc|during handling of")

TroubleKind = Literal["ImagePull", "CrashLoop", "Pending", "Config", "Exited"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not serve, in the words of whoever knows: scheduler, kubelet or the engine itself."""

    kind: TroubleKind
    container: str
    message: str


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

    @property
    def key(self) -> str:
        """namespace/name, as routers report themselves."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class NodeFact:
    """A node's labels, and the quantity of each resource that it can allocate at all."""

    name: str
    labels: Mapping[str, str]
    resources: Mapping[str, str]


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
    """What pricing reads of a Node."""
    meta = node.get("metadata") or {}
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    present = {name: str(amount) for name, amount in allocatable.items() if str(amount) != "0"}
    return NodeFact(str(meta.get("name", "")), dict(meta.get("labels") or {}), present)


def pod_fact(pod: Mapping[str, Any]) -> PodFact:
    """What is read of a Pod."""
    meta, status = pod.get("metadata") or {}, pod.get("status") or {}
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
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        phase=phase,
        ready=_is_true(conditions.get("Ready")) and phase == "Running",
        router_ready=any(item.get("name") == ROUTER and item.get("ready") for item in _container_statuses(status)),
        terminating=bool(meta.get("deletionTimestamp")),
        scheduled_ms=_true_since(conditions.get("PodScheduled")),
        started_ms=time_ms(status.get("startTime")),
        ready_ms=_true_since(conditions.get("Ready")),
        ended_ms=_ended_ms(status, conditions) if phase in _ENDED_PHASES else None,
        restarts=sum(int(item.get("restartCount") or 0) for item in _container_statuses(status)),
        trouble=_trouble(status, conditions),
        deletion_cost=_whole((meta.get("annotations") or {}).get(DELETION_COST)),
    )


def live_pods(pods: Iterable[PodFact], pool: str) -> tuple[PodFact, ...]:
    """The pool's pods that exist and have not ended, terminating ones among them."""
    return tuple(pod for pod in pods if pod.pool == pool and pod.phase not in _ENDED_PHASES)


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


def _trouble(status: Mapping[str, Any], conditions: Mapping[Any, Mapping[str, Any]]) -> Trouble | None:
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return Trouble("Pending", "", _short(str(scheduled.get("message") or "the scheduler has found no node yet")))
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
        return Trouble("CrashLoop", name, _last_words(item, "lastState"))
    place = "state" if state.get("terminated") else "lastState"
    ended = (
        int(item.get("restartCount") or 0) > 0 and not item.get("ready") and (item.get(place) or {}).get("terminated")
    )
    return Trouble("Exited", name, _last_words(item, place)) if ended else None


def _last_words(item: Mapping[str, Any], state: str) -> str:
    ended = (item.get(state) or {}).get("terminated") or {}
    words, reason = telling_line(str(ended.get("message") or "")), str(ended.get("reason") or "")
    code = f"exit code {ended.get('exitCode')}" if "exitCode" in ended else reason or "no exit code"
    killed = f"{reason}, " if reason == "OOMKilled" and "exitCode" in ended else ""
    return f"{killed}{code}: {_short(words)}" if words else f"{killed}{code}"


def telling_line(log: str) -> str:
    """The line of a log's end that says best why a program ended: the last that looks like an error, else the last.

    vLLM ends with the traceback of its parent, which only says that the engine core did not start, and with warnings
    of torch about process groups; the cause is the last error above them that does not point elsewhere.
    """
    lines = [bare for line in log.splitlines() if (bare := _PREFIX.sub("", line).strip())]
    errors = [line for line in lines if _ERROR.match(line)]
    causes = [line for line in errors if not _POINTER.search(line)]
    return next((found[-1] for found in (causes, errors, lines) if found), "")


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TROUBLE_CHARS else flat[: TROUBLE_CHARS - 1] + "…"
