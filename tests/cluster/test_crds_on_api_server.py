"""The third witness of the CRDs: what a real API server makes of them."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead_operator.api.v1alpha1 import KINDS
from hack import crds
from tests.builders.misuses import Misuse, rule_misuses, schema_misuses, server_misuses
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.cluster_tools import Cluster, eventually

pytestmark = pytest.mark.cluster

EXAMPLES = sorted((crds.ROOT / "examples").glob("*.yaml"))
MISUSES = [*rule_misuses(), *schema_misuses(), *server_misuses()]
CHART = crds.ROOT / "charts/fairlead"
SHOWN = [f"--show-only=templates/admission/{name}.yaml" for name in ("exports", "ceilings")]


@pytest.fixture(scope="module")
def plane(control_plane: Cluster) -> Cluster:
    """The control plane with our CRDs."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crds.ROOT / "crds"))
    names = [f"crd/{kind.crd_name}" for kind in KINDS]
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    return control_plane


def placed(obj: dict[str, Any], namespace: str) -> str:
    """The object as a person would write it into a namespace."""
    return json.dumps(obj | {"metadata": {"name": obj["metadata"]["name"], "namespace": namespace}})


def refusal(plane: Cluster, obj: dict[str, Any], namespace: str) -> str:
    """What the server says against creating or updating an object; empty when it takes it."""
    answer = plane.kubectl("apply", "--dry-run=server", "-f", "-", input=placed(obj, namespace), check=False)
    return answer.stderr if answer.returncode else ""


def get(plane: Cluster, namespace: str, *what: str) -> Any:
    return json.loads(plane.kubectl("get", "-n", namespace, *what, "-o", "json").stdout)


def test_the_server_finds_nothing_wrong_with_the_definitions(plane: Cluster) -> None:
    for kind in KINDS:
        crd = json.loads(plane.kubectl("get", "crd", kind.crd_name, "-o", "json").stdout)
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert conditions["NamesAccepted"] == "True"
        assert conditions.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_server_takes_every_example(plane: Cluster, namespace: str, file: Path) -> None:
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        assert refusal(plane, document, namespace) == ""


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.title)
def test_the_server_refuses_what_it_must_and_says_why(plane: Cluster, namespace: str, misuse: Misuse) -> None:
    if misuse.old:
        plane.kubectl("apply", "-f", "-", input=placed(misuse.old, namespace))
    assert misuse.words in refusal(plane, misuse.obj, namespace)


def test_a_misspelt_field_is_dropped_where_the_client_does_not_ask(plane: Cluster, namespace: str) -> None:
    text = placed(make_pool("chat").spec(temperature="hot").obj(), namespace)
    plane.kubectl("apply", "--validate=ignore", "-f", "-", input=text)
    assert "temperature" not in get(plane, namespace, "modelpool", "chat")["spec"]


def test_defaults_are_filled_in_and_the_pod_template_is_kept_as_it_is(plane: Cluster, namespace: str) -> None:
    template = {"spec": {"containers": [{"name": "engine", "env": [{"name": "A", "value": "b"}]}]}}
    obj = make_pool("chat").pod_template(**template).obj()
    plane.kubectl("apply", "-f", "-", input=placed(obj, namespace))
    spec = get(plane, namespace, "modelpool", "chat")["spec"]
    assert spec["podTemplate"] == template
    assert spec["engine"] == {"memoryUtilizationPercent": 92, "prefixCaching": "Enabled"}
    assert spec["rollout"]["drainTimeout"] == "10m"
    assert spec["variants"][0]["parallelism"] == {"tensor": 1, "pipeline": 1}


def test_replicas_are_written_through_the_scale_subresource(plane: Cluster, namespace: str) -> None:
    plane.kubectl("apply", "-f", "-", input=placed(make_pool("chat").obj(), namespace))
    plane.kubectl("scale", "-n", namespace, "mpool/chat", "--replicas=3")
    patch = json.dumps({"status": {"replicas": 2, "selector": "fairlead.dev/pool=chat"}})
    plane.kubectl("patch", "-n", namespace, "mpool/chat", "--subresource=status", "--type=merge", "-p", patch)
    scale = json.loads(plane.kubectl("get", "-n", namespace, "mpool/chat", "--subresource=scale", "-o", "json").stdout)
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "fairlead.dev/pool=chat"}
    assert get(plane, namespace, "mpool/chat")["spec"]["replicas"] == 3


def header(plane: Cluster, namespace: str, resource: str, *options: str) -> list[str]:
    return plane.kubectl("get", "-n", namespace, resource, *options).stdout.splitlines()[0].split()


def test_the_columns_are_those_of_the_daily_questions(plane: Cluster, namespace: str) -> None:
    for builder in (make_pool("chat"), make_policy("chat"), make_budget("monthly")):
        plane.kubectl("apply", "-f", "-", input=placed(builder.obj(), namespace))
    pool = ["NAME", "READY", "DESIRED", "$/HOUR", "$/1K", "QUEUE", "TTFT", "REASON", "AGE"]
    policy = ["NAME", "MODELS", "READY", "REASON", "AGE"]
    budget = ["NAME", "LIMIT", "UNIT", "PER", "SPENT", "USED%", "FORECAST", "ACTION", "ENFORCED", "AGE"]
    assert header(plane, namespace, "mpool") == pool
    assert header(plane, namespace, "mpool", "-o", "wide") == [*pool, "TPOT", "MET%"]
    assert header(plane, namespace, "rpolicy") == policy
    assert header(plane, namespace, "rpolicy", "-o", "wide") == [*policy, "NAMESPACES", "ADDRESS"]
    assert header(plane, namespace, "cbudget") == budget
    assert header(plane, namespace, "cbudget", "-o", "wide") == [*budget, "FULLEST"]
    assert plane.kubectl("get", "-n", namespace, "fairlead").stdout.count("fairlead.dev/") == 3


def test_columns_show_what_the_status_holds(plane: Cluster, namespace: str) -> None:
    ready = {
        "type": "Enforced",
        "status": "True",
        "reason": "Enforced",
        "message": "",
        "lastTransitionTime": "2026-11-20T08:41:10Z",
    }
    plane.kubectl("apply", "-f", "-", input=placed(make_budget("monthly").limit(2300).obj(), namespace))
    forecast = {"atWindowEnd": "3326.16", "low": "3215.00", "high": "3437.00"}
    figures = {"spent": "1942.20", "usedPercent": 84, "forecast": forecast, "activeAction": "Alert"}
    status = {**figures, "conditions": [ready]}
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "-n", namespace, "cbudget/monthly", "--subresource=status", "--type=merge", "-p", patch)
    row = plane.kubectl("get", "-n", namespace, "cbudget", "--no-headers").stdout.split()
    assert row[:-1] == ["monthly", "2300", "USD", "Namespace", "1942.20", "84", "3326.16", "Alert", "True"]


EXPORT = make_policy("shared").allow_all()
CEILING = make_budget("ceiling").for_all_namespaces()


@dataclass(frozen=True, slots=True)
class Platform:
    """A release's namespaces that may reach others, while its admission policies are in force."""

    release: str
    namespaces: tuple[str, str]


@pytest.fixture(scope="module")
def platform(plane: Cluster) -> Iterator[Platform]:
    """The chart's admission policies, with one platform namespace beside the release's own."""
    mark = secrets.token_hex(4)
    found = Platform(f"crds-{mark}", (f"platform-{mark}", f"release-{mark}"))
    where = ["--namespace", found.namespaces[1], "--set", f"platformNamespaces={{{found.namespaces[0]}}}"]
    manifests = plane.helm("template", found.release, str(CHART), *where, *SHOWN).stdout
    for namespace in found.namespaces:
        plane.kubectl("create", "namespace", namespace)
    plane.kubectl("apply", "-f", "-", input=manifests)
    # Admission policies take effect a moment after they are created.
    eventually(lambda: refusal(plane, EXPORT.obj(), "default") != "")
    eventually(lambda: refusal(plane, CEILING.obj(), "default") != "")
    yield found
    plane.kubectl("delete", "-f", "-", input=manifests)
    plane.kubectl("delete", "namespace", *found.namespaces, "--wait=false")


@pytest.mark.parametrize("obj", [EXPORT.obj(), CEILING.obj()], ids=["export", "ceiling"])
def test_platform_and_release_namespaces_may_reach_others(
    plane: Cluster, platform: Platform, obj: dict[str, Any]
) -> None:
    assert [refusal(plane, obj, namespace) for namespace in platform.namespaces] == ["", ""]


def test_other_namespaces_may_not_export(plane: Cluster, platform: Platform, namespace: str) -> None:
    said = refusal(plane, EXPORT.obj(), namespace)
    assert f"namespace {namespace} may not export models" in said
    assert f"outside the platform namespaces ({', '.join(platform.namespaces)})" in said
    assert f"add the namespace to platformNamespaces in the values of release {platform.release}" in said
    labelled = make_policy("shared").allow_labels(tenant="true").obj()
    assert "may not export models" in refusal(plane, labelled, namespace)


def test_other_namespaces_may_not_cover_others(plane: Cluster, platform: Platform, namespace: str) -> None:
    said = refusal(plane, CEILING.obj(), namespace)
    assert f"namespace {namespace} may not cover other namespaces" in said
    assert f"outside the platform namespaces ({', '.join(platform.namespaces)})" in said


@pytest.mark.usefixtures("platform")
def test_what_stays_in_its_namespace_is_admitted_everywhere(plane: Cluster, namespace: str) -> None:
    same = make_policy("own").spec(allowedNamespaces={"from": "Same"})
    for builder in (make_policy("own"), same, make_budget("own"), make_pool("own")):
        assert refusal(plane, builder.obj(), namespace) == ""


@pytest.mark.usefixtures("platform")
def test_an_update_is_held_to_the_same(plane: Cluster, namespace: str) -> None:
    plane.kubectl("apply", "-f", "-", input=placed(make_policy("own").obj(), namespace))
    assert "may not export models" in refusal(plane, make_policy("own").allow_all().obj(), namespace)
