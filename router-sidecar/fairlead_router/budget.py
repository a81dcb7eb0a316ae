"""What this router holds of each budget, and the one step in which a request reserves from all of them.

A grant counts as spent for the ledger from the moment it is granted until it is given back, so everything here only
moves money that this router already holds. Invariant, at every step: ``out >= reserved >= 0`` for each holding, where
``out = granted - returned - (charged - unbacked)``; a request runs only if every enforced budget that covers it had
its upper bound free. No I/O here; times are parameters.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, Protocol

from fairlead_router import contract
from fairlead_router.contract import OTHER, AccountAnswer, Action, Ask, BudgetConfig, Unknown, Verdict, Window
from fairlead_router.records import key_of
from fairlead_router.structs import Frozen, Kept

CLASS: Final = 1
"""The class of requests, but for those of priority Batch where a budget keeps headroom for the others."""
BATCH_CLASS: Final = 0
MAX_PURSES: Final = 50_000
MAX_STATEMENTS: Final = 2_000
MAX_ASKS: Final = 1_000
"""Bounds of one message; with the usage lines it stays below the 10,000 lines that the ledger takes."""
MAX_RENEWALS: Final = 100
"""Holdings in one message of which there is no news, those that were not heard of for longest: each costs the ledger
as much as one with news, and with budgets per caller or workflow there are thousands."""
VERDICT_FRESH_S: Final = 0.5
RENEW_S: Final = 5.0
"""A holding with free money is told of again after this time, or sooner if the ledger says so: others may wait for the
money, which only an answer on it tells."""
RENEW_APART_S: Final = 1.0
"""Between messages that hold nothing else."""
_SLACK_S: Final = 0.01
_BURN_TAU_S: Final = 30.0
_BOUND_WEIGHT: Final = 0.1
_IDLE_S: Final = 600.0
_IDLE_WORKFLOW_S: Final = 30.0
_RECENT_S: Final = 60.0
_HORIZON_S: Final[tuple[float, ...]] = (2.0, 300.0)
_MAX_LEAD_MS: Final = 60_000

Lack = Literal["Waiting", "Exhausted", "Paced", "TooLarge", "Unknown", "Recovering"]


@dataclass(slots=True, eq=False)
class Holding:
    """Running totals of what this session holds of one account. All four totals only grow; ``reserved`` is a gauge."""

    account: int
    window: Window
    klass: int = CLASS
    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    reserved: int = 0
    free: int = 0
    """What the next request may reserve: ``out - reserved``, kept up with each step."""
    open: int = 0
    """Reservations not settled yet."""
    dirty: bool = True
    recall: bool = False
    limit: int = 0
    used: int = 0
    available: int = 0
    holders: int = 1
    charged_at_answer: int = 0
    verdict: Verdict = "None"
    verdict_at: float = -math.inf
    tell_at: float = -math.inf
    """When it must be told of again, news or not, if money is free."""
    asked: int = 0
    """The smallest amount that was asked for last."""
    judged: int = 0
    """The smallest amount that the verdict is about: what was asked for when it was given."""
    retry_after_ms: int = 0
    pace_per_hour: int = 0
    burn: float = 0.0
    burn_at: float = 0.0
    burned: int = 0
    """Charged since ``burn_at``."""
    mean_bound: float = 0.0
    low: int = 0
    """Below this much free money the holding asks for more."""
    lost: bool = False
    """It belongs to a session that is over: what is charged to it is told to nobody."""
    key: int = 0
    """One number for account and class."""

    def __post_init__(self) -> None:
        self.key = key_of(self.account, self.klass)

    @property
    def out(self) -> int:
        """What may still turn into charges."""
        return self.free + self.reserved

    def grant(self, total: int) -> None:
        """The ledger's running total of grants; one that is lower than ours is old news."""
        if total > self.granted:
            self.free += total - self.granted
            self.granted = total

    def give_back(self, amount: int) -> None:
        """Return free money."""
        self.returned += amount
        self.free -= amount

    def remaining(self) -> int:
        """What the whole account has left as far as this router knows: the last answer less its own charges since."""
        return max(0, self.limit - self.used - (self.charged - self.charged_at_answer))

    def charge(self, reserved: int, charged: int) -> int:
        """Settle one reservation: from its own money, then from what is free; gives the rest, which is unbacked."""
        self.reserved -= reserved
        free = self.free + reserved - charged
        self.charged += charged
        lack = 0
        if free < 0:
            lack = -free
            self.unbacked += lack
            free = 0
        self.free = free
        self.open -= 1
        self.dirty = True
        self.burned += charged
        return lack

    def owe(self, amount: int) -> None:
        """Charge what ran before the account was known."""
        self.charged += amount
        self.unbacked += amount
        self.dirty = True

    def target(self, now: float, window_ms: int) -> int:
        """How much to hold: what burns within the horizon, or a few requests as long as the account has plenty."""
        shortest, longest = _HORIZON_S[0], _HORIZON_S[1]
        horizon = min(longest, max(shortest, window_ms / 1000 / 200))
        self.burn = self.burn * math.exp((self.burn_at - now) / _BURN_TAU_S) + self.burned / _BURN_TAU_S
        self.burn_at, self.burned = now, 0
        return int(max(self.burn * horizon, min(4 * self.mean_bound, self.available / (8 * max(1, self.holders)))))


@dataclass(slots=True, eq=False)
class Purse:
    """One account of a budget as requests name it; which ledger account that is, the ledger says."""

    budget: BudgetConfig
    label: str
    namespace: str
    key: str
    klass: int = CLASS
    current: Holding | None = None
    upcoming: Holding | None = None
    owed: int = 0
    """Charged by an audit budget before its account was known."""
    used_at: float = 0.0
    """When a request last asked for its money, whether it got it or not."""
    waiting: int = 0
    first: int = 0
    gone: bool = False
    """The wallet let go of it: whoever keeps it asks for another one."""
    asked_next: int = -1
    """The window after which the next one was already asked for."""

    @property
    def enforced(self) -> bool:
        """Whether the budget may refuse."""
        return self.budget.enforcement == "Enforce"

    def live(self, ledger_ms: int) -> Holding | None:
        """The holding of the window that is now; turns to the next window when the old one is over."""
        holding = self.current
        if holding is not None and ledger_ms < holding.window.end:
            return holding
        if self.upcoming is not None and self.upcoming.window.start <= ledger_ms < self.upcoming.window.end:
            self.current, self.upcoming = self.upcoming, None
            return self.current
        if self.upcoming is not None and self.upcoming.window.end <= ledger_ms:
            self.upcoming = None
        self.current = None
        return None


@dataclass(slots=True)
class _Demand:
    """What requests wait for of one holding, how long its budget's windows are, and whether that may refuse."""

    window_ms: int
    enforced: bool = False
    waiting: int = 0
    first: int = 0


class _Acting(Frozen, frozen=True):
    """What is in force for an account, and when its window ends."""

    active: tuple[Action, ...]
    until: int


class Claim(Frozen, frozen=True):
    """An amount that one request needs from one purse."""

    purse: Purse
    amount: int


class Piece(Kept, eq=False):
    """What a request took from one purse."""

    purse: Purse
    holding: Holding | None
    amount: int
    unbacked: int = 0
    """How much of the charge no lease covered."""


class Holder(Protocol):
    """A request that reserved."""

    def over(self) -> bool:
        """Whether it ended."""


class Reservation(Kept, eq=False):
    """What a request took from all of its budgets; settled exactly once."""

    pieces: list[Piece] = []  # noqa: RUF012 - msgspec copies it
    number: int = 0
    began: float = 0.0
    settled: bool = False
    holder: "Holder | None" = None
    """Whose it is, until it is settled."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a request cannot run now, and which budget says so. ``missing`` is what lacks in this router's holding."""

    purse: Purse
    amount: int
    lack: Lack
    retry_after_ms: int = 0


class Wallet:
    """Everything that one session holds. One event loop owns it; no step of it waits."""

    def __init__(self) -> None:
        self.purses: dict[tuple[str, str, str, int], Purse] = {}
        self.holdings: dict[int, Holding] = {}
        """By key."""
        self.open: dict[int, Reservation] = {}
        """What is not settled yet, by number; oldest first."""
        self._number = 0
        self._acting: dict[tuple[str, str, str], _Acting] = {}
        self._renew_at = math.inf
        self.urgent = False
        """A holding has less than it should have at hand, or has free what was recalled; whoever tells the ledger takes
        it back."""
        self.changed = False
        """A purse was let go, or other actions are in force: whoever drops what was prepared takes it back."""

    def purse(self, budget: BudgetConfig, namespace: str, key: str, klass: int = CLASS) -> Purse:
        """The purse of an account and class; beyond the bound, keys share one."""
        label = f"{budget.namespace}/{budget.name}"
        name = (label, namespace, key, klass)
        found = self.purses.get(name)
        if found is None:
            if len(self.purses) >= MAX_PURSES and key:
                name = (label, namespace, OTHER, klass)
            found = self.purses.setdefault(name, Purse(budget, label, namespace, name[2], klass))
        elif found.budget is not budget:
            if _counts_anew(found.budget, budget):
                found.current = found.upcoming = None
            found.budget = budget
        return found

    def reserve(self, claims: Sequence[Claim], ledger_ms: int, now: float) -> Reservation | Shortage:
        """Take every amount, or none. An audit budget gives what it has and never refuses."""
        pieces = []
        for claim in claims:
            purse, amount = claim.purse, claim.amount
            holding = purse.current
            if holding is None or ledger_ms >= holding.window.end:
                holding = purse.live(ledger_ms)
            if holding is not None and holding.free >= amount:
                pieces.append(Piece(purse, holding, amount))
                continue
            short = self._shortage(claim, ledger_ms, now)
            if short is not None:
                return _refused(short, claims, now)
            # Only an audit budget can lack it here; what it charges must go to a purse that is told of.
            told = self.purse(purse.budget, purse.namespace, purse.key, purse.klass) if purse.gone else purse
            pieces.append(Piece(told, holding, 0))
        for piece, claim in zip(pieces, claims, strict=True):
            piece.purse.used_at = now
            holding = piece.holding
            if holding is not None:
                holding.reserved += piece.amount
                holding.free -= piece.amount
                holding.open += 1
                holding.dirty = True
                holding.mean_bound += _BOUND_WEIGHT * (claim.amount - holding.mean_bound)
                if holding.free < holding.low:
                    self.urgent = True
        number = self._number = self._number + 1
        reservation = self.open[number] = Reservation(pieces, number, now)
        return reservation

    def extend(self, reservation: Reservation, claims: Sequence[Claim], ledger_ms: int, now: float) -> Shortage | None:
        """Raise a reservation to larger amounts in the accounts where it was taken, all or none."""
        raises: list[tuple[Piece, int]] = []
        for piece, claim in zip(reservation.pieces, claims, strict=True):
            more = max(0, claim.amount - piece.amount)
            if piece.holding is not None and piece.holding.free >= more:
                raises.append((piece, more))
            elif claim.purse.enforced and more:
                return self._shortage(claim, ledger_ms, now) or Shortage(claim.purse, more, "Waiting")
        for piece, more in raises:
            piece.amount += more
            if piece.holding is not None:
                piece.holding.reserved += more
                piece.holding.free -= more
        return None

    def lower(self, reservation: Reservation, amounts: Iterable[int]) -> None:
        """Take back a raise: the reservation is again what it was before."""
        for piece, amount in zip(reservation.pieces, amounts, strict=True):
            less, piece.amount = piece.amount - amount, amount
            if piece.holding is not None:
                piece.holding.reserved -= less
                piece.holding.free += less

    def settle(self, reservation: Reservation, charges: Iterable[int]) -> None:
        """Charge every budget and release the rest."""
        if reservation.settled:
            return
        reservation.settled, reservation.holder = True, None
        del self.open[reservation.number]
        for piece, charge in zip(reservation.pieces, charges, strict=True):
            holding = piece.holding
            if holding is not None:
                piece.unbacked = holding.charge(piece.amount, charge)
                if holding.recall and holding.free:
                    self.urgent = True
            else:
                piece.purse.owed += charge

    def _shortage(self, claim: Claim, ledger_ms: int, now: float) -> Shortage | None:
        purse = claim.purse
        if not purse.enforced or not claim.amount:
            return None
        holding = purse.live(ledger_ms)
        if holding is None:
            return Shortage(purse, claim.amount, "Unknown")
        if holding.free >= claim.amount:
            return None
        return Shortage(purse, claim.amount, _lack(holding, claim.amount, now), holding.retry_after_ms)

    def scarcest(self, claims: Iterable[Claim], ledger_ms: int, now: float) -> Shortage | None:
        """Of the budgets that lack money here, the one whose account has least unspent for the request."""
        short = [lack for claim in claims if (lack := self._shortage(claim, ledger_ms, now)) is not None]
        return min(short, key=_left, default=None)

    # --- towards the ledger ---

    def statements(self, ledger_ms: int, now: float, *, everything: bool) -> Iterator[contract.Holding]:
        """What to tell the ledger of each holding that changed; sets what is given back, and forgets what is over.

        With ``everything``, holdings without news are looked at too: what they hold beyond need goes back.
        """
        yield from islice(self._news(ledger_ms, now, everything=everything), MAX_STATEMENTS)
        for holding in self._over(ledger_ms):
            yield self._last_statement(holding)

    def _news(self, ledger_ms: int, now: float, *, everything: bool) -> Iterator[contract.Holding]:
        renewals, untold = 0, math.inf
        self._renew_at = -math.inf  # so it stays if a message is full before all were looked at
        for holding, demand in self._led(ledger_ms):
            lent = demand.enforced and holding.free > 0
            due = renewals < MAX_RENEWALS and lent and holding.tell_at - now < _SLACK_S
            renewals += due
            if everything or due or holding.dirty or holding.recall or demand.waiting:
                news, returned = due or holding.dirty or demand.waiting, holding.returned
                statement = _statement(holding, demand, now)
                if news or holding.returned != returned or statement.want:
                    # To the end of the row: what does not fit this message comes first in the next one.
                    self.holdings[holding.key] = self.holdings.pop(holding.key)
                    yield statement
                    continue
            if lent:
                untold = min(untold, holding.tell_at)
        self._renew_at = untold

    def asks(self, ledger_ms: int, now: float) -> Iterator[Ask]:
        """Accounts that are needed and not known: of this window, or of the next one shortly before it begins."""
        return islice(self._asks(ledger_ms, now), MAX_ASKS)

    def _asks(self, ledger_ms: int, now: float) -> Iterator[Ask]:
        for purse in sorted(self.purses.values(), key=lambda purse: not purse.waiting):
            holding = purse.live(ledger_ms)
            if holding is None:
                if purse.waiting or now - purse.used_at < _RECENT_S:
                    yield _ask(purse, "Now", purse.waiting)
            elif purse.upcoming is None and _turns_soon(purse, holding, ledger_ms, now):
                purse.asked_next = holding.window.id
                yield _ask(purse, "Next", 0)

    def take(self, answer: AccountAnswer, ledger_ms: int, now: float, renew_s: float = RENEW_S) -> None:
        """Take the ledger's word on one account; one that counts for no budget any more is let go.

        ``renew_s``: after this time it must be told of again.
        """
        holding = self.holdings.get(key_of(answer.account, answer.klass))
        if holding is not None and not answer.budget:
            self._let_go(holding)
        key = answer.key if answer.asked_key is None else answer.asked_key
        self._act((answer.budget, answer.namespace, key), answer, ledger_ms)
        purse = self.purses.get((answer.budget, answer.namespace, key, answer.klass))
        if holding is None:
            if purse is None or answer.window.end <= ledger_ms:
                return
            holding = Holding(answer.account, answer.window, answer.klass, asked=purse.first)
            self.holdings[holding.key] = holding
        if purse is not None:
            _attach(purse, holding, ledger_ms)
        _update(holding, answer, now)
        holding.tell_at = now + renew_s

    def renewal_s(self, now: float) -> float:
        """After what time a holding must be told of again of which the last message told nothing."""
        return max(RENEW_APART_S, self._renew_at - now)

    def recalled(self, answer: AccountAnswer) -> bool:
        """Whether an answer calls back what is free here."""
        holding = self.holdings.get(key_of(answer.account, answer.klass)) if answer.recall else None
        return holding is not None and holding.free > 0

    def _act(self, account: tuple[str, str, str], answer: AccountAnswer, ledger_ms: int) -> None:
        """Keep the actions in force for an account, until its window ends."""
        if not answer.window.start <= ledger_ms < answer.window.end:
            return
        before = self._acting.get(account)
        if answer.active != (before.active if before is not None else ()):
            self.changed = True
        if answer.active:
            if before is None and len(self._acting) >= MAX_PURSES:
                del self._acting[next(iter(self._acting))]
            self._acting[account] = _Acting(answer.active, answer.window.end)
        elif before is not None:
            del self._acting[account]

    def acting(self, budget: BudgetConfig, namespace: str, key: str) -> tuple[Action, ...]:
        """The actions in force for an account."""
        if not self._acting:
            return ()
        found = self._acting.get((f"{budget.namespace}/{budget.name}", namespace, key))
        return found.active if found is not None else ()

    def tick(self, ledger_ms: int) -> None:
        """Now and then: actions end with their windows."""
        over = [account for account, acting in self._acting.items() if acting.until <= ledger_ms]
        for account in over:
            del self._acting[account]
        self.changed = self.changed or bool(over)

    def _let_go(self, holding: Holding) -> None:
        for purse in self.purses.values():
            if purse.current is holding:
                purse.current = None
            if purse.upcoming is holding:
                purse.upcoming = None

    def unknown(self) -> tuple[Unknown, ...]:
        """The bounds of what is under way, of which nothing can be told any more."""
        held = (holding for holding in self.holdings.values() if holding.reserved)
        return tuple(Unknown(account=h.account, klass=h.klass, amount=h.reserved) for h in held)

    def forget_idle(self, ledger_ms: int, now: float) -> None:
        """Let go of accounts that nobody used for a while; their holdings are returned whole with the next message."""
        for name, purse in list(self.purses.items()):
            limit = _IDLE_WORKFLOW_S if purse.budget.per == "Workflow" else _IDLE_S
            held = [h for h in (purse.live(ledger_ms), purse.upcoming) if h is not None]
            if now - purse.used_at > limit and not purse.waiting and not any(h.open for h in held) and not purse.owed:
                purse.current = purse.upcoming = None
                purse.gone = self.changed = True
                del self.purses[name]

    def abandon(self) -> None:
        """A new session begins: what the old one held stays counted by the ledger and is not ours any more."""
        for holding in self.holdings.values():
            holding.lost = True
        self.holdings.clear()
        for purse in self.purses.values():
            purse.current = purse.upcoming = None
            purse.asked_next = -1

    def _led(self, ledger_ms: int) -> Iterator[tuple[Holding, "_Demand"]]:
        """Every holding that purses lead to now, once, with what they wait for together; those waited for first."""
        demands: dict[int, _Demand] = {}
        for purse in self.purses.values():
            holding = purse.live(ledger_ms)
            if holding is None:
                continue
            demand = demands.setdefault(holding.key, _Demand(purse.budget.window_ms))
            demand.enforced = demand.enforced or purse.enforced
            if purse.waiting:
                demand.waiting += purse.waiting
                demand.first = min(demand.first or purse.first, purse.first)
        led = [(holding, demands[key]) for key, holding in self.holdings.items() if key in demands]
        yield from sorted(led, key=lambda pair: not pair[1].waiting)

    def _over(self, ledger_ms: int) -> list[Holding]:
        """Holdings that no purse leads to any more and that nothing is reserved from."""
        led = {purse.current.key for purse in self.purses.values() if purse.current is not None}
        led |= {purse.upcoming.key for purse in self.purses.values() if purse.upcoming is not None}
        over = (h for h in self.holdings.values() if not h.open and (h.key not in led or h.window.end <= ledger_ms))
        return list(islice(over, MAX_STATEMENTS))

    def _last_statement(self, holding: Holding) -> contract.Holding:
        holding.give_back(holding.free)
        del self.holdings[holding.key]
        return _stated(holding, final=True)


def _counts_anew(old: BudgetConfig, new: BudgetConfig) -> bool:
    """Whether a changed budget counts in other accounts than before."""
    return (old.unit, old.per, old.window_ms, old.time_zone) != (new.unit, new.per, new.window_ms, new.time_zone)


def _lack(holding: Holding, amount: int, now: float) -> Lack:
    """What the last verdict says about an amount, if it is fresh and covers it."""
    if now - holding.verdict_at > VERDICT_FRESH_S or amount < holding.judged:
        return "Waiting"
    if holding.verdict in {"Exhausted", "Paced", "TooLarge", "Recovering"}:
        return holding.verdict
    return "Waiting"


def _refused(short: Shortage, claims: Sequence[Claim], now: float) -> Shortage:
    """Every account of a refused request is in use, or it would not be known when the money comes.

    A purse that was let go comes first: nobody is told of it, so waiting for it is in vain.
    """
    for claim in claims:
        if claim.purse.gone:
            return Shortage(claim.purse, claim.amount, "Unknown")
        claim.purse.used_at = now
    return short


def _left(shortage: Shortage) -> float:
    """How many such requests the account could pay for from what is not spent; what nobody told of yet says least.

    What is spent does not come back. What is leased may lie with requests that wait for another budget's money.
    """
    holding = shortage.purse.current
    return holding.remaining() / shortage.amount if holding is not None else math.inf


def _statement(holding: Holding, demand: _Demand, now: float) -> contract.Holding:
    target = holding.target(now, demand.window_ms)
    holding.low = target // 2
    if demand.waiting or holding.recall:
        # What is free is too little for anyone who waits here; together with what others return it may be enough.
        holding.give_back(holding.free)
    elif holding.free > 2 * target:
        holding.give_back(holding.free - target)
    want = demand.waiting + target - holding.free if holding.free < holding.low or demand.waiting else 0
    return _stated(holding, want=max(0, want), need=demand.waiting, first=demand.first)


def _ask(purse: Purse, at: Literal["Now", "Next"], need: int) -> Ask:
    return Ask(
        budget=purse.label,
        namespace=purse.namespace,
        key=purse.key,
        at=at,
        klass=purse.klass,
        want=need,
        need=need,
        first=purse.first,
    )


def _turns_soon(purse: Purse, holding: Holding, ledger_ms: int, now: float) -> bool:
    if purse.asked_next == holding.window.id or now - purse.used_at > _RECENT_S:
        return False
    length = holding.window.end - holding.window.start
    # Spread over the lead by account, so that not every router asks at the same instant.
    lead = min(_MAX_LEAD_MS, length // 10) * (50 + holding.account * 7919 % 50) // 100
    return holding.window.end - ledger_ms < lead


def _attach(purse: Purse, holding: Holding, ledger_ms: int) -> None:
    if holding.window.start > ledger_ms:
        purse.upcoming = holding
    elif holding.window.end > ledger_ms:
        purse.current = holding
        if purse.owed:
            holding.owe(purse.owed)
            purse.owed = 0


def _update(holding: Holding, answer: AccountAnswer, now: float) -> None:
    holding.grant(answer.granted)
    holding.recall = answer.recall
    holding.limit, holding.used = answer.limit, answer.used
    holding.available, holding.holders = answer.available, answer.holders
    holding.charged_at_answer = holding.charged
    holding.retry_after_ms, holding.pace_per_hour = answer.retry_after_ms, answer.pace_per_hour
    holding.verdict, holding.verdict_at, holding.judged = answer.verdict, now, holding.asked


def _stated(holding: Holding, *, want: int = 0, need: int = 0, first: int = 0, final: bool = False) -> contract.Holding:
    holding.dirty = False
    holding.asked = first or holding.asked
    return contract.Holding(
        account=holding.account,
        klass=holding.klass,
        granted=holding.granted,
        returned=holding.returned,
        charged=holding.charged,
        unbacked=holding.unbacked,
        reserved=holding.reserved,
        want=want,
        need=need,
        first=first,
        final=final,
    )
