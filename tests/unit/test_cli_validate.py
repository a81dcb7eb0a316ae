"""``fairlead validate``: one line for each finding in files, without a cluster."""

import io
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.cli import manifests
from fairlead_operator.cli.main import main
from fairlead_operator.cli.manifests import Document, Finding, parse
from fairlead_operator.cli.validate import Report, _by_schema, check
from tests.builders.misuses import rule_misuses, schema_misuses, server_misuses
from tests.builders.resources import Builder, make_budget, make_policy, make_pool

ROOT = Path(__file__).parents[2]
L4 = {"nvidia.com/gpu.product": "NVIDIA-L4"}
FINE = make_pool("chat").model(uri="hf://Qwen/Qwen3-0.6B", revision="1").variant("l4", nodeSelector=L4)


def written(folder: Path, *objects: Builder | str, name: str = "pool.yaml") -> str:
    texts = [one if isinstance(one, str) else yaml.safe_dump(one.obj(), sort_keys=False) for one in objects]
    file = folder / name
    file.write_text("---\n".join(texts), encoding="utf-8")
    return str(file)


def lines(capsys: pytest.CaptureFixture[str], folder: Path) -> list[str]:
    return capsys.readouterr().out.replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_fine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--strict", "-f", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok: ")


FIELDS = [
    "name",
    "model",
    "uri",
    "engine",
    "variants",
    "replicas",
    "autoscaling",
    "maxReplicas",
    "limit",
    "amount",
    "unit",
    "per",
    "period",
    "routes",
    "poolRefs",
    "models",
    "quantization",
    "nodeSelector",
    "minReplicas",
    "labels",
    "maxContextTokens",
    "extraArgs",
    "podTemplate",
    "spec",
    "containers",
]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [
    text for page in PAGES for text in BLOCK.findall(page.read_text(encoding="utf-8")) if "fairlead.dev/v1" in text
]


@pytest.mark.parametrize("text", SHOWN)
def test_every_manifest_in_the_documents_is_fine(text: str, tmp_path: Path) -> None:
    assert check([written(tmp_path, text)], "default").errors == []


@pytest.mark.parametrize("file", sorted((ROOT / "tests/golden/render").glob("*.yaml")), ids=lambda file: file.name)
def test_what_is_rendered_is_left_alone(file: Path) -> None:
    report = check([str(file)], "default")
    assert (report.findings, report.checked) == ([], [])
    assert report.others > 0


def test_one_f_takes_all_files_that_a_shell_makes_of_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(str(file) for file in (ROOT / "examples").glob("*.yaml"))
    assert main(["validate", "-f", *files]) == 0
    together = capsys.readouterr().out
    assert main(["validate", *(word for file in files for word in ("-f", file))]) == 0
    assert capsys.readouterr().out == together


def test_a_folder_is_all_of_its_yaml_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", str(ROOT / "examples")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok: 5 CostBudget, 4 ModelPool, 3 RoutingPolicy; 1 note"


@pytest.mark.parametrize("misuse", [*rule_misuses(), *schema_misuses(), *server_misuses()], ids=lambda one: one.title)
def test_each_misuse_is_one_line_with_its_place(misuse: object, tmp_path: Path) -> None:
    obj = getattr(misuse, "obj")  # noqa: B009
    found = check([written(tmp_path, yaml.safe_dump(obj, sort_keys=False))], "default").findings
    errors = [one for one in found if one.severity == "error"]
    if getattr(misuse, "old", None) is None:
        assert len(errors) == 1
        assert errors[0].line > 1 or not errors[0].path  # a rule of the whole object


def test_findings_are_lines_in_the_order_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = FINE.engine(extraArgs=["--seed=1", "--port=1"]).rollout(drainTimeout="600")
    assert main(["validate", "-f", written(tmp_path, pool, FINE.engine(extraArgs=["--port=1"]))]) == 1
    assert lines(capsys, tmp_path) == [
        (
            'pool.yaml:24: spec.rollout.drainTimeout: is "600". Write a duration such as 90s or 1h30m. It must match '
            "^([0-9]{1,5}(h|m|s|ms)){1,4}$."
        ),
        "pool.yaml:46: spec.engine.extraArgs[0]: `--port=1` is set by Fairlead: the engine has no port. Remove it.",
        "failed: 2 ModelPool; 2 errors",
    ]


def test_what_does_not_fit_is_an_error_and_what_is_not_known_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = FINE.model(uri="hf://meta-llama/Llama-3.1-8B-Instruct")
    assert main(["validate", "-f", written(tmp_path, large)]) == 1
    assert "KV cache of one 131072-token request 16.0" in lines(capsys, tmp_path)[0]
    assert main(["validate", "-f", written(tmp_path, FINE.spec(model={"uri": "pvc://models/own"}))]) == 0
    assert lines(capsys, tmp_path) == [
        (
            "pool.yaml:13: note: spec.variants: Whether it fits is not known: the model 'own' is not on record, and "
            "what pvc:// holds is not read (variant l4)."
        ),
        "ok: 1 ModelPool; 1 note",
    ]


def test_warnings_fail_only_where_that_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, FINE.spec(model={"uri": "hf://Qwen/Qwen3-0.6B"}))
    assert main(["validate", "-f", file]) == 0
    assert main(["validate", "--strict", "-f", file]) == 1
    assert lines(capsys, tmp_path)[-2:] == [
        (
            "pool.yaml:11: warning: spec.model: each new pod loads the head of hf://Qwen/Qwen3-0.6B as it then is. Set "
            "revision to a commit."
        ),
        "failed: 1 ModelPool; 1 warning",
    ]


def test_a_variants_own_checkpoint_needs_a_revision_of_its_own(tmp_path: Path) -> None:
    pool = FINE.variant("l4", nodeSelector=L4, model={"uri": "hf://Qwen/Qwen3-0.6B-FP8"})
    found = check([written(tmp_path, pool)], "default").findings
    assert [(one.path, one.severity) for one in found] == [("spec.variants[l4].model", "warning")]


def test_objects_of_all_files_are_looked_at_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, FINE, name="a.yaml")
    policy = make_policy("chat").models("m").route("all", "chat", "elsewhere")
    written(tmp_path, FINE, policy, make_policy("other").models("m").route("all", "chat"), name="b.yaml")
    assert main(["validate", "-f", str(tmp_path)]) == 1
    said = lines(capsys, tmp_path)
    assert [line.split(" ", 1)[1] for line in said[:3]] == [
        (
            "metadata.name: ModelPool ai-platform/chat is in a.yaml:1 too, and the last one applied would stay. "
            "Rename or remove one of them."
        ),
        "note: spec.routes: ModelPool ai-platform/elsewhere is in none of these files.",
        "warning: spec.models[0]: m is a model of RoutingPolicy chat too: the older answers. Choose another name.",
    ]


def test_a_pool_with_a_mistake_is_not_called_absent(tmp_path: Path) -> None:
    policy = make_policy("chat").route("all", "chat")
    found = check([written(tmp_path, FINE.engine(maxSequence=4), policy)], "default").findings
    assert [(one.severity, one.path) for one in found] == [("error", "spec.engine.maxSequence")]


def test_a_route_that_takes_more_than_its_pool_holds_is_told(tmp_path: Path) -> None:
    pool = FINE.engine(maxContextTokens=4096)
    policy = make_policy("chat").route("all", "chat", maxContextTokens=8192)
    found = check([written(tmp_path, pool, policy)], "default").findings
    assert [(one.severity, one.path) for one in found] == [("warning", "spec.routes")]
    assert "takes 8192 tokens, pool chat holds 4096" in found[0].text


def test_a_budget_of_a_time_zone_that_is_none_is_told(tmp_path: Path) -> None:
    found = check([written(tmp_path, make_budget("b").limit(timeZone="Mars/Olympus"))], "default").findings
    assert [one.path for one in found] == ["spec.limit.timeZone"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: [\n", "pool.yaml:2: is no YAML: while parsing a flow node, expected the node content"),
        ("a: b\n  c: d\n", "pool.yaml:2: is no YAML: mapping values are not allowed here."),
        ("- 1\n", "pool.yaml:1: is no object. Write apiVersion, kind, metadata and spec."),
        ("kind: ModelPool\nmetadata: {}\n", "pool.yaml:1: apiVersion: is null. Write fairlead.dev/v1alpha1"),
        (
            "apiVersion: fairlead.dev/v1\nkind: ModelPool\n",
            'pool.yaml:1: apiVersion: is "fairlead.dev/v1". Write fairlead.dev/v1alpha1',
        ),
        ("apiVersion: v1\nkind: ModelPool\n", 'pool.yaml:1: apiVersion: is "v1". Write fairlead.dev/v1alpha1'),
        (
            "apiVersion: fairlead.io/v1\nkind: Pool\n",
            'pool.yaml:1: apiVersion: is "fairlead.io/v1". Write fairlead.dev/v1alpha1',
        ),
        (
            "apiVersion: fairlead.dev/v1alpha1\nkind: Modelpool\n",
            'pool.yaml:2: kind: is "Modelpool". Did you mean ModelPool?',
        ),
        (
            "apiVersion: fairlead.dev/v1alpha1\nkind: Zebra\n",
            'pool.yaml:2: kind: is "Zebra". Kinds are ModelPool, RoutingPolicy, CostBudget',
        ),
        ("a: 1\na: 2\nkind: x\napiVersion: v1\n", "pool.yaml:2: a: is there twice. Remove one of the two."),
        (
            "kind: !!python/object:os.system x\n",
            "pool.yaml:1: kind: has tag tag:yaml.org,2002:python/object:os.system.",
        ),
        ("a: 1\n", "pool.yaml:1: apiVersion: is missing. Write apiVersion: fairlead.dev/v1alpha1 and a kind"),
    ],
)
def test_what_is_no_object_is_told_with_its_line(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-f", written(tmp_path, text)]) == 1
    assert any(one.startswith(line) for one in lines(capsys, tmp_path))


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        ({}, "is missing. Give the object a name."),
        ({"name": "Chat"}, 'is "Chat". Write lower-case letters, digits, - and dots. It must match'),
        ({"name": 7}, "is 7. It must be text: put it in quotes."),
        ({"name": "a" * 41}, "the name must be at most 40 characters"),
    ],
)
def test_a_name_must_be_one_of_kubernetes(meta: dict[str, object], text: str, tmp_path: Path) -> None:
    obj = FINE.obj() | {"metadata": meta}
    found = check([written(tmp_path, yaml.safe_dump(obj))], "default").findings
    assert any(one.text.startswith(text) for one in found), found


def test_other_kinds_lists_and_empty_documents_are_taken_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [FINE.obj(), OTHERS[0], OTHERS[1], 3]}
    assert main(["validate", "-f", written(tmp_path, "\n", yaml.safe_dump(listed, sort_keys=False), "# none\n")]) == 1
    assert lines(capsys, tmp_path)[-1] == "failed: 1 ModelPool; 2 objects of other kinds not checked; 1 error"


OTHERS = ({"apiVersion": "v1", "kind": "ConfigMap"}, {"apiVersion": "models.example.com/v1", "kind": "ModelPool"})


def test_anchors_and_merge_keys_are_read(tmp_path: Path) -> None:
    text = (
        "apiVersion: fairlead.dev/v1alpha1\nkind: CostBudget\nmetadata: {name: b}\n"
        "spec:\n  limit: &base\n    <<: {unit: USD, per: Total}\n    <<: [{period: Day}]\n    amount: 1\n"
        "  appliesTo: {models: [*name]}\n"
    ).replace("kind: CostBudget", "kind: &name CostBudget")
    assert check([written(tmp_path, text)], "default").findings == []


def test_the_standard_input_and_the_namespace_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = FINE.obj() | {"metadata": {"name": "chat"}}
    raw = io.BytesIO(yaml.safe_dump_all([body, body]).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    assert main(["validate", "-n", "web", "-f", "-"]) == 1
    assert "ModelPool web/chat is in <stdin>:1 too" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["validate", "-f", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


def test_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, FINE, FINE)
    monkeypatch.setattr(manifests, "MAX_DOCUMENTS", 1)
    assert "has more than 1 documents" in str(list(manifests.read([file]))[-1])
    monkeypatch.setattr(manifests, "MAX_BYTES", 100)
    assert "has more than 100 bytes" in str(list(manifests.read([file]))[-1])
    monkeypatch.setattr(manifests, "MAX_FILES", 1)
    assert main(["validate", "-f", file, "-f", file]) == 2
    assert "2 files are too many" in capsys.readouterr().err


def test_a_file_of_aliases_of_aliases_is_not_unfolded() -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    found = list(parse("bomb.yaml", "\n".join(layers)))
    assert [str(one) for one in found] == ["bomb.yaml:1: has more than 200000 values, or deeper than 64. Split it."]
    assert "deeper than 64" in str(next(iter(parse("loop.yaml", "a: &a [*a]"))))
    assert "deeper than 64" in str(next(iter(parse("deep.yaml", "[" * 100_000))))


def test_only_so_many_findings_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", written(tmp_path, *["- 1\n"] * 250)]) == 1
    said = lines(capsys, tmp_path)
    assert said[-2:] == ["50 more findings are not shown.", "failed: nothing of Fairlead; 250 errors"]


def test_text_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"a: b\nc: \xe9\n")
    (found,) = manifests.read([str(file)])
    assert str(found).endswith("latin.yaml:2: is not UTF-8 text. Save it as UTF-8.")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(["ModelPool", "RoutingPolicy", "CostBudget", "List", "Other"])


@given(KINDS, VALUES, VALUES)
def test_no_object_crashes_the_checks(kind: str, meta: object, spec: object) -> None:
    obj = {"apiVersion": "fairlead.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec, "items": [spec]}
    report = Report()
    for one in parse("any.yaml", yaml.safe_dump(obj)):
        assert isinstance(one, Document | Finding)
        if isinstance(one, Document):
            _by_schema(one, "default", report)
    assert all(str(finding).startswith("any.yaml:") for finding in report.findings)


@given(st.text(max_size=300) | st.text(st.sampled_from("ab:-[]{}&*!|>'\"#\n \t<,?%@`0."), max_size=60))
def test_no_text_crashes_the_reader(text: str) -> None:
    for one in parse("any.yaml", text):
        assert isinstance(one, Document | Finding)
