"""A vLLM engine that can be told to misbehave: fast, deterministic, on a port or a Unix socket.

It speaks the part of the HTTP contract that routers see (docs of vLLM 0.32): answers with usage, event streams with a
usage chunk and ``[DONE]``, errors in OpenAI's shape. ``Behaviour`` says what the next answers are like. Every request
leaves a receipt, so a test can compare what ran with what was charged.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Behaviour:
    """How the engine answers. Counts are in tokens, times in seconds."""

    prompt_tokens: int = 10
    cached_tokens: int = 0
    output_tokens: int = 4
    gap_s: float = 0.0
    first_s: float = 0.0
    status: int = 200
    error: str = "The engine is currently busy"
    finish_reason: str = "stop"
    cut_after: int | None = None
    """Close the connection after this many chunks (streams) or before the answer (0)."""
    extra_headers: tuple[str, ...] = ()
    split_bytes: int = 0
    """Write streams in pieces of this size."""
    hold: asyncio.Event | None = None
    """Answer only once this is set."""
    without_usage: bool = False
    stall_after: int | None = None
    """Send nothing more after this many chunks (streams); 0: nothing after the head."""
    dies_after_head: bool = False
    """Close the connection once the head of a stream is sent."""
    padding: int = 0
    """Bytes of content in each chunk, to fill buffers."""


@dataclass
class Receipt:
    """One request as the engine saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    finished: bool = False
    aborted: bool = False


@dataclass
class FakeEngine:
    """The engine. ``plan`` holds behaviours for the next requests; then ``behaviour`` applies."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    plan: deque[Behaviour] = field(default_factory=deque)
    receipts: list[Receipt] = field(default_factory=list)
    max_model_len: int = 4096
    running: int = 0
    peak: int = 0
    connections: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, path: str = "") -> str:
        """Listen; returns the address as a configuration names it."""
        if path:
            self._server = await asyncio.start_unix_server(self._serve, path)
            return f"unix:{path}"
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET":
            await self._get(path, writer)
            return True
        receipt = Receipt(path, headers, json.loads(raw), raw)
        self.receipts.append(receipt)
        behaviour = self.plan.popleft() if self.plan else self.behaviour
        self.running += 1
        self.peak = max(self.peak, self.running)
        gone = asyncio.ensure_future(_gone(reader))
        work = asyncio.ensure_future(self._answer(receipt, behaviour, writer))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            receipt.aborted = not work.done()
            return work.done() and not gone.done() and bool(work.result())
        finally:
            self.running -= 1
            for task in (gone, work):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _get(self, path: str, writer: asyncio.StreamWriter) -> None:
        body = b"{}"
        if path == "/v1/models":
            body = json.dumps({"data": [{"id": "m", "max_model_len": self.max_model_len}]}).encode()
        writer.write(_sized(200, body))
        await writer.drain()

    async def _answer(self, receipt: Receipt, behaviour: Behaviour, writer: asyncio.StreamWriter) -> bool:
        if behaviour.hold is not None:
            await behaviour.hold.wait()
        if behaviour.first_s:
            await asyncio.sleep(behaviour.first_s)
        if behaviour.cut_after == 0:
            writer.transport.abort()
            return False
        if behaviour.status != 200:
            error = {"error": {"message": behaviour.error, "type": "T", "param": None, "code": behaviour.status}}
            writer.write(_sized(behaviour.status, json.dumps(error).encode(), behaviour.extra_headers))
        elif receipt.body.get("stream"):
            await self._stream(receipt, behaviour, writer)
        else:
            writer.write(_sized(200, json.dumps(_whole(receipt, behaviour)).encode(), behaviour.extra_headers))
        await writer.drain()
        receipt.finished = True
        return behaviour.cut_after is None

    async def _stream(self, receipt: Receipt, behaviour: Behaviour, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if behaviour.dies_after_head:
            await writer.drain()
            await asyncio.sleep(0.05)  # the head must have been read before
            writer.transport.abort()
            return
        async for event in _events(receipt, behaviour):
            data = b"%x\r\n%b\r\n" % (len(event), event)
            step = behaviour.split_bytes or len(data)
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                await writer.drain()
        if behaviour.cut_after is not None:
            writer.transport.abort()
            return
        writer.write(b"0\r\n\r\n")


async def _gone(reader: asyncio.StreamReader) -> None:
    """Ends when the peer closes: nothing is pipelined to an engine."""
    with contextlib.suppress(OSError):
        await reader.read(1)


async def _events(receipt: Receipt, behaviour: Behaviour) -> AsyncIterator[bytes]:
    count = behaviour.output_tokens if behaviour.cut_after is None else behaviour.cut_after
    text = "t" + "x" * behaviour.padding
    for index in range(count):
        if index == behaviour.stall_after:
            await asyncio.Event().wait()
        if index and behaviour.gap_s:
            await asyncio.sleep(behaviour.gap_s)
        last = index == behaviour.output_tokens - 1
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": behaviour.finish_reason if last else None}
        yield _event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
    if behaviour.cut_after is not None:
        return
    if (receipt.body.get("stream_options") or {}).get("include_usage") and not behaviour.without_usage:
        yield _event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": _usage(behaviour)})
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _usage(behaviour: Behaviour) -> dict[str, Any]:
    return {
        "prompt_tokens": behaviour.prompt_tokens,
        "completion_tokens": behaviour.output_tokens,
        "total_tokens": behaviour.prompt_tokens + behaviour.output_tokens,
        "prompt_tokens_details": {"cached_tokens": behaviour.cached_tokens},
    }


def _whole(receipt: Receipt, behaviour: Behaviour) -> dict[str, Any]:
    message = {"role": "assistant", "content": "t" + "x" * behaviour.padding}
    choice = {"index": 0, "message": message, "finish_reason": behaviour.finish_reason}
    answer = {"id": "c", "object": "chat.completion", "model": receipt.body["model"], "choices": [choice]}
    return answer if behaviour.without_usage else {**answer, "usage": _usage(behaviour)}


def _sized(status: int, body: bytes, extra: tuple[str, ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", *extra, f"content-length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
