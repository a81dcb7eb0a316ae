"""Nodes that are lost or about to go, and what becomes of their pods."""

from typing import Any

import pytest

from fairlead_operator.decide.facts import NodeFact, node_fact, on_nodes, pod_fact, taken_pods, time_text
from fairlead_operator.decide.placement import reclaimed, stranded
from fairlead_operator.status.pods import pod_text, reclaim_text, taken_text, trouble_text
from tests.builders.decisions import NOW, pod, pod_object

MINUTE = 60_000


def node(*, taint: str = "", ready: str = "True", message: str = "", **conditions: str) -> dict[str, Any]:
    """Node gpu-1 as the API server returns it; other conditions by their type."""
    ready_condition = {
        "type": "Ready",
        "status": ready,
        "message": message,
        "lastTransitionTime": time_text(NOW - MINUTE),
    }
    return {
        "metadata": {"name": "gpu-1"},
        "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}] if taint else []},
        "status": {"conditions": [ready_condition, *({"type": k, "status": v} for k, v in conditions.items())]},
    }


@pytest.mark.parametrize(
    ("found", "notice"),
    [
        (node(taint="aws-node-termination-handler/spot-itn"), "EC2 takes the spot instance back"),
        (node(taint="cloud.google.com/impending-node-termination"), "Compute Engine ends the instance"),
        (node(taint="remediator.kubernetes.azure.com/unschedulable"), "AKS drains it for a scheduled event"),
        (node(taint="node.cloudprovider.kubernetes.io/shutdown"), "its cloud has shut it down"),
        (node(PreemptScheduled="True"), "Azure takes the spot instance back"),
        (node(ready="False", message="node is shutting down"), "its machine shuts down"),
        (node(PreemptScheduled="False"), ""),
        (node(taint="nvidia.com/gpu"), ""),
        (node(taint="karpenter.sh/disrupted"), ""),
        (node(taint="ToBeDeletedByClusterAutoscaler"), ""),
        (node(taint="aws-node-termination-handler/rebalance-recommendation"), ""),
        (node(ready="False", message="container runtime network not ready"), ""),
        ({"metadata": {"name": "bare"}}, ""),
    ],
)
def test_a_node_that_is_about_to_go_says_so_by_its_taints_or_conditions(found: dict[str, Any], notice: str) -> None:
    assert node_fact(found).notice == notice


def test_pods_that_serve_on_such_a_node_are_replaced_unless_they_leave_already() -> None:
    going = {"gpu-1": node_fact(node(PreemptScheduled="True")), "gpu-2": NodeFact("gpu-2", {}, {})}
    pods = (pod("a"), pod("b", ready=False), pod("c", deleting=True), pod("d", node="gpu-2"), pod("e", node="gone"))
    assert [one.name for one in reclaimed(pods, going)] == ["a"]
    assert reclaim_text(pods[0], going["gpu-1"].notice) == (
        "Node gpu-1 is about to go (Azure takes the spot instance back): pod a drains, another one starts elsewhere."
    )


def test_a_pod_of_a_silent_node_is_lost_not_starting() -> None:
    nodes = {"gpu-1": node_fact(node(ready="Unknown"))}
    (lost,) = on_nodes([pod("a", ready=False)], nodes)
    assert trouble_text([lost], NOW) == "Pod a is lost: its node gpu-1 has been silent since 10:59:00Z."


def test_a_pod_of_a_node_that_was_deleted_is_lost() -> None:
    (lost,) = on_nodes([pod("a", ready=False)], {})
    assert pod_text(lost) == "Pod a is lost: its node gpu-1 is gone."


@pytest.mark.parametrize("fine", [pod("a"), pod("a", ready=False, node="")])
def test_a_pod_that_answers_or_has_no_node_is_not_lost(fine: Any) -> None:
    assert on_nodes([fine], {"gpu-1": node_fact(node(ready="Unknown"))}) == (fine,)


def test_a_pod_of_a_node_that_is_heard_is_not_lost() -> None:
    starting = pod("a", ready=False)
    assert on_nodes([starting], {"gpu-1": node_fact(node())}) == (starting,)


# --- pods that were ready once ---


def unready(since_ms: int) -> Any:
    body = pod_object("a", ready=False)
    body["status"]["conditions"][1]["lastTransitionTime"] = time_text(since_ms)
    return pod_fact(body)


def test_a_pod_that_was_ready_says_since_when_it_is_not() -> None:
    assert trouble_text([unready(NOW - MINUTE)], NOW) == "Pod a has not been ready since 10:59:00Z."


def test_a_pod_that_starts_is_starting() -> None:
    assert trouble_text([pod("a", ready=False)], NOW) == "1 is starting, the oldest for 1h."


# --- a drain need not wait for what does not come ---


def test_only_pods_that_did_not_become_ready_in_time_are_stranded() -> None:
    pods = (pod("ready"), pod("new", ready=False), pod("old", ready=False), pod("going", ready=False, deleting=True))
    created = {one.key: NOW - 11 * MINUTE for one in pods} | {pods[1].key: NOW - 9 * MINUTE}
    assert stranded(pods, created, 10 * MINUTE, NOW) == 1
    assert stranded(pods, created, 9 * MINUTE, NOW) == 2


def test_a_pod_that_was_ready_is_given_its_time_again() -> None:
    fallen = unready(NOW - MINUTE)
    created = {fallen.key: NOW - 1000 * MINUTE}
    assert stranded([fallen], created, 2 * MINUTE, NOW) == 0
    assert stranded([fallen], created, MINUTE, NOW) == 1


# --- who takes pods away ---


@pytest.mark.parametrize(
    ("reason", "message", "why"),
    [
        (
            "EvictionByEvictionAPI",
            "Eviction API: evicting",
            "it was evicted, as kubectl drain and autoscalers of nodes do",
        ),
        ("PreemptionByScheduler", "default-scheduler: preempting", "a pod of higher priority takes its place"),
        ("DeletionByTaintManager", "Taint manager: deleting", "its node has a taint that it does not tolerate"),
        (
            "TerminationByKubelet",
            "The node was low on resource: memory. Container engine was using 30Gi, request is 0.",
            "The node was low on resource: memory. Container engine was using 30Gi, request is 0",
        ),
        ("SomethingNew", "", "SomethingNew"),
    ],
)
def test_who_takes_a_pod_away_is_told(reason: str, message: str, why: str) -> None:
    body = pod_object("a")
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
    body["status"]["conditions"].append(disruption)
    assert taken_text(pod_fact(body)) == f"Pod a is taken from node gpu-1: {why}."


def test_a_pod_that_the_kubelet_refused_says_why_though_it_has_ended() -> None:
    body = pod_object("a", ready=False)
    refused = {
        "phase": "Failed",
        "reason": "UnexpectedAdmissionError",
        "message": "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu",
    }
    body["status"] |= refused
    fact = pod_fact(body)
    assert fact.ended_ms is not None
    assert taken_pods([fact, pod("b")], "ai-platform/chat-8b", fact.ended_ms + 300_000) == (fact,)
    assert taken_pods([fact], "ai-platform/chat-8b", fact.ended_ms + 301_000) == (), "its object stays for days"
    assert fact.taken == f"{refused['reason']}: {refused['message']}"


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_disruption_that_did_not_happen_is_none(status: str) -> None:
    body = pod_object("a")
    body["status"]["conditions"].append({"type": "DisruptionTarget", "status": status, "reason": "x"})
    assert pod_fact(body).taken == ""
