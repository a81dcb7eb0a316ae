"""A router in a world of its own: connections in memory, engines in Python, and a clock that only moves when told.

Nothing here waits, so a run is as fast as the code under it, and the same seed gives the same run.
"""

import asyncio
import heapq
import itertools
import json
import logging
import random
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from fairlead_router.app import Place, Router, Times
from fairlead_router.identity import Verifier
from fairlead_router.lease import Clocks, Session
from fairlead_router.local_lease import LocalLease
from fairlead_router.policy import build_index
from fairlead_router.server import Client, Clients, Limits
from fairlead_router.telemetry import Telemetry
from fairlead_router.upstream import Patience, Upstreams
from tests.builders.router import POOL, budget, configuration, endpoints
from tests.fuzz import strict

WALL_S: Final = 1_800_000_000.0
LEASE: Final = {"support/support": 1 << 60}
_HIGH_WATER: Final = 64 * 1024


class Loop(asyncio.BaseEventLoop):
    """An event loop that is stepped from outside. ``peers`` answer connections, by port."""

    # Of asyncio.BaseEventLoop, which does not declare them:
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int
    _run_once: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.peers: dict[int, Callable[[Wire], None]] = {}
        self.problems: list[str] = []
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Seconds since the beginning of this world."""
        return self.clock

    def settle(self) -> None:
        """Run until nothing is left to do at this moment."""
        for _ in range(100_000):
            if not self._ready and not self._due(self.clock):
                return
            self._step()
        raise AssertionError("the world does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.clock + seconds
        self.settle()
        while self._due(end):
            self.clock = max(self.clock, self._scheduled[0].when())
            self.settle()
        self.clock = end

    async def create_connection(self, factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        """Connect to a peer, or be refused."""
        await asyncio.sleep(0)
        accept = self.peers.get(port)
        if accept is None:
            raise ConnectionRefusedError(111, f"nobody listens on {host}:{port}")
        wire = Wire(self, factory())
        accept(wire)
        return wire, wire.protocol

    def _due(self, until: float) -> bool:
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)
            self._timer_cancelled_count -= 1
        return bool(self._scheduled) and self._scheduled[0].when() <= until

    def _step(self) -> None:
        asyncio._set_running_loop(self)
        try:
            self._run_once()
        finally:
            asyncio._set_running_loop(None)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    _selector = property(lambda self: self)  # what is asked for events

    def select(self, timeout: float | None) -> list[Any]:
        """No events: everything happens by callbacks."""
        del timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        del event_list

    def _write_to_self(self) -> None:
        pass


class Wire(asyncio.Transport):
    """The router's end of a connection, and what the other end can do to it."""

    def __init__(self, loop: Loop, protocol: Any) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.sent = bytearray()
        self.heard: Callable[[], None] | None = None
        self.blocked = False
        self.over = False
        self.ended = False
        self._unsent = bytearray()
        self._inbox = bytearray()
        self._reading = True
        self._slow = False
        self._closing = False
        self.finished = False
        protocol.connection_made(self)

    # --- the other end ---

    def feed(self, data: bytes) -> None:
        """The other end sent this."""
        if self._closing or self.over:
            return
        self._inbox += data
        if self._reading:
            self._drain()

    def vanish(self, error: Exception | None = None) -> None:
        """The other end is gone."""
        if not self.over:
            self._closing = True
            self._lose(error)

    def finish(self) -> None:
        """The other end sends no more."""
        if self._closing or self.over or self.finished:
            return
        self.finished = True
        if self._reading and not self._inbox and not self.protocol.eof_received():
            self.close()

    def unblock(self) -> None:
        """The other end reads again."""
        self.blocked = False
        if self.over:
            return
        self._flush()
        if self._slow:
            self._slow = False
            self.protocol.resume_writing()
        if self._closing and not self._unsent:
            self.loop.call_soon(self._lose, None)

    # --- asyncio.Transport ---

    def write(self, data: Any) -> None:
        if self._closing or self.over or self.ended:
            return
        self._unsent += data
        if not self.blocked:
            self._flush()
        elif len(self._unsent) > _HIGH_WATER and not self._slow:
            self._slow = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._unsent:
                self.loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self.over:
            self._closing = True
            self._unsent.clear()
            self.loop.call_soon(self._lose, None)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.loop.call_soon(self._drain)

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _Socket() if name == "socket" else default

    # --- inside ---

    def _drain(self) -> None:
        if self._inbox and self._reading and not self._closing:
            data, self._inbox = bytes(self._inbox), bytearray()
            self.protocol.data_received(data)
        if (
            self.finished
            and not self._inbox
            and self._reading
            and not self._closing
            and not self.protocol.eof_received()
        ):
            self.close()

    def _flush(self) -> None:
        if self._unsent:
            self.sent += self._unsent
            self._unsent.clear()
            if self.heard is not None:
                self.loop.call_soon(self.heard)

    def _lose(self, error: Exception | None) -> None:
        if not self.over:
            self.over = True
            self.protocol.connection_lost(error)


class _Socket:
    """A socket without an error: what is reset here tells so at once."""

    def getsockopt(self, level: int, option: int) -> int:
        del level, option
        return 0


class Manners(Protocol):
    """How an engine answers: called for each request with what may be done to its connection."""

    def __call__(self, request: strict.Message, talk: "Talk") -> None:
        """Answer, now or later."""


class Talk:
    """One connection of an engine. Reads strictly: what is not exactly one request at a time is a violation."""

    def __init__(self, engine: "Engine", wire: Wire) -> None:
        self.engine = engine
        self.wire = wire
        self._read = 0
        self.answered = True
        wire.heard = self._heard

    def say(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        """Send these bytes, cut into pieces that arrive one after the other."""
        edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
        for start, end in itertools.pairwise(edges):
            self.wire.loop.call_soon(self.wire.feed, data[start:end])

    def done(self) -> None:
        """The answer is complete: another request may come."""
        self.answered = True

    def _heard(self) -> None:
        data = bytes(self.wire.sent[self._read :])
        if not data or self.wire.over:
            return
        try:
            found = strict.one_request(data)
        except strict.BadError as error:
            self.engine.violations.append(f"the engine got no request: {error}")
            return
        if found is None:
            return
        request, rest = found
        if rest or not self.answered:
            self.engine.violations.append(f"the engine got a request before it had answered: {data[:200]!r}")
        self._read += len(data) - len(rest)
        self.answered = False
        self.engine.take(request, self)


class Engine:
    """An engine: keeps what it got, and answers by its manners."""

    def __init__(self, loop: Loop, port: int, manners: Manners) -> None:
        self.manners = manners
        self.violations: list[str] = []
        self.requests: list[strict.Message] = []
        self.talks: list[Talk] = []
        loop.peers[port] = self._accept

    def take(self, request: strict.Message, talk: Talk) -> None:
        """One request."""
        if problem := _strange(request):
            self.violations.append(problem)
            talk.wire.vanish()
            return
        self.requests.append(request)
        self.manners(request, talk)

    def _accept(self, wire: Wire) -> None:
        self.talks.append(Talk(self, wire))


_FORWARDED: Final = frozenset({
    b"host", b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"x-request-id",
    b"content-length",
})  # fmt: skip
_PATHS: Final = frozenset({b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"})


def _strange(request: strict.Message) -> str:
    """What is wrong with a request that reached an engine."""
    names = [name for name, _ in request.headers]
    if request.start[0] != b"POST" or request.start[1] not in _PATHS:
        return f"the engine got {request.start}"
    if len(set(names)) != len(names) or not {b"host", b"content-length"} <= set(names) <= _FORWARDED:
        return f"the engine got headers {names}"
    body = read_json(request.body)
    return "" if body is None or body.get("model") == "chat-8b" else f"the engine got model {body.get('model')!r}"


def read_json(body: bytes) -> dict[str, Any] | None:
    """A body as engines read it; nothing if they refuse it: what is inside of values is theirs to judge."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def echo(members: Mapping[str, Any]) -> str:
    """What an engine answers to a body: a mark that only this body has."""
    asked = members.get("messages", members.get("prompt", members.get("input")))
    return f"mark-{zlib.crc32(json.dumps(asked).encode()):08x}"


def whole_answer(mark: str) -> bytes:
    """A sized answer with usage."""
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
    return sized(200, b'{"id":"c","choices":[{"index":0,"message":{"content":"%b"}}],%b}' % (mark.encode(), usage))


def stream_answer(mark: str, events: int = 3) -> bytes:
    """A chunked event stream with usage and its end."""
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":%d,"total_tokens":%d}' % (events, 3 + events)
    lines = [b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % mark.encode()] * events
    lines += [b'data: {"id":"c","choices":[],%b}\n\n' % usage, b"data: [DONE]\n\n"]
    out = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + out + b"0\r\n\r\n"


def answer_to(request: strict.Message) -> bytes:
    """What a good engine answers."""
    members = read_json(request.body)
    if members is None:
        return sized(400, b'{"error":{"message":"this is no JSON"}}')
    return stream_answer(echo(members)) if members.get("stream") is True else whole_answer(echo(members))


def sized(status: int, body: bytes, extra: bytes = b"") -> bytes:
    """A sized answer; ``extra`` are header lines, each with its CR LF."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, extra, len(body)) + body


def reserved(router: Router) -> int:
    """What is reserved of any budget, and reservations that were not settled."""
    return sum(holding.reserved + holding.open for holding in router.wallet.holdings.values())


class _Ears(logging.Handler):
    """Keeps what is logged with an exception or as an error: neither may happen."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self._problems.append(f"logged: {record.getMessage()} {record.exc_info}")


class World:
    """A router, its engines and its clients."""

    def __init__(self, seed: int, manners: Manners, engines: int = 2, limits: Limits | None = None) -> None:
        random.seed(seed)  # the session with the ledger spreads its messages
        self.loop = Loop()
        self.limits = limits or Limits()
        self.router = self._router()
        self.clients = Clients(self.limits, self.loop.time)
        ports = range(9000, 9000 + engines)
        self.engines = [Engine(self.loop, port, manners) for port in ports]
        self.router.configure(build_index(configuration(budgets=(budget(),))))
        self.router.set_endpoints(endpoints({POOL: tuple(f"127.0.0.1:{port}" for port in ports)}))
        self._ears = _Ears(self.loop.problems)
        self._talking = self.loop.create_task(self.router.session.run())

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._ears)
        self.loop.advance(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self._ears)
        self.router.upstreams.close()
        self._talking.cancel()
        self.loop.settle()
        self.loop.close()

    def connect(self) -> Wire:
        """A client comes."""
        return Wire(self.loop, self.within(lambda: Client(self.router, self.limits, self.clients)))

    def within(self, work: Callable[[], Any]) -> Any:
        """Call something as if the loop had."""
        asyncio._set_running_loop(self.loop)
        try:
            return work()
        finally:
            asyncio._set_running_loop(None)

    def pass_time(self, seconds: float, steps: int = 1) -> None:
        """Let time pass, with the work that main does now and then."""
        for _ in range(steps):
            self.loop.advance(seconds / steps)
            self.within(self.clients.check)
            self.within(self.router.upstreams.check)
            self.within(self.router.tick)
        self.loop.settle()

    def problems(self) -> list[str]:
        """What went wrong inside, so far."""
        return [*self.loop.problems, *(text for engine in self.engines for text in engine.violations)]

    def left_over(self) -> Mapping[str, int]:
        """What is held although no client is there any more: all of it must be 0."""
        found = {"connections": len(self.clients._open), "busy": self.clients.busy()}
        found |= {"bodies": self.clients.bodies.used, "answers": self.router.answers.used}
        for line in self.router._lines.values():
            found |= {"running": line.running, "held": line.held.value}
            found["in flight"] = sum(replica.in_flight for replica in line.replicas)
        found["reserved"] = reserved(self.router)
        return {name: value for name, value in found.items() if value}

    def _router(self) -> Router:
        loop, ids = self.loop, itertools.count(1)
        router = Router(
            place=Place(pod="fairlead/gateway-gw1"),
            times=Times(loop.time, self._wall),
            limits=self.limits,
            verifier=Verifier(self._wall),
            upstreams=Upstreams(loop.time, Patience(first_s=20.0, between_s=10.0)),
            telemetry=Telemetry(),
            id_base=0,
        )
        router.session = Session(
            transport=LocalLease(LEASE, lambda: int(self._wall() * 1000)),
            wallet=router.wallet,
            clocks=Clocks(loop.time, loop.time, self._wall),
            new_id=lambda: f"session-{next(ids)}",
            usage=router.book.take,
            report=lambda result: router.telemetry.renewals.add((result,)),
        )
        return router

    def _wall(self) -> float:
        return WALL_S + self.loop.clock
