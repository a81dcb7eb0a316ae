"""The access log: one JSON line for each request that is logged. Off unless a share is set.

A share of all requests is logged, and besides that those answered with 429 or 5xx, at most ten a second of them. The
share is taken by the trace id, as OpenTelemetry does, so that every router logs the same requests as the traces show.
No prompt, answer, key or token enters a line.

Lines are written by a thread: a reader that stops reading stops nobody else, and costs the lines beyond a bound.
"""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Thread
from typing import Final

import msgspec

from fairlead_router.answers import usd

FLUSH_S: Final = 0.5
FLUSH_BYTES: Final = 64 * 1024
MAX_PENDING: Final = 1024 * 1024
MAX_TEXT: Final = 256
"""What a client may write, such as a model's name, is cut to so many characters."""
ERRORS_PER_S: Final = 10
_TRACE_SHARE_AT: Final = 16
_TRACE_VALUES: Final = 1 << 64
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


class Record(msgspec.Struct, kw_only=True):
    """A request that ended. Times are seconds; ``None`` is what did not happen. ``trace_id`` is 32 hex digits or empty.

    ``nano_usd`` is None when the request has no price. ``prompt`` counts all prompt tokens, cached or not.
    """

    request: str
    path: str = ""
    tenant: str = ""
    caller: str = ""
    feature: str = ""
    model: str = ""
    pool: str = ""
    replica: str = ""
    route: str = ""
    priority: str = ""
    actions: tuple[str, ...] = ()
    """What budgets did about it: Deprioritize, Downgrade."""
    outcome: str = ""
    status: int = 0
    stream: bool = False
    prompt: int = 0
    cached: int = 0
    output: int = 0
    nano_usd: int | None = None
    router_s: float | None = None
    queue_s: float | None = None
    connect_s: float | None = None
    engine_s: float | None = None
    stream_s: float | None = None
    ttft_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: bytes = b""


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line as it is written. What a request did not have is left out."""

    ts: str
    level: str
    event: str
    request: str
    outcome: str
    status: int
    path: str = ""
    tenant: str = ""
    caller: str = ""
    feature: str = ""
    model: str = ""
    pool: str = ""
    replica: str = ""
    route: str = ""
    priority: str = ""
    actions: tuple[str, ...] = ()
    stream: bool = False
    prompt: int = 0
    cached: int = 0
    output: int = 0
    usd: str = ""
    router_ms: float | None = None
    queue_ms: float | None = None
    connect_ms: float | None = None
    engine_ms: float | None = None
    stream_ms: float | None = None
    ttft_ms: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    trace_id: str = ""


_encoder: Final = msgspec.json.Encoder()


def line(record: Record, at_s: float) -> bytes:
    """The line of a request that ended at this time (seconds since the epoch)."""
    moment = datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
    return _encoder.encode(_Line(
        ts=moment.replace("+00:00", "Z"), level="info", event="Request",
        request=record.request, outcome=record.outcome, status=record.status, path=record.path[:MAX_TEXT],
        tenant=record.tenant, caller=record.caller[:MAX_TEXT], feature=record.feature[:MAX_TEXT],
        model=record.model[:MAX_TEXT], pool=record.pool, replica=record.replica, route=record.route,
        priority=record.priority, actions=record.actions, stream=record.stream,
        prompt=record.prompt, cached=record.cached, output=record.output,
        usd="" if record.nano_usd is None else usd(record.nano_usd),
        router_ms=_ms(record.router_s), queue_ms=_ms(record.queue_s), connect_ms=_ms(record.connect_s),
        engine_ms=_ms(record.engine_s), stream_ms=_ms(record.stream_s), ttft_ms=_ms(record.ttft_s),
        bytes_in=record.bytes_in, bytes_out=record.bytes_out, trace_id=record.trace_id.decode("ascii", "replace"),
    )) + b"\n"  # fmt: skip


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def read_share(text: str) -> float:
    """A share of the requests, 0 to 1; empty is 0.

    Raises:
        ValueError: the text is something else.
    """
    try:
        share = float(text or "0")
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not a share: write a number from 0 (off) to 1 (every request)")
    return share


class Sampler:
    """Which requests belong to a share of all."""

    __slots__ = ("_bound", "_rest", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._bound = round(share * _TRACE_VALUES)
        self._rest = 0.0

    def takes(self, trace_id: bytes) -> bool:
        """By the low 64 bits of the trace id (32 hex digits); without one, or with what is none, evenly spaced."""
        if trace_id:
            try:
                return int(trace_id[_TRACE_SHARE_AT:], 16) < self._bound
            except ValueError:
                pass
        self._rest += self.share
        if self._rest < 1:
            return False
        self._rest -= 1
        return True


class AccessLog:
    """Writes lines to a file descriptor. Belongs to one event loop; ``dropped`` counts the lines that were lost."""

    def __init__(
        self,
        share: float,
        loop: asyncio.AbstractEventLoop,
        descriptor: int = 1,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._sampler = Sampler(share)
        self._loop = loop
        self._now = now
        self._wall = wall
        self._errors = float(ERRORS_PER_S)
        self._errors_at = now()
        self._pending: list[bytes] = []
        self._size = 0
        self._handed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._queue: SimpleQueue[list[bytes] | None] = SimpleQueue()
        # A daemon: a reader that never reads again must not keep the process from ending.
        Thread(target=self._write_all, args=(descriptor,), name="access-log", daemon=True).start()

    def wanted(self, trace_id: bytes, status: int) -> bool:
        """Whether to log a request that was answered so; ``trace_id`` is 32 hex digits, or empty. Ask once for each."""
        if self._sampler.takes(trace_id):
            return True
        return (status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS) and self._may_log_error()

    def write(self, record: Record) -> None:
        """Log a request. Never waits."""
        text = line(record, self._wall())
        if self._size + len(text) > MAX_PENDING:
            self.dropped += 1
            return
        self._pending.append(text)
        self._size += len(text)
        if self._size >= FLUSH_BYTES:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self._flush)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, and end the thread; what a reader does not take in time is lost and counted."""
        self._flush()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._idle.is_set():
                    await self._idle.wait()
        except TimeoutError:
            self.dropped += self._handed + len(self._pending)
            self._pending = []
        if self._timer is not None:
            self._timer.cancel()
        self._queue.put(None)

    def _may_log_error(self) -> bool:
        now = self._now()
        self._errors = min(ERRORS_PER_S, self._errors + (now - self._errors_at) * ERRORS_PER_S)
        self._errors_at = now
        if self._errors < 1:
            return False
        self._errors -= 1
        return True

    def _flush(self) -> None:
        """Hand over what is pending, unless the thread still writes: it asks again when it is done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending and self._idle.is_set():
            self._idle.clear()
            self._queue.put(self._pending)
            self._handed = len(self._pending)
            self._pending, self._size = [], 0

    def _written(self, lost: int) -> None:
        self.dropped += lost
        self._idle.set()
        self._flush()

    def _write_all(self, descriptor: int) -> None:
        """The thread: one batch at a time."""
        while (lines := self._queue.get()) is not None:
            lost = _write(descriptor, lines)
            try:
                self._loop.call_soon_threadsafe(self._written, lost)
            except RuntimeError:
                return  # the loop is closed


def _write(descriptor: int, lines: list[bytes]) -> int:
    """Write lines, however long it takes; the number of those that could not be."""
    rest = memoryview(b"".join(lines))
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        return bytes(rest).count(b"\n")
    return 0
