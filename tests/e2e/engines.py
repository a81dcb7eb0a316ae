"""Real vLLM on a CPU over a Unix socket, started without a cluster."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from hack.vllm import environment

START_SECONDS = 300.0
STOP_SECONDS = 30.0
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
_ERROR = re.compile(r"(\w*(?:Error|Exception): .+)$", re.MULTILINE)


class EngineEndedError(AssertionError):
    """An engine ended before it was ready, or was not in time."""


@contextmanager
def engine(vllm: environment.Environment, folder: Path, arguments: Sequence[str]) -> Iterator[httpx.Client]:
    """A client of an engine that was started with what follows ``vllm serve``, ``--uds`` among it.

    Raises:
        EngineEndedError: it ended, or was not healthy in time.
    """
    cache = shutil.copytree(vllm.warm, folder / "cache", dirs_exist_ok=True)
    path, log = Path(next(one for one in arguments if one.startswith("--uds=")).removeprefix("--uds=")), folder / "log"
    command = [str(vllm.python), "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    settings = {**os.environ, **environment.ENGINE_SETTINGS, "VLLM_CACHE_ROOT": str(cache), "HOME": str(folder)}
    transport = httpx.HTTPTransport(uds=str(path))
    with log.open("wb") as output, httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        process = subprocess.Popen(command, env=settings, stdout=output, stderr=output, start_new_session=True)
        try:
            _await_health(process, client, path, log)
            yield client
        finally:
            _stop(process)


def errors_of(folder: Path) -> list[str]:
    """The errors in the log of the engine that was started in this folder, in their order."""
    return [one.strip() for one in _ERROR.findall((folder / "log").read_text(errors="replace"))]


def stream(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer of the model ``chat``, greedy and as long as it may be."""
    answer = client.post(path, json={"model": "chat", **STREAM, **body})
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def assert_streams_end_with_their_usage(client: httpx.Client) -> None:
    """Ask for a chat and for a completion: each ends with the tokens it used, in a chunk of its own."""
    messages = [{"role": "user", "content": "What does a token cost?"}]
    chat = stream(client, "/v1/chat/completions", messages=messages, max_tokens=24)
    plain = stream(client, "/v1/completions", prompt="A token costs", max_tokens=16)
    assert chat[0]["choices"][0]["delta"]["role"] == "assistant"
    for chunks, tokens in ((chat, 24), (plain, 16)):
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == tokens
        assert chunks[-1]["usage"]["prompt_tokens"] > 0
        assert any(chunk["choices"][0]["finish_reason"] == "length" for chunk in chunks[:-1])


def _await_health(process: "subprocess.Popen[bytes]", client: httpx.Client, path: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _listens(path) and client.get("/health", timeout=10).status_code == 200:
            return
        time.sleep(0.1)
    raise EngineEndedError(log.read_text(errors="replace")[-4000:])


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
