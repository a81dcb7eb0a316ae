"""Connections to endpoints: keep-alive pools over TCP and Unix sockets, for requests and for the router's own calls.

A connection carries one exchange at a time. Idle ones are used again for less than the 5 s after which vLLM closes
them, the latest first. Answers are decoded, not interpreted: a sink gets the head, the body's bytes and the end.

An answer whose head repeats one that came before, but for its length and its date, is recognised without parsing; the
chunks of a stream pass with their framing. See heads.py and frames.py. Whatever does not fit exactly is parsed.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, cast

import httptools

from fairlead_router.frames import FramingError, cut, single
from fairlead_router.heads import Template, template
from fairlead_router.outbox import LARGEST, Outbox
from fairlead_router.structs import Frozen

log = logging.getLogger(__name__)

IDLE_S: Final = 4.0
CONNECT_TIMEOUT_S: Final = 2.0
MAX_HEAD: Final = 64 * 1024
MAX_CONTROL_BODY: Final = 64 * 1024 * 1024
_SERVER_ERROR: Final = 500
_FIRST_FINAL_STATUS: Final = 200
_OK, _BAD_REQUEST, _BEYOND = 200, 400, 600
_DATE: Final = b"date"
LOAD: Final = b"x-fairlead-load"
"""A header in which a pool's router says how busy its engine is."""
_LENGTH: Final = b"content-length"
_CHANGING: Final = frozenset({_LENGTH, _DATE, LOAD})
_PLAIN: Final = re.compile(rb"[ -~]{0,64}")
_AS_IF: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


Buffer = bytes | memoryview


class Target(Frozen, frozen=True):
    """Where an endpoint listens: a Unix socket's path, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


def target_of(address: str, port: int = 8000) -> Target:
    """An endpoint's address: an IP, ``host:port``, or ``unix:/path``."""
    if address.startswith("unix:"):
        return Target(path=address.removeprefix("unix:"))
    host, colon, given = address.rpartition(":")
    if colon and given.isdigit() and ":" not in host.strip("[]"):
        return Target(host=host, port=int(given))
    if colon and host.startswith("["):
        return Target(host=host.strip("[]"), port=int(given))
    return Target(host=address.strip("[]"), port=port)


class Head:
    """The head of an answer, shared by the answers that repeat it. ``length``: of a sized body, else ``None``."""

    __slots__ = ("chunked", "events", "headers", "length", "passed", "status")

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.status = status
        self.headers = headers
        length = self.get(b"content-length")
        self.length = int(length) if length else None
        self.chunked = bool(self.get(b"transfer-encoding"))
        self.events = self.get(b"content-type").startswith(b"text/event-stream")
        self.passed: bytes | None = None
        """The lines that are a client's business, once somebody has put them together."""

    def broken(self) -> str:
        """What keeps this from being an answer of an inference API; empty if nothing does."""
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            return "answered with a transfer-encoding other than chunked"
        if self.status != _OK and not _BAD_REQUEST <= self.status < _BEYOND:
            return f"answered {self.status}, which is neither 200 nor an error"
        return ""

    def get(self, name: bytes) -> bytes:
        """A header's value, by its lower-case name; empty if absent."""
        return next((value for key, value in self.headers if key == name), b"")


class Known:
    """A head that an endpoint repeats, and the date that it came with last."""

    __slots__ = ("date", "date_at", "head", "load_at", "template")

    def __init__(self, found: Template, head: Head) -> None:
        self.template = found
        self.head = head
        self.date_at = found.names.index(_DATE) if _DATE in found.names else -1
        self.load_at = found.names.index(LOAD) if LOAD in found.names else -1
        self.date = head.get(_DATE)

    def at(self, values: list[bytes]) -> Head | None:
        """The head with these values; the length is the caller's business. Nothing for a date that is no plain text."""
        if self.date_at >= 0 and values[self.date_at] != self.date:
            if _PLAIN.fullmatch(values[self.date_at]) is None:
                return None
            self.date = values[self.date_at]
            headers = tuple((name, self.date if name == _DATE else value) for name, value in self.head.headers)
            self.head = Head(self.head.status, headers)
        return self.head


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an endpoint may be silent, in seconds: before an answer's first byte, and between its bytes."""

    first_s: float = 600.0
    between_s: float = 300.0


class Sink(Protocol):
    """Who gets an answer. After ``upstream_whole``, ``upstream_end`` or ``upstream_failed`` nothing more comes."""

    def upstream_load(self, load: bytes) -> None:
        """What the endpoint says about its load; comes before the head, if at all."""

    def upstream_whole(self, head: Head, body: bytes) -> None:
        """The answer came at once: head, body and end."""

    def upstream_head(self, head: Head) -> None:
        """The head is complete."""

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the body, without framing."""

    def upstream_frames(self, frames: bytes) -> None:
        """Bytes of the body of an event stream, as whole chunks of which each ends with an event."""

    def upstream_end(self) -> None:
        """The answer is complete."""

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        """The answer will not be complete.

        ``stale``: a kept connection had died before a byte came back. ``late``: nothing came for too long.
        """


class Call:
    """One exchange under way. Its sink lets go of it when the answer is over."""

    took = 0.0
    """Seconds that making the connection took; 0 for one that was there."""

    def abort(self) -> None:
        """Break off: the connection is closed at once, so that the engine stops working on it."""
        raise NotImplementedError

    def pause(self) -> None:
        """The receiver is slow: stop reading."""
        raise NotImplementedError

    def resume(self) -> None:
        """Read on."""
        raise NotImplementedError


class Dial(Call):
    """A call whose connection is still being made."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._paused = False
        self._dead = False
        self.task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Break off."""
        self._dead = True
        if self.task is not None:
            self.task.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """Stop reading, or do not begin."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def attach(self, connection: "Connection") -> bool:
        """A connection is there; false if nobody wants it any more."""
        self.task = None
        if self._dead:
            return False
        self._connection = connection
        return True

    def settle(self) -> None:
        """The request was sent: hold back what the receiver does not want yet."""
        if self._paused and self._connection is not None:
            self._connection.pause()


class _Mode(Enum):
    """How the bytes of an answer are read."""

    HEAD = auto()
    SIZED = auto()
    """The rest of a body of known length."""
    FRAMES = auto()
    PARSER = auto()


class Connection(Call):
    """One connection to an endpoint."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sink: Sink | None = None
        self._mode = _Mode.HEAD
        self._used_before = False
        self._untouched = True
        self._missing = 0
        self._rest = b""
        self._first = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._parts: list[bytes] = []
        self._head_pending = False
        self._in_body = False
        self._complete = False
        self._close_delimited = False
        self._surplus = False
        self._ended = False
        self._keep = False
        self._flowing = False
        self._paused = False
        self._heard = False
        self._heard_at = 0.0
        self.idle_since = 0.0

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """The endpoint takes a request slowly; it is held whole, so there is nothing to hold back."""

    def resume_writing(self) -> None:
        """It has caught up."""

    def data_received(self, data: bytes) -> None:
        """Decode what came and pass it on."""
        sink = self._sink
        if sink is None:
            self.abort()  # an endpoint that speaks unasked is not to be trusted with a request
            return
        self._heard = True
        if self._untouched:
            self._untouched = False
            if self._repeated(sink, data):
                return
            self._mode = _Mode.PARSER
            self._first = data
        mode = self._mode
        if mode is _Mode.FRAMES:
            self._frames(sink, data)
        elif mode is _Mode.SIZED:
            self._sized(sink, data)
        else:
            self._parse(sink, data)

    def eof_received(self) -> bool:
        """Let the transport close; connection_lost tells what it means."""
        self._ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of an answer without a length, or a failure."""
        self._transport = None
        self._pool.lost(self)
        if self._sink is not None:
            if exc is None and self._ended and self._close_delimited:
                self._complete = True
                self._deliver(self._sink)
            else:
                self._fail("closed the connection before the answer was complete")
        self._parser = None  # it refers to this connection, see plan.py about cycles

    # --- heads that repeat ---

    def _repeated(self, sink: Sink, data: bytes) -> bool:
        """An answer with a head that came before; false if it is another."""
        return self._known(self._pool.sized, sink, data) or self._known(self._pool.chunked, sink, data)

    def _known(self, known: Known | None, sink: Sink, data: bytes) -> bool:
        if known is None:
            return False
        cuts = known.template
        found = cuts.match(data)
        if found is None:
            return False
        values, begin = found
        head = known.at(values)
        if head is None:
            return False
        if known.load_at >= 0:
            sink.upstream_load(values[known.load_at])
        if cuts.sized:
            self._begin_sized(sink, head, data[begin:], cuts.length)
        else:
            self._begin_frames(sink, head, data[begin:])
        return True

    def _begin_sized(self, sink: Sink, head: Head, body: bytes, length: int) -> None:
        self._keep = True
        if len(body) == length:
            self._leave()
            sink.upstream_whole(head, body)
            return
        if len(body) > length:
            self._fail("sent more than it said")
            return
        self._mode = _Mode.SIZED
        self._missing = length - len(body)
        self._flowing = bool(body)
        if head.length != length:
            headers = tuple((name, b"%d" % length if name == _LENGTH else value) for name, value in head.headers)
            head = Head(head.status, headers)
        sink.upstream_head(head)
        if body and self._sink is sink:
            sink.upstream_data(body)

    def _sized(self, sink: Sink, data: bytes) -> None:
        self._flowing = True
        self._missing -= len(data)
        if self._missing < 0:
            self._fail("sent more than it said")
            return
        sink.upstream_data(data)
        if not self._missing and self._sink is sink:
            self._leave()
            sink.upstream_end()

    def _begin_frames(self, sink: Sink, head: Head, data: bytes) -> None:
        self._keep = True
        self._mode = _Mode.FRAMES
        sink.upstream_head(head)
        if data and self._sink is sink:
            self._frames(sink, data)

    def _frames(self, sink: Sink, data: bytes) -> None:
        self._flowing = True
        if self._rest:
            data = self._rest + data
            self._rest = b""
        elif single(data):
            sink.upstream_frames(data)
            return
        try:
            found = cut(data)
        except FramingError:
            self._to_parser(sink, data)
            return
        self._rest = found.rest
        if found.spans:
            if found.whole_events():
                sink.upstream_frames(found.frames)
            else:
                sink.upstream_data(found.payload())
        if found.complete and self._sink is sink:
            self._leave()
            sink.upstream_end()

    def _to_parser(self, sink: Sink, data: bytes) -> None:
        """The rest of a chunked answer, as if it were a whole one."""
        self._mode = _Mode.PARSER
        self._begin_parsing()
        assert self._parser is not None  # noqa: S101 - just made
        self._parser.feed_data(_AS_IF)
        self._head_pending = False
        self._parse(sink, data)

    # --- httptools ---

    def _begin_parsing(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts = [], []
        self._head_size = 0
        self._head_pending = self._in_body = self._complete = self._close_delimited = self._surplus = False

    def _parse(self, sink: Sink, data: bytes) -> None:
        if self._parser is None:
            self._begin_parsing()
        assert self._parser is not None  # noqa: S101 - just made
        if not self._in_body:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("offered another protocol")
            return
        except httptools.HttpParserError as error:
            self._fail(f"answered something that is not HTTP: {error}")
            return
        if self._head_size > MAX_HEAD and not self._in_body:
            self._fail(f"sent a head of more than {MAX_HEAD} bytes")
            return
        self._deliver(sink)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if not self._in_body:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Note the head; interim answers are dropped."""
        assert self._parser is not None  # noqa: S101 - narrows for the type checker
        if self._complete:
            return
        if self._parser.get_status_code() < _FIRST_FINAL_STATUS:
            self._headers.clear()
            self._first = b""
            return
        self._head_pending = self._in_body = True
        # Asked here: once the message is complete the parser has forgotten.
        self._keep = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """Collect what this read brought of the body."""
        if self._complete:
            self._surplus = True
            return
        self._flowing = True
        self._parts.append(data)

    def on_message_begin(self) -> None:
        """A second answer to one request is none: whatever else this connection brings is not to be trusted."""
        self._surplus = self._complete

    def on_message_complete(self) -> None:
        """Note the end; that of an interim answer is none."""
        if self._in_body:
            self._complete = True

    def _deliver(self, sink: Sink) -> None:
        if self._head_pending:
            self._head_pending = False
            assert self._parser is not None  # noqa: S101 - narrows for the type checker
            head = Head(self._parser.get_status_code(), tuple(self._headers))
            broken = head.broken()
            if broken:
                self._fail(broken)
                return
            self._close_delimited = head.length is None and not head.chunked
            self._remember(head)
            load = head.get(LOAD)
            if load:
                sink.upstream_load(load)
            sink.upstream_head(head)
        if self._parts and self._sink is sink:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            sink.upstream_data(data)
        if self._complete and self._sink is sink:
            self._leave()
            sink.upstream_end()

    def _remember(self, head: Head) -> None:
        """The head of a good answer, sized or an event stream, may come again on a connection that stays."""
        first, self._first = self._first, b""
        if head.status != _OK or not self._keep or not ((head.events and head.chunked) or head.length is not None):
            return
        found = template(first[: first.find(b"\r\n\r\n") + 4], _CHANGING)
        if found is None or found.sized == head.chunked:
            return
        if found.sized:
            self._pool.sized = Known(found, head)
        else:
            self._pool.chunked = Known(found, head)

    # --- for the pool and the calls ---

    def start(self, sink: Sink, head: bytes, body: tuple[Buffer, ...]) -> None:
        """Send a request."""
        transport = self._transport
        assert transport is not None  # noqa: S101 - narrows for the type checker
        self._sink = sink
        self._parser = None
        self._mode = _Mode.HEAD
        self._untouched = True
        self._flowing = False
        self._rest = b""
        self._heard = True
        size = 0
        for part in body:
            size += len(part)
        if size < LARGEST:
            self._pool.outbox.write(transport, b"".join([head, *body]))
        else:
            transport.writelines((head, *body))

    def usable(self) -> bool:
        """Whether the peer has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; nobody is told."""
        self._sink = None
        if self._transport is not None:
            self._pool.outbox.forget(self._transport)
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._heard = True
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def check(self, now: float, patience: Patience) -> None:
        """Give up an exchange in which nothing came for too long. A head alone is no sign of work."""
        if self._heard:
            self._heard, self._heard_at = False, now
        allowed = patience.between_s if self._flowing else patience.first_s
        if self._sink is not None and now - self._heard_at > allowed:
            self._fail(f"sent nothing{' more' if self._flowing else ''} for {allowed:g}s", late=True)

    def _leave(self) -> None:
        """The answer is over: the connection is free for the next exchange, or closes."""
        self._sink = None
        # Whether the peer closed it meanwhile is seen when it is taken again.
        if self._keep and not (self._close_delimited or self._surplus) and self._transport is not None:
            self._used_before = True
            if self._paused:
                self.resume()
            self._pool.put(self)
        elif self._transport is not None:
            self._transport.close()

    def _fail(self, reason: str, *, late: bool = False) -> None:
        sink, stale = self._sink, self._used_before and self._untouched
        self.abort()
        if sink is not None:
            sink.upstream_failed(f"{self._pool.target} {reason}", stale=stale and not late, late=late)


class Pool:
    """The connections to one endpoint."""

    def __init__(self, target: Target, now: Callable[[], float], outbox: Outbox | None = None) -> None:
        self.target = target
        self.now = now
        self.outbox = outbox or Outbox()
        self.sized: Known | None = None
        self.chunked: Known | None = None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._retired = False

    def start(self, sink: Sink, head: bytes, body: tuple[Buffer, ...], *, fresh: bool = False) -> Call:
        """Send a request on an idle connection, or on a new one."""
        connection = None if fresh else self._take()
        if connection is not None:
            connection.start(sink, head, body)
            return connection
        dial = Dial()
        dial.task = asyncio.get_running_loop().create_task(self._connect(dial, sink, head, body))
        return dial

    def put(self, connection: Connection) -> None:
        """Keep a connection whose exchange is over."""
        if self._retired:
            connection.abort()
            return
        connection.idle_since = self.now()
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def trim(self) -> None:
        """Close what was idle for too long."""
        limit = self.now() - IDLE_S
        while self._idle and self._idle[0].idle_since < limit:
            self._idle.pop(0).abort()

    def check(self, patience: Patience) -> None:
        """Give up exchanges in which nothing came for too long."""
        now = self.now()
        for connection in list(self._all):
            connection.check(now, patience)

    def retire(self) -> None:
        """The endpoint is gone: exchanges under way go on, then their connections close."""
        self._retired = True
        while self._idle:
            self._idle.pop().abort()

    def over(self) -> bool:
        """Whether no connection is left."""
        return not self._all

    def count(self) -> tuple[int, int]:
        """Connections in use, and idle ones."""
        return len(self._all) - len(self._idle), len(self._idle)

    def close(self) -> None:
        """Close everything."""
        for connection in list(self._all):
            connection.abort()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable() and self.now() - connection.idle_since < IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self, dial: Dial, sink: Sink, head: bytes, body: tuple[Buffer, ...]) -> None:
        connection = Connection(self)
        started = self.now()
        self._all.add(connection)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._open(connection)
        except (OSError, TimeoutError) as error:
            self._all.discard(connection)
            connection.abort()
            words = (
                f"did not accept a connection within {CONNECT_TIMEOUT_S:g}s"
                if isinstance(error, TimeoutError)
                else (f"refused the connection ({error.strerror or type(error).__name__})")
            )
            sink.upstream_failed(f"{self.target} {words}", stale=False)
            return
        except asyncio.CancelledError:
            self._all.discard(connection)
            connection.abort()
            raise
        if not dial.attach(connection):
            connection.abort()
        elif not connection.usable():
            sink.upstream_failed(f"{self.target} closed the connection before the request was sent", stale=False)
        else:
            dial.took = self.now() - started
            connection.start(sink, head, body)
            dial.settle()

    async def _open(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        protocol = cast("asyncio.Protocol", connection)
        if self.target.path:
            await loop.create_unix_connection(lambda: protocol, self.target.path)
        else:
            await loop.create_connection(lambda: protocol, self.target.host, self.target.port)


class Upstreams:
    """The pools of all endpoints in use. ``now`` is the event loop's clock."""

    def __init__(self, now: Callable[[], float], patience: Patience) -> None:
        self._now = now
        self._patience = patience
        self._outbox = Outbox()
        self._pools: dict[Target, Pool] = {}
        self._retired: list[Pool] = []

    def pool(self, target: Target) -> Pool:
        """The pool of an endpoint."""
        found = self._pools.get(target)
        if found is None:
            found = self._pools[target] = Pool(target, self._now, self._outbox)
        return found

    def keep_only(self, targets: set[Target]) -> None:
        """Forget endpoints that are gone; exchanges under way go on."""
        for target in [target for target in self._pools if target not in targets]:
            pool = self._pools.pop(target)
            pool.retire()
            self._retired.append(pool)

    def check(self) -> None:
        """Close what was idle for too long, and give up what is silent for too long."""
        for pool in self._everything():
            pool.trim()
            pool.check(self._patience)
        self._retired = [pool for pool in self._retired if not pool.over()]

    def count(self) -> tuple[int, int]:
        """Connections in use, and idle ones."""
        counts = [pool.count() for pool in self._everything()]
        return sum(busy for busy, _ in counts), sum(idle for _, idle in counts)

    def close(self) -> None:
        """Close everything."""
        for pool in self._everything():
            pool.close()

    def _everything(self) -> list[Pool]:
        return [*self._pools.values(), *self._retired]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer to one of the router's own calls."""

    status: int
    body: bytes


class _Collector:
    """A sink that collects a whole answer of bounded size."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._status = _SERVER_ERROR
        self._parts: list[bytes] = []
        self._size = 0

    def upstream_load(self, load: bytes) -> None:
        del load

    def upstream_whole(self, head: Head, body: bytes) -> None:
        self._status = head.status
        self.upstream_data(body)
        self.upstream_end()

    def upstream_frames(self, frames: bytes) -> None:
        self.upstream_data(cut(frames).payload())

    def upstream_head(self, head: Head) -> None:
        self._status = head.status

    def upstream_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_CONTROL_BODY:
            self._parts.append(data)

    def upstream_end(self) -> None:
        if self.done.done():
            return
        if self._size > MAX_CONTROL_BODY:
            self.done.set_exception(OSError(f"the answer has {self._size} bytes; {MAX_CONTROL_BODY} are allowed"))
        else:
            self.done.set_result(Reply(self._status, b"".join(self._parts)))

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        del late
        if not self.done.done():
            self.done.set_exception(_StaleError(reason) if stale else OSError(reason))


class _StaleError(Exception):
    """A kept connection had died; a new one may do."""


async def fetch(pool: Pool, head: bytes, body: bytes, timeout_s: float) -> Reply:
    """One of the router's own calls. Raises OSError or TimeoutError when no whole answer came, with words for it."""
    for fresh in (False, True):
        collector = _Collector()
        call = pool.start(collector, head, (body,), fresh=fresh)
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.done
        except _StaleError as error:
            if fresh:
                raise OSError(str(error)) from None
        except TimeoutError:
            call.abort()
            raise TimeoutError(f"{pool.target} did not answer within {timeout_s:g}s") from None
        except BaseException:
            call.abort()
            raise
    raise AssertionError


def request_head(method: str, path: str, host: str, headers: tuple[tuple[str, str], ...], length: int) -> bytes:
    """The head of one of the router's own calls."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
