"""``make bench-router``: requests a second and CPU for each request, through the router and straight to the engine.

Two mock engines and the load share the machine with the router, so requests a second say little on few cores; the
router's CPU time for each request is what to compare. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement."""

    target: str
    kind: str
    requests_per_s: float
    cpu_us_per_request: float
    p50_ms: float
    p99_ms: float
    errors: int


class Engine(asyncio.Protocol):
    """A mock engine: answers every request with the same bytes as soon as it is whole."""

    def __init__(self, chunks: int) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._whole = _whole_answer()
        self._stream = _stream_answer(chunks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            at = self._buffer.lower().find(b"content-length: ", 0, end)
            length = int(self._buffer[at + 16 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
            whole = end + 4 + length
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[:whole], self._buffer[whole:]
            if self._transport is not None:
                self._transport.write(self._stream if b'"stream":true' in body else self._whole)


def _whole_answer() -> bytes:
    body = json.dumps({
        "id": "c", "object": "chat.completion", "model": "mock-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "t" * 400}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 250, "completion_tokens": 100, "total_tokens": 350},
    }).encode()  # fmt: skip
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _stream_answer(chunks: int) -> bytes:
    choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "mock-model", "choices": [choice]}
    usage = {"prompt_tokens": 250, "completion_tokens": chunks, "total_tokens": 250 + chunks}
    events = [chunk] * chunks + [{**chunk, "choices": [], "usage": usage}]
    lines = [b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events]
    out = [b"%x\r\n%b\r\n" % (len(line), line) for line in (*lines, b"data: [DONE]\n\n")]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(out) + b"0\r\n\r\n"


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, load: "Load") -> None:
        self._request = request
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count what is whole."""
        self._buffer += data
        if not _is_whole(self._buffer):
            return
        self._load.latencies.append(time.perf_counter() - self._sent_at)
        self._load.errors += not self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        self._ask()

    def _ask(self) -> None:
        if self._transport is not None and not self._load.over:
            self._sent_at = time.perf_counter()
            self._transport.write(self._request)


def _is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = answer.find(b"content-length: ", 0, end)
    if at < 0:
        return answer.endswith(b"\r\n0\r\n\r\n")
    return len(answer) >= end + 4 + int(answer[at + 16 : answer.find(b"\r\n", at)])


class Load:
    """What all callers of one measurement count."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.errors = 0
        self.over = False


def request_bytes(kind: str) -> bytes:
    """A request of 1 KB."""
    member = ',"stream":true' if kind == "stream" else ""
    text = "x" * 900
    body = f'{{"model":"mock-model","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":128{member}}}'
    token = (HERE / "fairlead.headers").read_text().strip()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n{token}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def load(port: int, kind: str, seconds: float, connections: int) -> Load:
    """Keep ``connections`` requests in flight for a while."""
    found, loop = Load(), asyncio.get_running_loop()
    request = request_bytes(kind)
    transports = [
        (await loop.create_connection(lambda: Caller(request, found), "127.0.0.1", port))[0] for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    found.over = True
    for transport in transports:
        transport.close()
    return found


def cpu_s(pid: int) -> float:
    """CPU time that a process used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(target: str, kind: str, port: int, pid: int, options: argparse.Namespace) -> Result:
    """Warm up, then measure."""
    uvloop.run(load(port, kind, 0.5, options.connections))
    before, started = cpu_s(pid), time.perf_counter()
    found = uvloop.run(load(port, kind, options.seconds, options.connections))
    took, used = time.perf_counter() - started, cpu_s(pid) - before
    count = max(1, len(found.latencies))
    ordered = sorted(found.latencies) or [0.0]
    return Result(
        target=target,
        kind=kind,
        requests_per_s=round(count / took, 1),
        cpu_us_per_request=round(used / count * 1e6, 1),
        p50_ms=round(ordered[count // 2] * 1000, 2),
        p99_ms=round(ordered[int(count * 0.99)] * 1000, 2),
        errors=found.errors,
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(stack: ExitStack, *command: str, port: int) -> int:
    """Start a process that will listen on a port, wait for it, and stop it in the end; its pid."""
    process = stack.enter_context(subprocess.Popen(command))
    stack.callback(process.send_signal, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process.pid
        time.sleep(0.02)
    sys.exit(f"{command[0]} did not listen on port {port} within 10s")


async def serve_engine(port: int, chunks: int) -> None:
    """The mock engine's process."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Engine(chunks), "127.0.0.1", port, backlog=1024)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.close()


def bench(options: argparse.Namespace) -> list[Result]:
    """Both targets, both kinds."""
    with ExitStack() as stack:
        engines = [free_port(), free_port()]
        pids = [
            started(stack, sys.executable, __file__, "--engine", str(port), "--chunks", str(options.chunks), port=port)
            for port in engines
        ]
        port = free_port()
        urls = [f"http://127.0.0.1:{engine}" for engine in engines]
        router = started(stack, str(HERE / "fairlead.sh"), str(port), *urls, port=port)
        targets = (("direct", engines[0], pids[0]), ("fairlead", port, router))
        return [measure(name, kind, at, pid, options) for kind in ("whole", "stream") for name, at, pid in targets]


def main() -> None:
    """Run as the bench, or as one of its mock engines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=64, help="of a stream")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        uvloop.run(serve_engine(options.engine, options.chunks))
        return
    results = bench(options)
    for result in results:
        sys.stdout.write(
            f"{result.target:9} {result.kind:7} {result.requests_per_s:9.0f} requests/s  "
            f"{result.cpu_us_per_request:7.1f} µs of CPU  p50 {result.p50_ms:6.2f} ms  p99 {result.p99_ms:6.2f} ms  "
            f"errors {result.errors}\n"
        )
    sys.stdout.write(json.dumps([asdict(result) for result in results]) + "\n")


if __name__ == "__main__":
    main()
