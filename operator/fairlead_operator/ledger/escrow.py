"""PURE: the decisions of one ``sync``: what a session may say, what that does to the books, what is granted.

All totals of a holding only grow, and each has one writer: granted (ledger), returned, charged and unbacked (router).

    out(holding)  = granted - returned - (charged - unbacked)    what the holder may still turn into charges
    held(account) = sum of (granted - returned + unbacked)       the only number that a limit is checked against

A grant counts as spent from the moment it is made until the holder gives it back. So a charge does not change what
is held, nothing expires, and no decision needs a clock to be safe.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec.structs import replace

from fairlead_router.contract import BudgetAction, LedgerBudget, Verdict

MAX_AMOUNT = 1 << 60
"""Totals beyond this are refused: sums of them must fit 64 bits (in nano-USD: over a billion dollars)."""
RECALL_MS = 2_000
TAKEOVER_PERCENT = 110
"""A session that has been silent for this share of the ttl has fenced itself, whatever its clock's drift."""

State = Literal["Open", "Lost", "Closed"]


class BooksError(ValueError):
    """A session's totals do not add up; the session is closed and all that it holds stays counted."""


@dataclass(frozen=True, slots=True)
class Session:
    """What the ledger knows of a router process."""

    id: str
    pod_uid: str
    seq: int
    seen_ms: int
    state: State


class Row(msgspec.Struct, frozen=True, gc=False):
    """Running totals of one session in one account, and ``reserved``: a gauge of what requests in flight may cost.

    A struct, like Account, and no dataclass: a message makes hundreds of them, and those copy ten times as fast.
    """

    granted: int = 0
    returned: int = 0
    charged: int = 0
    unbacked: int = 0
    reserved: int = 0

    @property
    def out(self) -> int:
        """What the holder may still turn into charges."""
        return self.granted - self.returned - (self.charged - self.unbacked)


NOTHING = Row()


@dataclass(frozen=True, slots=True)
class Report:
    """What a router tells of a holding. ``final``: it returns everything and forgets the holding."""

    totals: Row
    final: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """Grant up to ``want``; requests wait for ``need`` in all, the smallest of them for ``first``."""

    want: int = 0
    need: int = 0
    first: int = 0

    def plus(self, other: "Demand") -> "Demand":
        """Two demands on one account as one."""
        firsts = [first for first in (self.first, other.first) if first > 0]
        return Demand(self.want + other.want, self.need + other.need, min(firsts, default=0))


class Account(msgspec.Struct, frozen=True, gc=False):
    """One allowance in one window. ``cap_high`` is the highest cap under which a grant was made."""

    held: int = 0
    charged: int = 0
    unbacked: int = 0
    unreconciled: int = 0
    holders: int = 0
    recall_until: int = 0
    refused_ms: int = 0
    cap_high: int = 0

    @property
    def used(self) -> int:
        """What cannot come back: charges, and what nobody can tell any more."""
        return self.charged + self.unreconciled


_NO_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The message is not applied: the answer's status, and what the router needs to go on."""

    status: Literal[403, 409, 410, 413, 422, 425, 503]
    reason: str = ""
    expected: int = 0
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """An account after a message. ``row`` is None when the session holds nothing of it any more."""

    account: Account
    row: Row | None
    verdict: Verdict = "None"

    @property
    def granted(self) -> int:
        """The running total of grants that the holder is told."""
        return self.row.granted if self.row else 0


def cap(budget: LedgerBudget, now: int, *, live: bool) -> int:
    """What an account may hold now; nothing when its budget was deleted or counts in another series."""
    return budget.limit + increase_at(budget, now) if live else 0


def increase_at(budget: LedgerBudget, now: int) -> int:
    """The temporary increase, while it lasts."""
    increase = budget.temporary_increase
    return increase.amount if increase is not None and now < increase.until else 0


def admit(
    session: Session | None, seq: int, pod_uid: str, *, replay: bool, now: int, ttl_ms: int
) -> Literal["Apply", "Duplicate"] | Refusal:
    """Whether a message is the session's next one, one that was applied before, or must be refused."""
    if replay:
        return _takeover(session, pod_uid, now, ttl_ms)
    if session is None:
        return "Apply" if seq == 1 else Refusal(409, reason="this session is not known here", expected=1)
    if session.pod_uid != pod_uid:
        return Refusal(403, reason=f"session {session.id} belongs to another pod")
    if session.state == "Closed":
        return Refusal(410, reason="Closed")
    if seq > session.seq + 1:
        return Refusal(409, reason=f"message {session.seq + 1} is missing", expected=session.seq + 1)
    return "Duplicate" if seq <= session.seq else "Apply"


def _takeover(session: Session | None, pod_uid: str, now: int, ttl_ms: int) -> Refusal:
    """A successor speaks: its predecessor may live (wait), or its books stay as they are until their windows end."""
    if session is None or session.state == "Closed" or session.pod_uid == pod_uid:
        return Refusal(410, reason="Closed")
    silent, needed = now - session.seen_ms, ttl_ms * TAKEOVER_PERCENT // 100
    return Refusal(410, reason="Closed") if silent >= needed else Refusal(425, retry_after_ms=needed - silent)


def step(account: Account, row: Row | None, report: Report | None, demand: Demand, *, cap: int, now: int) -> Outcome:
    """One account's part of a message: the report, then, after what it returns, the grant. Raises BooksError."""
    held = row or NOTHING
    if report is not None:
        account, held = tell(account, held, report)
    gained = (held != NOTHING) - (row is not None)
    if gained:
        account = replace(account, holders=account.holders + gained)
    if demand == _NO_DEMAND:
        return Outcome(account, held if held != NOTHING else None)
    return grant(account, held, demand, cap=cap, now=now)


def tell(account: Account, row: Row, report: Report) -> tuple[Account, Row]:
    """Merge a report: totals only grow, so old news changes nothing. Raises BooksError."""
    new = merged(row, report.totals)
    if report.final:
        new = _returned(new, new.out)
    books = replace(
        account,
        held=account.held + (new.granted - row.granted) - (new.returned - row.returned) + (new.unbacked - row.unbacked),
        charged=account.charged + new.charged - row.charged,
        unbacked=account.unbacked + new.unbacked - row.unbacked,
    )
    return books, NOTHING if report.final else new


def merged(row: Row, told: Row) -> Row:
    """The larger of each total, and the gauge as told. Raises BooksError if that cannot be what happened."""
    new = Row(
        granted=max(row.granted, told.granted),
        returned=max(row.returned, told.returned),
        charged=max(row.charged, told.charged),
        unbacked=max(row.unbacked, told.unbacked),
        reserved=told.reserved,
    )
    if new.out < 0 or new.unbacked > new.charged:
        raise BooksError(
            f"granted {new.granted}, returned {new.returned}, charged {new.charged} of which {new.unbacked} unbacked: "
            f"{new.out} would be left"
        )
    return new if new.reserved <= new.out else replace(new, reserved=new.out)


def _returned(row: Row, amount: int) -> Row:
    return replace(row, returned=row.returned + amount, reserved=min(row.reserved, row.out - amount))


def grant(account: Account, row: Row, demand: Demand, *, cap: int, now: int) -> Outcome:
    """Decide a demand. Grants leave ``held`` within the cap; whoever waits makes the others give back."""
    kept = row if row != NOTHING else None
    available = cap - account.held
    if demand.first > cap > 0:
        return Outcome(replace(account, refused_ms=now), kept, "TooLarge")
    if available < demand.first:
        if cap - account.used < demand.first:
            return Outcome(replace(account, refused_ms=now), kept, "Exhausted")
        return Outcome(replace(account, recall_until=now + RECALL_MS), kept, "Wait")
    amount = size(account, demand, available=available, existing=kept is not None, now=now)
    if amount <= 0:
        return Outcome(account, kept)
    books = replace(
        account,
        held=account.held + amount,
        cap_high=max(account.cap_high, cap),
        holders=account.holders + (kept is None),
    )
    return Outcome(books, replace(row, granted=row.granted + amount), "Granted")


def size(account: Account, demand: Demand, *, available: int, existing: bool, now: int) -> int:
    """How much to grant: what requests wait for, and a share of the rest unless others wait for it."""
    holders = account.holders + (not existing)
    share = 0 if recalling(account, now) else available // (2 * holders)
    return min(available, max(demand.need, demand.first, min(demand.want, share)))


def recalling(account: Account, now: int) -> bool:
    """Whether somebody waits for what others hold."""
    return now < account.recall_until


def must_return(account: Account, *, cap: int, now: int) -> bool:
    """Whether holders shall give back what is free: somebody waits, or the limit fell below what is held."""
    return recalling(account, now) or account.held > cap


def close(account: Account, row: Row, *, complete: bool, unknown: int) -> Outcome:
    """The last word of a session on one holding: what it cannot account for stays counted, as unreconciled."""
    left = min(unknown, row.out) if complete else row.out
    closed = replace(_returned(row, row.out - left), reserved=0)
    books = replace(
        account,
        held=account.held - (row.out - left),
        unreconciled=account.unreconciled + left,
        holders=account.holders - (left == 0),
    )
    return Outcome(books, closed if left else None)


def action_at(actions: tuple[BudgetAction, ...], used: int, limit: int) -> str:
    """The action of the highest share of the limit that is reached; ``Reject`` from 100 % on."""
    if used >= limit:
        return "Reject"
    reached = [action for action in actions if used * 100 >= action.at_percent * limit]
    return max(reached, key=lambda action: action.at_percent).action if reached else "None"
