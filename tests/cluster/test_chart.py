"""The chart on a real API server: install, upgrade, uninstall, and who may do what."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builders.chart import CHART
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.cluster_tools import Cluster, eventually, fresh_namespace
from tests.golden_files import GOLDEN

pytestmark = pytest.mark.cluster

GROUP = "fairlead.dev"
PREVIOUS = GOLDEN / "chart/previous/fairlead-0.1.0.tgz"
# Other tests, too, bring the kinds to this cluster; a release takes them over.
OURS = ("--take-ownership", "--force-conflicts")
CRDS = {
    f"customresourcedefinition.apiextensions.k8s.io/{name}.{GROUP}"
    for name in ("costbudgets", "modelpools", "routingpolicies")
}
CLAIM = "persistentvolumeclaim/data-fairlead-ledger-0"
PRICE = {
    "resourceName": "nvidia.com/gpu",
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "perHour": "3.10",
    "effectiveFrom": "2026-10-01",
    "source": "contract-4711",
}


@dataclass(frozen=True, slots=True)
class Release:
    """An installed chart."""

    cluster: Cluster
    namespace: str

    def upgrade(self, *options: str, chart: Path = CHART) -> None:
        """Install, or change the values or the chart."""
        arguments = ("upgrade", "--install", "fairlead", str(chart), f"--namespace={self.namespace}", *OURS)
        # Without this, an upgrade without options keeps the options of the one before.
        self.cluster.helm(*arguments, "--reset-values", *options)

    def get(self, kind: str, name: str) -> Any:
        """An object in the release's namespace."""
        return self.cluster.get(kind, name, f"--namespace={self.namespace}")

    def account(self, name: str) -> dict[str, Any]:
        """One of the release's ServiceAccounts as the subject of a review."""
        user = f"system:serviceaccount:{self.namespace}:fairlead-{name}"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
        return {"user": user, "groups": groups}


@pytest.fixture(scope="module")
def restricted(control_plane: Cluster) -> Iterator[str]:
    """A namespace that admits only pods of the restricted profile."""
    with fresh_namespace(control_plane, "chart") as name:
        control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        yield name


@pytest.fixture(scope="module")
def release(control_plane: Cluster, restricted: str) -> Iterator[Release]:
    """The chart, installed with its default values."""
    installed = Release(control_plane, restricted)
    installed.upgrade()
    yield installed
    control_plane.helm("uninstall", "fairlead", f"--namespace={restricted}", "--ignore-not-found")


def reviews(cluster: Cluster, *specs: dict[str, Any]) -> list[bool]:
    """What the API server answers to SubjectAccessReviews."""
    about = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [{**about, "spec": spec} for spec in specs]})
    answers = cluster.kubectl("create", "--filename=-", "--output=jsonpath={.status.allowed} ", input=text).stdout
    return [answer == "true" for answer in answers.split()]


def asked(who: dict[str, Any], question: str, namespace: str) -> dict[str, Any]:
    """A review from ``verb resource[.group][/subresource] [name]`` or ``verb /path``."""
    verb, what, *name = question.split()
    if what.startswith("/"):
        return {**who, "nonResourceAttributes": {"verb": verb, "path": what}}
    full, _, subresource = what.partition("/")
    resource, _, group = full.partition(".")
    attributes = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
    return {**who, "resourceAttributes": {**attributes, "namespace": namespace, "name": "".join(name)}}


def may(cluster: Cluster, who: dict[str, Any], namespace: str, *questions: str) -> list[str]:
    """Those of the questions that are answered with yes."""
    answers = reviews(cluster, *(asked(who, question, namespace) for question in questions))
    return [question for question, allowed in zip(questions, answers, strict=True) if allowed]


SELECTORS = ("app.kubernetes.io/part-of=fairlead", "app.kubernetes.io/managed-by=Helm", "owner=helm")
"""What the chart labels, with the pods and ReplicaSets made from it; what helm labels; helm's own Secrets."""


def left(cluster: Cluster, namespace: str) -> set[str]:
    """Everything of the release that the cluster still has."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "--output=name").stdout.split()
    listed = ",".join(kind for kind in kinds if not kind.startswith(("events", "componentstatuses")))
    found = set(cluster.kubectl("get", "pvc", f"--namespace={namespace}", "--output=name").stdout.split())
    for selector in SELECTORS:
        command = ("get", listed, "--all-namespaces", f"--selector={selector}", "--output=name")
        found.update(cluster.kubectl(*command).stdout.split())
    return found


def test_the_server_accepts_the_chart_and_a_dry_run_leaves_nothing(control_plane: Cluster, namespace: str) -> None:
    arguments = ("install", "fairlead", str(CHART), f"--namespace={namespace}", *OURS, "--dry-run=server")
    assert "STATUS: pending-install" in control_plane.helm(*arguments).stdout
    assert control_plane.get("deployments", f"--namespace={namespace}")["items"] == []


def test_an_unknown_value_is_refused_before_anything_happens(control_plane: Cluster, namespace: str) -> None:
    arguments = ("install", "fairlead", str(CHART), f"--namespace={namespace}", "--set=operator.replica=2")
    run = control_plane.helm(*arguments, check=False)
    assert run.returncode != 0
    assert "additional properties 'replica' not allowed" in run.stderr


def test_pods_of_all_parts_are_admitted_under_the_restricted_profile(release: Release) -> None:
    def parts() -> list[str]:
        pods = release.cluster.get("pods", f"--namespace={release.namespace}")["items"]
        return sorted(pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods)

    expected = ["fairlead-gateway", "fairlead-gateway", "fairlead-ledger", "fairlead-operator"]
    eventually(lambda: parts() == expected)


def test_the_admission_policies_are_in_force(release: Release) -> None:
    for kind in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
        names = {one["metadata"]["name"] for one in release.cluster.get(kind)["items"]}
        assert {f"fairlead-{name}-only-from-platform-namespaces" for name in ("exports", "ceilings")} <= names


def test_the_operator_may_do_what_it_does(release: Release) -> None:
    questions = [
        f"watch modelpools.{GROUP}",
        f"patch modelpools.{GROUP}/status",
        f"patch costbudgets.{GROUP}/status",
        "watch nodes",
        "watch namespaces",
        "watch pods",
        "create deployments.apps",
        "list replicasets.apps",
        "delete pods",
        "patch services",
        "delete poddisruptionbudgets.policy",
        "create events.events.k8s.io",
        "get /openid/v1/jwks",
        "get /.well-known/openid-configuration",
    ]
    assert may(release.cluster, release.account("operator"), "default", *questions) == questions
    lease = ["create leases.coordination.k8s.io", "update leases.coordination.k8s.io fairlead-operator"]
    assert may(release.cluster, release.account("operator"), release.namespace, *lease) == lease


def test_the_operator_may_do_nothing_else_of_note(release: Release) -> None:
    questions = [
        "get secrets",
        "get configmaps",
        "create configmaps",
        "create pods/exec",
        "create pods",
        "create serviceaccounts/token",
        "create clusterroles.rbac.authorization.k8s.io",
        f"update modelpools.{GROUP}",
        f"delete costbudgets.{GROUP}",
        f"create costbudgets.{GROUP}",
        "update leases.coordination.k8s.io fairlead-operator",
    ]
    assert may(release.cluster, release.account("operator"), "default", *questions) == []
    inside = ["get secrets", "patch configmaps", "update leases.coordination.k8s.io another"]
    assert may(release.cluster, release.account("operator"), release.namespace, *inside) == []


def test_ledger_and_gateway_may_next_to_nothing(release: Release) -> None:
    questions = ["get pods", "get secrets", "list namespaces", f"get costbudgets.{GROUP}", "create pods"]
    for name in ("ledger", "gateway"):
        assert may(release.cluster, release.account(name), release.namespace, *questions) == []
    keys = ["get /openid/v1/jwks", "get /.well-known/openid-configuration"]
    assert may(release.cluster, release.account("ledger"), "", *keys) == keys


PEOPLE = {
    "view": [f"get modelpools.{GROUP}", f"list costbudgets.{GROUP}", f"watch routingpolicies.{GROUP}"],
    "edit": [
        f"create modelpools.{GROUP}",
        f"delete routingpolicies.{GROUP}",
        f"patch modelpools.{GROUP}/scale",
        f"get costbudgets.{GROUP}",
    ],
    "admin": [f"create modelpools.{GROUP}", f"patch modelpools.{GROUP}/scale", f"get costbudgets.{GROUP}"],
    "fairlead-budget-editor": [f"create costbudgets.{GROUP}", f"patch costbudgets.{GROUP}"],
    "fairlead-budget-viewer": [f"get costbudgets.{GROUP}", f"watch costbudgets.{GROUP}"],
}
NOT_FOR_PEOPLE = {
    "view": [f"create modelpools.{GROUP}", f"patch modelpools.{GROUP}/scale", f"delete costbudgets.{GROUP}"],
    "edit": [f"create costbudgets.{GROUP}", f"delete costbudgets.{GROUP}", f"patch modelpools.{GROUP}/status"],
    "admin": [f"patch costbudgets.{GROUP}", f"delete costbudgets.{GROUP}", f"patch costbudgets.{GROUP}/status"],
    "fairlead-budget-editor": [f"create modelpools.{GROUP}", f"patch costbudgets.{GROUP}/status"],
    "fairlead-budget-viewer": [f"patch costbudgets.{GROUP}", f"get modelpools.{GROUP}"],
}


@pytest.mark.parametrize("role", PEOPLE)
def test_people_may_what_their_role_says(release: Release, namespace: str, role: str) -> None:
    release.cluster.kubectl(
        "create", "rolebinding", "person", f"--namespace={namespace}", f"--clusterrole={role}", "--user=person"
    )
    person = {"user": "person", "groups": ["system:authenticated"]}
    # The controller that aggregates roles runs beside the install.
    eventually(lambda: may(release.cluster, person, namespace, *PEOPLE[role]) == PEOPLE[role])
    assert may(release.cluster, person, namespace, *NOT_FOR_PEOPLE[role]) == []
    assert may(release.cluster, person, "default", *PEOPLE[role]) == []


def test_an_upgrade_changes_what_the_values_change(release: Release) -> None:
    release.upgrade("--set=gateway.replicas=3", "--set=unbudgetedNamespaces=Reject")
    assert release.get("deployment", "fairlead-gateway")["spec"]["replicas"] == 3
    containers = release.get("deployment", "fairlead-operator")["spec"]["template"]["spec"]["containers"]
    assert {"name": "FAIRLEAD_UNBUDGETED_NAMESPACES", "value": "Reject"} in containers[0]["env"]


def test_an_upgrade_from_the_release_before_changes_no_object_of_anybody(release: Release, namespace: str) -> None:
    """The packaged chart is the one of the release before this one, as it was."""
    cluster = release.cluster
    release.upgrade("--set=gateway.replicas=3", chart=PREVIOUS)
    builders = (make_pool("chat").variant("h100").replicas(2), make_policy("chat"), make_budget("monthly"))
    bodies = [one.obj() for one in builders]
    cluster.apply(*(one | {"metadata": {"name": one["metadata"]["name"], "namespace": namespace}} for one in bodies))
    kinds = [(one["kind"], one["metadata"]["name"]) for one in bodies]

    def present() -> list[tuple[Any, int, str]]:
        found = [cluster.get(kind, name, f"--namespace={namespace}") for kind, name in kinds]
        return [(one["spec"], one["metadata"]["generation"], one["metadata"]["uid"]) for one in found]

    before, claim = present(), release.get("persistentvolumeclaim", "data-fairlead-ledger-0")["metadata"]["uid"]
    arguments = ("upgrade", "fairlead", str(CHART), f"--namespace={release.namespace}", *OURS, "--reuse-values")
    cluster.helm(*arguments)
    assert present() == before
    assert release.get("persistentvolumeclaim", "data-fairlead-ledger-0")["metadata"]["uid"] == claim
    assert release.get("deployment", "fairlead-gateway")["spec"]["replicas"] == 3
    assert may(cluster, release.account("operator"), namespace, "list replicasets.apps") == ["list replicasets.apps"]


def test_a_new_price_restarts_nothing(release: Release) -> None:
    release.upgrade()
    before = release.get("deployment", "fairlead-operator")["metadata"]["generation"]
    release.upgrade(f"--set-json=prices.accelerators={json.dumps([PRICE])}")
    assert 'perHour: "3.10"' in release.get("configmap", "fairlead-prices")["data"]["prices.yaml"]
    assert release.get("deployment", "fairlead-operator")["metadata"]["generation"] == before


def test_uninstall_keeps_the_kinds_their_objects_and_the_ledgers_volume(release: Release, namespace: str) -> None:
    cluster = release.cluster
    claim = ("persistentvolumeclaim", "data-fairlead-ledger-0", f"--namespace={release.namespace}")
    eventually(lambda: cluster.kubectl("get", *claim, check=False).returncode == 0)
    budget = make_budget("monthly").obj()
    cluster.apply(budget | {"metadata": {"name": "monthly", "namespace": namespace}})
    cluster.helm("uninstall", "fairlead", f"--namespace={release.namespace}")
    # Pods and ReplicaSets go after what made them.
    eventually(lambda: left(cluster, release.namespace) == {*CRDS, CLAIM}, seconds=90)
    assert cluster.get("cbudget", "monthly", f"--namespace={namespace}")["spec"]["limit"]["unit"] == "USD"
