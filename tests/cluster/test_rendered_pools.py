"""What ``fairlead render`` prints is what a real API server takes, of sources and sizes too that nothing here runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead_operator.cli.main import main
from tests.builders.resources import make_pool
from tests.cluster_tools import Cluster

pytestmark = pytest.mark.cluster

SOURCES = ("hf://acme/8b", "pvc://models/8b", "s3://bucket/8b", "gs://bucket/8b", "oci://registry.example/8b:v1")


@pytest.mark.parametrize("uri", SOURCES, ids=lambda uri: uri.partition("://")[0])
def test_a_server_takes_what_is_rendered_and_drops_none_of_its_volumes(
    uri: str, control_plane: Cluster, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool("chat").model(uri=uri).variant("h100", parallelism={"tensor": 4, "pipeline": 2}).replicas(1)
    body = pool.metadata(namespace=namespace).obj()
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump(body), encoding="utf-8")
    assert main(["render", "-f", str(file), "--engine-image", "vllm/vllm-openai:v0.33.0"]) == 0
    printed = capsys.readouterr().out
    answer = control_plane.kubectl("apply", "--dry-run=server", "-o", "yaml", "-f", "-", input=printed)
    (sent,) = [one for one in yaml.safe_load_all(printed) if one["kind"] == "Deployment"]
    (taken,) = [one for one in yaml.safe_load(answer.stdout)["items"] if one["kind"] == "Deployment"]
    assert _volumes(taken) == _volumes(sent)
    assert _arguments(taken) == _arguments(sent)
    assert "--pipeline-parallel-size=2" in _arguments(taken)


def _volumes(deployment: dict[str, Any]) -> dict[str, list[str]]:
    """The kinds of each volume, by its name."""
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    return {one["name"]: sorted(set(one) - {"name"}) for one in volumes}


def _arguments(deployment: dict[str, Any]) -> list[str]:
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
