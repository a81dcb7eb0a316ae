"""What keeps pods from serving, in words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_operator.decide.facts import PodFact, clock_text
from fairlead_operator.render.engine_args import SHUTDOWN_SECONDS
from fairlead_operator.units import format_duration
from fairlead_router.contract import DrainReport

PODS_SHOWN = 2
_QUOTA = re.compile(r"exceeded quota: ([^,]+), requested: (\S+), used: (\S+), limited: (\S+)")
"""What the API server's quota plugin says; each list is ``name=amount,name=amount``."""


def serving(pods: Sequence[PodFact]) -> int:
    """Pods that take requests."""
    return sum(pod.ready and not pod.terminating for pod in pods)


def trouble_text(pods: Sequence[PodFact], now_ms: int) -> str:
    """Why pods are not ready: what is wrong with the first ones, else since when they have been starting."""
    waiting = [pod for pod in pods if not pod.ready and not pod.terminating]
    troubled = [pod for pod in waiting if pod_text(pod)]
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
    """One pod's trouble as a sentence that names the pod; empty if it has none."""
    trouble = pod.trouble
    if trouble is None:
        since = "" if pod.unready_ms is None else clock_text(pod.unready_ms)
        return f"Pod {pod.name} has not been ready since {since}." if since and not pod.ready else ""
    ended = f"container {trouble.container} ended {_times(pod.restarts)} ({trouble.message})"
    words = {
        "Pending": f"has no node: {trouble.message}",
        "ImagePull": f"cannot get its {trouble.message}",
        "CrashLoop": ended,
        "Exited": ended,
        "Config": f"container {trouble.container} cannot be made: {trouble.message}",
        "NodeLost": f"is lost: its node {pod.node} {trouble.message}",
    }
    return f"Pod {pod.name} {words[trouble.kind].rstrip('.')}."


def taken_text(pod: PodFact) -> str:
    """A pod that somebody takes away, as a sentence."""
    place = f" from node {pod.node}" if pod.node else ""
    return f"Pod {pod.name} is taken{place}: {pod.taken.rstrip('.')}."


def reclaim_text(pod: PodFact, notice: str) -> str:
    """A pod that is replaced because its node is about to go, as a sentence; ``notice`` is the node's."""
    return f"Node {pod.node} is about to go ({notice}): pod {pod.name} drains, another one starts elsewhere."


def drain_text(pod: str, report: DrainReport) -> str:
    """How the last requests at a pod's engine ended: ``chat-8b-2mwq8: 61 requests ended in 3m12s of 10m, 0 cut``."""
    count = "1 request" if report.requests == 1 else f"{report.requests} requests"
    took, limit = (format_duration(round(seconds) * 1000) for seconds in (report.took_s, report.timeout_s))
    if not report.left:
        return f"{pod}: {count} ended in {took} of {limit}, 0 cut"
    return (
        f"{pod}: {report.left} of {count} still ran after {limit} (drainTimeout). The engine got {SHUTDOWN_SECONDS}s "
        "more; what it did not finish then was cut, and is charged for what ran"
    )


def refusal_text(deployment: Mapping[str, Any]) -> str:
    """Why the API server takes no more pods of a Deployment (a quota, an admission webhook); empty if it does."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    failed: Mapping[str, Any] = next((one for one in conditions if one.get("type") == "ReplicaFailure"), {})
    if failed.get("status") != "True":
        return ""
    message = str(failed.get("message") or failed.get("reason") or "")
    over = _QUOTA.search(message)
    if over is None:
        return f"The API server refuses more pods: {message.rstrip('.')}."
    quota, requested, used, limited = over.groups()
    name = next(iter(_amounts(requested)), "")
    amounts = f"{_amounts(limited).get(name, '?')} {name.removeprefix('requests.')} and {_amounts(used).get(name, '?')}"
    return f"ResourceQuota {quota} allows {amounts} are used."


def _amounts(text: str) -> dict[str, str]:
    """``requests.nvidia.com/gpu=1,pods=3`` by name."""
    return {name: amount for part in text.split(",") for name, _, amount in [part.strip().partition("=")] if amount}


def _times(restarts: int) -> str:
    return "once" if restarts <= 1 else f"{restarts} times"
