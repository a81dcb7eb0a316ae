"""What is refused without an API server is what one refuses, and each refusal says what to write instead."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.api.check import Violation, meant, shown, violations, with_defaults
from fairlead_operator.api.structural import root_schema
from fairlead_operator.api.v1alpha1 import KINDS
from tests.builders.misuses import Misuse, rule_misuses, schema_misuses, server_misuses
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.builders.schemas import broken_rules, defaulted, schema_errors

SCHEMAS = {kind.kind: root_schema(kind) for kind in KINDS}
EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = [
    document for file in sorted(EXAMPLES.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text("utf-8"))
] + [
    make_pool("chat").engine(maxSequences=64, maxBatchedTokens=64).variant("h100", minReplicas=2, maxReplicas=2).obj(),
    make_policy("chat").fallback("default", "next", "Saturated").obj(),
    make_budget("all").for_all_namespaces().with_idle().alert(50).increase("0.5").obj(),
]


def check(obj: dict[str, Any]) -> list[Violation]:
    return violations(SCHEMAS[obj["kind"]], obj)


@pytest.mark.parametrize("obj", GOOD, ids=lambda obj: f"{obj['kind']} {obj['metadata']['name']}")
def test_good_objects_are_fine(obj: dict[str, Any]) -> None:
    assert check(obj) == []


@pytest.mark.parametrize("misuse", [*rule_misuses(), *schema_misuses(), *server_misuses()], ids=lambda one: one.title)
def test_what_the_server_refuses_is_refused_here_once(misuse: Misuse) -> None:
    found = check(misuse.obj)
    if misuse.old is not None:
        assert found == []  # only the server knows what was there before
        return
    assert len(found) == 1
    assert found[0].text.endswith((".", "?"))
    if misuse.by == "rule":
        assert found[0].text == f"{misuse.words}."


@pytest.mark.parametrize(
    ("obj", "path", "text"),
    [
        (
            make_budget("b").limit(period="Fortnite").obj(),
            ("spec", "limit", "period"),
            'is "Fortnite". It must be one of Minute, Hour, Day, Week, Month, Quarter, Year.',
        ),
        (
            make_policy("p").spec(priority="standard").obj(),
            ("spec", "priority"),
            'is "standard". Did you mean Standard? It must be one of Interactive, Standard, Batch.',
        ),
        (
            make_pool("chat").engine(maxModelLen=1).obj(),
            ("spec", "engine", "maxModelLen"),
            "is an unknown field. It belongs to spec.engine.maxContextTokens.",
        ),
        (
            make_pool("chat").variant("a", tensor=2).obj(),
            ("spec", "variants", 0, "tensor"),
            "is an unknown field. It belongs to spec.variants[].parallelism.tensor.",
        ),
        (
            make_pool("chat").engine(maxSequence=1).obj(),
            ("spec", "engine", "maxSequence"),
            "is an unknown field. Did you mean maxSequences?",
        ),
        (
            make_pool("chat").rollout(zzz=1).obj(),
            ("spec", "rollout", "zzz"),
            "is an unknown field. Fields here are maxSurge, maxUnavailable, drainTimeout, startupTimeout.",
        ),
        (
            make_pool("chat").rollout(drainTimeout=600).obj(),
            ("spec", "rollout", "drainTimeout"),
            "is 600. Write a duration such as 90s or 1h30m.",
        ),
        (
            make_budget("b").spec(limit={"amount": 0.45, "unit": "USD", "per": "Total", "period": "Day"}).obj(),
            ("spec", "limit", "amount"),
            "is 0.45, a bare decimal. Put it in quotes: '0.45'.",
        ),
        (
            make_pool("chat").spec(replicas=None).obj(),
            ("spec", "replicas"),
            "has no value. Give it one, or remove the line.",
        ),
        (
            make_pool("chat").spec(replicas=True).obj(),
            ("spec", "replicas"),
            "is true. It must be a whole number.",
        ),
        (
            make_pool("chat").engine(extraArgs=["--seed=1", "-tp=2"]).obj(),
            ("spec", "engine", "extraArgs", 1),
            'is "-tp=2". Write --name or --name=value. It must match ^--[a-z0-9][a-z0-9.-]*(=.*)?$.',
        ),
        (
            make_policy("p").spec(models=["a b"]).obj(),
            ("spec", "models", 0),
            'is "a b". It must match ^[A-Za-z0-9][A-Za-z0-9._:/-]*$.',
        ),
        (
            make_pool("chat").engine(quantization={"kvCache": "FP8 e4m3"}).obj(),
            ("spec", "engine", "quantization", "kvCache"),
            'is "FP8 e4m3". Type of the KV cache (--kv-cache-dtype). It must match ^[a-z0-9_-]+$.',
        ),
        (
            make_pool("chat").without("model").obj(),
            ("spec", "model"),
            "is missing. Add it: checkpoint that the replicas load.",
        ),
    ],
)
def test_each_refusal_says_where_and_what_to_write(obj: dict[str, Any], path: tuple[str | int, ...], text: str) -> None:
    (found,) = check(obj)
    assert (found.path, found.text) == (path, text)


def test_a_value_in_a_message_is_never_long() -> None:
    assert len(shown("x" * 10_000)) <= 60
    (found,) = check(make_pool("chat").spec(replicas=["x" * 10_000]).obj())
    assert len(found.text) < 120


def test_a_name_that_resembles_nothing_has_no_proposal() -> None:
    assert meant("zebra", ["maxSequences"]) == ""
    assert meant("max_sequences", ["maxSequences"]) == "maxSequences"


LEAVES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 2000) | st.text(max_size=6) | st.just(0.5) | st.just([]) | st.just({})
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [found for key, item in items for found in ((*path, key), *paths(item, (*path, key)))]


@given(st.sampled_from(GOOD), st.data())
def test_an_object_with_one_value_changed_is_judged_as_by_a_whole_validator(
    good: dict[str, Any], data: st.DataObject
) -> None:
    obj = copy.deepcopy(good)
    path = data.draw(st.sampled_from([path for path in paths(obj) if path[0] == "spec"]))
    here: Any = obj
    for key in path[:-1]:
        here = here[key]
    value = data.draw(LEAVES)
    here[path[-1]] = value
    schema = SCHEMAS[obj["kind"]]
    found = check(obj)
    full = defaulted(schema, obj)
    refused = bool(schema_errors(schema, full)) or bool(broken_rules(schema, full))
    if value is not None:  # what is null, a server drops or refuses; a validator of JSON Schema refuses it
        assert bool(found) >= refused
        assert refused or all(any(mark in one.text for mark in ONLY_SERVERS) for one in found)


ONLY_SERVERS = ("is an unknown field", ", as item", "Write a time such as")
"""What a validator of JSON Schema does not look for."""


def test_defaults_are_filled_in_as_the_server_does_it() -> None:
    for obj in GOOD:
        assert with_defaults(SCHEMAS[obj["kind"]], obj) == defaulted(SCHEMAS[obj["kind"]], obj)
