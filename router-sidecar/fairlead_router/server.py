"""The wire towards clients: HTTP/1.1 heads and bodies within bounds, one request of a connection at a time.

A request is read whole before it is acted on. The head is judged as soon as it is complete, so that a request that will
be refused is not read: it is answered, and what the client still sends is thrown away for a moment before the
connection closes, because closing on unread bytes would take the answer back.

A head that repeats the connection's last one, but for the values of content-length and traceparent, was judged already:
it is recognised without parsing (see heads.py).

A client that ends its side after it has asked is either gone or waits for its answer; TCP does not tell which. It is
sent an interim answer, which one that waits ignores and one that is gone resets.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, cast
from weakref import WeakValueDictionary

import httptools

from fairlead_router.answers import Refusal, bad_request, error_answer, reason_phrase
from fairlead_router.heads import REQUEST_ID, TRACEPARENT, Template, template
from fairlead_router.outbox import Outbox
from fairlead_router.structs import Known

_ONCE: Final = frozenset({b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding"})
_OURS: Final = b"x-fairlead-"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_CHUNK_END: Final = b"0\r\n\r\n"
_MAX_AHEAD: Final = 64
_CHANGING: Final = frozenset({b"content-length", TRACEPARENT, REQUEST_ID})
_MAX_MISSES: Final = 8
"""Heads in a row that were not like the one before, after which a connection stops to remember them."""
_PROBES_S: Final[tuple[float, ...]] = (0.002, 0.01, 0.03)
"""When it is seen whether a client that ended its side has reset the connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a client may send, in bytes and seconds."""

    head: int = 64 * 1024
    headers: int = 100
    body: int = 32 * 1024 * 1024
    """While no route is known; else its largest route's prompt decides."""
    bodies: int = 128 * 1024 * 1024
    """Of all requests that are read or answered, together. The copy that is sent on may double it."""
    answers: int = 64 * 1024 * 1024
    """Of all answers that are kept until they are whole, together."""
    connections: int = 20_000
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    linger_s: float = 1.0


class Memory:
    """Bytes that are held at once, within a bound."""

    __slots__ = ("bound", "used")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.used = 0

    def fits(self, size: int) -> bool:
        """Whether so much more may be held."""
        return self.used + size <= self.bound

    def take(self, size: int) -> bool:
        """Hold so much more, if it fits."""
        if not self.fits(size):
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Hold so much less."""
        self.used -= size


class Head:
    """A judged head. ``owner`` is what the application found out from it; it holds until ``until`` (loop time)."""

    __slots__ = (
        "body_limit", "chunked", "expects", "forward", "headers", "keep_alive", "length", "method", "owner", "path",
        "until", "version_1_0",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.version_1_0 = False
        self.expects = False
        self.chunked = False
        self.length = 0
        self.body_limit = 0
        self.until = 0.0
        self.owner: object = None
        self.forward = b""
        """Request line and headers as the application sends them on; empty until it has put them together."""


class Request:
    """One request, as far as it was read. ``trace`` is its traceparent, ``asked_id`` its x-request-id, as they came.

    The rest of the head may be shared with requests like it.
    """

    __slots__ = ("arrived", "asked_id", "body", "head", "held", "id", "refusal", "trace")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.body = b""
        self.held = 0
        self.arrived = 0.0
        self.id = b""
        self.asked_id = b""
        self.trace = b""
        self.refusal: Refusal | None = None


_NONE: Final = Request(Head())
"""What a connection reads that reads no request. One that is complete must not be kept: its body may be large."""


class Handler(Protocol):
    """What answers a request. It is told when the client goes away or is slow."""

    def client_gone(self) -> None:
        """The client closed the connection."""

    def client_slow(self) -> None:
        """Send no more for now."""

    def client_ready(self) -> None:
        """Go on sending."""


class Application(Protocol):
    """Decides about requests."""

    def judge(self, head: Head) -> Refusal | None:
        """Look at a head, fill in its ``owner``, ``until`` and ``body_limit``; a refusal is sent before the body."""

    def too_large(self, head: Head) -> Refusal:
        """What to say to a body of more than the head's ``body_limit``."""

    def holds(self, head: Head, now: float) -> bool:
        """Whether what was found out about a head is still true."""

    def start(self, client: "Client", request: Request) -> None:
        """Answer a request, now or later, through the client's methods."""

    def new_request_id(self) -> bytes:
        """An id for a request."""


class Phase(Enum):
    """Where the reading of a connection stands."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    DEAF = auto()
    """Nothing more is read: the connection will close."""


class _Stop(Exception):  # noqa: N818 - it stops the parser, and is no error
    """Leaves the parser when a bound was passed."""


class Client:
    """One connection of a client."""

    def __init__(self, app: Application, limits: Limits, clients: "Clients") -> None:
        self._app = app
        self._limits = limits
        self._clients = clients
        self._outbox = clients.outbox
        self._now = clients.now
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._phase = Phase.IDLE
        self._deadline = self._now() + limits.idle_s
        self._request = _NONE
        self._parts: list[bytes] = []
        self._missing = 0
        self._size = 0
        self._head_size = 0
        self._header_count = 0
        self._header_bytes = 0
        self._fresh = b""
        self._known: Known | None = None
        self._misses = 0
        self._backlog: deque[Request] = deque()
        self._current: Request | None = None
        self._handler: Handler | None = None
        self._pumping = False
        self._reading = True
        self._full = False
        self._unsent = 0
        self._chunked = True
        self._begun = False
        self._ended = False
        self._retelling = False

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless there are too many."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if not self._clients.add(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering."""
        del exc
        self._transport = None
        self._phase = Phase.DEAF
        self._parser = None  # it refers to this connection, see plan.py about cycles
        self._forget(*self._backlog, self._request, self._current)
        self._backlog.clear()
        self._clients.remove(self)
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.client_gone()

    def eof_received(self) -> bool:
        """The client sends no more. If it still waits for an answer that has not begun, find out whether it is gone."""
        current = self._current
        transport = self._transport
        if transport is None or current is None or self._begun or current.head.version_1_0:
            return False
        if transport.get_extra_info("sslcontext") is not None:
            return False  # TLS knows no half-closed connections
        self._ended = True
        if self._phase in {Phase.HEAD, Phase.BODY}:
            self._phase = Phase.DEAF  # what was begun after it will never be whole
        self._outbox.write(transport, _CONTINUE)
        for delay in _PROBES_S:
            asyncio.get_running_loop().call_later(delay, self._look_for_reset, current)
        return True

    def _look_for_reset(self, request: Request) -> None:
        transport = self._transport
        if transport is None or self._current is not request or transport.is_closing():
            return
        found: socket.socket = transport.get_extra_info("socket")
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._full = True
        if self._handler is not None:
            self._handler.client_slow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._full = False
        if self._handler is not None:
            self._handler.client_ready()
        else:
            self._pump()

    def data_received(self, data: bytes) -> None:
        """Take what came: more of a body, a head like the last one, or whatever the parser makes of it."""
        if self._missing:
            data = self._more(data)
            if not data:
                return
        known = self._known
        calm = known is not None and self._current is None and self._phase is Phase.IDLE and not self._full
        if not calm or known is None or not self._again(data, known):
            self._parse(data)

    # --- heads that repeat ---

    def _again(self, data: bytes, known: Known) -> bool:
        """A request whose head is like the last one; false if it is not, or if something needs a closer look."""
        cuts = known.template
        found = cuts.match(data)
        if found is None:
            self._misses += 1
            if self._misses > _MAX_MISSES:
                self._known = None
            return False
        values, begin = found
        length = cuts.length
        head, now, memory = known.head, self._now(), self._clients.bodies
        if (
            length > head.body_limit
            or begin + length < len(data)
            or memory.used + length > memory.bound
            or self._ended
            or not self._app.holds(head, now)
        ):
            return False
        self._misses = 0
        memory.used += length
        request = Request(head)
        request.held = length
        if cuts.trace_at >= 0:
            request.trace = values[cuts.trace_at]
        if cuts.id_at >= 0:
            request.asked_id = values[cuts.id_at]
        request.id = self._app.new_request_id()
        body = data[begin:]
        if len(body) == length:
            request.body = body
            request.arrived = now
            self._current = request
            self._app.start(self, request)
        else:
            self._request = request
            self._parts = [body]
            self._missing = length - len(body)
            self._phase = Phase.BODY
            self._deadline = now + self._limits.body_s
        return True

    def _more(self, data: bytes) -> bytes:
        """More of a body whose length is known; what comes after it is left over."""
        left = self._missing - len(data)
        if left > 0:
            self._missing = left
            self._parts.append(data)
            return b""
        rest = data[self._missing :]
        self._parts.append(data[: self._missing] if rest else data)
        self._missing = 0
        request = self._request
        request.body = b"".join(self._parts)
        self._parts = []
        self._complete(request)
        if not rest:
            self._pump()
        return rest

    def _remember(self, data: bytes, head: Head) -> None:
        """The head that was just judged may come again; it is the first thing in ``data``."""
        parser = self._parser
        assert parser is not None  # noqa: S101 - the connection stands
        repeats = data and head.keep_alive and not (head.chunked or head.expects or parser.should_upgrade())
        if not repeats or self._misses > _MAX_MISSES:
            return
        end = data.find(_HEAD_END) + len(_HEAD_END)
        found = template(data[:end], _CHANGING)
        if found is not None and found.sized:
            self._known = self._clients.known(found, head)

    # --- parsing ---

    def _parse(self, data: bytes) -> None:
        if self._phase is Phase.DEAF:
            return
        if self._phase is not Phase.BODY:
            self._head_size += len(data)
            self._fresh = data if self._phase is Phase.IDLE else b""
        try:
            self._feed(data)
            if self._in(Phase.HEAD) and self._head_size > self._limits.head:
                self._refuse_reading(_head_too_large(f"{self._limits.head} bytes"))
        except httptools.HttpParserError as error:
            # Our own bounds leave the parser as a callback error, with the refusal already noted.
            if not self._in(Phase.DEAF):
                self._refuse_reading(bad_request(f"The request is not valid HTTP/1.1: {error}."))
        self._pump()

    def _feed(self, data: bytes) -> None:
        """Parse. An offer to upgrade is ignored: the parser, which would stop, goes on as if it had not been made."""
        parser = self._parser
        assert parser is not None  # noqa: S101 - the connection stands
        while data:
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                parser = self._parser = httptools.HttpRequestParser(self)
                data = data[upgrade.args[0] :]
                if self._in(Phase.BODY):
                    self._retelling = True
                    parser.feed_data(_without_offer(self._request.head))
                    self._retelling = False
            else:
                return

    # --- httptools ---

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._retelling:
            return
        self._phase = Phase.HEAD
        self._deadline = self._now() + self._limits.head_s
        self._request = Request(Head())
        self._parts = []
        self._size = self._header_count = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """The target, perhaps in pieces."""
        if not self._retelling:
            self._request.head.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those that mean something to us may come once."""
        if self._retelling:
            return
        self._header_count += 1
        if self._header_count > self._limits.headers:
            self._stop(_head_too_large(f"{self._limits.headers} headers"))
        if self._phase is Phase.BODY:
            return  # trailers
        key = name.lower()
        self._header_bytes += len(name) + len(value)
        headers = self._request.head.headers
        if key in headers and (key in _ONCE or key.startswith(_OURS)):
            self._stop(bad_request(f"Header {key.decode('latin-1')} came twice. Send it once."))
        headers[key] = value

    def on_headers_complete(self) -> None:
        """Judge the head."""
        if self._retelling:
            return
        request, parser = self._request, self._parser
        assert parser is not None  # noqa: S101 - the connection stands
        first, self._fresh = self._fresh, b""
        head = request.head
        head.method = parser.get_method()
        head.version_1_0 = parser.get_http_version() == "1.0"
        head.keep_alive = parser.should_keep_alive() and not head.version_1_0
        head.chunked = b"transfer-encoding" in head.headers
        if self._header_bytes + len(head.path) > self._limits.head:
            self._stop(_head_too_large(f"{self._limits.head} bytes"))
        request.id = self._app.new_request_id()
        request.trace = head.headers.get(TRACEPARENT, b"")
        request.asked_id = head.headers.get(REQUEST_ID, b"")
        refusal = _framing(head, parser.get_http_version()) or self._app.judge(head) or self._too_much(head)
        if refusal is not None:
            if head.length or head.chunked:
                self._stop(refusal)
            request.refusal = refusal
        else:
            self._remember(first, head)
        self._phase = Phase.BODY
        self._deadline = self._now() + self._limits.body_s
        if head.expects and refusal is None:
            self._ask_for_body()

    def _too_much(self, head: Head) -> Refusal | None:
        if head.length > head.body_limit:
            return self._app.too_large(head)
        if not self._clients.bodies.fits(head.length):
            return overloaded("request bodies", self._clients.bodies.bound)
        return None

    def on_body(self, data: bytes) -> None:
        """Collect the body."""
        self._size += len(data)
        head = self._request.head
        if self._size > head.body_limit:
            self._stop(self._app.too_large(head))
        if not self._clients.bodies.take(len(data)):
            self._stop(overloaded("request bodies", self._clients.bodies.bound))
        self._request.held += len(data)
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        request, parser = self._request, self._parser
        assert parser is not None  # noqa: S101 - the connection stands
        if parser.should_upgrade() and (request.head.length or request.head.chunked):
            return  # its body follows, see _feed
        parts = self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._head_size = 0
        self._complete(request)
        if len(self._backlog) > _MAX_AHEAD:
            self._stop(bad_request(f"More than {_MAX_AHEAD} requests wait on one connection."))

    def _complete(self, request: Request) -> None:
        request.arrived = self._now()
        self._phase = Phase.IDLE
        self._deadline = request.arrived + self._limits.idle_s
        self._request = _NONE
        self._backlog.append(request)

    # --- for handlers ---

    def attach(self, handler: Handler) -> None:
        """This handler answers the current request."""
        self._handler = handler

    def send(self, data: bytes) -> None:
        """A whole answer."""
        if self._transport is not None:
            self._outbox.write(self._transport, data)
        self.finished()

    def refuse(self, refusal: Refusal) -> None:
        """Answer the current request with an error."""
        request = self._current
        if request is not None:
            answer = error_answer(refusal, request.id.decode(), close=not self.keeps_alive())
            # An answer to HEAD has no body, whatever its head says.
            bare = request.head.method == b"HEAD"
            self.send(answer[: answer.find(_HEAD_END) + len(_HEAD_END)] if bare else answer)

    def begin_stream(self, status: int, headers: bytes, length: int | None) -> None:
        """The head of an answer whose body follows in pieces; without a length it is chunked, or ends with closing.

        ``headers`` are whole lines, each with its CRLF.
        """
        self._begun = True
        self._chunked = length is None and not (self._current is not None and self._current.head.version_1_0)
        if length is not None:
            headers += b"content-length: %d\r\n" % length
        elif self._chunked:
            headers += b"transfer-encoding: chunked\r\n"
        if not self.keeps_alive():
            headers += b"connection: close\r\n"
        if self._transport is not None:
            self._outbox.hold(
                self._transport, b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason_phrase(status).encode(), headers)
            )

    def stream(self, data: bytes) -> None:
        """A piece of the body."""
        if self._transport is None or not data:
            return
        self._outbox.write(self._transport, b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def takes_frames(self) -> bool:
        """Whether the answer is chunked, so that frames of an engine's chunked answer can pass as they are."""
        return self._chunked

    def stream_frames(self, frames: bytes) -> None:
        """Pieces of the body in chunked framing, none of them the last."""
        if self._transport is not None:
            self._outbox.write(self._transport, frames)

    def end_stream(self) -> None:
        """The body is complete."""
        if self._transport is not None and self._chunked:
            self._outbox.write(self._transport, _CHUNK_END)
        self.finished()

    def break_stream(self) -> None:
        """The body will not be complete: the client must see it."""
        self._handler = None
        if self._transport is not None:
            self._transport.abort()

    def keeps_alive(self) -> bool:
        """Whether the connection stays after the current answer."""
        current = self._current
        return (
            current is not None
            and current.head.keep_alive
            and self._phase is not Phase.DEAF
            and not self._ended
            and not self._clients.closing
        )

    def finished(self) -> None:
        """The current request is answered: go on with the next, or close."""
        current = self._current
        keep = self.keeps_alive() or bool(self._backlog and current is not None and current.head.keep_alive)
        if current is not None and current.held:
            self._clients.bodies.used -= current.held
            current.held = 0
        self._current = self._handler = None
        self._begun = False
        if not keep:
            self._hang_up(linger=self._phase is Phase.DEAF and not self._backlog)
            return
        self._deadline = self._clients.ticked + self._limits.idle_s
        if (self._backlog or not self._reading or self._phase is not Phase.IDLE) and not self._pumping:
            self._pump()

    # --- for the set of connections ---

    def check(self, now: float) -> None:
        """Close what took too long."""
        if self._transport is None or now < self._deadline:
            return
        if self._phase is Phase.DEAF:
            if self._current is None:
                self._transport.abort()
        elif self._phase is Phase.IDLE:
            if self._current is None:
                self._close_idle(self._transport, now)
        else:
            part = "head" if self._phase is Phase.HEAD else "body"
            allowed = self._limits.head_s if self._phase is Phase.HEAD else self._limits.body_s
            self._refuse_reading(
                Refusal(408, "request_timeout", f"The request's {part} was not complete after {allowed:g}s.")
            )
            self._pump()

    def _close_idle(self, transport: asyncio.Transport, now: float) -> None:
        """Nothing was asked for a while. If an answer is still being read, go on as long as that gets anywhere."""
        left = transport.get_write_buffer_size()
        if not left:
            transport.close()
        elif left == self._unsent:
            transport.abort()
        else:
            self._unsent, self._deadline = left, now + self._limits.idle_s

    def busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._current is not None or bool(self._backlog) or self._phase in {Phase.HEAD, Phase.BODY}

    def close_if_idle(self) -> None:
        """The router is about to stop."""
        if not self.busy() and self._transport is not None:
            self._transport.close()

    # --- inside ---

    def _in(self, phase: Phase) -> bool:
        """Whether the reading stands there; the parser's callbacks may have moved it."""
        return self._phase is phase

    def _pump(self) -> None:
        """Start requests, one after the other."""
        if self._pumping:
            return
        self._pumping = True
        try:
            # Not while the last answer is still to be read: answers would pile up for a client that only sends.
            while self._current is None and self._backlog and self._transport is not None and not self._full:
                request = self._current = self._backlog.popleft()
                if request.refusal is not None:
                    self.refuse(request.refusal)
                else:
                    self._app.start(self, request)
        finally:
            self._pumping = False
        self._throttle()

    def _throttle(self) -> None:
        """Do not read ahead while requests wait behind the one that is being answered."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._reading == bool(self._backlog):
            self._reading = not self._reading
            if self._reading:
                transport.resume_reading()
            else:
                transport.pause_reading()
        if self._phase is Phase.BODY and self._request.head.expects and self._current is None:
            self._ask_for_body()

    def _ask_for_body(self) -> None:
        if self._current is None and not self._backlog and self._transport is not None:
            self._request.head.expects = False
            self._outbox.write(self._transport, _CONTINUE)

    def _stop(self, refusal: Refusal) -> None:
        """From within the parser: refuse, and read no further."""
        self._refuse_reading(refusal)
        raise _Stop

    def _forget(self, *requests: Request | None) -> None:
        """The bodies of these requests are not needed any more."""
        for request in requests:
            if request is not None:
                self._clients.bodies.give(request.held)
                request.held = 0

    def _refuse_reading(self, refusal: Refusal) -> None:
        """Answer with an error once it is this request's turn, then close."""
        unread = self._request
        self._forget(unread)
        # A head of its own: the one that was being read may be shared with requests like it.
        request = self._request = Request(Head())
        request.refusal = refusal
        request.head.keep_alive = False
        begun = self._phase in {Phase.HEAD, Phase.BODY}
        request.id = (begun and unread.id) or self._app.new_request_id()
        self._phase = Phase.DEAF
        self._parts = []
        self._missing = 0
        self._backlog.append(request)

    def _hang_up(self, *, linger: bool) -> None:
        """Close; with ``linger``, after throwing away for a moment what the client still sends."""
        self._phase = Phase.DEAF
        self._forget(*self._backlog)
        self._backlog.clear()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._outbox.flush()
        if linger:
            self._deadline = self._now() + self._limits.linger_s
            transport.write_eof()
        else:
            transport.close()


class Clients:
    """All connections of one listening socket. ``now`` is the event loop's clock."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self.now = now
        self.ticked = now()
        """Time of the last check: good enough for deadlines of idle connections."""
        self.closing = False
        self.bodies = Memory(limits.bodies)
        self.outbox = Outbox()
        self._limits = limits
        self._open: set[Client] = set()
        self._known: WeakValueDictionary[object, Known] = WeakValueDictionary()
        """The heads that connections remember now."""

    def add(self, client: Client) -> bool:
        """A new connection; false if there are too many."""
        self._open.add(client)
        return len(self._open) <= self._limits.connections

    def remove(self, client: Client) -> None:
        """A connection is gone."""
        self._open.discard(client)

    def check(self) -> None:
        """Close what took too long."""
        now = self.ticked = self.now()
        for client in list(self._open):
            client.check(now)

    def known(self, found: Template, head: Head) -> Known:
        """What connections share that repeat the same head."""
        known = self._known.get(found.key)
        if known is None:
            known = self._known[found.key] = Known(found, head)
        known.head = head
        return known

    def count(self) -> int:
        """Open connections."""
        return len(self._open)

    def close(self) -> None:
        """Answer what is under way, then close."""
        self.closing = True
        for client in list(self._open):
            client.close_if_idle()

    def busy(self) -> int:
        """Connections with a request under way."""
        return sum(client.busy() for client in self._open)


def overloaded(what: str, bound: int) -> Refusal:
    """The 503 of a router that holds as much as it may. Another router's request goes to another replica."""
    return Refusal(
        503,
        "overloaded",
        f"This router holds {bound} bytes of {what} already. Try again in 1s.",
        "service_unavailable_error",
        headers=(("retry-after", "1"), ("x-should-retry", "true"), ("x-fairlead-retry", "overloaded")),
    )


def _framing(head: Head, version: str) -> Refusal | None:
    """What the parser lets pass and we do not."""
    headers = head.headers
    length = headers.get(b"content-length")
    head.length = int(length) if length is not None else 0
    if version not in {"1.0", "1.1"}:
        head.keep_alive = False
        return Refusal(505, "http_version_not_supported", f"HTTP/{version} is not spoken here. Use HTTP/1.1.")
    expects = headers.get(b"expect")
    head.expects = expects is not None and expects.lower() == b"100-continue"
    if expects is not None and not head.expects:
        return Refusal(417, "expectation_failed", "Expect: 100-continue is the only expectation that is met here.")
    if head.chunked and not _is_chunked_only(headers, version):
        head.keep_alive = False
        return bad_request("Of transfer-encoding only chunked is understood, without content-length, in HTTP/1.1.")
    if (version == "1.1" and b"host" not in headers) or head.method == b"CONNECT":
        head.keep_alive = False
        return bad_request("The request has no Host header, or is a CONNECT.")
    return None


def _is_chunked_only(headers: dict[bytes, bytes], version: str) -> bool:
    """Whether the framing can be read in one way. The parser leaves this to us after an offer to upgrade."""
    coding = headers[b"transfer-encoding"].lower()
    return coding == b"chunked" and b"content-length" not in headers and version == "1.1"


def _without_offer(head: Head) -> bytes:
    """A head with the same framing and nothing else."""
    framing = b"transfer-encoding: chunked" if head.chunked else b"content-length: %d" % head.length
    return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing


def _head_too_large(bound: str) -> Refusal:
    return Refusal(431, "head_too_large", f"The request's head has more than {bound}.")


def listener(app: Application, limits: Limits, clients: Clients) -> Callable[[], asyncio.Protocol]:
    """What an event loop's server makes for each connection."""
    # A compiled class has no interpreted base, and event loops need none.
    return cast("Callable[[], asyncio.Protocol]", lambda: Client(app, limits, clients))
