"""Rollouts by the whole operator on a real API server: what fails goes back, one step back, and new releases."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders.operator import IMAGES, Release, installed, ledger, operator
from tests.builders.resources import PoolBuilder, make_pool
from tests.cluster_tools import L40S, Cluster, eventually

pytestmark = pytest.mark.cluster

CRASHING = {"metadata": {"labels": {"fairlead.test/crash": "yes"}}}
NEWER = ("localhost/fairlead-router:0.2.0", "vllm/vllm-openai:v0.33.0")


@pytest.fixture(scope="module")
def release(
    control_plane: Cluster, gpu_nodes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    assert gpu_nodes
    with installed(control_plane, tmp_path_factory.mktemp("release"), "release", "fleet") as made, ledger(made):
        yield made


def pool(name: str, replicas: int = 2) -> PoolBuilder:
    selector = {"nvidia.com/gpu.product": L40S}
    made = make_pool(name).model(uri="hf://meta-llama/Llama-3.1-8B-Instruct").variant("l40s", nodeSelector=selector)
    return made.engine(maxContextTokens=8192, maxSequences=64).replicas(replicas).rollout(drainTimeout="1s")


def apply(release: Release, builder: PoolBuilder) -> None:
    body = builder.obj()
    release.cluster.apply(body | {"metadata": {"name": body["metadata"]["name"], "namespace": release.platform}})


def get(release: Release, kind: str, name: str) -> Any:
    return release.cluster.get(kind, name, "-n", release.platform)


def condition(release: Release, name: str, kind: str) -> tuple[str, str, str]:
    conditions = get(release, "mpool", name).get("status", {}).get("conditions", [])
    found = [one for one in conditions if one["type"] == kind]
    return (found[0]["status"], found[0]["reason"], found[0]["message"]) if found else ("", "", "")


def serves(release: Release, name: str, revision: int, replicas: int = 2) -> None:
    """Wait until the pool's pods are all of a revision, and ready."""

    def there() -> bool:
        labels = f"fairlead.dev/pool={name},fairlead.dev/revision={revision}"
        ready = get(release, "mpool", name).get("status", {}).get("readyReplicas")
        pods = release.cluster.get("pods", "-n", release.platform, "-l", labels)["items"]
        alive = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
        return ready == replicas and len(alive) == replicas and condition(release, name, "Progressing")[0] == "False"

    eventually(there, 60)


def events(release: Release, name: str) -> dict[str, str]:
    items = release.cluster.get("events.events.k8s.io", "-n", release.platform)["items"]
    return {one["reason"]: one["note"] for one in items if one["regarding"]["name"] == name}


def fairlead(release: Release, *arguments: str) -> subprocess.CompletedProcess[str]:
    place = ["-n", release.platform, "--kubeconfig", str(release.cluster.kubeconfig)]
    command = [sys.executable, "-m", "fairlead_operator.cli.main", "rollout", *arguments, *place]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)


def test_a_revision_that_crashes_goes_back_and_another_one_is_tried(release: Release) -> None:
    with operator(release):
        apply(release, pool("bad"))
        serves(release, "bad", 1)
        template = get(release, "deployment", "bad-l40s")["spec"]["template"]
        apply(release, pool("bad").engine(maxSequences=32).pod_template(**CRASHING))
        eventually(lambda: condition(release, "bad", "Progressing")[1] == "RolledBack", 60)
        serves(release, "bad", 1)
        assert get(release, "deployment", "bad-l40s")["spec"]["template"] == template
        text = condition(release, "bad", "Progressing")[2]
        assert text.startswith("Revision 2 of variant l40s never became ready. Pod bad-l40s-")
        assert "exit code 1" in text
        assert condition(release, "bad", "UpToDate")[:2] == ("False", "RolledBack")
        assert events(release, "bad")["RolledBack"].startswith("Revision 2 of variant l40s never became ready.")
        told = fairlead(release, "status", "bad")
        assert told.returncode == 1
        assert told.stdout.startswith("bad: RolledBack. Revision 2 of variant l40s never became ready.")
        apply(release, pool("bad").engine(maxSequences=16))
        serves(release, "bad", 3)
        assert condition(release, "bad", "Progressing")[:2] == ("False", "Complete")
        states = {
            one["revision"]: one["state"]
            for one in json.loads(fairlead(release, "history", "bad", "-o", "json").stdout)
        }
        assert states == {1: "served", 2: "never served", 3: "runs"}


def test_undo_and_restart_go_through_the_pool(release: Release) -> None:
    with operator(release):
        apply(release, pool("steps"))
        serves(release, "steps", 1)
        apply(release, pool("steps").engine(maxSequences=32))
        told = fairlead(release, "status", "steps", "--wait", "60s")
        assert (told.returncode, told.stderr) == (0, "")
        serves(release, "steps", 2)
        started = events(release, "steps")["RolloutStarted"]
        assert started.startswith("Revision 1 to 2: --max-num-seqs 64 to 32; variant l40s: ")
        assert "goes back to revision 1" in fairlead(release, "undo", "steps").stdout
        serves(release, "steps", 1)
        eventually(lambda: condition(release, "steps", "Progressing")[1] == "Undone")
        assert fairlead(release, "restart", "steps").returncode == 0
        serves(release, "steps", 3)
        eventually(lambda: condition(release, "steps", "Progressing")[1] == "Complete")
        history = fairlead(release, "history", "steps").stdout.splitlines()
        assert [line.split()[0] for line in history[1:]] == ["3", "2", "1"]


def test_a_new_release_rolls_no_pool_and_says_what_waits(release: Release) -> None:
    with operator(release, images=IMAGES):
        apply(release, pool("old"))
        serves(release, "old", 1)
    before = get(release, "deployment", "old-l40s")["spec"]["template"]
    with operator(release, images=NEWER):
        eventually(lambda: condition(release, "old", "UpToDate")[1] == "RestartPending")
        text = condition(release, "old", "UpToDate")[2]
        assert "engine image vllm/vllm-openai:v0.32.0 (now vllm/vllm-openai:v0.33.0)" in text
        assert f"fairlead rollout restart old -n {release.platform} restarts them." in text
        release.cluster.kubectl("scale", "mpool", "old", "--replicas=3", "-n", release.platform)
        serves(release, "old", 1, replicas=3)
        assert get(release, "deployment", "old-l40s")["spec"]["template"] == before
        assert fairlead(release, "restart", "old").returncode == 0
        serves(release, "old", 2, replicas=3)
        eventually(lambda: condition(release, "old", "UpToDate")[:2] == ("True", "UpToDate"))
