"""The load: callers on raw sockets (uvloop), and wrk for closed loops. Times are seconds; reports are milliseconds."""

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_FRAME: Final = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
EVENT: Final = b"data: {"
_CUT: Final = len(EVENT) - 1
_TAIL: Final = 64
_ANSWER_S: Final = 20.0


@dataclass(slots=True)
class Record:
    """What was seen in the window [since, until): of requests sent in it, and of chunks that came in it."""

    since: float
    until: float
    totals: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    chunks: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def covers(self, when: float) -> bool:
        """Whether a time counts."""
        return self.since <= when < self.until


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies, in milliseconds of seconds given; 0 of none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 4) if ordered else 0.0


class Caller(asyncio.Protocol):
    """One connection with one request at a time. ``done`` is called after each answer, with the caller."""

    def __init__(self, record: Record, done: Callable[["Caller"], None]) -> None:
        self._record = record
        self._done = done
        self._busy = False
        self.usable = True
        """Whether another request may be sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, *, stream: bool) -> None:
        """Send a whole request."""
        self._stream, self._busy = stream, True
        self._head, self._tail, self._left = b"", b"", -1
        self._in_head, self._status = True, 0
        self._sent_at, self._token_at, self._first_at = time.perf_counter(), 0.0, 0.0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count, and find the end of the answer."""
        now = time.perf_counter()
        if not self._busy:
            return
        if self._in_head:
            data = self._read_head(data)
            if self._in_head:
                return
        if self._stream and data:
            self._count(data, now)
        self._tail = data[-_TAIL:] if len(data) >= _TAIL else (self._tail + data)[-_TAIL:]
        if self._left >= 0:
            self._left -= len(data)
        if self._left == 0 or (self._left < 0 and self._tail.endswith(b"0\r\n\r\n")):
            self._finish(now, "")

    def _read_head(self, data: bytes) -> bytes:
        """Take the head off; the rest is body."""
        head, end, rest = (self._head + data).partition(b"\r\n\r\n")
        if not end:
            self._head = head
            return b""
        self._status, self._in_head = int(head[9:12]), False
        self.usable = CLOSES.search(head) is None
        length = LENGTH.search(head)
        self._left = int(length[1]) if length else -1
        return rest

    def _count(self, data: bytes, now: float) -> None:
        """Count the events that begin in what came, also one whose beginning was cut."""
        found = data.count(EVENT) + (self._tail[-_CUT:] + data[:_CUT]).count(EVENT)
        if found and self._record.covers(now):
            self._record.chunks += found
            if self._first_at:
                self._record.gaps.append(now - self._token_at)
        if found and self._first_at:
            self._token_at = now
        elif not self._first_at and b" t0000" in self._tail + data:  # the first event carries the role only
            self._first_at = self._token_at = now

    def _finish(self, now: float, error: str) -> None:
        self._busy = False
        error = error or self._fault()
        if self._record.covers(self._sent_at):
            if error:
                self._record.errors[error] += 1
            else:
                self._record.totals.append(now - self._sent_at)
                self._record.firsts.append(self._first_at - self._sent_at)
        if error or not self.usable:
            self.usable = False
            self.transport.abort()
        self._done(self)

    def _fault(self) -> str:
        if self._status != 200:
            return f"status {self._status}"
        # A proxy may cut its HTTP chunks anywhere, also within the word.
        if self._stream and b"[DONE]" not in _FRAME.sub(b"", self._tail):
            return "no [DONE]"
        return "" if self._first_at or not self._stream else "no token"

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer is missing, or the connection was idle."""
        self.usable = False
        if self._busy:
            self._finish(time.perf_counter(), f"connection lost: {exc}" if exc else "connection closed")


async def connect(port: int, record: Record, done: Callable[[Caller], None]) -> Caller:
    """Open a connection."""
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(lambda: Caller(record, done), "127.0.0.1", port))[1]


class Streams:
    """A number of streams at all times: whoever is answered asks again."""

    def __init__(self, port: int, request: bytes, record: Record) -> None:
        self._port = port
        self._request = request
        self._record = record
        self._active = 0
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, count: int, spread_s: float) -> None:
        """Begin with ``count`` streams, spread over a while."""
        begun = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(begun + spread_s * number / count - time.perf_counter())
            self._begin()

    def _begin(self) -> None:
        """Open one more connection and ask."""
        self._active += 1
        task = asyncio.ensure_future(self._open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            (await connect(self._port, self._record, self._again)).send(self._request, stream=True)
        except OSError as error:
            self._record.errors[f"connect: {error}"] += 1
            self._active -= 1

    def _again(self, caller: Caller) -> None:
        if self._over:
            self._active -= 1
            caller.transport.abort()
        elif caller.usable:
            caller.send(self._request, stream=True)
        else:
            self._active -= 1
            self._begin()

    async def end(self, within_s: float) -> None:
        """Let what runs come to its end; what does not is an error."""
        self._over = True
        until = time.perf_counter() + within_s
        while self._active and time.perf_counter() < until:  # noqa: ASYNC110 - no event on the callers' way
            await asyncio.sleep(0.05)
        if self._active:
            self._record.errors["unanswered"] += self._active


class Timetable:
    """Sends requests to one port when it is told to, whatever the answers do, on as many connections as that needs."""

    def __init__(self, port: int, requests: list[bytes], record: Record) -> None:
        self._port = port
        self._requests = deque(requests)
        self._record = record
        self._idle: list[Caller] = []
        self.waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self) -> None:
        """Send the next request now."""
        self.waiting += 1
        self._requests.rotate(-1)
        while self._idle:
            caller = self._idle.pop()
            if caller.usable:
                caller.send(self._requests[0], stream=False)
                return
        task = asyncio.ensure_future(self._open())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            (await connect(self._port, self._record, self._answered)).send(self._requests[0], stream=False)
        except OSError as error:
            self._record.errors[f"connect: {error}"] += 1
            self.waiting -= 1

    def _answered(self, caller: Caller) -> None:
        self.waiting -= 1
        if caller.usable:
            self._idle.append(caller)


async def timetable(tables: list[Timetable], rate: float, until: float) -> list[float]:
    """Send to each of the tables at a rate, in turn, so that what disturbs one disturbs the other; the lateness."""
    late, due = [], time.perf_counter()
    while due < until:
        for table in tables:
            due += 1 / rate / len(tables)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(time.perf_counter() - due)
            table.send()
    end = time.perf_counter() + _ANSWER_S
    while any(table.waiting for table in tables) and time.perf_counter() < end:  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.05)
    return late
