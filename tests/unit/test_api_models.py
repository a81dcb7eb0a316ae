from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fairlead_operator.api.v1alpha1 import (
    API_VERSION,
    KINDS,
    ConditionStatus,
    CostBudget,
    Duration,
    ModelPool,
    Money,
    RoutingPolicy,
    Selector,
)
from tests.builders.resources import make_budget, make_policy, make_pool

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
BY_KIND = {kind.kind: kind for kind in KINDS}


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_an_object_of_ours(file: Path) -> None:
    for document in documents(file):
        assert document["apiVersion"] == API_VERSION
        parsed = BY_KIND[document["kind"]].resource.parse(document)
        assert parsed.key == f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def test_a_pool_reads_its_metadata_and_fills_in_defaults() -> None:
    pool = make_pool("chat", "team-a").metadata(generation=7, labels={"a": "b"}, managedFields=[{}]).parsed()
    assert (pool.key, pool.metadata.uid, pool.metadata.generation) == ("team-a/chat", "uid-team-a-chat", 7)
    assert pool.metadata.deletion_timestamp is None
    assert pool.spec.engine.memory_utilization_percent == 92
    assert pool.spec.variants[0].accelerator.resource_name == "nvidia.com/gpu"
    assert pool.spec.variants[0].parallelism.accelerators == 1
    assert pool.spec.rollout.drain_timeout.seconds == 600


def test_objects_do_not_change() -> None:
    pool = make_pool("chat").parsed()
    with pytest.raises(ValidationError, match="frozen"):
        pool.spec.replicas = 2


def test_fields_of_another_version_are_ignored() -> None:
    obj = make_pool("chat").spec(temperature="hot").status(mood="good", replicas=3).obj()
    assert ModelPool.parse(obj).status.replicas == 3


def test_a_variant_replaces_engine_fields_whole() -> None:
    pool = (
        make_pool("chat")
        .engine(maxSequences=256, quantization={"weights": "fp8", "kvCache": "fp8"}, extraArgs=["--seed=1"])
        .variant("awq", engine={"quantization": {"weights": "awq"}, "extraArgs": []})
        .parsed()
    )
    engine = pool.spec.engine_of(pool.spec.variants[0])
    assert engine.quantization is not None
    assert (engine.quantization.weights, engine.quantization.kv_cache) == ("awq", None)
    assert engine.extra_args == ()
    assert engine.max_sequences == 256


def test_a_variant_without_overrides_runs_what_the_pool_says() -> None:
    spec = make_pool("chat").engine(maxSequences=8).parsed().spec
    assert spec.engine_of(spec.variants[0]) is spec.engine
    assert spec.model_of(spec.variants[0]) is spec.model


def test_a_variants_own_build_does_not_take_over_the_pools_revision() -> None:
    spec = make_pool("chat").variant("awq", model={"uri": "hf://acme/chat-awq"}).parsed().spec
    model = spec.model_of(spec.variants[0])
    assert (model.uri, model.revision) == ("hf://acme/chat-awq", None)


def test_accelerators_are_tensor_times_pipeline() -> None:
    spec = make_pool("chat").variant("big", parallelism={"tensor": 4, "pipeline": 2}).parsed().spec
    assert spec.variants[0].parallelism.accelerators == 8


@pytest.mark.parametrize(
    ("fields", "idle_ms"),
    [({"minimum": 1}, None), ({"minimum": 0}, 1_800_000), ({"minimum": 0, "scaleToZeroAfter": "5m"}, 300_000)],
)
def test_only_pools_with_a_minimum_of_zero_go_idle(fields: dict[str, Any], idle_ms: int | None) -> None:
    autoscaling = make_pool("chat").autoscaling(3, **fields).parsed().spec.autoscaling
    assert autoscaling is not None
    assert autoscaling.idle_ms == idle_ms


@pytest.mark.parametrize(
    ("amount", "unit", "units"),
    [(5000, "USD", 5000 * 10**9), ("0.45", "USD", 450_000_000), (200, "Requests", 200), ("200", "Tokens", 200)],
)
def test_a_limit_counts_in_the_unit_of_its_budget(amount: int | str, unit: str, units: int) -> None:
    assert make_budget("b").limit(amount, unit=unit).parsed().spec.limit.units == units


@pytest.mark.parametrize("amount", [0.45, True, "-1", "1e3", None])
def test_what_is_not_an_amount_is_refused(amount: Any) -> None:
    obj = make_budget("b").obj()
    obj["spec"]["limit"]["amount"] = amount
    with pytest.raises(ValidationError, match="is not an amount"):
        CostBudget.parse(obj)


@pytest.mark.parametrize("text", [90, "90", "1d"])
def test_what_is_not_a_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError, match="is not a duration"):
        ModelPool.parse(make_pool("chat").rollout(drainTimeout=text).obj())


def test_durations_in_seconds_are_rounded_up() -> None:
    assert (Duration("1500ms").seconds, Duration("1500ms").ms, Duration("0s").seconds) == (2, 1500, 0)


@given(st.integers(0, 10**12 - 1) | st.decimals(0, 10**6, places=6).map(str))
def test_a_budget_survives_the_way_to_the_api_and_back(amount: int | str) -> None:
    budget = make_budget("b").limit(amount).alert(80).parsed()
    assert CostBudget.parse(budget.to_dict()) == budget
    assert budget.spec.limit.amount == Money(str(amount))


def test_what_is_absent_stays_absent_in_what_is_written() -> None:
    spec = make_policy("chat").parsed().spec.to_dict()
    assert "outputTokens" not in spec
    assert spec["allowedNamespaces"] == {"from": "Same"}
    assert spec["routes"][0] == {
        "name": "default",
        "poolRefs": [{"name": "chat", "weight": 1}],
        "fallbacks": [],
        "maxWait": "30s",
        "maxColdStartWait": "10m",
    }


def test_every_pool_that_may_serve_a_route_is_among_its_names() -> None:
    spec = (
        make_policy("chat").route("all", "a", "b").fallback("all", "c").fallback("all", "a", "Saturated").parsed().spec
    )
    assert spec.routes[0].pool_names == ("a", "b", "c", "a")
    assert [fallback.when for fallback in spec.routes[0].fallbacks] == [("Unavailable",), ("Saturated",)]


def test_a_policy_is_of_standard_priority_unless_it_says_otherwise() -> None:
    assert make_policy("chat").parsed().spec.priority == "Standard"
    assert make_policy("chat").spec(priority="Interactive").parsed().spec.priority == "Interactive"


@pytest.mark.parametrize(
    ("allowed", "own", "other", "tenant"),
    [
        ({"from": "Same"}, True, False, False),
        ({"from": "All"}, True, True, True),
        ({"from": "Selector", "selector": {"matchLabels": {"tenant": "true"}}}, True, False, True),
        ({"from": "Selector", "selector": {}}, True, True, True),
    ],
)
def test_a_policy_admits_its_own_namespace_and_those_it_names(
    allowed: dict[str, Any], own: bool, other: bool, tenant: bool
) -> None:
    admits = make_policy("chat").spec(allowedNamespaces=allowed).parsed().spec.allowed_namespaces.admits
    assert (admits(True, {}), admits(False, {}), admits(False, {"tenant": "true"})) == (own, other, tenant)


@pytest.mark.parametrize(
    ("operator", "values", "selected"),
    [
        ("In", ["a"], {"a"}),
        ("NotIn", ["a"], {"b", "none"}),
        ("Exists", [], {"a", "b"}),
        ("DoesNotExist", [], {"none"}),
    ],
)
def test_requirements_mean_what_kubernetes_means(operator: str, values: list[str], selected: set[str]) -> None:
    labels = {"a": {"team": "a"}, "b": {"team": "b"}, "none": {"zone": "a"}}
    requirement = {"key": "team", "operator": operator, "values": values}
    selector = Selector.model_validate({"matchExpressions": [requirement]})
    assert {name for name, given_labels in labels.items() if selector.matches(given_labels)} == selected


def test_a_condition_is_found_by_its_type() -> None:
    condition = {
        "type": "Ready",
        "status": "False",
        "observedGeneration": 3,
        "lastTransitionTime": "2026-11-20T08:41:10Z",
        "reason": "NotAccepted",
        "message": "",
    }
    status = RoutingPolicy.parse(make_policy("chat").status(conditions=[condition]).obj()).status
    ready = status.condition("Ready")
    assert ready is not None
    assert ready.status is ConditionStatus.FALSE
    assert status.condition("Accepted") is None
    assert status.to_dict()["conditions"] == [condition]


def test_an_object_being_deleted_says_so() -> None:
    assert make_pool("chat").deleting().parsed().metadata.deletion_timestamp == "2026-11-20T00:00:00Z"
