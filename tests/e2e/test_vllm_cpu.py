"""Real vLLM on a CPU with each of the small models, over a Unix socket: what the demo's pods run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hack.images.cache import REPOSITORY
from hack.images.host import run
from hack.models.__main__ import make
from hack.vllm import environment

pytestmark = pytest.mark.e2e

START_SECONDS = 180.0
STOP_SECONDS = 30.0
FLAGS = (
    *("--enforce-eager", "--dtype", "float32", "--block-size", "32"),
    *("--kv-cache-memory-bytes", "16M", "--max-model-len", "2048", "--served-model-name", "chat"),
)
NGRAM = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}')
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def vllm() -> environment.Environment:
    return environment.install()


@pytest.fixture(scope="module")
def models() -> Path:
    return make()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def await_health(process: "subprocess.Popen[bytes]", client: httpx.Client, path: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        if listens(path) and client.get("/health", timeout=10).status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError(f"not healthy within {START_SECONDS} s:\n{log.read_text()[-4000:]}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def engine(vllm: environment.Environment, model: Path, folder: Path, *flags: str) -> Iterator[httpx.Client]:
    cache = shutil.copytree(vllm.warm, folder / "cache")
    path, log = folder / "engine.sock", folder / "engine.log"
    serve = [str(vllm.python), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--uds", str(path)]
    settings = {**os.environ, **environment.ENGINE_SETTINGS, "VLLM_CACHE_ROOT": str(cache), "HOME": str(folder)}
    transport = httpx.HTTPTransport(uds=str(path))
    with log.open("wb") as output, httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        process = subprocess.Popen(
            [*serve, *FLAGS, *flags], env=settings, stdout=output, stderr=output, start_new_session=True
        )
        try:
            await_health(process, client, path, log)
            yield client
        finally:
            stop(process)


def stream(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={"model": "chat", **STREAM, **body}) as answer:
        assert answer.status_code == 200, answer.read()
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


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
    with engine(vllm, models / name, tmp_path, *flags) as client:
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
    assert {path.parts[0] for path in made} == {"tiny", "small", "tiny-int8"}
    assert all((models / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in made)
