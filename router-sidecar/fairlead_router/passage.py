"""The target side of a hop: a request that another router admitted goes to this pod's engine as it came."""

from typing import TYPE_CHECKING, Final

from fairlead_router.answers import Refusal
from fairlead_router.exchange import passed_headers
from fairlead_router.server import Client, Request
from fairlead_router.upstream import Call, Head

if TYPE_CHECKING:
    from fairlead_router.app import Router

_FORWARDED: Final = (b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"x-request-id")


class Passage:
    """One request on its way to this pod's engine. The entry router reserves, meters and settles."""

    __slots__ = ("_begun", "_call", "_client", "_over", "_request", "_router")

    def __init__(self, router: "Router", client: Client, request: Request) -> None:
        self._router = router
        self._client = client
        self._request = request
        self._call: Call | None = None
        self._begun = False
        self._over = False

    def begin(self) -> None:
        """Send it to the engine."""
        self._router.engine_running(1)
        self._send(fresh=False)

    def upstream_head(self, head: Head) -> None:
        """The engine answers."""
        self._begun = True
        self._client.begin_stream(head.status, passed_headers(head), head.length)

    def upstream_data(self, data: bytes) -> None:
        """Bytes pass."""
        self._client.stream(data)

    def upstream_end(self) -> None:
        """The answer is whole."""
        self._end()
        self._client.end_stream()

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        """The engine is gone: the entry router sees a 502, or a stream that breaks."""
        del late
        if stale:
            self._send(fresh=True)
            return
        self._end()
        if self._begun:
            self._client.break_stream()
        else:
            self._client.refuse(Refusal(502, "upstream_error", f"The engine {reason}.", "server_error"))

    def client_gone(self) -> None:
        """The entry router hung up: so do we."""
        if self._call is not None:
            self._call.abort()
        self._end()

    def client_slow(self) -> None:
        """Read no more from the engine."""
        if self._call is not None:
            self._call.pause()

    def client_ready(self) -> None:
        """Read on."""
        if self._call is not None:
            self._call.resume()

    def _send(self, *, fresh: bool) -> None:
        request = self._request
        lines = [b"POST %b HTTP/1.1\r\nhost: engine" % request.path]
        lines += [b"%b: %b" % (name, request.headers[name]) for name in _FORWARDED if name in request.headers]
        lines.append(b"content-length: %d\r\n\r\n" % len(request.body))
        self._call = self._router.engine_pool().start(self, b"\r\n".join(lines), request.body, fresh=fresh)

    def _end(self) -> None:
        self._call = None
        if not self._over:
            self._over = True
            self._router.engine_running(-1)
