"""ModelPools on a real API server: what they become, what their status says, and that bad ones harm no other."""

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from fairlead_operator.decide.facts import time_text
from fairlead_router.contract import DrainReport
from tests.builders.operator import Process, Release, ledger, operator
from tests.builders.resources import Builder, PoolBuilder, make_budget, make_policy, make_pool
from tests.cluster_tools import H100, L40S, Cluster, eventually, fake_nodes, fresh_namespace, gpu_node

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu.product"


class Fleet:
    """A running operator and the namespace that its pools are in."""

    def __init__(self, release: Release, process: Process) -> None:
        self.release = release
        self.cluster = release.cluster
        self.process = process
        self.namespace = release.platform

    def apply(self, *builders: Builder) -> None:
        self.cluster.apply(*(_bare(builder.obj(), self.namespace) for builder in builders))

    def find(self, kind: str, name: str) -> Any:
        """The object, or None; asked once, as it may go between two questions."""
        what = (kind, name, "-n", self.namespace, "--ignore-not-found", "--output=json")
        text = self.cluster.kubectl("get", *what).stdout
        return json.loads(text) if text.strip() else None

    def get(self, kind: str, name: str) -> Any:
        return self.cluster.get(kind, name, "-n", self.namespace)

    def condition(self, kind: str, name: str, condition: str) -> tuple[str, str]:
        """(status, reason) of a condition; Unknown while there is none."""
        status = self.get(kind, name).get("status", {})
        found = [one for one in status.get("conditions", []) if one["type"] == condition]
        return (found[0]["status"], found[0]["reason"]) if found else ("Unknown", "")

    def message(self, kind: str, name: str, condition: str) -> str:
        conditions = self.get(kind, name)["status"]["conditions"]
        return next(str(one["message"]) for one in conditions if one["type"] == condition)

    def becomes(self, kind: str, name: str, condition: str, wanted: tuple[str, str]) -> None:
        eventually(lambda: self.condition(kind, name, condition) == wanted)

    def events(self, name: str) -> list[tuple[str, str, str]]:
        items = self.cluster.get("events.events.k8s.io", "-n", self.namespace)["items"]
        return [(one["type"], one["reason"], one["note"]) for one in items if one["regarding"]["name"] == name]


def _bare(obj: dict[str, Any], namespace: str) -> dict[str, Any]:
    return obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": namespace}}


@pytest.fixture(scope="module")
def fleet(
    control_plane: Cluster, gpu_nodes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    assert gpu_nodes
    port = random.randint(20_000, 29_000)  # noqa: S311 - other test runs share the network
    with fresh_namespace(control_plane, "release") as namespace, fresh_namespace(control_plane, "fleet") as platform:
        release = Release(control_plane, namespace, platform, tmp_path_factory.mktemp("release"), (port, port + 1))
        release.install()
        try:
            with ledger(release), operator(release) as process:
                yield Fleet(release, process)
        finally:
            release.uninstall()


def pool(name: str, replicas: int = 1) -> PoolBuilder:
    return (
        make_pool(name)
        .variant("l40s", nodeSelector={GPU: L40S})
        .engine(maxContextTokens=8192, maxSequences=64)
        .replicas(replicas)
    )


def test_a_pool_becomes_a_deployment_services_and_a_disruption_budget(fleet: Fleet) -> None:
    fleet.apply(pool("chat", 2))
    fleet.becomes("mpool", "chat", "Ready", ("True", "Ready"))
    owner = fleet.get("mpool", "chat")["metadata"]["uid"]
    children = [("deployment", "chat-l40s"), ("service", "chat"), ("service", "chat-pods"), ("pdb", "chat")]
    for kind, name in children:
        meta = fleet.get(kind, name)["metadata"]
        assert [one["uid"] for one in meta["ownerReferences"]] == [owner]
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "fairlead-operator"
    deployment = fleet.get("deployment", "chat-l40s")
    assert deployment["spec"]["replicas"] == 2
    written = fleet.cluster.get("deployment", "chat-l40s", "-n", fleet.namespace, "--show-managed-fields")
    applied = [one["manager"] for one in written["metadata"]["managedFields"] if one["operation"] == "Apply"]
    assert applied == ["fairlead-operator"]


def test_the_status_says_what_runs_and_what_it_costs(fleet: Fleet) -> None:
    fleet.apply(pool("priced", 2))
    eventually(lambda: fleet.get("mpool", "priced").get("status", {}).get("costPerHour") == "3.10")
    fleet.becomes("mpool", "priced", "PriceKnown", ("True", "Priced"))
    status = fleet.get("mpool", "priced")["status"]
    assert (status["readyReplicas"], status["desiredReplicas"]) == (2, 2)
    assert status["rate"]["version"] == 1
    assert status["variants"][0]["pricePerAcceleratorHour"] == "1.55"
    cards = fleet.release.ask(f"{fleet.release.ledger_url}/v1/cards", fleet.release.token("fairlead.dev/ledger"))
    assert f"{fleet.namespace}/priced" in {one["pool"] for one in cards["cards"]}


def test_nothing_is_written_while_nothing_changes(fleet: Fleet) -> None:
    fleet.apply(pool("still"))
    fleet.becomes("mpool", "still", "PriceKnown", ("True", "Priced"))
    fleet.becomes("mpool", "still", "Ready", ("True", "Ready"))

    def versions() -> list[str]:
        names = [("mpool", "still"), ("deployment", "still-l40s"), ("service", "still"), ("pdb", "still")]
        return [fleet.get(kind, name)["metadata"]["resourceVersion"] for kind, name in names]

    before = versions()
    rounds = _reconciles(fleet)
    eventually(lambda: _reconciles(fleet) >= rounds + 8)
    assert versions() == before


def test_kubectl_scale_goes_through_the_pool_to_the_deployment(fleet: Fleet) -> None:
    fleet.apply(pool("scaled"))
    fleet.becomes("mpool", "scaled", "Ready", ("True", "Ready"))
    fleet.cluster.kubectl("scale", "mpool", "scaled", "--replicas=3", "-n", fleet.namespace)
    eventually(lambda: fleet.get("deployment", "scaled-l40s")["spec"]["replicas"] == 3)
    eventually(lambda: fleet.get("mpool", "scaled")["status"]["readyReplicas"] == 3)
    eventually(lambda: any(reason == "ScaledUp" for _, reason, _ in fleet.events("scaled")))


def test_who_scales_the_deployment_is_put_right(fleet: Fleet) -> None:
    fleet.apply(pool("owned"))
    fleet.becomes("mpool", "owned", "Ready", ("True", "Ready"))
    fleet.cluster.kubectl("scale", "deployment", "owned-l40s", "--replicas=5", "-n", fleet.namespace)
    eventually(lambda: fleet.get("deployment", "owned-l40s")["spec"]["replicas"] == 1)


def test_a_child_that_somebody_deletes_comes_back(fleet: Fleet) -> None:
    fleet.apply(pool("whole"))
    fleet.becomes("mpool", "whole", "Ready", ("True", "Ready"))
    fleet.cluster.kubectl("delete", "service", "whole", "-n", fleet.namespace)
    eventually(lambda: fleet.find("service", "whole"))


def test_an_edit_of_the_engine_rolls_the_pods(fleet: Fleet) -> None:
    fleet.apply(pool("edited"))
    fleet.becomes("mpool", "edited", "Ready", ("True", "Ready"))
    fleet.apply(pool("edited").engine(maxSequences=32))

    def argument() -> bool:
        containers = fleet.get("deployment", "edited-l40s")["spec"]["template"]["spec"]["containers"]
        engine = next(one for one in containers if one["name"] == "engine")
        return "32" in str(engine.get("args", "")) + str(engine.get("command", ""))

    eventually(argument)
    eventually(lambda: any(reason == "RolloutStarted" for _, reason, _ in fleet.events("edited")))


def test_a_variant_that_is_taken_away_takes_its_deployment_along(fleet: Fleet) -> None:
    both = pool("mixed").variant("h100", nodeSelector={GPU: H100}, minReplicas=1).replicas(2)
    fleet.apply(both)
    eventually(lambda: fleet.find("deployment", "mixed-h100"))
    fleet.apply(pool("mixed").replicas(2))
    eventually(lambda: fleet.find("deployment", "mixed-h100") is None)
    eventually(lambda: fleet.get("deployment", "mixed-l40s")["spec"]["replicas"] == 2)


def test_a_deleted_pool_takes_everything_along(fleet: Fleet) -> None:
    fleet.apply(pool("gone"))
    eventually(lambda: fleet.find("deployment", "gone-l40s"))
    fleet.cluster.kubectl("delete", "mpool", "gone", "-n", fleet.namespace)
    for kind, name in (("deployment", "gone-l40s"), ("service", "gone"), ("pdb", "gone")):
        eventually(lambda kind=kind, name=name: fleet.find(kind, name) is None)  # type: ignore[misc]


def test_an_argument_that_a_field_sets_is_refused_before_a_pod_starts(fleet: Fleet) -> None:
    fleet.apply(pool("odd").engine(extraArgs=["--max-num-seqs=128"]))
    fleet.becomes("mpool", "odd", "Accepted", ("False", "InvalidArgument"))
    assert fleet.find("deployment", "odd-l40s") is None
    assert fleet.get("mpool", "odd")["status"]["scaling"] == []


def test_a_pod_template_that_the_server_refuses_is_a_problem_of_the_pool(fleet: Fleet) -> None:
    template = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"cpu": "many"}}}]}}
    fleet.apply(pool("template").pod_template(**template))
    fleet.becomes("mpool", "template", "Accepted", ("False", "InvalidPodTemplate"))
    assert "quantities must match" in fleet.message("mpool", "template", "Accepted")


def test_a_name_that_is_taken_is_left_to_its_owner(fleet: Fleet) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": fleet.namespace},
        "spec": {"ports": [{"port": 1234}], "selector": {"app": "mine"}},
    }
    fleet.cluster.apply(service)
    fleet.apply(pool("taken"))
    fleet.becomes("mpool", "taken", "Accepted", ("False", "NameConflict"))
    assert "Service" in fleet.message("mpool", "taken", "Accepted")
    assert fleet.get("service", "taken")["spec"]["selector"] == {"app": "mine"}


def test_two_pools_whose_deployments_would_share_a_name_do_not_fight(fleet: Fleet) -> None:
    fleet.apply(make_pool("a").variant("b-c", nodeSelector={GPU: L40S}).replicas(1))
    fleet.becomes("mpool", "a", "Ready", ("True", "Ready"))
    fleet.apply(make_pool("a-b").variant("c", nodeSelector={GPU: L40S}).replicas(1))
    fleet.becomes("mpool", "a-b", "Accepted", ("False", "NameConflict"))
    owners = fleet.get("deployment", "a-b-c")["metadata"]["ownerReferences"]
    assert [one["name"] for one in owners] == ["a"]


def test_hardware_without_a_price_is_said_and_serves_on(fleet: Fleet) -> None:
    fleet.apply(make_pool("bare").variant("none", nodeSelector={GPU: "NVIDIA-UNLISTED"}).replicas(0))
    fleet.becomes("mpool", "bare", "PriceKnown", ("False", "NoPrice"))
    assert "NVIDIA-UNLISTED" in fleet.message("mpool", "bare", "PriceKnown")


def test_what_finds_no_node_is_said_with_the_schedulers_words(fleet: Fleet) -> None:
    fleet.apply(make_pool("homeless").variant("none", nodeSelector={GPU: "NVIDIA-NOWHERE"}).replicas(1))
    fleet.becomes("mpool", "homeless", "ScalingLimited", ("True", "NoCapacity"))
    assert "takes it: " in fleet.message("mpool", "homeless", "ScalingLimited")


def test_a_policy_that_names_no_pool_says_so_and_the_next_one_works(fleet: Fleet) -> None:
    fleet.apply(make_policy("lost").route("all", "nowhere"))
    fleet.apply(pool("found"), make_policy("found"))
    fleet.becomes("rpolicy", "lost", "ResolvedRefs", ("False", "PoolNotFound"))
    fleet.becomes("rpolicy", "found", "ResolvedRefs", ("True", "Resolved"))


def test_a_budget_in_a_zone_that_does_not_exist_keeps_no_other_out_of_the_ledger(fleet: Fleet) -> None:
    fleet.apply(make_budget("nowhere").limit(5, timeZone="Mars/Olympus"), make_budget("counted").limit(7))
    fleet.becomes("cbudget", "nowhere", "Accepted", ("False", "UnknownTimeZone"))
    eventually(lambda: fleet.get("cbudget", "counted").get("status", {}).get("limit") == "7.000000")
    place = ("-n", fleet.namespace, "--kubeconfig", str(fleet.release.kubeconfig))
    asked = ("--ledger", fleet.release.ledger_url, "--token-file", str(fleet.release.folder / "tokens/ledger"))
    command = (sys.executable, "-m", "fairlead_operator.cli.main", "explain", "budget", "counted", *place, *asked)
    run = fleet.cluster.exec(*command, check=False)
    assert run.stdout.startswith(f"{fleet.namespace}/counted: 0.000000 of 7 USD (0.0%), "), run.stderr
    assert "+ leased 0.000000 + free 7.000000 = 7.000000" in run.stdout


def _reconciles(fleet: Fleet) -> float:
    text = fleet.cluster.exec("curl", "-s", f"{fleet.process.url}/metrics").stdout
    lines = [line for line in text.splitlines() if line.startswith('fairlead_reconciles_total{kind="ModelPool"')]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


# --- nodes that go, and pods that nobody takes ---


@contextmanager
def own_nodes(fleet: Fleet, *names: str) -> Iterator[dict[str, str]]:
    """Fake nodes with one accelerator each, and the label that only they have."""
    label = {"fairlead.test/own": names[0]}
    with fake_nodes(fleet.cluster, *(gpu_node(name, L40S, gpus=1, **label) for name in names)):
        yield label


def pods_of(fleet: Fleet, name: str) -> dict[str, str]:
    """The pool's pods that do not leave, each with its node."""
    items = fleet.cluster.get("pods", "-n", fleet.namespace, "-l", f"fairlead.dev/pool={name}")["items"]
    stay = [one for one in items if "deletionTimestamp" not in one["metadata"]]
    return {one["metadata"]["name"]: one["spec"].get("nodeName", "") for one in stay}


def evict(fleet: Fleet, pod: str) -> bool:
    """Whether a pod may be evicted, as kubectl drain asks."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": fleet.namespace}}
    path = f"/api/v1/namespaces/{fleet.namespace}/pods/{pod}/eviction"
    done = fleet.cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body), check=False)
    assert done.returncode == 0 or "disruption budget" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_drain_of_nodes_waits_for_replacements_but_not_for_those_that_find_no_node(fleet: Fleet) -> None:
    with own_nodes(fleet, "drained-0", "drained-1") as label:
        fleet.apply(make_pool("drained").variant("own", nodeSelector=label).replicas(2).rollout(startupTimeout="15s"))
        fleet.becomes("mpool", "drained", "Ready", ("True", "Ready"))
        first, second = sorted(pods_of(fleet, "drained"))
        fleet.cluster.kubectl("cordon", "drained-0", "drained-1")
        assert evict(fleet, first)
        eventually(lambda: first not in pods_of(fleet, "drained"))
        assert not evict(fleet, second), "the last replica that serves must wait for the first one's replacement"
        eventually(lambda: evict(fleet, second), 60)
        fleet.cluster.kubectl("delete", "mpool", "drained", "-n", fleet.namespace)


def test_a_spot_node_that_is_reclaimed_gives_its_pod_away_at_once(fleet: Fleet) -> None:
    with own_nodes(fleet, "spot-0", "spot-1") as label:
        fleet.apply(make_pool("spot").variant("own", nodeSelector=label).replicas(1))
        fleet.becomes("mpool", "spot", "Ready", ("True", "Ready"))
        ((old, node),) = pods_of(fleet, "spot").items()
        fleet.cluster.kubectl("taint", "node", node, "aws-node-termination-handler/spot-itn=soon:NoSchedule")
        eventually(lambda: [at for name, at in pods_of(fleet, "spot").items() if name != old and at not in {"", node}])
        told = [note for _, reason, note in fleet.events("spot") if reason == "ReplicaReclaimed"]
        why = "EC2 takes the spot instance back"
        assert told == [f"Node {node} is about to go ({why}): pod {old} drains, another one starts elsewhere."]
        fleet.cluster.kubectl("delete", "mpool", "spot", "-n", fleet.namespace)


def test_how_a_pods_drain_went_is_told_though_it_is_gone_at_once(fleet: Fleet) -> None:
    with own_nodes(fleet, "told-0") as label:
        fleet.apply(make_pool("told").variant("own", nodeSelector=label).replicas(1))
        fleet.becomes("mpool", "told", "Ready", ("True", "Ready"))
        (pod,) = pods_of(fleet, "told")
        report = DrainReport(requests=61, left=2, took_s=600.0, timeout_s=600.0)
        words = {
            "exitCode": 0,
            "finishedAt": time_text(round(time.time() * 1000)),
            "message": msgspec.json.encode(report).decode(),
        }
        router = {"name": "router", "image": "", "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "initContainerStatuses": [{**router, "state": {"terminated": words}}]}
        patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        fleet.cluster.kubectl("patch", "pod", pod, "-n", fleet.namespace, *patch)
        fleet.cluster.kubectl("delete", "pod", pod, "-n", fleet.namespace, "--force", "--grace-period=0")
        eventually(lambda: [note for _, reason, note in fleet.events("told") if reason == "DrainTimedOut"])
        (note,) = [note for _, reason, note in fleet.events("told") if reason == "DrainTimedOut"]
        assert note.startswith(f"{pod}: 2 of 61 requests still ran after 10m (drainTimeout).")
        fleet.cluster.kubectl("delete", "mpool", "told", "-n", fleet.namespace)


def test_a_quota_that_refuses_pods_is_named_with_its_amounts(fleet: Fleet) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpu", "namespace": fleet.namespace}}
    used = "requests.nvidia.com/gpu"
    with own_nodes(fleet, "full-0", "full-1") as label:
        running = len(fleet.cluster.get("pods", "-n", fleet.namespace)["items"])
        fleet.cluster.apply(quota | {"spec": {"hard": {used: str(running + 1)}}})
        try:
            fleet.apply(make_pool("full").variant("own", nodeSelector=label).replicas(2))
            eventually(lambda: "ResourceQuota gpu allows" in json.dumps(fleet.get("mpool", "full").get("status", {})))
        finally:
            fleet.cluster.kubectl("delete", "resourcequota", "gpu", "-n", fleet.namespace)
            fleet.cluster.kubectl("delete", "mpool", "full", "-n", fleet.namespace)
