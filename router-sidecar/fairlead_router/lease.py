"""The session with the ledger: one message at a time tells what was charged, gives back, renews and asks.

A message is sealed once and sent with the same bytes until it is answered, so it is applied exactly once. Requests
that lack money wait here, holding nothing, until an answer brings enough for them, says no, or their time is up.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from fairlead_router.budget import Claim, Purse, Reservation, Shortage, Wallet
from fairlead_router.contract import Close, SyncAnswer, SyncRefusal, SyncRequest, UsageLine
from fairlead_router.journal import Journal
from fairlead_router.metering import Row, Spent
from fairlead_router.records import Snapshot, key_of

log = logging.getLogger(__name__)

BUDGET_WAIT_S: Final = 2.0
MAX_WAITERS: Final = 5_000
_SPACING_S: Final = 0.02
_REASK_S: Final = 0.1
_HEARTBEAT_S: Final = 5.0
_BACKOFF_S: Final[tuple[float, ...]] = (0.1, 2.0)
_AWAY_AFTER: Final = 3
_KEEP_MESSAGES: Final = 1_000
_KEEP_BYTES: Final = 4 * 1024 * 1024
_FLUSH_S: Final = 1.0
_TAKEN: Final = "Taken"

OK, CONFLICT = 200, 409
NEVER_TAKEN: Final = frozenset({403, 410, 413, 422})
"""Answers to what a message says, which will not change: sent again it would hold up everything behind it."""

Outcome = Reservation | Shortage | None
"""What a wait ends with; ``None``: the ledger cannot be asked."""


class Transport(Protocol):
    """Carries one message to the ledger: the status and the body of its answer. Raises OSError when there is none."""

    async def sync(self, body: bytes) -> tuple[int, bytes]:
        """Send one message."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks of a session: ``now`` is the event loop's, ``boot`` goes on while the machine sleeps, ``wall`` is UTC."""

    now: Callable[[], float]
    boot: Callable[[], float]
    wall: Callable[[], float]


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for money."""

    claims: Sequence[Claim]
    tell: Callable[[Outcome], None]
    after: int = 0
    """The message that was sealed last when the wait began."""
    since_ms: int = 0
    """The ledger's time then."""
    anew: bool = False
    """It waits for the second time, in another window."""
    timer: asyncio.TimerHandle | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """A message with its number, as sent; ``retold``: to a ledger that had taken it before and lost it."""

    seq: int
    body: bytes
    retold: bool = False


Opener = Callable[[str, Callable[[], Snapshot]], Journal]
"""Begins the journal of a session, of which the snapshot tells everything."""


class Session:
    """The router's side of the budget protocol.

    ``usage`` hands out the usage lines since the last message, ``lines`` shows them; ``report`` is told how each
    exchange went, ``restored`` that the ledger's database is another one than before. Without ``journal`` nothing is
    left to a later process.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        wallet: Wallet,
        clocks: Clocks,
        new_id: Callable[[], str],
        usage: Callable[[], tuple[UsageLine, ...]],
        report: Callable[[str], None],
        lines: Callable[[], tuple[UsageLine, ...]] = tuple,
        restored: Callable[[], None] | None = None,
        journal: Opener | None = None,
        boot_id: str = "",
    ) -> None:
        self.wallet = wallet
        self.journal: Journal | None = None
        self.budgets_version: tuple[int, int] = (0, 0)
        self.fault = ""
        """What the ledger did with the last message instead of taking it; empty when it took it."""
        self._transport = transport
        self._clocks = clocks
        self._new_id = new_id
        self._usage = usage
        self._report = report
        self._wake = asyncio.Event()
        self._wake.set()  # the first message asks for nothing: it begins the session
        self._waiters: deque[Waiter] = deque()
        self._id = new_id()
        self._seq = 0
        self._answered = 0
        self._epoch = ""
        self._kept: deque[Sealed] = deque()
        self._kept_bytes = 0
        self._outstanding: deque[Sealed] = deque()
        self._sent_boot = 0.0
        self._ledger_ms = 0
        self._answered_boot = 0.0
        self._fence_boot = float("-inf")
        self._heartbeat_s = _HEARTBEAT_S
        self._failures = 0
        self._told_at = float("-inf")
        self._drift = 0.0
        self._lines = lines
        self._restored = restored
        self._opener = journal
        self._boot_id = boot_id
        self._carried: tuple[UsageLine, ...] = ()
        """Usage in messages of an earlier session that the ledger never took."""
        self._leaving = False
        """The goodbye was sealed."""
        self._doubtful = False
        """The outstanding message may have arrived although nobody answered it."""
        self.tick()
        self._open_journal()

    def tick(self) -> None:
        """Now and then: how far the clock that goes on while the machine sleeps is ahead of the cheap one."""
        self._drift = self._clocks.boot() - self._clocks.now()

    # --- for requests ---

    def ledger_ms(self) -> int:
        """The ledger's clock, carried on by ours; 0 before its first answer."""
        if not self._ledger_ms:
            return 0
        return self._ledger_ms + int((self._clocks.now() + self._drift - self._answered_boot) * 1000)

    def fresh(self) -> bool:
        """Whether the ledger still counts this session as alive, so that what it holds may be spent."""
        return self._clocks.now() + self._drift < self._fence_boot

    def reachable(self) -> bool:
        """Whether waiting for the ledger makes sense: a message or two may get lost, a row of them means it is away."""
        return self._failures < _AWAY_AFTER

    def reserve(self, claims: Sequence[Claim], now: float) -> Outcome:
        """Reserve from what is held, in this step. ``None``: the lease has run out and the ledger cannot be asked."""
        boot = now + self._drift
        if boot >= self._fence_boot and any(claim.purse.enforced and claim.amount for claim in claims):
            return None if not self.reachable() else Shortage(claims[0].purse, claims[0].amount, "Unknown")
        ledger_ms = self._ledger_ms + int((boot - self._answered_boot) * 1000) if self._ledger_ms else 0
        outcome: Outcome = self.wallet.reserve(claims, ledger_ms, now)
        if self.wallet.urgent:
            self.wallet.urgent = False
            self._wake.set()
        journal = self.journal
        if journal is not None and type(outcome) is Reservation:
            if not journal.full:
                journal.opened(outcome)
            if journal.full and any(claim.purse.enforced and claim.amount for claim in claims):
                self.wallet.settle(outcome, [0] * len(claims))
                return None
        return outcome

    def wait(self, claims: Sequence[Claim], tell: Callable[[Outcome], None]) -> Waiter | None:
        """Wait for money; ``tell`` is called once, later. ``None``: too many wait already."""
        if len(self._waiters) >= MAX_WAITERS:
            return None
        waiter = Waiter(claims, tell, since_ms=self.ledger_ms())
        self._line_up(waiter)
        return waiter

    def _line_up(self, waiter: Waiter) -> None:
        waiter.after, waiter.over = self._seq, False
        waiter.timer = asyncio.get_running_loop().call_later(BUDGET_WAIT_S, self._time_is_up, waiter)
        self._waiters.append(waiter)
        self._wake.set()

    def cancel(self, waiter: Waiter) -> None:
        """The request waits no longer."""
        waiter.over = True
        if waiter.timer is not None:
            waiter.timer.cancel()
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def extend(self, reservation: Reservation, claims: Sequence[Claim]) -> Shortage | None:
        """Raise a reservation in place, or say what lacks: nothing is raised by a lease that has run out."""
        now, journal = self._clocks.now(), self.journal
        before = [piece.amount for piece in reservation.pieces]
        enforced = next((claim for claim in claims if claim.purse.enforced and claim.amount), None)
        if enforced is not None and (not self.fresh() or (journal is not None and journal.full)):
            return Shortage(enforced.purse, enforced.amount, "Unknown")
        lack = self.wallet.extend(reservation, claims, self.ledger_ms(), now)
        if lack is None and journal is not None:
            journal.opened(reservation)
            if enforced is not None and journal.full:  # it was not recorded
                self.wallet.lower(reservation, before)
                return Shortage(enforced.purse, enforced.amount, "Unknown")
        return lack

    def settle(
        self,
        reservation: Reservation | None,
        charges: Sequence[int],
        row: Row | None = None,
        at_ms: int = 0,
        spent: Spent | None = None,
    ) -> None:
        """Charge a request and release what it did not use. ``row`` and ``spent`` say what the book was told of it."""
        if reservation is not None:
            if reservation.settled:
                return
            self.wallet.settle(reservation, charges)
        if self.journal is not None:
            self.journal.settled(reservation, charges, row, at_ms, spent)
        if self._waiters:
            self._serve()
        if self.wallet.urgent:
            self.wallet.urgent = False
            self._wake.set()

    def sweep(self, older_than_s: float) -> int:
        """Settle at their bounds old reservations whose requests ended without doing so; how many."""
        oldest, left = self._clocks.now() - older_than_s, []
        for reservation in self.wallet.open.values():
            if reservation.began > oldest:
                break
            if reservation.holder is None or reservation.holder.over():
                left.append(reservation)
        for reservation in left:
            self.settle(reservation, [piece.amount for piece in reservation.pieces])
        return len(left)

    def kick(self) -> None:
        """Talk to the ledger soon: the configuration changed."""
        self._wake.set()

    # --- the loop ---

    async def run(self) -> None:
        """Talk to the ledger until cancelled."""
        while True:
            await self._pause()
            if not self._outstanding:
                self._seal()
            await self._send_all()

    async def close(self, timeout_s: float) -> bool:
        """Say goodbye: what is not under way is given back. Whether the ledger heard it within this time.

        From then on nothing is reserved under an enforced budget: what is free here is the ledger's again.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_sent()
                self._leaving, self._fence_boot = True, float("-inf")
                self._seal(Close(complete=True, unknown=self.wallet.unknown()))
                session = self._id
                await self._until_sent()
                return session == self._id
        except TimeoutError:
            return False

    async def _until_sent(self) -> None:
        while not await self._send_all():  # noqa: ASYNC110 - it is tried again, nobody tells when
            await asyncio.sleep(self._backoff_s())

    async def keep_journal(self) -> None:
        """Write the journal to the disk each second, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            journal = self.journal
            if journal is None:
                continue
            await asyncio.to_thread(journal.flush)
            if journal.full and journal is self.journal:
                journal.renew()

    async def _pause(self) -> None:
        """Until somebody needs an answer, the heartbeat is due, or a waiter wants to ask again."""
        if self._failures:
            await asyncio.sleep(self._backoff_s())
            return
        pause = self._heartbeat_s
        if self._waiters:
            pause = _REASK_S * random.uniform(0.5, 1.5)  # noqa: S311 - spreads the routers, guards nothing
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
                await asyncio.sleep(max(0.0, self._told_at + _SPACING_S - self._clocks.now()))
        except TimeoutError:
            return

    def _backoff_s(self) -> float:
        least, most = _BACKOFF_S
        return min(most, least * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - spread

    def _seal(self, close: Close | None = None) -> None:
        self._wake.clear()
        now, ledger_ms = self._clocks.now(), self.ledger_ms()
        self._count_waiting(ledger_ms, now)
        self.wallet.forget_idle(ledger_ms, now)
        self._seq += 1
        # Asks come after statements: a window that ended is stated for the last time before the next one is asked for.
        statements = tuple(self.wallet.statements(ledger_ms, now, everything=close is not None or not self._waiters))
        message = SyncRequest(
            session=self._id,
            seq=self._seq,
            epoch=self._epoch,
            sent_at=int(self._clocks.wall() * 1000),
            holdings=statements,
            asks=() if close else tuple(self.wallet.asks(ledger_ms, now)),
            usage=self._carried or self._usage(),  # both together may be more than a message holds
            close=close,
        )
        self._carried = ()
        self._keep(Sealed(self._seq, msgspec.json.encode(message)))

    def _keep(self, sealed: Sealed) -> None:
        self._outstanding.append(sealed)
        self._kept.append(sealed)
        self._kept_bytes += len(sealed.body)
        while len(self._kept) > _KEEP_MESSAGES or (self._kept_bytes > _KEEP_BYTES and len(self._kept) > 1):
            self._kept_bytes -= len(self._kept.popleft().body)
        if self.journal is not None:
            self.journal.sealed(sealed.seq, sealed.body)

    def _open_journal(self) -> None:
        if self._opener is not None:
            self.journal = self._opener(self._id, self._snapshot)

    def _snapshot(self) -> Snapshot:
        wallet = self.wallet
        return Snapshot(
            session=self._id,
            boot=self._boot_id,
            seq=self._seq,
            acked=self._seq - len(self._outstanding),
            holdings=tuple([(h.key, h.granted, h.returned, h.charged, h.unbacked) for h in wallet.holdings.values()]),
            open=tuple([(number, _amounts(reservation)) for number, reservation in wallet.open.items()]),
            usage=(*self._carried, *self._lines()),
            outstanding=tuple([(sealed.seq, sealed.body) for sealed in self._outstanding]),
        )

    async def _send_all(self) -> bool:
        """Send what is outstanding, in order, until all is answered or the ledger does not answer."""
        while self._outstanding:
            sealed = self._outstanding[0]
            self._told_at, self._sent_boot = self._clocks.now(), self._clocks.boot()
            try:
                status, body = await self._transport.sync(sealed.body)
                heard = self._take(status, body)
            except (OSError, TimeoutError, msgspec.DecodeError) as error:
                self.fault = f"does not answer ({error})"
                heard = False
                self._doubtful = True
                self._report("unreachable")
            if not heard:
                self._failures += 1
                return False
        return True

    def _take(self, status: int, body: bytes) -> bool:
        if status == OK:
            return self._accept(msgspec.json.decode(body, type=SyncAnswer))
        refusal = refusal_of(body)
        self._report(f"status_{status}")
        self.fault = f"answers {status} {refusal.reason}".rstrip()
        if status == CONFLICT:
            self._rewind(refusal.expected)
        elif status in NEVER_TAKEN:
            if not self._failures:  # of a row of them, one line
                log.warning("the ledger refused session %s (%d %s); a new one begins", self._id, status, refusal.reason)
            self._begin_anew(carry=not self._doubtful and refusal.reason != _TAKEN)
        return False

    def _accept(self, answer: SyncAnswer) -> bool:
        if answer.seq < self._outstanding[0].seq:
            return False
        # What is told again is answered as things stood then: money that was given back since must not come back by it.
        accounts = () if self._outstanding.popleft().retold else answer.accounts
        self._failures, self._doubtful, self.fault = 0, False, ""
        self._answered = max(self._answered, answer.seq)
        self._report("ok")
        before, self._epoch = self._epoch, answer.epoch
        self._ledger_ms, self._answered_boot = answer.now, self._clocks.boot()
        if not self._leaving:
            self._fence_boot = self._sent_boot + answer.ttl_ms / 1000
        self.tick()
        self.budgets_version = answer.budgets_version
        now, renew_s = self._clocks.now(), answer.sync_after_ms / 1000
        for account in accounts:
            self.wallet.take(account, answer.now, now, renew_s)
        self._heartbeat_s = min(_HEARTBEAT_S, max(_SPACING_S, min(renew_s, self.wallet.renewal_s(now))))
        if self.journal is not None:
            grants = [(key_of(account.account, account.klass), account.granted) for account in accounts]
            self.journal.acked(answer.seq, grants)
        if before not in {"", answer.epoch} and self._restored is not None:
            self._restored()
        self._serve()
        if any(self.wallet.recalled(account) for account in accounts):
            self._wake.set()
        return True

    def _rewind(self, expected: int) -> None:
        """The ledger lost what came after ``expected``: tell it again if we still have it, else begin a new session."""
        again = [sealed for sealed in self._kept if sealed.seq >= expected]
        if self.journal is not None and (not again or again[0].seq != expected):
            again = [Sealed(seq, body) for seq, body in self.journal.archive.since(expected)]
        if not again or again[0].seq != expected:
            log.warning("the ledger expects message %d, which is not kept; a new session begins", expected)
            self._begin_anew(carry=True)
            return
        self._outstanding = deque(Sealed(sealed.seq, _rewound(sealed.body), retold=True) for sealed in again)

    def _begin_anew(self, *, carry: bool) -> None:
        """Begin another session. ``carry``: the ledger never took what is outstanding, so it is told again."""
        if carry:
            messages = [msgspec.json.decode(sealed.body, type=SyncRequest) for sealed in self._outstanding]
            self._carried = tuple([line for message in messages if not message.rewind for line in message.usage])
        self._doubtful = False
        self.wallet.abandon()
        self._id, self._seq, self._answered = self._new_id(), 0, 0
        for waiter in self._waiters:
            waiter.after = 0
        self._outstanding.clear()
        self._kept.clear()
        self._kept_bytes = 0
        self._fence_boot = float("-inf")
        old = self.journal
        self._open_journal()
        if old is not None:
            old.discard()
        self._wake.set()

    # --- waiters ---

    def _count_waiting(self, ledger_ms: int, now: float) -> None:
        """How much is waited for, by purse that lacks it, for the message that is sealed next."""
        for purse in self.wallet.purses.values():
            purse.waiting = purse.first = 0
        for waiter in self._waiters:
            for claim in waiter.claims:
                purse = claim.purse
                purse.used_at = now
                holding = purse.live(ledger_ms)
                if purse.enforced and claim.amount and (holding is None or holding.free < claim.amount):
                    purse.waiting += claim.amount
                    purse.first = min(purse.first or claim.amount, claim.amount)

    def _serve(self) -> None:
        """First-fit: everyone whose money is there now; those whom a fresh verdict refuses are told so."""
        for waiter in list(self._waiters):
            if waiter.over:  # whoever was told before gave money back at once, and that served this one
                continue
            outcome = self.reserve(waiter.claims, self._clocks.now())
            if isinstance(outcome, Reservation) or _final(outcome):
                self.cancel(waiter)
                waiter.tell(outcome)

    def _time_is_up(self, waiter: Waiter) -> None:
        self.cancel(waiter)
        outcome = self.reserve(waiter.claims, self._clocks.now())
        if isinstance(outcome, Shortage):
            # Unless it was answered since the wait began, the ledger may have the money.
            told = self._answered > waiter.after
            outcome = self.wallet.scarcest(waiter.claims, self.ledger_ms(), self._clocks.now()) if told else None
            if outcome is not None and not waiter.anew and self._turned(outcome.purse, waiter.since_ms):
                waiter.anew = True
                self._line_up(waiter)
                return
        waiter.tell(outcome)

    def _turned(self, purse: Purse, since_ms: int) -> bool:
        """Whether what was waited for is the money of a window that began meanwhile, which nobody had time to ask for.

        Of a window that nobody told of yet nothing else is known.
        """
        holding = purse.live(self.ledger_ms())
        return holding is None or holding.window.start > since_ms


def _amounts(reservation: Reservation) -> tuple[tuple[int, int], ...]:
    pieces = [piece for piece in reservation.pieces if piece.holding is not None and not piece.holding.lost]
    return tuple([(piece.holding.key, piece.amount) for piece in pieces if piece.holding is not None])


def _final(outcome: Outcome) -> bool:
    return isinstance(outcome, Shortage) and outcome.lack in {"Exhausted", "Paced", "TooLarge"}


def refusal_of(body: bytes) -> SyncRefusal:
    """What the ledger says with another status than 200."""
    try:
        return msgspec.json.decode(body, type=SyncRefusal)
    except msgspec.DecodeError:
        return SyncRefusal()


def _rewound(body: bytes) -> bytes:
    """The same message, marked as told again: the ledger does not grant what it asked for then."""
    message = msgspec.json.decode(body, type=SyncRequest)
    return msgspec.json.encode(msgspec.structs.replace(message, rewind=True))
