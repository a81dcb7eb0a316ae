"""The wire towards clients: HTTP/1.1 heads and bodies within bounds, one request of a connection at a time.

A request is read whole before it is acted on. The head is judged as soon as it is complete, so that a request that will
be refused is not read: it is answered, and what the client still sends is thrown away for a moment before the
connection closes, because closing on unread bytes would take the answer back.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, cast

import httptools

from fairlead_router.answers import Refusal, bad_request, error_answer, reason_phrase

_ONCE: Final = frozenset({b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding"})
_OURS: Final = b"x-fairlead-"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CHUNK_END: Final = b"0\r\n\r\n"
_MAX_AHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what a client may send, in bytes and seconds."""

    head: int = 64 * 1024
    headers: int = 100
    body: int = 32 * 1024 * 1024
    hop_body: int = 33 * 1024 * 1024
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


class Request:
    """One request, as far as it was read. ``owner`` is whatever the application found out from the head."""

    __slots__ = (
        "arrived", "body", "expects", "headers", "held", "keep_alive", "method", "owner", "path", "refusal",
        "request_id", "sized", "version_1_0",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True
        self.version_1_0 = False
        self.expects = False
        self.sized = 0
        self.held = 0
        self.arrived = 0.0
        self.refusal: Refusal | None = None
        self.request_id = ""
        self.owner: object = None


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

    def judge(self, request: Request) -> Refusal | None:
        """Look at a head; a refusal is sent before the body is read."""

    def body_limit(self, request: Request) -> int:
        """How large the body may be."""

    def start(self, client: "Client", request: Request) -> None:
        """Answer a request, now or later, through the client's methods."""

    def new_request_id(self) -> str:
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


class Client(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, app: Application, limits: Limits, clients: "Clients") -> None:
        self._app = app
        self._limits = limits
        self._clients = clients
        self._now = clients.now
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._phase = Phase.IDLE
        self._deadline = self._now() + limits.idle_s
        self._request = Request()
        self._parts: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._header_count = 0
        self._header_bytes = 0
        self._backlog: deque[Request] = deque()
        self._current: Request | None = None
        self._handler: Handler | None = None
        self._pumping = False
        self._reading = True
        self._full = False
        self._unsent = 0
        self._chunked = True
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
        self._forget(*self._backlog, self._request, self._current)
        self._backlog.clear()
        self._clients.remove(self)
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.client_gone()

    def eof_received(self) -> bool:
        """A client that stops sending is gone: no difference can be seen before it is too late."""
        return False

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
        """Parse, then answer what is complete."""
        if self._phase is Phase.DEAF:
            return
        if self._phase is not Phase.BODY:
            self._head_size += len(data)
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
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._parser = httptools.HttpRequestParser(self)
                data = data[upgrade.args[0] :]
                if self._in(Phase.BODY):
                    self._retelling = True
                    self._parser.feed_data(_without_offer(self._request))
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
        self._request = Request()
        self._parts = []
        self._size = self._header_count = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """The target, perhaps in pieces."""
        if not self._retelling:
            self._request.path += url

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
        headers = self._request.headers
        if key in headers and (key in _ONCE or key.startswith(_OURS)):
            self._stop(bad_request(f"Header {key.decode('latin-1')} came twice. Send it once."))
        headers[key] = value

    def on_headers_complete(self) -> None:
        """Judge the head."""
        if self._retelling:
            return
        request = self._request
        request.method = self._parser.get_method()
        request.version_1_0 = self._parser.get_http_version() == "1.0"
        request.keep_alive = self._parser.should_keep_alive() and not request.version_1_0
        if self._header_bytes + len(request.path) > self._limits.head:
            self._stop(_head_too_large(f"{self._limits.head} bytes"))
        request.request_id = self._app.new_request_id()
        refusal = self._framing(request) or self._app.judge(request)
        chunked = b"transfer-encoding" in request.headers
        if refusal is None and request.sized > self._app.body_limit(request):
            refusal = _body_too_large(self._app.body_limit(request))
        if refusal is None and not self._clients.bodies.fits(request.sized):
            refusal = overloaded("request bodies", self._clients.bodies.bound)
        if refusal is not None:
            if request.sized or chunked:
                self._stop(refusal)
            request.refusal = refusal
        self._phase = Phase.BODY
        self._deadline = self._now() + self._limits.body_s
        if request.expects and refusal is None:
            self._ask_for_body()

    def on_body(self, data: bytes) -> None:
        """Collect the body."""
        self._size += len(data)
        if self._size > self._app.body_limit(self._request):
            self._stop(_body_too_large(self._app.body_limit(self._request)))
        if not self._clients.bodies.take(len(data)):
            self._stop(overloaded("request bodies", self._clients.bodies.bound))
        self._request.held += len(data)
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        request = self._request
        if self._parser.should_upgrade() and (request.sized or b"transfer-encoding" in request.headers):
            return  # its body follows, see _feed
        parts = self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        request.arrived = self._now()
        self._parts = []
        self._head_size = 0
        self._phase = Phase.IDLE
        self._deadline = request.arrived + self._limits.idle_s
        self._backlog.append(request)
        if len(self._backlog) > _MAX_AHEAD:
            self._stop(bad_request(f"More than {_MAX_AHEAD} requests wait on one connection."))

    # --- for handlers ---

    def attach(self, handler: Handler) -> None:
        """This handler answers the current request."""
        self._handler = handler

    def send(self, data: bytes) -> None:
        """A whole answer."""
        if self._transport is not None:
            self._transport.write(data)
        self.finished()

    def refuse(self, refusal: Refusal) -> None:
        """Answer the current request with an error."""
        request = self._current
        if request is not None:
            self.send(error_answer(refusal, request.request_id, close=not self.keeps_alive()))

    def begin_stream(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        """The head of an answer whose body follows in pieces; without a length it is chunked, or ends with closing."""
        self._chunked = length is None and not (self._current is not None and self._current.version_1_0)
        lines = [b"HTTP/1.1 %d %b" % (status, reason_phrase(status).encode())]
        lines += [b"%b: %b" % pair for pair in headers]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        elif self._chunked:
            lines.append(b"transfer-encoding: chunked")
        if not self.keeps_alive():
            lines.append(b"connection: close")
        if self._transport is not None:
            self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n")

    def stream(self, data: bytes) -> None:
        """A piece of the body."""
        if self._transport is None or not data:
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_stream(self) -> None:
        """The body is complete."""
        if self._transport is not None and self._chunked:
            self._transport.write(_CHUNK_END)
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
            current is not None and current.keep_alive and self._phase is not Phase.DEAF and not self._clients.closing
        )

    def finished(self) -> None:
        """The current request is answered: go on with the next, or close."""
        keep = self.keeps_alive() or bool(self._backlog and self._current is not None and self._current.keep_alive)
        unread = self._phase is Phase.DEAF and not self._backlog
        self._forget(self._current)
        self._current = self._handler = None
        self._deadline = self._now() + self._limits.idle_s
        if not keep:
            self._hang_up(linger=unread)
        elif not self._pumping:
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
        if self._phase is Phase.BODY and self._request.expects and self._current is None:
            self._ask_for_body()

    def _framing(self, request: Request) -> Refusal | None:
        """What the parser lets pass and we do not."""
        headers = request.headers
        length = headers.get(b"content-length")
        request.sized = int(length) if length is not None else 0
        request.expects = headers.get(b"expect", b"").lower() == b"100-continue"
        if request.version_1_0 and b"transfer-encoding" in headers:
            return bad_request("HTTP/1.0 has no transfer-encoding.")
        if not request.version_1_0 and b"host" not in headers:
            return bad_request("The request has no Host header.")
        if request.method == b"CONNECT":
            return bad_request("CONNECT is not served here.")
        return None

    def _ask_for_body(self) -> None:
        if self._current is None and not self._backlog and self._transport is not None:
            self._request.expects = False
            self._transport.write(_CONTINUE)

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
        self._phase = Phase.DEAF
        request = self._request
        self._forget(request)
        request.refusal = refusal
        request.keep_alive = False
        request.request_id = request.request_id or self._app.new_request_id()
        self._parts = []
        if not self._backlog or self._backlog[-1] is not request:
            self._backlog.append(request)

    def _hang_up(self, *, linger: bool) -> None:
        """Close; with ``linger``, after throwing away for a moment what the client still sends."""
        self._phase = Phase.DEAF
        self._forget(*self._backlog)
        self._backlog.clear()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if linger:
            self._deadline = self._now() + self._limits.linger_s
            transport.write_eof()
        else:
            transport.close()


class Clients:
    """All connections of one listening socket. ``now`` is the event loop's clock."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self.now = now
        self.closing = False
        self.bodies = Memory(limits.bodies)
        self._limits = limits
        self._open: set[Client] = set()

    def add(self, client: Client) -> bool:
        """A new connection; false if there are too many."""
        self._open.add(client)
        return len(self._open) <= self._limits.connections

    def remove(self, client: Client) -> None:
        """A connection is gone."""
        self._open.discard(client)

    def check(self) -> None:
        """Close what took too long."""
        now = self.now()
        for client in list(self._open):
            client.check(now)

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


def _without_offer(request: Request) -> bytes:
    """A head with the same framing as the request's and nothing else."""
    chunked = b"transfer-encoding" in request.headers
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % request.sized
    return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing


def _head_too_large(bound: str) -> Refusal:
    return Refusal(431, "head_too_large", f"The request's head has more than {bound}.")


def _body_too_large(bound: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body has more than {bound} bytes.")
