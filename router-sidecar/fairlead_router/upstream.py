"""Connections to endpoints: keep-alive pools over TCP and Unix sockets, for requests and for the router's own calls.

A connection carries one exchange at a time. Idle ones are used again for less than the 5 s after which vLLM closes
them, the latest first. Answers are decoded, not interpreted: a sink gets the head, the body's bytes and the end.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools
import msgspec

log = logging.getLogger(__name__)

IDLE_S: Final = 4.0
CONNECT_TIMEOUT_S: Final = 2.0
MAX_HEAD: Final = 64 * 1024
MAX_CONTROL_BODY: Final = 64 * 1024 * 1024
_SERVER_ERROR: Final = 500
_FIRST_FINAL_STATUS: Final = 200


class Target(msgspec.Struct, frozen=True):
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


class Head(msgspec.Struct, frozen=True):
    """The head of an answer. ``length``: of a sized body, else ``None``."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None

    def get(self, name: bytes) -> bytes:
        """A header's value, by its lower-case name; empty if absent."""
        return next((value for key, value in self.headers if key == name), b"")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an endpoint may be silent, in seconds: before an answer's first byte, and between its bytes."""

    first_s: float = 600.0
    between_s: float = 300.0


class Sink(Protocol):
    """Who gets an answer. After ``upstream_end`` or ``upstream_failed`` nothing more comes."""

    def upstream_head(self, head: Head) -> None:
        """The head is complete."""

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the body, without framing."""

    def upstream_end(self) -> None:
        """The answer is complete."""

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        """The answer will not be complete.

        ``stale``: a kept connection had died before a byte came back. ``late``: nothing came for too long.
        """


class Call:
    """One exchange under way."""

    __slots__ = ("_connection", "_dead", "_paused", "_task")

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._dead = False

    def abort(self) -> None:
        """Break off: the connection is closed at once, so that the engine stops working on it."""
        self._dead = True
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """The receiver is slow: stop reading."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def over(self) -> None:
        """The connection is no longer this call's."""
        self._connection = None

    def attach(self, connection: "Connection") -> bool:
        """A connection is there; false if nobody wants it any more."""
        self._task = None
        if self._dead:
            return False
        self._connection = connection
        return True

    def connecting(self, task: asyncio.Task[None]) -> None:
        """A connection is being made."""
        self._task = task


class Connection(asyncio.Protocol):
    """One connection to an endpoint."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sink: Sink | None = None
        self._call: Call | None = None
        self._used_before = False
        self._untouched = True
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._parts: list[bytes] = []
        self._head_pending = False
        self._in_body = False
        self._complete = False
        self._close_delimited = False
        self._keep = False
        self._flowing = False
        self._heard_at = 0.0
        self.idle_since = 0.0

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Decode what came and pass it on."""
        sink = self._sink
        if sink is None or self._parser is None:
            self.abort()  # an endpoint that speaks unasked is not to be trusted with a request
            return
        self._untouched = False
        self._heard_at = self._pool.now()
        if not self._in_body:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"answered something that is not HTTP: {error}")
            return
        if self._head_size > MAX_HEAD and not self._in_body:
            self._fail(f"sent a head of more than {MAX_HEAD} bytes")
            return
        self._deliver(sink)

    def eof_received(self) -> bool:
        """Let the transport close; connection_lost tells what it means."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of an answer without a length, or a failure."""
        self._transport = None
        self._pool.lost(self)
        if self._sink is None:
            return
        if exc is None and self._close_delimited:
            self._complete = True
            self._deliver(self._sink)
            return
        self._fail("closed the connection before the answer was complete")

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped."""
        if not self._in_body:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Note the head; interim answers are dropped."""
        assert self._parser is not None  # noqa: S101 - narrows for the type checker
        if self._parser.get_status_code() < _FIRST_FINAL_STATUS:
            self._headers.clear()
            return
        self._head_pending = self._in_body = True
        # Asked here: once the message is complete the parser has forgotten.
        self._keep = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """Collect what this read brought of the body."""
        self._flowing = True
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """Note the end; that of an interim answer is none."""
        if self._in_body:
            self._complete = True

    # --- for the pool and the calls ---

    def start(self, call: Call, sink: Sink, head: bytes, body: bytes) -> None:
        """Send a request."""
        assert self._transport is not None  # noqa: S101 - narrows for the type checker
        self._call, self._sink = call, sink
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts = [], []
        self._head_size = 0
        self._head_pending = self._in_body = self._complete = self._close_delimited = False
        self._untouched = True
        self._flowing = False
        self._heard_at = self._pool.now()
        self._transport.write(head + body if len(body) < MAX_HEAD else head)
        if len(body) >= MAX_HEAD:
            self._transport.write(body)

    def usable(self) -> bool:
        """Whether the peer has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; nobody is told."""
        self._sink = self._call = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._heard_at = self._pool.now()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def check(self, now: float, patience: Patience) -> None:
        """Give up an exchange in which nothing came for too long. A head alone is no sign of work."""
        allowed = patience.between_s if self._flowing else patience.first_s
        if self._sink is not None and now - self._heard_at > allowed:
            self._fail(f"sent nothing{' more' if self._flowing else ''} for {allowed:g}s", late=True)

    def _deliver(self, sink: Sink) -> None:
        if self._head_pending:
            self._head_pending = False
            sink.upstream_head(self._head())
        if self._parts and self._sink is sink:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            sink.upstream_data(data)
        if self._complete and self._sink is sink:
            self._finish(sink)

    def _head(self) -> Head:
        assert self._parser is not None  # noqa: S101 - narrows for the type checker
        length: int | None = None
        chunked = False
        for name, value in self._headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        self._close_delimited = length is None and not chunked
        return Head(self._parser.get_status_code(), tuple(self._headers), length)

    def _finish(self, sink: Sink) -> None:
        keep = self._keep and not self._close_delimited
        if self._call is not None:
            self._call.over()
        self._sink = self._call = self._parser = None
        if keep and self.usable():
            self._used_before = True
            self._pool.put(self)
        elif self._transport is not None:
            self._transport.close()
        sink.upstream_end()

    def _fail(self, reason: str, *, late: bool = False) -> None:
        sink, stale = self._sink, self._used_before and self._untouched
        if self._call is not None:
            self._call.over()
        self.abort()
        if sink is not None:
            sink.upstream_failed(f"{self._pool.target} {reason}", stale=stale and not late, late=late)


class Pool:
    """The connections to one endpoint."""

    def __init__(self, target: Target, now: Callable[[], float]) -> None:
        self.target = target
        self.now = now
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._retired = False

    def start(self, sink: Sink, head: bytes, body: bytes, *, fresh: bool = False) -> Call:
        """Send a request on an idle connection, or on a new one."""
        call = Call()
        connection = None if fresh else self._take()
        if connection is not None:
            call.attach(connection)
            connection.start(call, sink, head, body)
        else:
            call.connecting(asyncio.get_running_loop().create_task(self._connect(call, sink, head, body)))
        return call

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

    async def _connect(self, call: Call, sink: Sink, head: bytes, body: bytes) -> None:
        connection = Connection(self)
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
        if not call.attach(connection):
            connection.abort()
        elif not connection.usable():
            sink.upstream_failed(f"{self.target} closed the connection before the request was sent", stale=False)
        else:
            connection.start(call, sink, head, body)

    async def _open(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if self.target.path:
            await loop.create_unix_connection(lambda: connection, self.target.path)
        else:
            await loop.create_connection(lambda: connection, self.target.host, self.target.port)


class Upstreams:
    """The pools of all endpoints in use. ``now`` is the event loop's clock."""

    def __init__(self, now: Callable[[], float], patience: Patience) -> None:
        self._now = now
        self._patience = patience
        self._pools: dict[Target, Pool] = {}
        self._retired: list[Pool] = []

    def pool(self, target: Target) -> Pool:
        """The pool of an endpoint."""
        found = self._pools.get(target)
        if found is None:
            found = self._pools[target] = Pool(target, self._now)
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


class _StaleError(OSError):
    """A kept connection had died; a new one may do."""


async def fetch(pool: Pool, head: bytes, body: bytes, timeout_s: float) -> Reply:
    """One of the router's own calls. Raises OSError or TimeoutError when no whole answer came."""
    for fresh in (False, True):
        collector = _Collector()
        call = pool.start(collector, head, body, fresh=fresh)
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.done
        except _StaleError:
            if fresh:
                raise
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
