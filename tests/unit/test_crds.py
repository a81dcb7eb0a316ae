from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from fairlead_operator.api.structural import UnsupportedSchemaError, root_schema, structural
from fairlead_operator.api.v1alpha1 import KINDS, Kind, KubeModel
from hack import crds
from tests.builders.misuses import Misuse, rule_misuses, schema_misuses, server_misuses
from tests.builders.resources import make_budget, make_policy, make_pool
from tests.builders.schemas import broken_rules, defaulted, schema_errors

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMAS = {kind.kind: root_schema(kind) for kind in KINDS}
GOOD = {
    f"{document['kind']} {document['metadata']['name']}": document
    for file in sorted(EXAMPLES.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
} | {
    "the default pool": make_pool("chat").obj(),
    "a pool with a draft model": make_pool("chat")
    .engine(
        speculativeDecoding={"method": "draft_model", "tokens": 4, "model": "hf://acme/draft"},
        maxSequences=64,
        maxBatchedTokens=64,
    )
    .variant("h100", minReplicas=2, maxReplicas=2)
    .autoscaling(3, minimum=0, scaleToZeroAfter="5m")
    .rollout(maxSurge=0, maxUnavailable=1)
    .obj(),
    "a pool with the longest name": make_pool("a" * 40).obj(),
    "a pool with an adapter": make_pool("chat")
    .model(lora={"maxRank": 64, "maxActive": 4, "adapters": [{"name": "sql", "uri": "hf://acme/sql-lora"}]})
    .obj(),
    "the default policy": make_policy("chat").output_tokens(default=8, max=8).obj(),
    "a policy with a route of any size": make_policy("chat")
    .route("short", ("chat", 0), ("next", 1), maxContextTokens=8192)
    .route("rest", "long")
    .obj(),
    "a policy with fallbacks": make_policy("chat")
    .spec(priority="Batch")
    .fallback("default", "next", "Unavailable", "Saturated", "ScaledToZero")
    .fallback("default", "next", "Saturated")
    .obj(),
    "the default budget": make_budget("monthly").limit("0.000001").obj(),
    "a budget with everything": make_budget("all")
    .for_all_namespaces()
    .with_idle()
    .alert(50)
    .action("Pace", 50)
    .action("RejectBatch", 99)
    .audit()
    .increase("0.5")
    .obj(),
    "a budget of models": make_budget("models").for_models("chat", "org/Extract-32B").limit(per="Caller").obj(),
    "a closed budget": make_budget("closed").limit(0, unit="Tokens").increase(200).obj(),
    "a budget of requests": make_budget("loop").limit("200", unit="Requests", per="Workflow").obj(),
}


@pytest.mark.parametrize("path", crds.files(), ids=str)
def test_the_committed_file_is_what_the_models_say(path: Path) -> None:
    assert (crds.ROOT / path).read_text(encoding="utf-8") == crds.files()[path]


def test_there_is_no_file_that_nothing_writes() -> None:
    folders = [crds.ROOT / crds.CRDS, crds.ROOT / crds.CHART_CRDS]
    found = {file.relative_to(crds.ROOT) for folder in folders for file in folder.iterdir()}
    assert found == crds.files().keys()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_schemas_keep_the_conventions(kind: Kind) -> None:
    assert crds.lint(kind) == []


def test_the_chart_copy_is_the_same_definition() -> None:
    for kind in KINDS:
        template = crds.chart_template(kind)
        lines = [line for line in template.splitlines() if not line.lstrip().startswith("{{")]
        rendered = yaml.safe_load("\n".join(lines))
        assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert rendered == yaml.safe_load(crds.manifest(kind))


def test_braces_in_a_description_do_not_reach_the_template_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(kind: Kind) -> dict[str, Any]:
        return {"metadata": {"name": kind.crd_name}, "spec": "{{ .Values.secret }}"}

    monkeypatch.setattr(crds, "custom_resource_definition", described)
    assert "'{{ \"{{\" }} .Values.secret }}'" in crds.chart_template(KINDS[0])


def test_check_names_the_files_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crds.main(["--root", str(tmp_path)]) == 0
    assert crds.main(["--check", "--root", str(tmp_path)]) == 0
    (tmp_path / "crds/modelpools.yaml").write_text("by hand", encoding="utf-8")
    assert crds.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "crds/modelpools.yaml differs from the models: python -m hack.crds writes it\n"


@pytest.mark.parametrize("name", GOOD)
def test_good_objects_pass_bounds_and_rules(name: str) -> None:
    schema = SCHEMAS[GOOD[name]["kind"]]
    obj = defaulted(schema, GOOD[name])
    assert schema_errors(schema, obj) == []
    assert broken_rules(schema, obj, old=obj) == []


@pytest.mark.parametrize("misuse", [*rule_misuses()], ids=lambda misuse: misuse.title)
def test_each_rule_refuses_its_misuse_and_nothing_else_does(misuse: Misuse) -> None:
    schema = SCHEMAS[misuse.obj["kind"]]
    old = defaulted(schema, misuse.old) if misuse.old else None
    obj = defaulted(schema, misuse.obj)
    assert schema_errors(schema, obj) == []
    assert broken_rules(schema, obj, old) == [misuse.words]


def test_every_rule_has_a_misuse() -> None:
    rules = {
        rule["message"]
        for schema in SCHEMAS.values()
        for _, node in crds.nodes(schema)
        for rule in node.get("x-kubernetes-validations", [])
    }
    assert rules == {misuse.words for misuse in rule_misuses()}


@pytest.mark.parametrize("misuse", [*schema_misuses()], ids=lambda misuse: misuse.title)
def test_each_bound_refuses_its_misuse(misuse: Misuse) -> None:
    schema = SCHEMAS[misuse.obj["kind"]]
    assert len(schema_errors(schema, defaulted(schema, misuse.obj))) == 1


@pytest.mark.parametrize("misuse", [*server_misuses()], ids=lambda misuse: misuse.title)
def test_what_only_the_server_checks_is_otherwise_good(misuse: Misuse) -> None:
    schema = SCHEMAS[misuse.obj["kind"]]
    assert schema_errors(schema, defaulted(schema, misuse.obj)) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_default_passes_its_own_rules_before_its_children_have_theirs(kind: Kind) -> None:
    for path, node in crds.nodes(SCHEMAS[kind.kind]):
        if "default" in node:
            assert schema_errors(node, node["default"]) == [], path
            assert broken_rules(node, node["default"]) == [], path


class Loop(KubeModel):
    again: "Loop | None" = None


class Either(KubeModel):
    value: int | list[str]


class Odd(KubeModel):
    value: Annotated[int, Field(multiple_of=2)]


@pytest.mark.parametrize(
    ("model", "words"), [(Loop, "contains itself"), (Either, "a union"), (Odd, "a structural schema has no multipleOf")]
)
def test_what_a_structural_schema_cannot_say_is_refused(model: type[KubeModel], words: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=words):
        structural(model)


class Mixed(KubeModel):
    kept: Annotated[int | None, Field(gt=0, lt=10)] = None
    """Kept."""


def test_bounds_are_written_as_openapi_3_0_and_absence_is_not_null() -> None:
    assert structural(Mixed)["properties"]["kept"] == {
        "description": "Kept.",
        "type": "integer",
        "exclusiveMaximum": True,
        "exclusiveMinimum": True,
        "maximum": 10,
        "minimum": 0,
    }


class Careless(KubeModel):
    share: float
    flag: bool = False
    """Says nothing about its default."""
    names: list[str] = Field(default_factory=list)
    """Names. Default: none."""
    labels: dict[str, Mixed] = Field(default_factory=dict)
    """Labels. Default: none."""
    phase: int = 0
    """Phase. Default: 0."""


class Late(KubeModel):
    replicas: int
    """Before the conditions."""


def test_the_lint_finds_what_breaks_the_conventions() -> None:
    kind = Kind("Careless", "carelesses", "careless", KINDS[0].resource, Careless, Late, ())
    found = "\n".join(crds.lint(kind))
    for complaint in (
        "spec.share: is none of string",
        "spec.share: has no description",
        "spec.flag: is none of string",
        "spec.names: a list without maxItems",
        "spec.names[]: a string without maxLength",
        "spec.labels: a map without maxProperties",
        "spec.labels: a map of objects",
        "spec.phase: an integer without minimum and maximum",
        "spec: an optional field whose description does not say its default",
        "spec: a field name that is not camelCase, or phase",
        "Careless status: conditions come first, and every field is optional",
    ):
        assert complaint in found
