"""PURE: the decisions of one ``sync``: what a session may say, what that does to the books, what is granted.

All totals of a holding only grow, and each has one writer: granted (ledger), returned, charged and unbacked (router).

    out(holding)  = granted - returned - (charged - unbacked)    what the holder may still turn into charges
    held(account) = sum of (granted - returned + unbacked)       the only number that a limit is checked against

A grant counts as spent from the moment it is made until the holder gives it back. So a charge does not change what
is held, nothing expires, and no decision needs a clock to be safe. Actions, headroom, pacing, idle cost, temporary
increases, edits and deletion only change what may be held: ``cap``.
"""

from typing import Literal

from msgspec.structs import replace

from fairlead_operator.ledger.structs import Frozen, Light, same
from fairlead_router.contract import Action, BudgetAction, LedgerBudget, Verdict

MAX_AMOUNT = 1 << 60
"""Totals beyond this are refused: sums of them must fit 64 bits (in nano-USD: over a billion dollars)."""
RECALL_MS = 2_000
TAKEOVER_PERCENT = 110
"""A session that has been silent for this share of the ttl has fenced itself, whatever its clock's drift."""
BATCH, OTHERS = 0, 1
"""Classes: requests of priority Batch under a budget that keeps headroom for the others, and all other requests."""
HYSTERESIS_PERCENT = 2
"""An action in force stays until the use falls this much below the share that it began at."""
PACE_SHARE = 200
PACE_MIN_MS, PACE_MAX_MS = 2_000, 300_000
HOUR_MS = 3_600_000

State = Literal["Open", "Lost", "Replaying", "Closed"]
Place = tuple[int, int]
"""Account and class: what a session has a holding of."""


class BooksError(ValueError):
    """A session's totals do not add up; the session is closed and all that it holds stays counted."""


class Session(Frozen, frozen=True):
    """What the ledger knows of a router process. ``taken``: a successor speaks for it, itself it may not any more."""

    id: str
    pod_uid: str
    pod: str
    """namespace/name."""
    seq: int
    seen_ms: int
    state: State = "Open"
    taken: bool = False

    @property
    def namespace(self) -> str:
        """The namespace of its pod."""
        return self.pod.partition("/")[0]


class Row(Light, frozen=True):
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


class Demand(Light, frozen=True):
    """Grant up to ``want``; requests wait for ``need`` in all, the smallest of them for ``first``."""

    want: int = 0
    need: int = 0
    first: int = 0

    def plus(self, other: "Demand") -> "Demand":
        """Two demands on one account as one."""
        firsts = [first for first in (self.first, other.first) if first > 0]
        return Demand(self.want + other.want, self.need + other.need, min(firsts, default=0))


class Account(Light, frozen=True):
    """One allowance in one window. ``cap_high`` is the highest cap under which a grant was made.

    ``acted`` is the highest share (percent) whose actions are in force, ``pace_from`` and ``pace_base`` when pacing
    began and what was held then.
    """

    held: int = 0
    charged: int = 0
    unbacked: int = 0
    unreconciled: int = 0
    holders: int = 0
    recall_until: int = 0
    refused_ms: int = 0
    cap_high: int = 0
    acted: int = 0
    pace_from: int | None = None
    pace_base: int | None = None

    @property
    def used(self) -> int:
        """What cannot come back: charges, and what nobody can tell any more."""
        return self.charged + self.unreconciled


class Terms(Frozen, frozen=True):
    """What limits the accounts of one budget in one window now: ``limit`` is that of the budget and its increase.

    It is 0 when the budget was deleted or counts in another series. ``idle`` is what of it idle replicas cost so far,
    ``batch_percent`` the share that class 0 may hold, ``actions`` are sorted by their shares.
    """

    limit: int
    start: int
    end: int
    idle: int = 0
    batch_percent: int = 100
    actions: tuple[BudgetAction, ...] = ()


class Refusal(Frozen, frozen=True):
    """The message is not applied: the answer's status, and what the router needs to go on."""

    status: Literal[403, 404, 409, 410, 413, 422, 425, 503]
    reason: str = ""
    expected: int = 0
    retry_after_ms: int = 0


class Outcome(Frozen, frozen=True):
    """An account and a holding after a demand, and when to ask again if nothing was granted."""

    account: Account
    row: Row
    verdict: Verdict = "None"
    retry_after_ms: int = 0


# --- what may be held


def terms_of(budget: LedgerBudget, now: int, *, live: bool, start: int, end: int, idle: int = 0) -> Terms:
    """The terms of a budget's accounts in a window."""
    if not live:
        return Terms(0, start, end)
    actions = tuple(sorted(budget.actions, key=lambda action: action.at_percent)) if budget.actions else ()
    headroom = [action.at_percent for action in actions if action.action == "RejectBatch"]
    limit = budget.limit + increase_at(budget, now)
    return Terms(limit, start, end, idle, min(headroom, default=100), actions)


def increase_at(budget: LedgerBudget, now: int) -> int:
    """The temporary increase, while it lasts."""
    increase = budget.temporary_increase
    return increase.amount if increase is not None and now < increase.until else 0


def whole(terms: Terms, klass: int) -> int:
    """What a class could hold of an account that nobody used yet: a request beyond it can never run."""
    return terms.limit if klass else terms.limit * terms.batch_percent // 100


def ceiling(terms: Terms, klass: int) -> int:
    """What a class may hold of an account by the end of the window."""
    left = (terms.limit if klass else whole(terms, klass)) - terms.idle
    return max(left, 0)


def cap(terms: Terms, account: Account, klass: int, now: int) -> int:
    """What a grant to a class must leave held at most: the ceiling or, while paced, what of it is released by now."""
    top = ceiling(terms, klass)
    begun, base = account.pace_from, account.pace_base
    if begun is None or base is None or top <= base:  # nearly always
        return top
    passed = now + horizon(terms) - begun
    return min(top, base + (top - base) * max(0, passed) // max(1, terms.end - begun))


def horizon(terms: Terms) -> int:
    """How far ahead pacing releases: what routers lease at once lasts about as long."""
    return min(PACE_MAX_MS, max(PACE_MIN_MS, (terms.end - terms.start) // PACE_SHARE))


def fits_at(terms: Terms, account: Account, klass: int, amount: int) -> int:
    """When pacing will have released an amount; at most the window's end."""
    begun, base = account.pace_from or terms.start, account.pace_base or 0
    rise = max(1, ceiling(terms, klass) - base)
    needed = -(-(amount - base) * (terms.end - begun) // rise)
    return min(terms.end, begun - horizon(terms) + needed)


def pace_per_hour(terms: Terms, account: Account) -> int:
    """How fast what may be held grows; 0 unless paced."""
    if account.pace_from is None or account.pace_base is None:
        return 0
    rise = max(0, ceiling(terms, OTHERS) - account.pace_base)
    return rise * HOUR_MS // max(1, terms.end - account.pace_from)


# --- actions


def in_force(terms: Terms, acted: int, used: int) -> int:
    """The highest share whose actions are in force, given the one before; 0 for none."""
    spent, reached = (used + terms.idle) * 100, 0
    for action in terms.actions:
        share = action.at_percent
        kept = share <= acted and spent >= (share - HYSTERESIS_PERCENT) * terms.limit
        if kept or spent >= share * terms.limit:
            reached = share
    return reached


def act(account: Account, terms: Terms, now: int) -> Account:
    """The account with the actions that its use calls for. Pacing begins with what is held then."""
    if not terms.actions and not account.acted:
        return account
    acted = in_force(terms, account.acted, account.used)
    paces = any(action.action == "Pace" and action.at_percent <= acted for action in terms.actions)
    if acted == account.acted and paces == (account.pace_from is not None):
        return account
    if not paces:
        return replace(account, acted=acted, pace_from=None, pace_base=None)
    if account.pace_from is not None:
        return replace(account, acted=acted)
    return replace(account, acted=acted, pace_from=max(now, terms.start), pace_base=account.held)


def active(terms: Terms, acted: int) -> tuple[Action, ...]:
    """Every action in force, by the share that it began at."""
    return tuple(action.action for action in terms.actions if action.at_percent <= acted) if acted else ()


def standing(terms: Terms, account: Account) -> str:
    """The last of the actions in force; ``Reject`` once nothing is left. ``act`` must have seen the account."""
    if account.used + terms.idle >= terms.limit:
        return "Reject"
    acting = active(terms, account.acted)
    return acting[-1] if acting else "None"


# --- sessions


def admit(
    session: Session, seq: int, pod_uid: str, namespace: str, *, replay: bool, now: int, ttl_ms: int
) -> Literal["Apply", "Duplicate"] | Refusal:
    """Whether a message is the session's next one, one that was applied before, or must be refused."""
    refusal = _foreign(session, pod_uid, namespace, replay=replay)
    if refusal is None and session.state == "Closed":
        refusal = Refusal(410, reason="Closed")
    if refusal is None:
        refusal = _too_early(session, pod_uid, now, ttl_ms) if replay else _taken(session)
    if refusal is not None:
        return refusal
    if seq > session.seq + 1:
        return Refusal(409, reason=f"message {session.seq + 1} is missing", expected=session.seq + 1)
    return "Duplicate" if seq <= session.seq else "Apply"


def _foreign(session: Session, pod_uid: str, namespace: str, *, replay: bool) -> Refusal | None:
    """Whoever has no business with a session. Volumes do not leave their namespace, so successors do not either."""
    if replay and session.namespace != namespace:
        return Refusal(403, reason=f"session {session.id} belongs to another namespace")
    if not replay and session.pod_uid != pod_uid:
        return Refusal(403, reason=f"session {session.id} belongs to another pod")
    return None


def _taken(session: Session) -> Refusal | None:
    return Refusal(410, reason="Taken") if session.taken else None


def _too_early(session: Session, pod_uid: str, now: int, ttl_ms: int) -> Refusal | None:
    """Nobody speaks from the journal of a session whose process may live.

    In the same pod it cannot: the kubelet starts a container after its predecessor is dead. Elsewhere it has fenced
    itself once it was silent for long enough.
    """
    if session.state == "Replaying" or session.pod_uid == pod_uid:
        return None
    silent, needed = now - session.seen_ms, ttl_ms * TAKEOVER_PERCENT // 100
    return Refusal(425, retry_after_ms=needed - silent) if silent < needed else None


# --- books


def tell(account: Account, row: Row, report: Row, *, final: bool = False) -> tuple[Account, Row]:
    """Merge a report: totals only grow, so old news changes nothing. ``final``: it returns all and forgets the holding.

    Raises BooksError.
    """
    if same(report, row) and not final:
        return account, row
    new = merged(row, report)
    if final:
        new = _returned(new, new.out)
    held = (new.granted - row.granted) - (new.returned - row.returned) + (new.unbacked - row.unbacked)
    gained = (not same(new, NOTHING) and not final) - (not same(row, NOTHING))
    # Grants that are not known here were made under a cap that was lost with them.
    lost = new.granted - row.granted
    books = replace(
        account,
        held=account.held + held,
        charged=account.charged + new.charged - row.charged,
        unbacked=account.unbacked + new.unbacked - row.unbacked,
        cap_high=max(account.cap_high, account.held - account.unbacked + lost) if lost else account.cap_high,
        holders=account.holders + gained,
    )
    return books, NOTHING if final else new


def merged(row: Row, told: Row) -> Row:
    """The larger of each total, and the gauge as told. Raises BooksError if that cannot be what happened."""
    new = told if _not_older(told, row) else _larger(row, told)
    out = new.out
    if out < 0 or new.unbacked > new.charged:
        raise BooksError(
            f"granted {new.granted}, returned {new.returned}, charged {new.charged} of which {new.unbacked} unbacked: "
            f"{out} would be left"
        )
    return new if new.reserved <= out else replace(new, reserved=out)


def _not_older(told: Row, row: Row) -> bool:
    """Nearly always so."""
    return (
        told.charged >= row.charged
        and told.granted >= row.granted
        and told.returned >= row.returned
        and told.unbacked >= row.unbacked
    )


def _larger(row: Row, told: Row) -> Row:
    return Row(
        granted=max(row.granted, told.granted),
        returned=max(row.returned, told.returned),
        charged=max(row.charged, told.charged),
        unbacked=max(row.unbacked, told.unbacked),
        reserved=told.reserved,
    )


def _returned(row: Row, amount: int) -> Row:
    return replace(row, returned=row.returned + amount, reserved=min(row.reserved, row.out - amount))


def grant(account: Account, row: Row, demand: Demand, *, terms: Terms, klass: int, now: int) -> Outcome:
    """Decide a demand. Grants leave ``held`` within the cap; whoever waits makes the others give back."""
    most = cap(terms, account, klass, now)
    available = most - account.held
    if available < demand.first:
        return _refused(account, row, demand.first, most, terms=terms, klass=klass, now=now)
    amount = size(account, demand, available=available, existing=not same(row, NOTHING), now=now)
    if amount <= 0:
        return Outcome(account, row)
    books = replace(
        account,
        held=account.held + amount,
        cap_high=max(account.cap_high, most),
        holders=account.holders + same(row, NOTHING),
    )
    return Outcome(books, replace(row, granted=row.granted + amount), "Granted")


def _refused(account: Account, row: Row, first: int, most: int, *, terms: Terms, klass: int, now: int) -> Outcome:
    """Why not even the smallest request that waits can be served, and when that may change."""
    # Headroom that Batch may not touch says nothing of the account, which others go on using.
    marked = replace(account, refused_ms=now) if klass else account
    if first > whole(terms, klass) > 0:
        return Outcome(marked, row, "TooLarge")
    if ceiling(terms, klass) - account.used < first:
        return Outcome(marked, row, "Exhausted", max(0, terms.end - now))
    if most - account.used < first:
        wait = fits_at(terms, account, klass, account.used + first) - now
        return Outcome(account, row, "Paced", max(1, wait))
    return Outcome(replace(account, recall_until=now + RECALL_MS), row, "Wait")


def size(account: Account, demand: Demand, *, available: int, existing: bool, now: int) -> int:
    """How much to grant: what requests wait for, and a share of the rest unless others wait for it."""
    holders = account.holders + (not existing)
    share = 0 if recalling(account, now) else available // (2 * holders)
    return min(available, max(demand.need, demand.first, min(demand.want, share)))


def recalling(account: Account, now: int) -> bool:
    """Whether somebody waits for what others hold."""
    return now < account.recall_until


def must_return(account: Account, terms: Terms, klass: int, now: int) -> bool:
    """Whether holders shall give back what is free: somebody waits, or the limit fell below what is held."""
    return recalling(account, now) or account.held > ceiling(terms, klass)


def close(account: Account, row: Row, *, complete: bool, unknown: int) -> tuple[Account, Row]:
    """The last word of a session on one holding: what it cannot account for stays counted, as unreconciled."""
    left = min(unknown, row.out) if complete else row.out
    books = replace(
        account,
        held=account.held - (row.out - left),
        unreconciled=account.unreconciled + left,
        holders=account.holders - (left == 0),
    )
    return books, replace(_returned(row, row.out - left), reserved=0) if left else NOTHING


def write_off(account: Account, row: Row) -> Account:
    """What a dead session still held of an account is declared not spent: the holding goes."""
    return replace(
        account,
        held=account.held - row.out,
        unreconciled=account.unreconciled - row.out,
        holders=account.holders - 1,
    )
