"""``fairlead render``: what the operator would apply, in YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate

from fairlead_operator.cli.main import main
from fairlead_operator.render.deployment import deployment, first_revision, plan_template
from fairlead_operator.render.pod_template import Images, RenderSettings
from fairlead_operator.render.services import pool_disruption_budget, pool_headless_service, pool_service
from tests.builders.resources import PoolBuilder, make_budget, make_pool

ROOT = Path(__file__).parents[2]


def rendered(capsys: pytest.CaptureFixture[str], folder: Path, pool: PoolBuilder, *options: str) -> list[Any]:
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump_all([pool.obj(), make_budget("b").obj()]), encoding="utf-8")
    assert main(["render", "-f", str(file), *options]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_what_is_printed_is_what_the_operator_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = make_pool("chat").variant("a", minReplicas=2).variant("b").autoscaling(9, minimum=3)
    images = ("--router-image", "registry.local/router:1", "--engine-image", "registry.local/engine:1")
    urls = ("--operator-url", "http://operator", "--ledger-url", "http://ledger")
    printed = rendered(capsys, tmp_path, builder, *images, *urls)
    pool = builder.parsed()
    settings = RenderSettings(operator_url="http://operator", ledger_url="http://ledger")
    decision = first_revision(pool.spec)
    known = Images("registry.local/router:1", "registry.local/engine:1")
    counts = zip(pool.spec.variants, (3, 0), strict=True)
    wanted = [
        *(
            deployment(pool, one, plan_template(pool, one, known, settings, decision=decision), count)
            for one, count in counts
        ),
        pool_service(pool),
        pool_headless_service(pool),
        pool_disruption_budget(pool),
    ]
    for body in wanted:
        body["metadata"].pop("ownerReferences")
        body["metadata"].pop("annotations", None)
    assert printed == wanted


def test_the_namespace_is_the_objects_or_the_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {one["metadata"]["namespace"] for one in rendered(capsys, tmp_path, make_pool("chat"))} == {"ai-platform"}
    bare = make_pool("chat")
    loose = PoolBuilder(bare.kind, {"name": "chat"}, bare.body)
    assert {one["metadata"]["namespace"] for one in rendered(capsys, tmp_path, loose, "-n", "web")} == {"web"}


def test_a_file_with_an_error_is_not_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(make_pool("chat").engine(extraArgs=["--port=1"]).obj()), encoding="utf-8")
    assert main(["render", "-f", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "`--port=1` is set by Fairlead" in err
    assert main(["render", "-f", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_rendered_as_objects_that_kubernetes_knows(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", "-f", str(file)]) == 0
    bodies = list(yaml.safe_load_all(capsys.readouterr().out))
    for body in bodies:
        group, _, version = body["apiVersion"].rpartition("/")
        validate(body, latest_version(), strict=True)
        assert (group, version) in {("apps", "v1"), ("", "v1"), ("policy", "v1")}
    pools = file.read_text(encoding="utf-8").count("kind: ModelPool")
    assert [body["kind"] for body in bodies].count("PodDisruptionBudget") == pools
