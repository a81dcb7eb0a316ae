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

WARM_UP = "fairlead-warm-up"
"""Id of the request by which a router finds out whether its engine is sane; it leaves no receipt."""


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
    served: str = ""
    """Its name for its model. With one, other models than that and the adapters are unknown to it."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Adapters that are loaded: paths by name."""
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Adapters' paths that cannot be loaded: status and words."""
    lora_calls: list[tuple[str, str]] = field(default_factory=list)
    """Adapters that were loaded (``load``) and unloaded (``unload``), or were to be: what and name."""
    health: int = 200
    health_held: asyncio.Event | None = None
    """Its health is told only once this is set."""
    warm_up: deque[tuple[int, bytes]] = field(default_factory=deque)
    """Answers to the next warm-ups; then they are sane."""
    warm_ups: list[dict[str, Any]] = field(default_factory=list)
    warm_up_held: asyncio.Event | None = None
    """Warm-ups are answered only once this is set."""
    asked: list[str] = field(default_factory=list)
    """Paths of GET."""
    unknown: int = 0
    """Requests for a model that it does not have."""
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
        own = self._own(path, headers, json.loads(raw))
        if own is not None:
            if self.warm_up_held is not None and headers.get("x-request-id") == WARM_UP:
                await self.warm_up_held.wait()
            writer.write(_sized(*own))
            await writer.drain()
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
        self.asked.append(path)
        status, body = 200, b"{}"
        if path == "/v1/models":
            body = json.dumps({"object": "list", "data": self._models()}).encode()
        elif path == "/health":
            if self.health_held is not None:
                await self.health_held.wait()
            status = self.health
        writer.write(_sized(status, body))
        await writer.drain()

    def _models(self) -> list[dict[str, Any]]:
        name = self.served or "m"
        bare = {"id": name, "root": f"/models/{name}", "parent": None, "max_model_len": self.max_model_len}
        loaded = [
            {"id": one, "root": path, "parent": name, "max_model_len": None} for one, path in self.adapters.items()
        ]
        return [bare, *loaded]

    def _own(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes] | None:
        """Status and body for what is nobody's request: warm-ups, adapters; and for unknown models."""
        if headers.get("x-request-id") == WARM_UP:
            self.warm_ups.append({"path": path, **body})
            return self.warm_up.popleft() if self.warm_up else (200, json.dumps(SANE).encode())
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            return self._unload(body["lora_name"])
        model = body.get("model")
        if self.served and model != self.served and model not in self.adapters:
            self.unknown += 1
            return _error(404, f"The model `{model}` does not exist. Valid aliases: {self.served}.", "NotFoundError")
        return None

    def _load(self, name: str, path: str) -> tuple[int, bytes]:
        self.lora_calls.append(("load", name))
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if path in self.broken:
            return _error(*self.broken[path], "InternalServerError")
        self.adapters[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()

    def _unload(self, name: str) -> tuple[int, bytes]:
        self.lora_calls.append(("unload", name))
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return 200, f"Success: LoRA adapter '{name}' removed successfully.".encode()

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


SANE = {
    "object": "text_completion",
    "choices": [{"index": 0, "text": " Paris, of", "finish_reason": "length", "token_ids": [12, 7, 9, 44]}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
}
"""A sane answer to a warm-up."""


def _error(status: int, message: str, kind: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()


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
