"""The small models: the larger one in real vLLM on a CPU, over a Unix socket, and how all of them are made."""

from pathlib import Path

import pytest

from hack.images.cache import REPOSITORY
from hack.images.host import run
from hack.vllm import environment
from tests.e2e.engines import assert_streams_end_with_their_usage, engine

pytestmark = pytest.mark.e2e

FLAGS = (
    *("--enforce-eager", "--dtype=float32", "--block-size=32"),
    *("--kv-cache-memory-bytes=16M", "--max-model-len=2048", "--served-model-name=chat"),
)


def test_a_stream_of_the_larger_model_ends_with_the_tokens_it_used(
    vllm: environment.Environment, models: Path, tmp_path: Path
) -> None:
    arguments = [str(models / "small"), f"--uds={tmp_path}/engine.sock", *FLAGS]
    with engine(vllm, tmp_path, arguments) as client:
        assert_streams_end_with_their_usage(client)


def test_the_same_recipe_writes_the_same_models(vllm: environment.Environment, models: Path, tmp_path: Path) -> None:
    run([str(vllm.python), str(REPOSITORY / "hack/models/recipe.py"), str(tmp_path / "again")])
    made = sorted(path.relative_to(models) for path in models.rglob("*") if path.is_file())
    again = sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert made == again
    assert {path.parts[0] for path in made} == {
        "tiny",
        "small",
        *(f"tiny-{form}" for form in ("int8", "w4a16", "fp8", "fp8-tensor", "awq")),
    }
    assert all((models / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in made)
