"""Real vLLM on a CPU with each of the small models, over a Unix socket: what the demo's pods run."""

from pathlib import Path

import pytest

from hack.images.cache import REPOSITORY
from hack.images.host import run
from hack.models.__main__ import make
from hack.vllm import environment
from tests.e2e.engines import engine, stream

pytestmark = pytest.mark.e2e

FLAGS = (
    *("--enforce-eager", "--dtype=float32", "--block-size=32"),
    *("--kv-cache-memory-bytes=16M", "--max-model-len=2048", "--served-model-name=chat"),
)
NGRAM = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}')


@pytest.fixture(scope="module")
def vllm() -> environment.Environment:
    return environment.install()


@pytest.fixture(scope="module")
def models() -> Path:
    return make()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "flags"),
    [("tiny", ()), ("tiny", NGRAM), ("small", ()), ("tiny-int8", ())],
    ids=["tiny", "tiny-ngram", "small", "tiny-int8"],
)
def test_a_stream_of_real_vllm_ends_with_the_tokens_it_used(
    name: str, flags: tuple[str, ...], vllm: environment.Environment, models: Path, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "What does a token cost?"}]
    arguments = [str(models / name), f"--uds={tmp_path}/engine.sock", *FLAGS, *flags]
    with engine(vllm, tmp_path, arguments) as client:
        chat = stream(client, "/v1/chat/completions", messages=messages, max_tokens=24)
        plain = stream(client, "/v1/completions", prompt="A token costs", max_tokens=16)
    assert chat[0]["choices"][0]["delta"]["role"] == "assistant"
    for chunks, tokens in ((chat, 24), (plain, 16)):
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == tokens
        assert chunks[-1]["usage"]["prompt_tokens"] > 0
        assert any(chunk["choices"][0]["finish_reason"] == "length" for chunk in chunks[:-1])


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
