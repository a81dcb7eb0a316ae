"""API keys on a real API server: from the command to the routers' configuration and back, with the chart's rights."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders.operator import ROOT, Process, Release, installed, operator
from tests.cluster_tools import Cluster, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def release(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with installed(control_plane, tmp_path_factory.mktemp("keys"), "keys", "platform") as made:
        yield made


@pytest.fixture(scope="module")
def process(release: Release) -> Iterator[Process]:
    with operator(release) as running:
        yield running


def fairlead(release: Release, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line, as a person with the cluster's own kubeconfig runs it."""
    command = [sys.executable, "-m", "fairlead_operator.cli.main", "key", *arguments]
    config = f"--kubeconfig={release.cluster.inside_kubeconfig}"
    paths = f"PYTHONPATH={ROOT / 'operator'}:{ROOT / 'router-sidecar'}"
    return release.cluster.exec("env", paths, *command, config, check=False)


def keys(release: Release, process: Process) -> list[dict[str, Any]]:
    """What the gateway is told."""
    token = release.token("fairlead.dev/control")
    found: list[dict[str, Any]] = release.ask(f"{process.url}/v1/config", token)["config"].get("keys", [])
    return found


def named(release: Release, process: Process, namespace: str) -> list[str]:
    return [one["name"] for one in keys(release, process) if one["namespace"] == namespace]


def events(release: Release, namespace: str, name: str) -> list[tuple[str, str]]:
    found = release.cluster.get("events", "-n", namespace, f"--field-selector=involvedObject.name={name}")["items"]
    return [(one["reason"], one["message"]) for one in found]


def test_a_key_is_made_told_to_routers_and_revoked_within_seconds(
    release: Release, process: Process, namespace: str
) -> None:
    made = fairlead(release, "create", "worker", "-n", namespace, "--feature", "mail", "--expires", "90d", "-o", "json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    (found,) = [one for one in keys(release, process) if one["namespace"] == namespace]
    assert found["hash"] == hashlib.sha256(said["key"].encode()).hexdigest()
    assert (found["name"], found["feature"]) == ("worker", "mail")
    again = fairlead(release, "create", "worker", "-n", namespace)
    assert again.returncode == 1
    assert "already" in again.stderr
    assert "worker" in fairlead(release, "list", "-n", namespace).stdout
    assert fairlead(release, "revoke", "worker", "-n", namespace).returncode == 0
    eventually(lambda: named(release, process, namespace) == [], 5)


def test_an_object_that_is_no_key_gets_an_event_that_says_why(
    release: Release, process: Process, namespace: str
) -> None:
    meta = {"name": "fairlead-key-bad", "namespace": namespace, "labels": {"fairlead.dev/api-key": "true"}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"sha256": "short"}}
    release.cluster.apply(body)
    eventually(lambda: events(release, namespace, "fairlead-key-bad"), 30)
    ((reason, text),) = events(release, namespace, "fairlead-key-bad")
    assert reason == "KeyRefused"
    assert "64 digits" in text
    assert named(release, process, namespace) == []


def test_the_events_of_an_object_can_be_selected_by_its_uid(release: Release, process: Process, namespace: str) -> None:
    assert process.running.poll() is None
    meta = {"name": "fairlead-key-bad", "namespace": namespace, "labels": {"fairlead.dev/api-key": "true"}}
    release.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    uid = release.cluster.get("configmap", "fairlead-key-bad", "-n", namespace)["metadata"]["uid"]
    path = f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.uid%3D{uid}"

    def selected() -> list[Any]:
        items: list[Any] = json.loads(release.cluster.kubectl("get", "--raw", path).stdout)["items"]
        return items

    eventually(selected, 30)
    assert {one["involvedObject"]["uid"] for one in selected()} == {uid}


def test_the_role_edit_of_a_namespace_makes_keys_there_and_nowhere_else(release: Release, namespace: str) -> None:
    release.cluster.kubectl("create", "serviceaccount", "member", "-n", namespace)
    subject = f"--serviceaccount={namespace}:member"
    release.cluster.kubectl("create", "rolebinding", "member", "--clusterrole=edit", subject, "-n", namespace)
    as_member = f"--as=system:serviceaccount:{namespace}:member"

    def may(verb: str, where: str) -> bool:
        asked = release.cluster.kubectl("auth", "can-i", verb, "configmaps", "-n", where, as_member, check=False)
        return asked.stdout.strip() == "yes"

    assert all(may(verb, namespace) for verb in ("create", "delete", "list"))
    assert not any(may(verb, release.platform) for verb in ("create", "delete", "list"))


def test_the_operator_reads_no_secret_and_writes_no_config_map(release: Release) -> None:
    account = f"--as=system:serviceaccount:{release.namespace}:fairlead-operator"

    def may(verb: str, kind: str) -> bool:
        asked = release.cluster.kubectl("auth", "can-i", verb, kind, "-A", account, check=False)
        return asked.stdout.strip() == "yes"

    assert may("list", "configmaps")
    assert may("watch", "configmaps")
    assert not any(may(verb, "secrets") for verb in ("get", "list", "watch"))
    assert not any(may(verb, "configmaps") for verb in ("create", "update", "patch", "delete"))
