"""An engine that computes nothing and takes the time that a real one would: vLLM's scheduling, a formula for each step.

usage: python -m tests.bench.isolation.engine PORT CAP    (CAP: --long-prefill-token-threshold, 0 = none)

It speaks OpenAI's chat completions as a stream, in real time, and reads prompts of any size whole. The step time is
that of Llama-3.1-70B in FP8 on four H100. Left out: prefix caching (no two prompts begin alike), attention's own share
of a long prefill's compute, which would make long prompts slower still, and preemption (a request waits until the KV
cache has room for all of it).
"""

import asyncio
import contextlib
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import uvloop

BYTES_PER_TOKEN: Final = 4
_CHIPS: Final = 4
_BYTES_PER_S: Final = _CHIPS * 3.35e12 * 0.97
_FLOPS: Final = _CHIPS * 1978e12 * 0.62
_WEIGHTS: Final = 70.6e9
_KV_BYTES: Final = 163_840
FIXED_S: Final = 6.2e-3 + _WEIGHTS / _BYTES_PER_S
CONTEXT_TOKEN_S: Final = _KV_BYTES / _BYTES_PER_S
TOKEN_S: Final = 2 * _WEIGHTS / _FLOPS
KV_TOKENS: Final = int((_CHIPS * 80e9 * 0.9 - 84.6e9) / _KV_BYTES)
BUDGET: Final = 2048
SEQUENCES: Final = 256


class Sink(Protocol):
    """Where a sequence's tokens go."""

    def token(self, *, last: bool) -> None:
        """One more output token."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request: tokens to read and to write, and how far it is."""

    prompt: int
    output: int
    sink: Sink
    read: int = 0
    written: int = 0

    @property
    def wanted(self) -> int:
        """Tokens that it could have computed now."""
        return self.prompt - self.read or 1


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model: how long it takes, and the tokens of each sequence."""

    seconds: float
    parts: tuple[tuple[Sequence, int], ...]

    def end(self) -> list[Sequence]:
        """Count the tokens and hand out what was written; those that are now done."""
        for sequence, tokens in self.parts:
            if sequence.read < sequence.prompt:
                sequence.read += tokens
                if sequence.read < sequence.prompt:
                    continue
            sequence.written += 1
            sequence.sink.token(last=sequence.written == sequence.output)
        return [sequence for sequence, _ in self.parts if sequence.written == sequence.output]


@dataclass(slots=True)
class Scheduler:
    """vLLM's: those that run come first, in their order, then those that wait, until the step's tokens are used up."""

    cap: int = 0
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)

    def step(self) -> Step | None:
        """The next step; ``None`` with nothing to do."""
        cap = self.cap if len(self.running) + len(self.waiting) > 1 else 0
        left, parts = BUDGET, []
        for sequence in self.running:
            if tokens := min(sequence.wanted, cap or BUDGET, left):
                parts.append((sequence, tokens))
                left -= tokens
        while self.waiting and left and self._fits(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            tokens = min(sequence.wanted, cap or BUDGET, left)
            parts.append((sequence, tokens))
            left -= tokens
        return Step(_seconds(parts), tuple(parts)) if parts else None

    def finish(self, step: Step) -> None:
        """Take those away that are done."""
        done = step.end()
        if done:
            self.running = [sequence for sequence in self.running if sequence not in done]

    def _fits(self, sequence: Sequence) -> bool:
        held = sum(one.prompt + one.output for one in self.running)
        return len(self.running) < SEQUENCES and held + sequence.prompt + sequence.output <= KV_TOKENS


def _seconds(parts: list[tuple[Sequence, int]]) -> float:
    context = sum(one.prompt + one.written for one, _ in parts if one.read == one.prompt)
    return FIXED_S + CONTEXT_TOKEN_S * context + TOKEN_S * sum(tokens for _, tokens in parts)


class Stream:
    """One answer, written as server-sent events."""

    def __init__(self, writer: asyncio.StreamWriter, prompt: int) -> None:
        self._writer = writer
        self._prompt = prompt
        self._written = 0
        self.done = asyncio.Event()

    def token(self, *, last: bool) -> None:
        """Send a token, and after the last one usage and the end."""
        if not self._written:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self._writer.write(head)
        self._written += 1
        self._send(
            {"choices": [{"index": 0, "delta": {"content": " so"}, "finish_reason": "length" if last else None}]}
        )
        if last:
            total = self._prompt + self._written
            usage = {"prompt_tokens": self._prompt, "completion_tokens": self._written, "total_tokens": total}
            self._send({"choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self._writer.write(b"0\r\n\r\n")
            self.done.set()

    def _send(self, members: dict[str, Any]) -> None:
        event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "chat"} | members
        self._chunk(b"data: %b\n\n" % msgspec.json.encode(event))

    def _chunk(self, text: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(text), text))


class Engine:
    """Runs the scheduler's steps in real time."""

    def __init__(self, cap: int) -> None:
        self._scheduler = Scheduler(cap)
        self._work = asyncio.Event()
        self.late: list[float] = []
        """How much later than due each step ended, because this machine was busy."""

    async def run(self) -> None:
        """Steps, one after another, until cancelled."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            step = self._scheduler.step()
            if step is None:
                self._work.clear()
                await self._work.wait()
                at = loop.time()
                continue
            at += step.seconds
            await asyncio.sleep(at - loop.time())
            self.late.append(loop.time() - at)
            self._scheduler.finish(step)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request at a time."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    _whole(writer, msgspec.json.encode({"late_p99_ms": _p99_ms(self.late)}))
                    continue
                await self._complete(await reader.readexactly(_length(head)), writer)
        writer.close()

    async def _complete(self, raw: bytes, writer: asyncio.StreamWriter) -> None:
        body = msgspec.json.decode(raw)
        prompt = max(1, sum(len(message["content"]) for message in body["messages"]) // BYTES_PER_TOKEN)
        stream = Stream(writer, prompt)
        self._scheduler.waiting.append(Sequence(prompt, body["max_tokens"], stream))
        self._work.set()
        await stream.done.wait()


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])


def _whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def _p99_ms(values: list[float]) -> float:
    return round(1000 * sorted(values)[int(0.99 * len(values))], 1) if values else 0.0


async def main(port: int, cap: int) -> None:
    """Serve until killed."""
    engine = Engine(cap)
    await asyncio.start_server(engine.serve, "127.0.0.1", port)
    await engine.run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
