"""The machine room: two engines and one router at a time, each pinned to its CPU, and the requests to it."""

import http.client
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.router import bodies, install, procfs
from tests.bench.router.report import number

DIRECT: Final = "direct"
_READY_S: Final = 90.0
_STOP_S: Final = 8.0
_TOKENS: Final = 24
_OK: Final = 200
_WHOLE: Final = re.compile(r"JSON (\{.*\})")


class BenchError(Exception):
    """Something without which a row cannot be measured."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPU the router has for itself, and which the engines and the load share."""

    router: int = 0
    load: int = 1


@dataclass(frozen=True, slots=True)
class Engine:
    """A running mock engine."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        """As routers take it."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> dict[str, int]:
        """Ask the engine itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            found: dict[str, int] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Target:
    """A running router, or the first engine under the name ``direct``."""

    name: str
    pid: int
    port: int
    headers: dict[str, str]

    def ask(self, content: bytes) -> tuple[int, bytes]:
        """One request on its own connection: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", bodies.PATH, content, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Stage:
    """Two engines on the load's CPU. ``folders`` hold target scripts; ``beside`` is a command to run with each row."""

    def __init__(self, work: Path, cpus: Cpus, folders: list[Path], beside: str = "") -> None:
        self.work = work
        self.cpus = cpus
        self._folders = folders
        self._beside = beside
        self._engines = [self._engine() for _ in range(2)]
        self.set(delay_us=10_000, first_us=0, whole_us=0, digest=0)

    def _engine(self) -> tuple[subprocess.Popen[bytes], Engine]:
        port = free_port()
        process = subprocess.Popen(["taskset", "-c", str(self.cpus.load), str(install.engine()), str(port)])
        _wait_for(port, process)
        return process, Engine(process.pid, port)

    @property
    def engines(self) -> list[Engine]:
        """Both engines."""
        return [engine for _, engine in self._engines]

    def set(self, **settings: int) -> None:
        """Change settings of both engines (see engine.c)."""
        for engine in self.engines:
            engine.get("/bench/set?" + "&".join(f"{name}={value}" for name, value in settings.items()))

    def requests(self) -> int:
        """How many completions both engines have taken."""
        return sum(engine.get("/bench/stats")["requests"] for engine in self.engines)

    def drained(self) -> None:
        """Wait until the engines have nothing left to do."""
        until = time.monotonic() + _STOP_S
        while time.monotonic() < until and any(engine.get("/bench/stats")["running"] for engine in self.engines):
            time.sleep(0.05)

    def close(self) -> None:
        """Stop the engines."""
        for process, _ in self._engines:
            process.terminate()
            process.wait()

    def script(self, name: str) -> Path:
        """A target's script."""
        for folder in self._folders:
            if (folder / f"{name}.sh").exists():
                return folder / f"{name}.sh"
        raise BenchError(f"no {name}.sh in {', '.join(map(str, self._folders))}")

    @contextmanager
    def running(self, name: str, environment: dict[str, str] | None = None) -> Iterator[Target]:
        """Start a target, wait until it answers, and stop it in the end."""
        if name == DIRECT:
            yield Target(name, self.engines[0].pid, self.engines[0].port, self._headers(""))
            return
        script, port = self.script(name), free_port()
        own = script.with_suffix(".headers")
        command = ["taskset", "-c", str(self.cpus.router), str(script), str(port), *(one.url for one in self.engines)]
        variables = {
            **os.environ,
            "BENCH_CACHE": str(install.folder()),
            "TMPDIR": str(self.work),
            **(environment or {}),
        }
        with (self.work / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=self.work)
        try:
            target = Target(name, process.pid, port, self._headers(own.read_text() if own.exists() else ""))
            self._wait_until_it_answers(target, process)
            yield target
        finally:
            _stop(process)

    def _headers(self, extra: str) -> dict[str, str]:
        first, second = self.engines
        return bodies.headers(extra, (first.url, second.url))

    def _wait_until_it_answers(self, target: Target, process: subprocess.Popen[bytes]) -> None:
        until, seen = time.monotonic() + _READY_S, "no connection"
        content = bodies.body(1024, 0)
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                status, answer = target.ask(content)
                if status == _OK:
                    return
                seen = f"status {status}: {answer[:200]!r}"
            time.sleep(0.1)
        log = (self.work / f"{target.name}.log").read_text(errors="replace")[-800:]
        raise BenchError(f"{target.name} does not answer ({seen}); the end of its log:\n{log}")

    def check(self, target: Target) -> None:
        """Whether answers are right: the prompt reached the engine, and all tokens came back in order."""
        self.set(digest=1, delay_us=1_000)
        try:
            for size in (1024, 1024, 65_536, 409_600):
                _check_whole(target, bodies.body(size, size))
            for size in (1024, 65_536):
                _check_stream(target, bodies.body(size, size, stream=True, tokens=_TOKENS))
        finally:
            self.set(digest=0, delay_us=10_000)

    @contextmanager
    def metered(self, target: Target, row: str) -> Iterator[procfs.Meter]:
        """Measure CPU; the command of ``--beside`` runs meanwhile."""
        command = self._beside.format(pid=target.pid, target=target.name, row=row)
        beside = (
            subprocess.Popen(shlex.split(command), stdout=sys.stderr) if command and target.name != DIRECT else None
        )
        try:
            yield procfs.Meter(target.pid, [engine.pid for engine in self.engines])
        finally:
            if beside is not None:
                beside.send_signal(signal.SIGINT)
                beside.wait()

    def wrk(self, target: Target, connections: int, seconds: float, **variables: str) -> dict[str, float]:
        """A closed loop: requests, seconds, p50_ms, p99_ms, errors (see wrk.lua for the variables)."""
        fields = dict(target.headers)
        if variables["BENCH_MODE"] == "spread":
            fields = {name: value for name, value in fields.items() if name.lower() != "authorization"}
        headers = "".join(f"{name}: {value}\n" for name, value in fields.items())
        command = [
            "taskset",
            "-c",
            str(self.cpus.load),
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
        ]
        command += ["--timeout", "30s", "-s", str(install.HERE / "wrk.lua"), f"http://127.0.0.1:{target.port}/"]
        run = subprocess.run(
            command,
            env={**os.environ, "BENCH_HEADERS": headers, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        found = _WHOLE.search(run.stdout)
        if found is None:
            raise BenchError(f"wrk: {run.stdout[-300:]} {run.stderr[-300:]}")
        figures: dict[str, float] = json.loads(found[1])
        return figures

    def bodies(self, size: int, count: int) -> str:
        """A file of different requests of one size, one a line."""
        path = self.work / f"bodies-{size}"
        if not path.exists():
            path.write_bytes(b"".join(bodies.body(size, number) + b"\n" for number in range(count)))
        return str(path)


def _check_whole(target: Target, content: bytes) -> None:
    status, answer = target.ask(content)
    if status != _OK:
        raise BenchError(f"{target.name}: status {status} to {number(len(content))} bytes: {answer[:200]!r}")
    found = json.loads(answer)
    if found["choices"][0]["message"]["content"] != bodies.digest(content) or not found["usage"]["completion_tokens"]:
        raise BenchError(f"{target.name}: the engine saw another prompt than was sent ({len(content)} bytes)")


def _check_stream(target: Target, content: bytes) -> None:
    status, answer = target.ask(content)
    if status != _OK:
        raise BenchError(f"{target.name}: status {status} to a stream: {answer[:200]!r}")
    fault = stream_fault(answer, _TOKENS)
    if fault:
        raise BenchError(f"{target.name}: {fault}")


def stream_fault(answer: bytes, tokens: int) -> str:
    """What is wrong with a whole stream of the engine that should have so many tokens; empty when nothing is."""
    events = [
        event[5:].strip() for event in answer.replace(b"\r\n", b"\n").split(b"\n\n") if event.startswith(b"data:")
    ]
    if not events or events[-1] != b"[DONE]":
        return "a stream does not end with [DONE]"
    parts = [json.loads(event) for event in events[:-1]]
    said = "".join(choice["delta"].get("content") or "" for part in parts for choice in part.get("choices", ()))
    if said != "".join(f" t{token:04d}" for token in range(tokens)):
        return f"the tokens of a stream differ: {said[:100]!r}"
    usage = [part["usage"] for part in parts if part.get("usage")]
    return "" if usage and usage[-1]["completion_tokens"] == tokens else "a stream has no usage"


def free_port() -> int:
    """A port on which nobody listens, and whose neighbours that target scripts use (+1, +1000) are free as well."""
    while True:
        port = random.randrange(20_000, 30_000)  # noqa: S311 - a port
        if all(_is_free(port + offset) for offset in (0, 1, 1000)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STOP_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise BenchError(f"the mock engine does not listen on port {port}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a target and all that it started."""
    started = procfs.tree(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    for pid in started:
        if pid != process.pid or process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
