"""The local cluster itself: what every other test of this folder stands on."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.cluster import images, layout, lifecycle, processes
from tests import cluster_tools
from tests.cluster_tools import Cluster, eventually, hack_cluster


@pytest.fixture
def second(local_clusters: None) -> Iterator[str]:  # noqa: ARG001 - it skips
    """The name of a cluster that no other test has; it is down afterwards."""
    name = f"t-{os.getpid()}"
    yield name
    hack_cluster("down", "--name", name)


def remains(name: str) -> list[str]:
    """Everything on this machine that carries the cluster's state folder's name."""
    state = layout.layout(name).state
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if state.name in line]
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{state.name}")]
    return [*living(state), *mounts, *cgroups, *([str(state)] if state.exists() else [])]


def living(state: Path) -> list[str]:
    """The command lines that name the state folder."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{state} " in line or f"{state}/" in line:
            lines.append(line)
    return lines


def pod(name: str, **changes: Any) -> dict[str, Any]:
    """A pod as the operator renders it: a native sidecar and an engine."""
    spec = {
        "initContainers": [{"name": "router", "image": "router", "restartPolicy": "Always"}],
        "containers": [{"name": "engine", "image": "engine", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        "nodeSelector": {"nvidia.com/gpu.product": cluster_tools.H100},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **changes}, "spec": spec}


def ready_column(cluster: Cluster, namespace: str, name: str) -> str:
    """What `kubectl get pod` shows: ready containers, and the status."""
    row = cluster.kubectl("get", "pod", name, f"--namespace={namespace}", "--no-headers").stdout.split()
    return f"{row[1]} {row[2]}"


def create(cluster: Cluster, namespace: str, what: dict[str, Any]) -> None:
    cluster.kubectl("create", f"--namespace={namespace}", "--filename=-", input=json.dumps(what))


@pytest.mark.cluster
def test_kubectl_works_from_outside_and_inside(control_plane: Cluster) -> None:
    outside = control_plane.kubectl("get", "--raw", "/readyz").stdout
    inside = control_plane.exec("kubectl", "get", "--raw", "/readyz").stdout
    assert (outside, inside) == ("ok", "ok")


@pytest.mark.cluster
def test_the_keys_of_the_tokens_are_served_to_service_accounts(control_plane: Cluster, namespace: str) -> None:
    token = control_plane.kubectl("create", "token", "default", f"--namespace={namespace}").stdout
    # Without the certificate of `admin`, which the kubeconfig would add.
    trust = ("--cacert", str(control_plane.place.pki / "ca.crt"))
    bearer = ("--header", f"Authorization: Bearer {token}")
    answer = control_plane.exec("curl", "--silent", *trust, *bearer, "https://10.0.0.1:6443/openid/v1/jwks")
    assert json.loads(answer.stdout)["keys"][0]["alg"] == "RS256"


@pytest.mark.cluster
def test_a_second_up_finds_the_cluster_running(control_plane: Cluster) -> None:
    before = processes.parts(control_plane.place)
    run = hack_cluster("up", "--name", "test", "--kind", "plane")
    assert run.stdout == f"export KUBECONFIG={control_plane.kubeconfig}\n"
    assert "already up" in run.stderr
    assert processes.parts(control_plane.place) == before


@pytest.mark.cluster
@pytest.mark.usefixtures("gpu_nodes")
def test_a_fake_pod_with_a_sidecar_becomes_ready_as_a_real_one(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, pod("whole"))
    eventually(lambda: ready_column(control_plane, namespace, "whole") == "2/2 Running")
    status = control_plane.get("pod", "whole", f"--namespace={namespace}")["status"]
    router = status["initContainerStatuses"][0]
    assert (router["name"], router["started"], router["ready"]) == ("router", True, True)
    assert status["podIP"].startswith("10.245.")


@pytest.mark.cluster
@pytest.mark.usefixtures("gpu_nodes")
def test_a_fake_pod_loads_as_long_as_its_annotation_says(control_plane: Cluster, namespace: str) -> None:
    create(control_plane, namespace, pod("slow", annotations={"fairlead.test/load-time": "1h"}))
    eventually(lambda: ready_column(control_plane, namespace, "slow") == "0/2 Running")
    assert control_plane.get("pod", "slow", f"--namespace={namespace}")["status"]["podIP"]


@pytest.mark.cluster
@pytest.mark.usefixtures("gpu_nodes")
def test_labels_make_a_fake_pod_fail_and_recover(control_plane: Cluster, namespace: str) -> None:
    def label(change: str) -> None:
        control_plane.kubectl("label", "pod", "frail", f"--namespace={namespace}", change)

    create(control_plane, namespace, pod("frail", labels={"fairlead.test/crash": "true"}))
    eventually(lambda: ready_column(control_plane, namespace, "frail") == "0/2 CrashLoopBackOff")
    label("fairlead.test/crash-")
    eventually(lambda: ready_column(control_plane, namespace, "frail") == "2/2 Running")
    label("fairlead.test/never-ready=true")
    eventually(lambda: ready_column(control_plane, namespace, "frail") == "1/2 Running")


@pytest.mark.cluster
def test_a_command_inside_ends_with_the_process_that_started_it(control_plane: Cluster) -> None:
    started = control_plane.popen("sh", "-c", "echo here; exec sleep 1111", stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == "here\n"
    started.terminate()
    started.wait(10)
    started.stdout.close()
    eventually(lambda: control_plane.exec("pgrep", "-f", "sleep 1111", check=False).returncode == 1)


@pytest.mark.cluster
def test_parts_and_forwarder_can_be_lost_and_come_back_without_a_new_cluster(second: str) -> None:
    cluster = cluster_tools.start(second, "plane")
    init, forwarder = processes.holder(cluster.place), processes.forwarder(cluster.place)
    assert forwarder is not None
    cluster.end_part("kube-apiserver")
    processes.end(forwarder, signal.SIGKILL)
    assert hack_cluster("status", "--name", second).returncode == 1
    cluster.start_part("kube-apiserver")
    cluster_tools.start(second, "plane")
    assert processes.holder(cluster.place) == init
    assert cluster.kubectl("get", "--raw", "/readyz").stdout == "ok"


@pytest.mark.cluster
def test_two_clusters_live_side_by_side_and_one_ends_alone(control_plane: Cluster, second: str) -> None:
    other = cluster_tools.start(second, "plane")
    other.kubectl("create", "namespace", "only-here")
    assert control_plane.kubectl("get", "namespace", "only-here", check=False).returncode == 1
    assert hack_cluster("status", "--name", second).returncode == 0
    assert hack_cluster("down", "--name", second).returncode == 0
    assert remains(second) == []
    assert hack_cluster("status", "--name", "test").returncode == 0


@pytest.mark.cluster
def test_a_test_run_does_not_end_the_cluster_that_another_run_uses(second: str) -> None:
    first = cluster_tools.running(second, "plane")
    first.__enter__()
    with cluster_tools.running(second, "plane") as cluster:
        first.__exit__(None, None, None)
        assert cluster.kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert remains(second) == []


@pytest.mark.cluster
def test_a_test_run_leaves_a_cluster_that_somebody_had_started(second: str) -> None:
    theirs = cluster_tools.start(second, "plane")
    with cluster_tools.running(second, "plane"):
        pass
    assert processes.healthy(processes.parts(theirs.place))


@pytest.mark.cluster
def test_a_dead_cluster_is_cleaned_and_started_again(second: str) -> None:
    dead = cluster_tools.start(second, "plane")
    init, forwarder = processes.holder(dead.place), processes.forwarder(dead.place)
    assert init is not None
    assert forwarder is not None
    processes.end(init, signal.SIGKILL)
    # The forwarder has nothing to live for without its cluster.
    eventually(lambda: processes.gone(forwarder))
    assert hack_cluster("status", "--name", second).returncode == 1
    (dead.place.state / "left").touch()
    again = cluster_tools.start(second, "plane")
    assert again.kubectl("get", "--raw", "/readyz").stdout == "ok"
    assert not (dead.place.state / "left").exists()


@pytest.mark.cluster
def test_down_leaves_a_stranger_alone_that_has_the_recorded_pid(second: str) -> None:
    place = layout.layout(second)
    place.state.mkdir()
    (place.state / "init.pid").write_text(f"{os.getpid()}\n")
    lifecycle.remove(place)
    assert remains(second) == []


@pytest.mark.e2e
def test_a_real_node_runs_pods_and_leaves_nothing(tmp_path: Path) -> None:
    if found := cluster_tools.obstacles("node"):
        pytest.skip("no real node on this machine: " + "; ".join(found))
    archive, name = tmp_path / "image.tar", f"n-{os.getpid()}"
    images.pause_image(archive, "localhost/fairlead-test:1")
    with cluster_tools.running(name, "node", "--image", str(archive)) as cluster:
        assert hack_cluster("status", "--name", name).returncode == 0
        assert "already there" in hack_cluster("load", "--name", name, str(archive)).stderr
        node = cluster.get("node", "real")
        assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == cluster_tools.H100
        assert [node["status"][field]["nvidia.com/gpu"] for field in ("capacity", "allocatable")] == ["8", "8"]
        for what in ledger_claim_and_pod():
            create(cluster, "default", what)
        eventually(lambda: ready_column(cluster, "default", "real") == "2/2 Running", 60)
        assert cluster.get("pv", "fairlead-ledger")["status"]["phase"] == "Bound"
        assert cluster.place.ledger_volume.stat().st_uid == 65532
    assert remains(name) == []


def ledger_claim_and_pod() -> list[dict[str, Any]]:
    """A claim for the one volume, and a pod of the pause image that mounts it."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "ledger"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fairlead-local",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    real = pod("real")
    mounted = {"image": "localhost/fairlead-test:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    for container in (*real["spec"]["initContainers"], *real["spec"]["containers"]):
        container.update(mounted)
    real["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "ledger"}}]
    return [claim, real]
