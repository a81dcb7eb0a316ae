"""A client's request from its body to its last byte: plan, reserve, place, send, meter, settle.

Every request goes through the stages below once, forwards; retries and a larger route go back to PLACING. Whatever
happens, ``_over`` runs once: it frees the slot, settles the reservation and counts the request.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from fairlead_router import refusals
from fairlead_router.answers import Refusal, bad_request, reason_phrase, remaining_text, usd
from fairlead_router.body import Body, BodyError, edits_for, parse, splice
from fairlead_router.budget import Claim, Reservation, Shortage
from fairlead_router.contract import NANO_PER_USD, Basis, Card, PolicyConfig, PoolConfig, RouteConfig, charge_nano
from fairlead_router.lease import Outcome, Waiter
from fairlead_router.metering import Dimension, Spent, StreamMeter, Usage, read_answer
from fairlead_router.policy import BudgetMatch, Caller, Labels, find_policy, matching_budgets, refuse_unbudgeted
from fairlead_router.queueing import Line, Place
from fairlead_router.replicas import Replica
from fairlead_router.server import Client, Request, overloaded
from fairlead_router.sizing import Fit, fit, prompt_bound, reserve_amount
from fairlead_router.telemetry import PRIORITY
from fairlead_router.upstream import Call, Head

if TYPE_CHECKING:
    from fairlead_router.app import Router

MAX_TRIES: Final = 3
MAX_BOUNCES: Final = 30
"""Times that draining replicas may send a request on: a minute, as each is left alone for two seconds."""
_FORWARDED: Final = (b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate")
_DROPPED: Final = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"content-length", b"server", b"x-request-id",
})  # fmt: skip
_OURS: Final = b"x-fairlead-"
_DRAINING: Final = b"draining"
_TOO_LONG: Final = b"maximum context length"
OK: Final = 200
BAD_REQUEST: Final = 400
SERVER_ERROR: Final = 500
RETRIED: Final = frozenset({401, 502, 503})
"""401: the router there does not accept ours, which the client cannot cure."""


Observer = Callable[[float, float], None]


class Stage(Enum):
    """Where a request stands."""

    PLANNING = auto()
    RESERVING = auto()
    PLACING = auto()
    SENT = auto()
    STREAMING = auto()
    OVER = auto()


def passed_headers(head: Head) -> list[tuple[bytes, bytes]]:
    """The headers of an engine's answer that are the client's business."""
    return [pair for pair in head.headers if pair[0] not in _DROPPED and not pair[0].startswith(_OURS)]


class Exchange:
    """One request of a client, answered by this router as its entry."""

    __slots__ = (
        "_answer", "_body", "_bounces", "_call", "_caller", "_card", "_claims", "_client", "_cost", "_first_at", "_fit",
        "_forward",
        "_head", "_labels", "_line", "_matches", "_meter", "_parked_at", "_place", "_policy", "_pool", "_replica",
        "_request", "_reservation", "_router", "_sent_at", "_settled", "_size", "_slow", "_stage", "_tried", "_tries",
        "_upsized", "_waited", "_waiter", "_waiting_since",
    )  # fmt: skip

    def __init__(self, router: "Router", client: Client, request: Request, caller: Caller, labels: Labels) -> None:
        self._router = router
        self._client = client
        self._request = request
        self._caller = caller
        self._labels = labels
        self._stage = Stage.PLANNING
        self._body: Body | None = None
        self._policy: PolicyConfig | None = None
        self._fit: Fit | None = None
        self._pool: PoolConfig | None = None
        self._card: Card | None = None
        self._matches: tuple[BudgetMatch, ...] = ()
        self._claims: list[Claim] = []
        self._reservation: Reservation | None = None
        self._waiter: Waiter | None = None
        self._line = router.nowhere
        self._place: Place | None = None
        self._parked_at: float | None = None
        self._replica: Replica | None = None
        self._tried: tuple[Replica, ...] = ()
        self._tries = 0
        self._bounces = 0
        self._upsized = False
        self._forward = b""
        self._call: Call | None = None
        self._head: Head | None = None
        self._answer: list[bytes] = []
        self._size = 0
        self._meter: StreamMeter | None = None
        self._slow = False
        self._settled = False
        self._cost: int | None = None
        self._waited = 0.0
        self._waiting_since = 0.0
        self._sent_at = 0.0
        self._first_at = 0.0

    # --- 1. plan ---

    def begin(self) -> None:
        """Start answering."""
        try:
            refusal = self._plan()
        except BodyError as error:
            refusal = bad_request(str(error), error.param)
        if refusal is not None:
            self._refuse(refusal)
        elif self._place is not None:
            return  # parked
        elif self._claims:
            self._reserve()
        else:
            self._reservation = Reservation()
            self._find_replica()

    def _plan(self) -> Refusal | None:
        router, index = self._router, self._router.index
        body = self._body = parse(self._request.path, self._request.body)
        policy = find_policy(index, self._caller.namespace, body.model)
        if isinstance(policy, Refusal):
            return policy
        self._policy = policy
        self._matches = matching_budgets(index, self._caller, self._labels)
        refusal = refuse_unbudgeted(index, self._caller, self._matches)
        if refusal is not None:
            return refusal
        fitted = fit(policy, body, router.calibration(policy))
        if isinstance(fitted, Refusal):
            return self._without_size(policy, fitted)
        return self._aim(fitted)

    def _without_size(self, policy: PolicyConfig, fitted: Refusal) -> Refusal | None:
        """No route of known size takes it: it waits for one whose pool sleeps and never told its context."""
        unknown = [route for route in policy.routes if not route.max_context_tokens]
        for route in unknown:
            line = self._router.asleep(route)
            if line is None and self._parked_at is not None:
                line = self._line  # it woke, and its context is not known yet
            if line is not None:
                return self._park(line, route)
        for ref in (ref for route in unknown for ref in route.pools):
            self._router.touch(ref.pool)
        return refusals.context_unknown(policy.models[0]) if len(unknown) == len(policy.routes) else fitted

    def _park(self, line: Line, route: RouteConfig) -> Refusal | None:
        now = self._router.now()
        if self._parked_at is None:
            self._parked_at = now
        self._waiting_since, self._line, self._stage = self._parked_at, line, Stage.PLACING
        pool = line.config.pool
        self._router.touch(pool)
        wait = route.max_cold_start_wait_ms / 1000
        self._place = Place(self, wait, wait, self._parked_at)
        if line.park(self._place):
            return None
        self._place = None
        return refusals.queue_full(pool, None)

    def replan(self) -> None:
        """The configuration changed while this request was parked."""
        self._place = None
        self.begin()

    def _aim(self, fitted: Fit) -> Refusal | None:
        """Take a route, its pool and that pool's card; what the budgets are asked for follows from them."""
        self._fit = fitted
        self._line = self._router.pick(fitted.route)
        pool = self._pool = self._line.config
        self._card = pool.card
        self._forward = b""
        self._router.touch(pool.pool)
        claims = []
        for match in self._matches:
            claim = self._claim(match, fitted.cap)
            if isinstance(claim, Refusal):
                return claim
            claims.append(claim)
        self._claims = claims
        return None

    def _claim(self, match: BudgetMatch, cap: int) -> Claim | Refusal:
        budget, pool = match.budget, self._pool
        assert self._body is not None  # noqa: S101 - planned
        assert pool is not None  # noqa: S101 - planned
        purse = self._router.wallet.purse(budget, match.namespace, match.key)
        if budget.enforcement == "Enforce":
            if budget.unit == "USD" and (pool.card is None or not budget.price_known):
                return refusals.price_unknown(purse.label, pool.pool)
            if budget.unit != "Requests" and not self._body.text_only:
                return refusals.not_only_text(purse.label)
        return Claim(purse, reserve_amount(budget.unit, self._card, self._body, cap))

    # --- 2. reserve ---

    def _reserve(self) -> None:
        self._stage = Stage.RESERVING
        outcome = self._router.session.reserve(self._claims)
        if isinstance(outcome, Reservation):
            self._reservation = outcome
            self._find_replica()
        elif outcome is None or outcome.lack in {"Exhausted", "Paced", "TooLarge"}:
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
            self._reservation = outcome
            self._find_replica()
        else:
            self._no_money(outcome)

    def _no_money(self, shortage: Shortage | None) -> None:
        session = self._router.session
        if shortage is None:
            enforced = next(claim for claim in self._claims if claim.purse.enforced)
            self._refuse(refusals.ledger_unreachable(enforced.purse.label))
            return
        refusal = refusals.by_budget(shortage, self._caller, self._labels, session.ledger_ms())
        self._router.log_refusal(refusal, shortage.purse.label, self._caller.namespace, self._request.request_id)
        self._refuse(refusal)

    # --- 3. find a replica ---

    def _find_replica(self) -> None:
        fitted = self._fit
        assert fitted is not None  # noqa: S101 - planned
        self._stage = Stage.PLACING
        route = fitted.route
        now = self._router.now()
        place = Place(self, route.max_wait_ms / 1000, route.max_cold_start_wait_ms / 1000, now, self._tried)
        replica = self._line.enter(place)
        if replica is not None:
            self.placed(replica)
            return
        self._waiting_since = now
        self._place = place
        if not self._line.wait(place):
            self._place = None
            self._refuse(refusals.queue_full(self._line.config.pool, None))

    def placed(self, replica: Replica) -> None:
        """A slot of this replica is ours."""
        if self._place is not None:
            self._place = None
            self._waited += self._router.now() - self._waiting_since
        self._replica = replica
        self._router.engine_started(replica)
        self._send(fresh=False)

    def timed_out(self, *, cold: bool) -> None:
        """Nobody had room for us in time."""
        self._place = None
        fitted, body = self._fit, self._body
        assert body is not None  # noqa: S101 - planned
        waited = self._router.now() - self._waiting_since
        if cold:
            self._refuse(refusals.pool_waking(body.model, waited, self._line.config.cold_start_s))
        else:
            self._refuse(refusals.queue_full(self._line.config.pool, fitted.route if fitted else None))

    # --- 4. send ---

    def _send(self, *, fresh: bool) -> None:
        replica, pool = self._replica, self._pool
        assert replica is not None  # noqa: S101 - placed
        assert pool is not None  # noqa: S101 - planned
        if not self._forward:
            self._forward = self._spliced(pool)
        self._stage = Stage.SENT
        self._sent_at = self._router.now()
        self._head = self._meter = None
        self._forget_answer()
        head = self._request_head(replica, pool)
        self._call = self._router.upstreams.pool(replica.target).start(self, head, self._forward, fresh=fresh)

    def _spliced(self, pool: PoolConfig) -> bytes:
        body, fitted = self._body, self._fit
        assert body is not None  # noqa: S101 - planned
        assert fitted is not None  # noqa: S101 - planned
        served = pool.pool.partition("/")[2]
        return splice(body, edits_for(body, served, fitted.cap if body.generates else None))

    def _request_head(self, replica: Replica, pool: PoolConfig) -> bytes:
        request = self._request
        lines = [b"POST %b HTTP/1.1\r\nhost: engine" % request.path]
        lines += [b"%b: %b" % (name, request.headers[name]) for name in _FORWARDED if name in request.headers]
        lines.append(b"x-request-id: %b" % request.request_id.encode())
        token = self._router.hop_token
        if token and not replica.local:
            lines.append(b"x-fairlead-hop: %b;%b" % (request.request_id.encode(), pool.pool.encode()))
            lines.append(b"x-fairlead-router-token: %b" % token.encode())
        lines.append(b"content-length: %d\r\n\r\n" % len(self._forward))
        return b"\r\n".join(lines)

    # --- 5. the answer ---

    def upstream_head(self, head: Head) -> None:
        """The engine answers."""
        self._head = head
        body = self._body
        if (
            head.status == OK
            and body is not None
            and body.stream
            and head.get(b"content-type").startswith(b"text/event")
        ):
            self._meter = StreamMeter(self._note, asked=body.include_usage)

    def upstream_data(self, data: bytes) -> None:
        """Bytes of the answer: a stream passes, everything else is kept until it is whole."""
        meter = self._meter
        if meter is None:
            self._keep(data)
            return
        if self._stage is Stage.SENT:
            self._begin_stream()
        self._client.stream(meter.feed(data))

    def _keep(self, data: bytes) -> None:
        memory = self._router.answers
        if memory.take(len(data)):
            self._size += len(data)
            self._answer.append(data)
            return
        self._drop_call()
        if self._size + len(data) > memory.bound:
            self._upstream_error(f"answered more than {memory.bound} bytes")
        else:
            self._refuse(overloaded("answers", memory.bound))

    def _forget_answer(self) -> None:
        self._router.answers.give(self._size)
        self._answer, self._size = [], 0

    def upstream_end(self) -> None:
        """The answer is whole."""
        self._call = None
        head = self._head
        assert head is not None  # noqa: S101 - the end comes after the head
        if self._meter is not None:
            self._end_stream(self._meter)
            return
        body = self._answer[0] if len(self._answer) == 1 else b"".join(self._answer)
        if head.status == OK:
            self._whole_answer(head, body)
        elif head.status in RETRIED:
            self._refused_by_replica(head)
        elif head.status >= SERVER_ERROR:
            self._replica_failed()
            self._upstream_error(f"answered {head.status}")
        elif head.status == BAD_REQUEST and _TOO_LONG in body and not self._upsized:
            self._take_larger_route(head, body)
        else:
            self._pass_error(head, body)

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
            self._send(fresh=True)
        elif late:
            # Whoever waited that long would hardly wait for another try.
            self._replica_failed()
            self._upstream_error(reason)
        else:
            self._replica_failed()
            self._try_again(reason)

    def _begin_stream(self) -> None:
        head, router = self._head, self._router
        assert head is not None  # noqa: S101 - data comes after the head
        self._stage = Stage.STREAMING
        self._first_at = router.now()
        self._client.begin_stream(OK, passed_headers(head) + self._stream_headers(), None)

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
        reading = read_answer(body)
        if reading.aborted:
            self._replica_failed()
            self._try_again("aborted it")
            return
        self._replica_answered()
        self._first_at = self._router.now()
        self._settle(reading.usage, "Usage" if reading.usage is not None else "Bound")
        self._over("ok")
        headers = passed_headers(head) + self._answer_headers()
        self._client.send(_whole(OK, headers, body, close=not self._client.keeps_alive()))

    def _pass_error(self, head: Head, body: bytes) -> None:
        """The engine refuses the request itself: its words, our headers, no charge."""
        self._replica_answered()
        self._over(f"engine_{head.status}")
        if b'"error"' not in body:
            self._client.refuse(Refusal(head.status, "engine_refused", body[:500].decode("utf-8", "replace")))
            return
        headers = [*passed_headers(head), (b"x-request-id", self._request.request_id.encode())]
        self._client.send(_whole(head.status, headers, body, close=not self._client.keeps_alive()))

    # --- 6. again, elsewhere ---

    def _try_again(self, reason: str) -> None:
        """Another replica of the same pool, while no byte went to the client."""
        replica = self._replica
        assert replica is not None  # noqa: S101 - it was sent
        self._tries += 1
        self._tried = (*self._tried, replica)
        self._free_slot()
        others = [other for other in self._line.replicas if other not in self._tried]
        if self._tries >= MAX_TRIES or not others:
            self._upstream_error(reason)
        else:
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
        policy, fitted, ours = self._policy, self._fit, self._body
        assert policy is not None  # noqa: S101 - planned
        assert fitted is not None  # noqa: S101 - planned
        assert ours is not None  # noqa: S101 - planned
        self._upsized = True
        larger = fit(policy, ours, self._router.calibration(policy), fitted.index + 1)
        if isinstance(larger, Refusal):
            self._pass_error(head, body)
            return
        self._replica_answered()
        self._free_slot()
        self._tried = ()
        refusal = self._aim(larger)
        if refusal is not None:
            self._refuse(refusal)
        elif (
            self._reservation is None
            or not self._claims
            or self._router.session.extend(self._reservation, self._claims) is None
        ):
            self._find_replica()
        else:
            # More is needed than is held. Nothing has run, so give back what is reserved and wait like anyone else.
            self._router.session.settle(self._reservation, [0] * len(self._claims))
            self._reservation = None
            self._reserve()

    def _upstream_error(self, reason: str) -> None:
        pool = self._line.config.pool
        self._refuse(refusals.upstream_error(pool, max(1, self._tries), reason))

    # --- 7. money ---

    def _settle(self, usage: Usage | None, basis: Basis) -> None:
        """Charge what ran. Without usage: what was streamed, or the bound."""
        body, fitted = self._body, self._fit
        if self._settled or body is None or fitted is None:
            return
        self._settled = True
        bound, most = prompt_bound(body), body.outputs * fitted.cap
        if usage is not None:
            prompt, cached, output = usage.prompt_tokens, usage.cached, usage.output
        elif basis == "Streamed":
            estimate = self._router.calibration_of(self._line.config.pool).estimate(body.size)
            events = self._meter.events if self._meter is not None else 0
            prompt, cached, output = min(estimate, bound), 0, min(events, most)
        else:
            prompt, cached, output = bound, 0, most
        cost = charge_nano(self._card, prompt, cached, output) if self._card is not None else 0
        self._cost = cost if self._card is not None else None
        if self._reservation is not None and self._claims:
            charges = [self._charge(claim, cost, prompt + output) for claim in self._claims]
            self._router.session.settle(self._reservation, charges)
        self._record(basis, Spent(prompt, cached, output, cost))

    def _charge(self, claim: Claim, cost: int, tokens: int) -> int:
        unit = claim.purse.budget.unit
        return cost if unit == "USD" else tokens if unit == "Tokens" else 1

    def _record(self, basis: Basis, spent: Spent) -> None:
        router, fitted, body, replica = self._router, self._fit, self._body, self._replica
        assert fitted is not None  # noqa: S101 - planned
        assert body is not None  # noqa: S101 - planned
        pool, card = self._line.config.pool, self._card
        dimension = Dimension(
            self._caller.namespace, self._caller.name, self._labels.feature or "", body.model, pool,
            replica.variant if replica is not None else "", fitted.route.name, basis,
            card.version if card is not None else 0,
        )  # fmt: skip
        router.book.add(router.ledger_or_wall_ms(), dimension, spent)
        if basis == "Usage":
            router.calibration_of(pool).observe(body.size + body.tools_size, spent.prompt)
        router.count_tokens(self._caller.namespace, pool, card, spent)
        tally = router.tally(pool)
        tally.prompt += spent.prompt
        tally.cached += spent.cached
        tally.output += spent.output
        tally.nano_usd += spent.nano_usd
        router.telemetry.cost.observe((pool, fitted.route.name), spent.nano_usd / NANO_PER_USD)
        self._observe_latency(tally.ttft.add, tally.tpot.add, spent.output)

    def _observe_latency(self, ttft: Observer, tpot: Observer, output: int) -> None:
        router, fitted = self._router, self._fit
        if self._meter is None or not self._first_at or fitted is None:
            return
        labels = (self._line.config.pool, fitted.route.name, PRIORITY)
        now = router.now()
        first = self._first_at - self._request.arrived
        ttft(now, first)
        router.telemetry.ttft.observe(labels, first)
        if output > 1:
            gap = (now - self._first_at) / (output - 1)
            tpot(now, gap)
            router.telemetry.tpot.observe(labels, gap)

    # --- 8. what the client is told ---

    def _note(self, usage: Usage | None, in_chunk: bool) -> bytes:
        """The cost of a stream, once its usage is known; settles first, so that what remains is exact."""
        if usage is not None:
            self._settle(usage, "Usage")
        pool = self._line.config.pool.partition("/")[2]
        if in_chunk:
            left = ",".join(f'"{name}":"{text}"' for name, text in self._remaining())
            cost = f'"cost_usd":"{usd(self._cost)}",' if self._cost is not None else ""
            return f'"fairlead":{{{cost}"budget_remaining":{{{left}}},"pool":"{pool}"}}'.encode()
        words = [f"cost_usd={usd(self._cost)}"] if self._cost is not None and usage is not None else []
        left = ",".join(f"{name}:{text}" for name, text in self._remaining())
        words += [f"budget_remaining={left}"] if left else []
        return f": fairlead {' '.join([*words, f'pool={pool}'])}\n\n".encode()

    def _remaining(self) -> list[tuple[str, str]]:
        """What is left of the budgets of the caller's own namespace."""
        found = []
        for claim in self._claims:
            budget, holding = claim.purse.budget, claim.purse.current
            if holding is not None and budget.namespace == self._caller.namespace:
                found.append((budget.name, remaining_text(holding.remaining(), budget.unit)))
        return found

    def _stream_headers(self) -> list[tuple[bytes, bytes]]:
        fitted = self._fit
        assert fitted is not None  # noqa: S101 - planned
        headers = [
            (b"x-request-id", self._request.request_id.encode()),
            (b"x-fairlead-pool", self._line.config.pool.partition("/")[2].encode()),
            (b"x-fairlead-cache", b"off"),
        ]
        if fitted.clamped:
            headers.append((b"x-fairlead-max-tokens", str(fitted.cap).encode()))
        return headers

    def _answer_headers(self) -> list[tuple[bytes, bytes]]:
        headers = self._stream_headers()
        if self._cost is not None:
            headers.append((b"x-fairlead-cost-usd", usd(self._cost).encode()))
        remaining = ", ".join(f"{name}={text}" for name, text in self._remaining())
        if remaining:
            headers.append((b"x-fairlead-budget-remaining", remaining.encode()))
        return headers

    # --- 9. the client ---

    def client_gone(self) -> None:
        """Stop the engine at once; what ran is charged."""
        ran = self._stage in {Stage.SENT, Stage.STREAMING}
        self._drop_call()
        if self._place is not None:
            self._line.leave(self._place)
            self._place = None
        if self._waiter is not None:
            self._router.session.cancel(self._waiter)
            self._waiter = None
        if ran:
            self._settle(None, "Streamed")
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
        self._over(refusal.code)
        self._client.refuse(refusal)

    def _over(self, outcome: str) -> None:
        """The request ended: free what it holds, charge nothing that was not charged yet, count it."""
        if self._stage is Stage.OVER:
            return
        self._stage = Stage.OVER
        self._free_slot()
        self._forget_answer()
        if self._reservation is not None and not self._settled and self._claims:
            self._settled = True
            self._router.session.settle(self._reservation, [0] * len(self._claims))
        pool = self._line.config.pool
        route = self._fit.route.name if self._fit is not None else ""
        self._router.count(self._caller.namespace, pool, route, outcome)
        if self._sent_at:
            labels = (pool, route, PRIORITY)
            self._router.telemetry.wait.observe(labels, self._waited)
            overhead = self._sent_at - self._request.arrived - self._waited
            self._router.telemetry.overhead.observe(labels, max(0.0, overhead))

    def _free_slot(self) -> None:
        replica, self._replica = self._replica, None
        if replica is not None:
            self._router.engine_ended(replica)
            self._line.release(replica)

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.abort()

    def _replica_failed(self) -> None:
        if self._replica is not None:
            self._replica.failed(self._router.now())

    def _replica_answered(self) -> None:
        if self._replica is not None:
            self._replica.succeeded()


def _whole(status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason_phrase(status).encode())]
    lines += [b"%b: %b" % pair for pair in headers]
    lines.append(b"content-length: %d" % len(body))
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
