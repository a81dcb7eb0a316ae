"""A client's request from its body to its last byte: plan, reserve, place, send, meter, settle.

Every request goes through the stages below once, forwards; retries, a larger route and a fallback go back to PLACING.
Whatever happens, ``_over`` runs once: it frees the slot, settles the reservation and counts the request.
"""

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from fairlead_router import refusals
from fairlead_router.access_log import Record
from fairlead_router.affinity import NO_PREFIX, SHORTEST, prefix_key
from fairlead_router.answers import Refusal, bad_request, reason_phrase, usd
from fairlead_router.body import Body, BodyError, forward, parse
from fairlead_router.budget import Claim, Reservation, Shortage
from fairlead_router.contract import NANO_PER_USD, Basis, RouteConfig, Trouble, charge_nano
from fairlead_router.frames import cut
from fairlead_router.lease import Outcome, Waiter
from fairlead_router.metering import Spent, StreamMeter
from fairlead_router.paths import ServedPath
from fairlead_router.plan import Lane, Owner, Plan
from fairlead_router.queueing import Line, Place
from fairlead_router.replicas import Replica
from fairlead_router.server import Client, Request, overloaded
from fairlead_router.server import Head as Asked
from fairlead_router.sizing import NO_AMOUNTS, REQUESTS, USD, Fit, amounts_of, fit, prompt_bound
from fairlead_router.telemetry import Demand
from fairlead_router.tracing import Span, parse_traceparent
from fairlead_router.upstream import Buffer, Call, Head
from fairlead_router.usage import Usage, reader

if TYPE_CHECKING:
    from fairlead_router.app import Router

MAX_TRIES: Final = 3
MAX_BOUNCES: Final = 30
"""Times that draining replicas may send a request on: a minute, as each is left alone for two seconds."""
_FORWARDED: Final = (b"content-type", b"accept", b"user-agent")
_DROPPED: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"content-length", b"server", b"x-request-id",
})  # fmt: skip
_OURS: Final = b"x-fairlead-"
_DRAINING: Final = b"draining"
_TOO_LONG: Final = b"maximum context length"
_UNKNOWN_MODEL: Final = b"does not exist"
OK: Final = 200
BAD_REQUEST: Final = 400
NOT_FOUND: Final = 404
SERVER_ERROR: Final = 500
CLIENT_CLOSED: Final = 499
"""What the access log says of a client that left, as nginx does."""
RETRIED: Final = frozenset({401, 502, 503})
"""401: the router there does not accept ours, which the client cannot cure."""


_HALF: Final = 500
"""Half a micro-dollar, in nano-USD."""
_SMALL: Final = NANO_PER_USD - _HALF


class Stage(Enum):
    """Where a request stands."""

    PLANNING = auto()
    RESERVING = auto()
    PLACING = auto()
    SENT = auto()
    STREAMING = auto()
    OVER = auto()


def passed_headers(head: Head) -> bytes:
    """The headers of an engine's answer that are the client's business, as lines."""
    lines = head.passed
    if lines is None:
        pairs = [pair for pair in head.headers if pair[0] not in _DROPPED and not pair[0].startswith(_OURS)]
        lines = head.passed = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
    return lines


def forwarded_head(asked: Asked) -> bytes:
    """Request line and headers for an engine, without those that differ from request to request."""
    lines = [b"POST %b HTTP/1.1\r\nhost: engine\r\n" % asked.path]
    lines += [b"%b: %b\r\n" % (name, asked.headers[name]) for name in _FORWARDED if name in asked.headers]
    asked.forward = b"".join(lines)
    return asked.forward


def usd_line(nano: int) -> bytes:
    """The header that tells what a request cost; its text is that of ``usd``."""
    if nano < _SMALL and nano % 1000 != _HALF:
        return b"x-fairlead-cost-usd: 0.%06d\r\n" % ((nano + _HALF) // 1000)
    return b"x-fairlead-cost-usd: %b\r\n" % usd(nano).encode()


def trace_lines(request: Request, traceparent: bytes) -> bytes:
    """The trace context for an engine."""
    state = request.head.headers.get(b"tracestate")
    lines = b"traceparent: %b\r\n" % traceparent
    return lines if state is None else lines + b"tracestate: %b\r\n" % state


class Exchange:
    """One request of a client, answered by this router as its entry."""

    # Defaults are the class's: a request that meets no obstacle sets only a third of these.
    _stage = Stage.PLANNING
    _body: Body | None = None
    _plan: Plan | None = None
    _fit: Fit | None = None
    _lane: Lane | None = None
    _claims: tuple[Claim, ...] | list[Claim] = ()
    _reservation: Reservation | None = None
    _waiter: Waiter | None = None
    _place: Place | None = None
    _parked: Line | None = None
    _parked_at: float | None = None
    _asked: Demand | None = None
    """Where it is counted as under way."""
    _asked_tokens = 0
    _begun = False
    _replica: Replica | None = None
    _key = NO_PREFIX
    _tried: tuple[Replica, ...] = ()
    _tries = 0
    _bounces = 0
    _upsized = False
    _fallen: tuple[tuple[str, str], ...] = ()
    _forward: tuple[Buffer, bytes] | None = None
    _head: Head | None = None
    _answer: list[bytes] | None = None
    _size = 0
    _meter: StreamMeter | None = None
    _slow = False
    _settled = False
    _cost: int | None = None
    _spent: Spent | None = None
    _waited = 0.0
    _waiting_since = 0.0
    _sent_at = 0.0
    _connect_s = 0.0
    _first_at = 0.0
    _status = 0
    _bytes_out = 0
    _span: Span | None = None

    def __init__(self, router: "Router", client: Client, request: Request, owner: Owner, path: ServedPath) -> None:
        self._router = router
        self._client = client
        self._request = request
        self._owner = owner
        self._path = path
        self._call: Call | None = None

    # --- 1. plan ---

    def begin(self) -> None:
        """Start answering."""
        router, owner = self._router, self._owner
        if router.tracing is not None and self._span is None:
            self._span = router.tracing.begin(parse_traceparent(self._request.trace))
        try:
            body = self._body = parse(self._path, self._request.body)
        except BodyError as error:
            self._refuse(bad_request(str(error), error.param))
            return
        plan = owner.plans.get(body.model) or router.plan(owner, body.model)
        if type(plan) is not Plan:
            self._refuse(cast("Refusal", plan))
            return
        self._plan = plan
        fitted = fit(plan.policy, body, plan.calibration)
        if type(fitted) is Fit:
            lane = plan.lanes[fitted.index] or router.pick(plan, fitted.index)
            refusal = self._aim(fitted, lane)
        else:
            refusal = self._without_size(plan, cast("Refusal", fitted))
        if refusal is not None:
            self._refuse(refusal)
        elif self._place is None:
            self._reserve()

    def _without_size(self, plan: Plan, fitted: Refusal) -> Refusal | None:
        """No route of known size takes it: it waits for one whose pool sleeps and never told its context."""
        policy = plan.policy
        unknown = [route for route in policy.routes if not route.max_context_tokens]
        for route in unknown:
            line = self._router.asleep(route)
            if line is None and self._parked_at is not None:
                line = self._parked  # it woke, and its context is not known yet
            if line is not None:
                return self._park(line, route)
        for ref in (ref for route in unknown for ref in route.pools):
            self._router.touch(ref.pool)
        return refusals.context_unknown(policy.models[0]) if len(unknown) == len(policy.routes) else fitted

    def _park(self, line: Line, route: RouteConfig) -> Refusal | None:
        now = self._router.now()
        if self._parked_at is None:
            self._parked_at = now
        self._waiting_since, self._parked, self._stage = self._parked_at, line, Stage.PLACING
        pool, body = line.config.pool, self._body
        assert body is not None  # noqa: S101 - planned
        self._router.touch(pool)
        if line.config.unpaid:
            return refusals.pool_unpaid(body.model, pool)
        wait = route.max_cold_start_wait_ms / 1000
        place = self._new_place(wait, wait, self._parked_at, 0)
        if line.park(place):
            self._place = place
            return None
        return refusals.queue_full(pool, None)

    def _new_place(self, max_wait_s: float, max_cold_s: float, since: float, cost: int) -> Place:
        plan = self._plan
        assert plan is not None  # noqa: S101 - planned
        return Place(
            self, max_wait_s, max_cold_s, since, self._tried,
            tenant=self._owner.caller.namespace, priority=plan.priority, cost=cost, key=self._key,
        )  # fmt: skip

    def replan(self) -> None:
        """The configuration changed while this request was parked."""
        self._place = None
        self._owner = self._router.owner(self._owner.caller, self._owner.labels)
        self.begin()

    def _aim(self, fitted: Fit, lane: Lane) -> Refusal | None:
        """Take a route's pool and that pool's card; what the budgets are asked for follows from them."""
        self._fit, self._lane = fitted, lane
        self._forward = None
        lane.tally.last_request_ms = self._router.ticked_ms
        if lane.refusal is not None:
            return lane.refusal
        body = self._body
        assert body is not None  # noqa: S101 - planned
        if not lane.purses:
            self._claims = ()
            return None
        # The same for all budgets of a unit, so it is found once.
        amounts = amounts_of(lane.card, body, fitted.cap, lane.context)
        if amounts is None:
            if lane.text_only:
                return refusals.not_only_text(lane.text_only)
            amounts = NO_AMOUNTS
        self._claims = [Claim(purse, amounts[unit]) for purse, unit in lane.purses]
        return None

    # --- 2. reserve ---

    def _reserve(self) -> None:
        if not self._claims:
            self._find_replica()
            return
        self._stage = Stage.RESERVING
        outcome = self._router.session.reserve(self._claims, self._router.now())
        if type(outcome) is Reservation:
            outcome.holder = self
            self._reservation = outcome
            self._find_replica()
        else:
            self._short_of_money(outcome)

    def _short_of_money(self, outcome: Outcome) -> None:
        if isinstance(outcome, Shortage) and outcome.purse.gone:
            self._router.forget_plans()
            self.replan()
        elif not isinstance(outcome, Shortage) or outcome.lack in {"Exhausted", "Paced", "TooLarge"}:
            self._no_money(outcome)
        else:
            self._wait_for_money(outcome)

    def _wait_for_money(self, shortage: Shortage) -> None:
        session = self._router.session
        self._waiting_since = self._router.now()
        self._waiter = session.wait(self._claims, self._money_came) if session.reachable() else None
        if self._waiter is None:
            self._refuse(refusals.ledger_unreachable(shortage.purse.label))

    def _money_came(self, outcome: Outcome) -> None:
        self._waiter = None
        self._waited += self._router.now() - self._waiting_since
        if isinstance(outcome, Reservation):
            outcome.holder = self
            self._reservation = outcome
            self._find_replica()
        else:
            self._no_money(outcome)

    def _no_money(self, shortage: Outcome) -> None:
        session = self._router.session
        if not isinstance(shortage, Shortage):
            enforced = next(claim for claim in self._claims if claim.purse.enforced)
            full = session.journal is not None and session.journal.full
            words = refusals.journal_full if full else refusals.ledger_unreachable
            self._refuse(words(enforced.purse.label))
            return
        caller = self._owner.caller
        refusal = refusals.by_budget(shortage, caller, self._owner.labels, session.ledger_ms())
        self._router.log_refusal(refusal, shortage.purse.label, caller.namespace, self._request.id.decode())
        self._refuse(refusal)

    # --- 3. find a replica ---

    def _find_replica(self) -> None:
        lane, body = self._lane, self._body
        assert lane is not None  # noqa: S101 - planned
        assert body is not None  # noqa: S101 - planned
        self._stage = Stage.PLACING
        if lane.tally.demand is not self._asked and not body.path.free:
            self._ask(lane)
        line = lane.line
        if self._key == NO_PREFIX and body.size > SHORTEST and line.chooses():
            self._key = prefix_key(memoryview(body.prompt))
            if lane.salt and self._key:
                self._key = self._key ^ lane.salt or 1
        if lane.adapter and not self._has_adapter(lane):
            return
        replica = line.enter(self._key, self._tried)
        if replica is not None:
            self._replica = replica
            self._send(fresh=False)
        elif not (lane.route.fallbacks and line.empty() and self._fall_back("ScaledToZero")):
            self._wait_in_line(lane)

    def _has_adapter(self, lane: Lane) -> bool:
        """Pass over the replicas that lack the adapter; false if all do, and the request went elsewhere or is over."""
        now, replicas = self._router.now(), lane.line.replicas
        adapter, tried = lane.adapter, self._tried
        lacking = [one for one in replicas if one not in tried and one.lacking.get(adapter, 0.0) > now]
        self._tried = (*tried, *lacking)
        if not replicas or any(one not in self._tried for one in replicas):
            return True
        self._no_adapter(lane)
        return False

    def _no_adapter(self, lane: Lane) -> None:
        if not self._fall_back("Unavailable"):
            self._refuse(refusals.adapter_not_loaded(lane.adapter, lane.pool))

    def _ask(self, lane: Lane) -> None:
        """Count it among the requests for this pool, and no longer for another."""
        if self._asked is not None:
            self._asked.left(self._asked_tokens, decoding=self._begun)
        fitted, demand = self._fit, lane.tally.demand
        assert fitted is not None  # noqa: S101 - planned
        self._asked, self._asked_tokens, self._begun = demand, fitted.estimate, False
        demand.arrived(fitted.estimate)

    def _ask_in_vain(self) -> None:
        """The pool has no room in time."""
        demand, self._asked = self._asked, None
        if demand is not None:
            demand.left(self._asked_tokens, decoding=self._begun)
            if self._lane is not None:
                demand.turned_away(self._lane.config)

    def _wait_in_line(self, lane: Lane) -> None:
        now, route, fitted, body = self._router.now(), lane.route, self._fit, self._body
        assert fitted is not None  # noqa: S101 - planned
        assert body is not None  # noqa: S101 - planned
        if lane.line.config.unpaid and lane.line.empty():
            self._no_start(refusals.pool_unpaid(body.model, lane.pool))
            return
        amounts = amounts_of(lane.card, body, fitted.cap, lane.context) or NO_AMOUNTS
        place = self._new_place(
            route.max_wait_ms / 1000,
            route.max_cold_start_wait_ms / 1000,
            now,
            amounts[USD] or fitted.estimate + fitted.cap,
        )
        self._waiting_since, self._place = now, place
        if not lane.line.wait(place):
            self._place = None
            self._no_room(refusals.queue_full(lane.pool, None))

    def placed(self, replica: Replica) -> None:
        """A slot of this replica is ours."""
        self._place = None
        self._waited += self._router.now() - self._waiting_since
        self._replica = replica
        self._send(fresh=False)

    def timed_out(self, *, cold: bool) -> None:
        """Nobody had room for us in time."""
        self._place = None
        lane, body = self._lane, self._body
        assert body is not None  # noqa: S101 - planned
        line = lane.line if lane is not None else self._parked
        assert line is not None  # noqa: S101 - it waited there
        if cold:
            waited, config = self._router.now() - self._waiting_since, line.config
            waking = refusals.pool_waking(body.model, waited, config.cold_start_s)
            self._no_start(refusals.pool_unpaid(body.model, config.pool) if config.unpaid else waking)
        else:
            self._no_room(refusals.queue_full(line.config.pool, lane.route if lane is not None else None))

    def _no_start(self, refusal: Refusal) -> None:
        self._ask_in_vain()
        self._refuse(refusal)

    def shed(self) -> None:
        """Somebody with more right to it took our place in the line."""
        self._place = None
        plan, lane = self._plan, self._lane
        assert plan is not None  # noqa: S101 - planned
        pool = lane.pool if lane is not None else ""
        self._router.telemetry.shed.add((pool, plan.priority))
        self._no_room(refusals.queue_full(pool, None))

    def _no_room(self, refusal: Refusal) -> None:
        self._ask_in_vain()
        if not self._fall_back("Saturated"):
            self._refuse(refusal)

    # --- 4. send ---

    def _send(self, *, fresh: bool) -> None:
        router, replica, lane, request = self._router, self._replica, self._lane, self._request
        assert replica is not None  # noqa: S101 - placed
        assert lane is not None  # noqa: S101 - planned
        if router.place.engine:
            router.engine_started(replica)
        first, tail = self._forward or self._spliced(lane)
        self._stage = Stage.SENT
        now = self._sent_at = router.now()
        if not self._tried and not fresh:
            lane.retries.request(now)
        self._head = self._meter = None
        if self._size:
            self._forget_answer()
        head = request.head.forward or forwarded_head(request.head)
        more = b"" if replica.local else self._hop_lines(lane)
        if request.trace or self._span is not None:
            more += self._trace_lines()
        head = b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (head, more, request.id, len(first) + len(tail))
        body = self._body
        if body is not None and not body.stream:
            self._begin_output()  # the first byte of its answer comes with the last one
        connections = replica.connections
        assert connections is not None  # noqa: S101 - see Router.set_endpoints
        self._call = connections.start(self, head, (first, tail), fresh=fresh)

    def _spliced(self, lane: Lane) -> tuple[Buffer, bytes]:
        body, fitted = self._body, self._fit
        assert body is not None  # noqa: S101 - planned
        assert fitted is not None  # noqa: S101 - planned
        self._forward = forward(body, lane.asked, fitted.cap if body.path.generates else None)
        return self._forward

    def _hop_lines(self, lane: Lane) -> bytes:
        token = self._router.hop_token
        if not token:
            return b""
        return b"x-fairlead-hop: %b;%b\r\nx-fairlead-router-token: %b\r\n" % (
            self._router.name, lane.pool.encode(), token,
        )  # fmt: skip

    def _trace_lines(self) -> bytes:
        request = self._request
        if self._span is not None:
            return trace_lines(request, self._span.traceparent)
        return trace_lines(request, request.trace) if parse_traceparent(request.trace) is not None else b""

    # --- 5. the answer ---

    def upstream_load(self, load: bytes) -> None:
        """The replica's router says how busy its engine is."""
        if self._replica is not None:
            self._replica.hear(load, self._router.now())

    def upstream_whole(self, head: Head, body: bytes) -> None:
        """The answer came at once."""
        if head.status == OK and not head.events:
            self._connect_s, self._call = self._took(), None
            self._whole_answer(head, body)
            return
        self.upstream_head(head)
        self.upstream_data(body)
        self.upstream_end()

    def upstream_head(self, head: Head) -> None:
        """The engine answers."""
        self._head = head
        body = self._body
        if head.status == OK and head.events and body is not None and body.stream:
            self._meter = StreamMeter(reader(self._path), self._note, asked=body.include_usage)

    def upstream_frames(self, frames: bytes) -> None:
        """Chunks of a stream: those that hold nothing of ours pass as they are."""
        meter, client = self._meter, self._client
        if meter is not None:
            if self._stage is Stage.SENT:
                self._begin_stream()
            if client.takes_frames() and meter.passes(frames):
                self._bytes_out += len(frames)
                client.stream_frames(frames)
                return
        self.upstream_data(cut(frames).payload())

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the answer: a stream passes, everything else is kept until it is whole."""
        meter = self._meter
        if meter is None:
            self._keep(data)
            return
        if self._stage is Stage.SENT:
            self._begin_stream()
        self._bytes_out += len(data)
        self._client.stream(meter.feed(data))

    def _keep(self, data: bytes) -> None:
        memory = self._router.answers
        if memory.take(len(data)):
            self._size += len(data)
            if self._answer is None:
                self._answer = []
            self._answer.append(data)
            return
        self._drop_call()
        if self._size + len(data) > memory.bound:
            self._upstream_error(f"answered more than {memory.bound} bytes")
        else:
            self._refuse(overloaded("answers", memory.bound))

    def _forget_answer(self) -> None:
        self._router.answers.give(self._size)
        self._answer, self._size = None, 0

    def _took(self) -> float:
        return self._call.took if self._call is not None else 0.0

    def upstream_end(self) -> None:
        """The answer is whole."""
        self._connect_s, self._call = self._took(), None
        head = self._head
        assert head is not None  # noqa: S101 - the end comes after the head
        if self._meter is not None:
            self._end_stream(self._meter)
            return
        body = b"".join(self._answer or ())
        if head.status == OK:
            self._whole_answer(head, body)
        elif head.status in RETRIED:
            self._refused_by_replica(head)
        elif head.status >= SERVER_ERROR:
            self._replica_failed()
            self._upstream_error(f"answered {head.status}")
        elif head.status == BAD_REQUEST and _TOO_LONG in body and not self._upsized:
            self._take_larger_route(head, body)
        elif head.status == NOT_FOUND and self._lacks_adapter(body):
            self._find_replica()
        else:
            self._pass_error(head, body)

    def _lacks_adapter(self, body: bytes) -> bool:
        """Whether the engine does not have the adapter (yet, or since a restart): that is between us and the pool."""
        lane, replica = self._lane, self._replica
        if lane is None or replica is None or not lane.adapter or _UNKNOWN_MODEL not in body:
            return False
        replica.lack(lane.adapter, self._router.now())
        self._replica_answered()
        self._free_slot()
        return True

    def _refused_by_replica(self, head: Head) -> None:
        reason = head.get(b"x-fairlead-retry")
        if reason == _DRAINING and self._bounces < MAX_BOUNCES:
            self._wait_for_others()
            return
        if not reason:
            self._replica_failed()
        self._try_again(f"answered {head.status}")

    def upstream_failed(self, reason: str, *, stale: bool, late: bool = False) -> None:
        """The answer will not come, or not to its end."""
        self._call = None
        if self._stage is Stage.STREAMING:
            # A client that does not read holds up the engine: that is not the replica's fault.
            if not self._slow:
                self._replica_failed()
            self._settle(None, "Streamed")
            self._over("cancelled" if self._slow else "upstream_error")
            self._client.break_stream()
        elif stale:
            self._again_on_a_new_connection()
        elif late:
            # Whoever waited that long would hardly wait for another try.
            self._replica_failed()
            self._upstream_error(reason)
        else:
            self._replica_failed(reached=self._head is not None)
            self._try_again(reason)

    def _again_on_a_new_connection(self) -> None:
        if self._router.place.engine and self._replica is not None:
            self._router.engine_ended(self._replica)
        self._send(fresh=True)

    def _begin_output(self) -> None:
        if self._asked is not None and not self._begun:
            self._begun = True
            self._asked.began(self._asked_tokens)

    def _begin_stream(self) -> None:
        head, router = self._head, self._router
        assert head is not None  # noqa: S101 - data comes after the head
        self._stage = Stage.STREAMING
        self._begin_output()
        self._first_at = router.now()
        self._status = OK
        self._client.begin_stream(OK, passed_headers(head) + self._stream_lines(), None)

    def _end_stream(self, meter: StreamMeter) -> None:
        if self._stage is Stage.SENT:
            self._begin_stream()
        self._client.stream(meter.flush())
        if meter.aborted or not meter.done:
            self._replica_failed()
        else:
            self._replica_answered()
        whole = meter.usage is not None and meter.done
        self._settle(meter.usage if whole else None, "Usage" if whole else "Streamed")
        self._over("ok" if meter.done and not meter.aborted else "upstream_error")
        self._client.end_stream()

    def _whole_answer(self, head: Head, body: bytes) -> None:
        reading = reader(self._path).whole(body)
        if reading.aborted:
            self._replica_failed()
            self._try_again("aborted it")
            return
        self._replica_answered()
        usage = reading.usage
        self._settle(usage, "Usage" if usage is not None else "Bound")
        self._status, self._bytes_out = OK, len(body)
        client, cost = self._client, self._cost
        lines = head.passed or passed_headers(head)
        priced = usd_line(cost) if cost is not None else b""
        close = b"" if client.keeps_alive() else b"connection: close\r\n"
        client.send(
            b"HTTP/1.1 200 OK\r\n%b%b%b%bcontent-length: %d\r\n\r\n%b"
            % (lines, self._stream_lines(), priced, close, len(body), body)
        )
        self._over("ok")  # after the answer: its client need not wait for it

    def _pass_error(self, head: Head, body: bytes) -> None:
        """The engine refuses the request itself: its words, our headers, no charge."""
        self._replica_answered()
        self._status, self._bytes_out = head.status, len(body)
        self._over(f"engine_{head.status}")
        client = self._client
        if b'"error"' not in body:
            client.refuse(Refusal(head.status, "engine_refused", body[:500].decode("utf-8", "replace")))
            return
        lines = passed_headers(head) + b"x-request-id: %b\r\n" % self._request.id
        if not client.keeps_alive():
            lines += b"connection: close\r\n"
        start = b"HTTP/1.1 %d %b\r\n" % (head.status, reason_phrase(head.status).encode())
        client.send(b"%b%bcontent-length: %d\r\n\r\n%b" % (start, lines, len(body), body))

    # --- 6. again, elsewhere ---

    def _try_again(self, reason: str) -> None:
        """Another replica of the same pool, while no byte went to the client and the pool's retries are not used up."""
        replica, lane, router = self._replica, self._lane, self._router
        assert replica is not None  # noqa: S101 - it was sent
        assert lane is not None  # noqa: S101 - planned
        self._tries += 1
        self._tried = (*self._tried, replica)
        self._free_slot()
        now = router.now()
        # One that is left alone is not waited for: this request has met the trouble already.
        others = any(other not in self._tried and other.ejected_until <= now for other in lane.line.replicas)
        if self._tries >= MAX_TRIES or not others:
            self._upstream_error(reason)
        elif not lane.retries.allow(now):
            router.telemetry.retries.add((lane.pool, "no_budget"))
            self._upstream_error(reason)
        else:
            router.telemetry.retries.add((lane.pool, "tried"))
            self._find_replica()

    def _wait_for_others(self) -> None:
        """The replica drains and ran nothing: another one serves, or will soon; until then this is a pool at zero."""
        assert self._replica is not None  # noqa: S101 - it was sent
        self._bounces += 1
        self._replica.leave(self._router.now())
        self._free_slot()
        self._find_replica()

    def _take_larger_route(self, head: Head, body: bytes) -> None:
        """The estimate was too small: the next larger route, if the budgets give what it costs more."""
        plan, fitted, ours = self._plan, self._fit, self._body
        assert plan is not None  # noqa: S101 - planned
        assert fitted is not None  # noqa: S101 - planned
        assert ours is not None  # noqa: S101 - planned
        self._upsized = True
        larger = fit(plan.policy, ours, plan.calibration, fitted.index + 1)
        if isinstance(larger, Refusal) or not all(self._router.serves(ref.pool) for ref in larger.route.pools):
            self._pass_error(head, body)
            return
        self._replica_answered()
        self._free_slot()
        self._move(larger, self._router.pick(plan, larger.index))

    def _fall_back(self, trouble: Trouble) -> bool:
        """Go to the route's next pool for such a trouble; false if there is none that has replicas and a price."""
        plan, lane, fitted = self._plan, self._lane, self._fit
        if plan is None or lane is None or fitted is None:
            return False
        for fallback in lane.route.fallbacks:
            pair = (fallback.pool, fallback.adapter)
            # The same replicas without the adapter, or with another, help only where they lack it.
            own = fallback.pool == lane.pool and (trouble != "Unavailable" or fallback.adapter == lane.adapter)
            if trouble not in fallback.when or pair in self._fallen or own:
                continue
            self._fallen = (*self._fallen, pair)
            if not self._router.serves(fallback.pool):
                continue
            other = plan.lane(fitted.index, fallback.pool, "Fallback", fallback.adapter)
            if other.refusal is None and not other.line.empty():
                if trouble == "ScaledToZero":
                    lane.line.wake()
                self._free_slot()
                self._move(fitted, other)
                return True
        return False

    def _move(self, fitted: Fit, lane: Lane) -> None:
        """Go to another pool, if the budgets give what it costs more."""
        self._tried = ()
        refusal = self._aim(fitted, lane)
        session, reservation = self._router.session, self._reservation
        if refusal is not None:
            self._refuse(refusal)
        elif reservation is None or not self._claims or session.extend(reservation, self._claims) is None:
            self._find_replica()
        else:
            # More is needed than is held. Nothing has run, so give back what is reserved and wait like anyone else.
            session.settle(reservation, [0] * len(self._claims))
            self._reservation = None
            self._reserve()

    def _upstream_error(self, reason: str) -> None:
        lane = self._lane
        pool = lane.pool if lane is not None else ""
        if not self._fall_back("Unavailable"):
            self._refuse(refusals.upstream_error(pool, max(1, self._tries), reason))

    # --- 7. money ---

    def _settle(self, usage: Usage | None, basis: Basis) -> None:
        """Charge what ran. Without usage: what was streamed, or the bound."""
        lane, body = self._lane, self._body
        if self._settled or body is None or lane is None:
            return
        self._settled = True
        if body.path.free:
            self._settle_free()
            return
        if usage is not None:
            prompt, cached, output = usage.prompt_tokens, usage.cached, usage.output
        else:
            prompt, cached, output = self._without_usage(lane, body, basis)
        card, router = lane.card, self._router
        cost = 0
        if card is not None:
            cost = self._cost = charge_nano(card, prompt, cached, output)
        spent = self._spent = Spent(prompt, cached, output, cost)
        variant = self._replica.variant if self._replica is not None else ""
        row = self._owner.row(lane, variant, basis)
        router.book.add(row, router.book_ms, spent)
        charged = (cost, prompt + output, 1)
        charges = [charged[unit] for _, unit in lane.purses] if self._reservation is not None else ()
        router.session.settle(self._reservation, charges, row, router.book_ms, spent)
        lane.series.settled(prompt - cached, cached, output, card, cost)
        if basis == "Usage":
            lane.calibration.observe(body.size + body.extra_bytes, body.kind, prompt)

    def _settle_free(self) -> None:
        """Counted, not charged."""
        self._cost = 0
        if self._reservation is not None:
            lane = self._lane
            assert lane is not None  # noqa: S101 - it was reserved for
            self._router.session.settle(self._reservation, [int(unit == REQUESTS) for _, unit in lane.purses])

    def _without_usage(self, lane: Lane, body: Body, basis: Basis) -> tuple[int, int, int]:
        """Prompt, cached and output tokens of a request whose engine never told them; never above its bounds."""
        fitted = self._fit
        assert fitted is not None  # noqa: S101 - planned
        most = body.outputs * fitted.cap
        bound = prompt_bound(body, lane.context)
        if basis == "Streamed":
            events = self._meter.events if self._meter is not None else 0
            estimate = fitted.estimate
            if body.prompts > 1:
                estimate = lane.calibration.estimate(body.size + body.extra_bytes, body.kind)
            return estimate if bound is None else min(estimate, bound), 0, min(events, most)
        return fitted.estimate if bound is None else bound, 0, most

    # --- 8. what the client is told ---

    def _note(self, usage: Usage | None, in_chunk: bool) -> bytes:
        """The cost of a stream, once its usage is known; settles first, so that what remains is exact."""
        lane = self._lane
        assert lane is not None  # noqa: S101 - it streams
        if usage is not None:
            self._settle(usage, "Usage")
        remaining = lane.remaining()
        if in_chunk:
            left = ",".join(f'"{name}":"{text}"' for name, text in remaining)
            cost = f'"cost_usd":"{usd(self._cost)}",' if self._cost is not None else ""
            return f'"fairlead":{{{cost}"budget_remaining":{{{left}}},"pool":"{lane.served}"}}'.encode()
        words = [f"cost_usd={usd(self._cost)}"] if self._cost is not None and usage is not None else []
        left = ",".join(f"{name}:{text}" for name, text in remaining)
        words += [f"budget_remaining={left}"] if left else []
        return f": fairlead {' '.join([*words, f'pool={lane.served}'])}\n\n".encode()

    def _stream_lines(self) -> bytes:
        lane, fitted = self._lane, self._fit
        assert lane is not None  # noqa: S101 - planned
        assert fitted is not None  # noqa: S101 - planned
        lines = b"x-request-id: %b\r\n%b" % (self._request.id, lane.lines())
        return lines + b"x-fairlead-max-tokens: %d\r\n" % fitted.cap if fitted.clamped else lines

    # --- 9. the client ---

    def client_gone(self) -> None:
        """Stop the engine at once; what ran is charged."""
        ran = self._stage in {Stage.SENT, Stage.STREAMING}
        self._drop_call()
        place, self._place = self._place, None
        line = self._lane.line if self._lane is not None else self._parked
        if place is not None and line is not None:
            line.leave(place)
        if self._waiter is not None:
            self._router.session.cancel(self._waiter)
            self._waiter = None
        if ran:
            self._settle(None, "Streamed")
        self._status = CLIENT_CLOSED
        self._over("cancelled")

    def client_slow(self) -> None:
        """Read no more from the engine."""
        self._slow = True
        if self._call is not None:
            self._call.pause()

    def client_ready(self) -> None:
        """Read on."""
        self._slow = False
        if self._call is not None:
            self._call.resume()

    # --- 10. the end ---

    def _refuse(self, refusal: Refusal) -> None:
        self._status = refusal.status
        self._router.outages.refused(refusal)
        self._over(refusal.code)
        self._client.refuse(refusal)

    def over(self) -> bool:
        """Whether the request ended."""
        return self._stage is Stage.OVER

    def _over(self, outcome: str) -> None:
        """The request ended: free what it holds, charge nothing that was not charged yet, count it."""
        if self._stage is Stage.OVER:
            return
        self._stage = Stage.OVER
        replica = self._replica
        self._free_slot()
        if self._size:
            self._forget_answer()
        lane, router = self._lane, self._router
        if self._reservation is not None and not self._settled:
            self._settled = True
            router.session.settle(self._reservation, [0] * len(self._claims))
        if lane is None:
            router.telemetry.series(self._owner.caller.namespace, "", "", "Standard").outcome(outcome)
        else:
            lane.series.outcome(outcome)
            lane.tally.last_request_ms = router.ticked_ms
            if self._asked is not None:
                self._count_demand(self._asked, lane, outcome)
            if self._status == OK:
                self._count_times(lane)
        if router.access is not None or self._span is not None:
            self._report(outcome, replica)
        self._meter = None  # it refers to this exchange, which has the body: see plan.py about cycles

    def _count_demand(self, demand: Demand, lane: Lane, outcome: str) -> None:
        """It wants nothing more of the pool. Whoever left before a first token in time had waited in vain."""
        demand.left(self._asked_tokens, decoding=self._begun)
        spent, now, first, arrived = self._spent, self._router.now(), self._first_at, self._request.arrived
        if outcome == "ok" and spent is not None:
            demand.finished += 1
            demand.samples.append((spent.prompt - spent.cached, spent.output))
            if first:
                demand.streamed(lane.config, first - arrived, now - first, spent.output)
            else:
                demand.answered(lane.config, now - arrived, spent.output)
        elif outcome == "cancelled" and not first and 0 < lane.config.ttft_ms < (now - arrived) * 1000:
            demand.turned_away(lane.config)

    def _count_times(self, lane: Lane) -> None:
        now, first = self._router.now(), self._first_at
        lane.series.stages(self._router_s(), self._waited, self._connect_s, (first or now) - self._sent_at)
        if first:
            output = self._spent.output if self._spent is not None else 0
            lane.series.streamed(now, first - self._request.arrived, now - first, output)

    def _router_s(self) -> float:
        """From the request's last byte until it was sent on, less waiting."""
        return max(0.0, self._sent_at - self._request.arrived - self._waited)

    def _report(self, outcome: str, replica: Replica | None) -> None:
        """One line in the access log, one span: as far as somebody wants them."""
        router, request, span = self._router, self._request, self._span
        context = parse_traceparent(request.trace) if span is None else None
        trace = span.trace_id if span is not None else context.trace_id if context is not None else b""
        wanted = router.access is not None and router.access.wanted(trace, self._status)
        if not wanted and (span is None or not span.recording):
            return
        record = self._record(outcome, replica, trace)
        if router.access is not None and wanted:
            router.access.write(record)
        if span is not None:
            span.end(record)

    def _record(self, outcome: str, replica: Replica | None, trace: bytes) -> Record:
        """What there is to tell, as far as the request came."""
        plan, lane, body, spent = self._plan, self._lane, self._body, self._spent
        caller, labels, request = self._owner.caller, self._owner.labels, self._request
        now, sent, first = self._router.now(), self._sent_at, self._first_at
        record = Record(
            request=request.id.decode(),
            tenant=caller.namespace,
            caller=caller.name,
            feature=labels.feature or "",
            replica=replica.pod if replica is not None else "",
            outcome=outcome,
            path=self._path.path.decode(),
            status=self._status,
            nano_usd=self._cost,
            queue_s=self._waited,
            connect_s=self._connect_s,
            bytes_in=len(request.body),
            bytes_out=self._bytes_out,
            trace_id=trace,
        )
        if body is not None:
            record.model, record.stream = body.model, body.stream
        if plan is not None:
            record.priority, record.actions = plan.priority, plan.actions
        if lane is not None:
            record.pool, record.route = lane.pool, lane.route.name
        if spent is not None:
            record.prompt, record.cached, record.output = spent.prompt, spent.cached, spent.output
        if sent:
            record.router_s, record.engine_s = self._router_s(), (first or now) - sent
        if first:
            record.stream_s, record.ttft_s = now - first, first - request.arrived
        return record

    def _free_slot(self) -> None:
        replica, self._replica = self._replica, None
        lane = self._lane
        if replica is not None and lane is not None:
            if self._router.place.engine:
                self._router.engine_ended(replica)
            lane.line.release(replica)

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.abort()

    def _replica_failed(self, *, reached: bool = True) -> None:
        lane, router = self._lane, self._router
        if self._replica is not None and lane is not None and self._replica.failed(router.now(), reached=reached):
            router.telemetry.ejections.add((lane.pool,))

    def _replica_answered(self) -> None:
        replica = self._replica
        if replica is not None and replica.troubled:
            replica.succeeded()
