"""podTemplate: what it may set, and how it is merged."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.render.merge import merged_template, strategic_merge, template_problems
from tests.builders.resources import make_pool

BASE = {
    "metadata": {"labels": {"fairlead.dev/pool": "chat"}},
    "spec": {
        "initContainers": [{"name": "router", "image": "r", "resources": {"limits": {"memory": "1Gi"}}}],
        "containers": [
            {
                "name": "engine",
                "env": [{"name": "HOME", "value": "/tmp"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    },
}


def merged(**spec: Any) -> dict[str, Any]:
    result: dict[str, Any] = merged_template(BASE, make_pool("c").pod_template(spec=spec).parsed().spec.pod_template)[
        "spec"
    ]
    return result


def test_named_lists_are_merged_by_name() -> None:
    env = [{"name": "HOME", "value": "/home"}, {"name": "MORE", "value": "1"}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    engine = merged(containers=[{"name": "engine", "env": env, "volumeMounts": mounts}])["containers"][0]
    assert engine["env"] == env
    assert [mount["mountPath"] for mount in engine["volumeMounts"]] == ["/tmp", "/data"]


def test_a_volume_is_replaced_whole() -> None:
    volumes = merged(volumes=[{"name": "shm", "hostPath": {"path": "/x"}}, {"name": "data", "emptyDir": {}}])["volumes"]
    assert volumes == [{"name": "shm", "hostPath": {"path": "/x"}}, {"name": "data", "emptyDir": {}}]


@pytest.mark.parametrize("place", ["containers", "initContainers"])
def test_the_routers_resources_are_set_in_either_place(place: str) -> None:
    spec = merged(**{place: [{"name": "router", "resources": {"limits": {"memory": "2Gi", "cpu": "1"}}}]})
    assert spec["initContainers"][0]["resources"] == {"limits": {"memory": "2Gi", "cpu": "1"}}
    assert [one["name"] for one in spec["containers"]] == ["engine"]


def test_null_removes_a_key() -> None:
    assert strategic_merge({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}
    assert strategic_merge({}, {"a": {"b": None}}) == {"a": {}}


def test_own_labels_win() -> None:
    overlay = make_pool("c").pod_template(metadata={"labels": {"team": "x"}}).parsed().spec.pod_template
    assert merged_template(BASE, overlay)["metadata"]["labels"] == {"team": "x", "fairlead.dev/pool": "chat"}


@pytest.mark.parametrize(
    ("spec", "path", "part"),
    [
        ({"nodeSelector": {}}, "spec.nodeSelector", "set spec.variants[].nodeSelector"),
        ({"tolerations": []}, "spec.tolerations", "set spec.variants[].tolerations"),
        ({"terminationGracePeriodSeconds": 1}, "spec.terminationGracePeriodSeconds", "rollout.drainTimeout"),
        ({"containers": [{"name": "engine", "args": []}]}, "spec.containers[engine].args", "extraArgs"),
        ({"containers": [{"name": "engine", "ports": []}]}, "spec.containers[engine].ports", "no port"),
        (
            {"containers": [{"name": "router", "image": "x"}]},
            "spec.containers[router].image",
            "podTemplate may set only resources of container router",
        ),
        (
            {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": 2}}}]},
            "spec.containers[engine].resources.limits[nvidia.com/gpu]",
            "parallelism",
        ),
        (
            {"containers": [{"name": "spy", "volumeMounts": [{"name": "fairlead-tokens", "mountPath": "/t"}]}]},
            "spec.containers[spy].volumeMounts[fairlead-tokens]",
            "the router's",
        ),
        ({"volumes": [{"name": "run", "emptyDir": {}}]}, "spec.volumes[run]", "the router's"),
        ({"containers": "engine"}, "spec.containers", "must be a list"),
        ({"containers": [{"image": "x"}]}, "spec…containers", "needs a name"),
        ({"$patch": "delete"}, "spec…$patch", "directives"),
    ],
)
def test_what_something_else_owns_is_refused_with_its_path(spec: dict[str, Any], path: str, part: str) -> None:
    (problem,) = template_problems(make_pool("c").pod_template(spec=spec).parsed().spec)
    assert (problem.reason, problem.path) == ("InvalidPodTemplate", f"spec.podTemplate.{path}")
    assert part in problem.message


def test_the_pools_own_labels_are_refused() -> None:
    overlay = make_pool("c").pod_template(metadata={"labels": {"fairlead.dev/pool": "x"}})
    assert template_problems(overlay.parsed().spec)[0].path == "spec.podTemplate.metadata.labels[fairlead.dev/pool]"


def test_a_label_that_is_called_like_a_list_is_none() -> None:
    terms = {"labelSelector": {"matchLabels": {"env": "prod"}}, "topologyKey": "zone"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [terms]}}
    assert template_problems(make_pool("c").pod_template(spec={"affinity": affinity}).parsed().spec) == ()


names = st.sampled_from(["a", "b", "env", "containers"])
trees = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.dictionaries(names.filter(lambda name: name in {"a", "b"}), inner, max_size=3),
    max_leaves=8,
)
patches = st.dictionaries(st.sampled_from(["a", "b"]), trees, max_size=3)


@given(patches, patches)
def test_merging_twice_changes_nothing_more(base: dict[str, Any], patch: dict[str, Any]) -> None:
    once = strategic_merge(base, patch)
    assert strategic_merge(once, patch) == once
