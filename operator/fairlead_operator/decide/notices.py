"""What clouds and termination handlers write on a node that is about to go, whatever anybody asks of it.

Notices of those that only would like a node back, and drain it themselves through the eviction API (Karpenter's
``karpenter.sh/disrupted``, the cluster autoscaler's ``ToBeDeletedByClusterAutoscaler``, ``kubectl drain``), are none:
there the disruption budget says how many replicas go at a time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

_TAINTS: Mapping[str, str] = {
    "aws-node-termination-handler/spot-itn": "EC2 takes the spot instance back",
    "aws-node-termination-handler/asg-lifecycle-termination": "its Auto Scaling group ends it",
    "cloud.google.com/impending-node-termination": "Compute Engine ends the instance",
    "cloudprovider.azure.microsoft.com/draining": "Azure takes the spot instance back",
    "remediator.kubernetes.azure.com/unschedulable": "AKS drains it for a scheduled event",
    "remediator.aks.microsoft.com/unschedulable": "AKS drains it for a scheduled event",
    "node.cloudprovider.kubernetes.io/shutdown": "its cloud has shut it down",
    "node.kubernetes.io/out-of-service": "it was declared out of service",
}
"""By the taint's key. Sources: the handlers' constants, AKS' page on node auto-drain, Kubernetes' well-known taints."""
_CONDITIONS: Mapping[str, str] = {
    "PreemptScheduled": "Azure takes the spot instance back",
    "TerminateScheduled": "Azure ends the instance",
    "RedeployScheduled": "Azure moves the instance to other hardware",
    "InstanceExpired": "its preemptible instance expires",
}
"""By the type of a condition that is True: node-problem-detector as AKS and ACK run it."""
_SHUTTING_DOWN = "node is shutting down"
"""What a kubelet says in its Ready condition once the machine was told to power off."""


def notice_of(taints: Iterable[Mapping[str, Any]], conditions: Iterable[Mapping[str, Any]]) -> str:
    """Why a node is about to go, as a clause; empty if nothing says so."""
    found = [_TAINTS[key] for taint in taints if (key := str(taint.get("key", ""))) in _TAINTS]
    for one in conditions:
        kind, status = str(one.get("type", "")), one.get("status")
        if status == "True" and kind in _CONDITIONS:
            found.append(_CONDITIONS[kind])
        if kind == "Ready" and status != "True" and _SHUTTING_DOWN in str(one.get("message", "")):
            found.append("its machine shuts down")
    return found[0] if found else ""
