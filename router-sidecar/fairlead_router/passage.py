"""The target side of a hop: a request that another router admitted goes to this pod's engine as it came."""

import re
from typing import TYPE_CHECKING, Final

from fairlead_router.answers import Refusal
from fairlead_router.exchange import forwarded_head, passed_headers, trace_lines
from fairlead_router.frames import cut
from fairlead_router.server import Client, Request
from fairlead_router.tracing import parse_traceparent
from fairlead_router.upstream import LOAD, Call, Head

if TYPE_CHECKING:
    from fairlead_router.app import Router


_ID: Final = re.compile(rb"[A-Za-z0-9-]{1,128}")


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

    def upstream_load(self, load: bytes) -> None:
        """An engine says nothing of the kind."""

    def upstream_whole(self, head: Head, body: bytes) -> None:
        """The answer came at once."""
        self.upstream_head(head, len(body))
        self._client.stream(body)
        self.upstream_end()

    def upstream_head(self, head: Head, length: int | None = None) -> None:
        """The engine answers. Its load is told first, where the entry router finds it without parsing."""
        self._begun = True
        load = self._router.engine_load.header()
        lines = b"%b: %b\r\n%b" % (LOAD, load, passed_headers(head)) if load else passed_headers(head)
        self._client.begin_stream(head.status, lines, head.length if length is None else length)

    def upstream_data(self, data: bytes) -> None:
        """Bytes pass."""
        self._client.stream(data)

    def upstream_frames(self, frames: bytes) -> None:
        """Chunks pass as they are."""
        if self._client.takes_frames():
            self._client.stream_frames(frames)
        else:
            self._client.stream(cut(frames).payload())

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
        head = request.head.forward or forwarded_head(request.head)
        if request.trace and parse_traceparent(request.trace) is not None:
            head += trace_lines(request, request.trace)
        entry_id = request.asked_id if _ID.fullmatch(request.asked_id) is not None else request.id
        head += b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (entry_id, len(request.body))
        self._call = self._router.engine_pool().start(self, head, (request.body,), fresh=fresh)

    def _end(self) -> None:
        self._call = None
        if not self._over:
            self._over = True
            self._router.engine_running(-1)
