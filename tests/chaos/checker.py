"""PURE: compares what really ran with what the ledger wrote and what callers were told.

Every figure of ``Figures`` is a sum over all windows and accounts of a run; ``problems`` names what must not be.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median
from typing import Final

from tests.chaos.truth import UNANSWERED, Account, Asked, Books, ClockSpan, Covered, Limit, Receipt, Run, Span

TEMPLATE_TOKENS: Final = 256
LONG_S: Final = 2.0
"""So long money may be on its way to where it is asked for."""
PREFETCH_S: Final = 60.0
"""So long before a window's start its money may be leased."""
MEMORY_S: Final = 310.0
"""So long a router that hears nothing goes by what the ledger's clock once said."""
EDGE_S: Final = 1.0
AGAIN_S: Final = 3.0
"""So much later a router that failed has asked the ledger again and was answered."""
EXCUSE_S: Final = 8.0
"""So much later the last of those who waited meanwhile has its answer."""
STARVED_S: Final = 2.6
"""Requests wait 2 s for money: one that waited this long met a machine without time, which proves nothing."""
LATE_SHARE: Final = 0.001
"""Of the refusals that can be judged so many may come late to money that was there: the last thousandths of a budget
lie in leases of many routers, and a recall that a lost message carried is heard with the next one."""
LENGTHS: Final[dict[str, int]] = {"Minute": 60, "Hour": 3600}
"""Seconds of the periods whose windows are the same in every time zone in use here."""
SPENT_CODES: Final = frozenset({"budget_exhausted", "workflow_cap"})
_EXCUSED_CODES: Final = frozenset({"ledger_unreachable", "journal_full", "not_configured"})
"""What a router may answer while something was done to it or the ledger, and soon after: it cannot know, or write down,
or has just started."""
_SHOWN: Final = 12

Key = tuple[str, str, str]
"""Label of the budget, namespace and key of an account, whatever its window."""


@dataclass(slots=True)
class Figures:
    """What a run showed. Amounts are nano-USD where the name says so, else in the unit of the account's budget."""

    requests: int = 0
    overspend_nano_usd: int = 0
    overspend_other: int = 0
    lost: int = 0
    doubled: int = 0
    stranded_percent: float = 0.0
    false_rejection_percent: float = 0.0
    ran: int = 0
    answered: int = 0
    rejections: int = 0
    judged_rejections: int = 0
    false_rejections: int = 0
    held_back: int = 0
    misnamed: int = 0
    """One of their budgets lacked the money, but the answer named another one, which had it."""
    blind_rejections: int = 0
    left_at_first_percent: float = 0.0
    """Of a window's limit: neither spent nor reserved when it first refused, in the middle of all windows that did."""
    unattributed: int = 0
    unattributed_nano_usd: int = 0
    unbooked: int = 0
    unreconciled_nano_usd: int = 0
    unbacked_enforced: int = 0
    windows: int = 0
    ledger_ms_p50: float = 0.0
    ledger_ms_p99: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    delays: list[str] = field(default_factory=list)
    """What must not be on a machine that has time for all processes."""


def check(run: Run) -> Figures:
    """Compare everything."""
    figures = Figures(requests=len(run.asked), ran=len(run.receipts))
    figures.answered = sum(asked.answered for asked in run.asked)
    figures.outcomes = dict(sorted(Counter(_outcome(asked) for asked in run.asked).items()))
    _check_receipts(run, figures)
    _check_books(run, figures)
    _check_usage(run, figures)
    _check_rejections(run, figures)
    _check_errors(run, figures)
    _note_pace(run, figures)
    return figures


def _outcome(asked: Asked) -> str:
    return f"{asked.status} {asked.code}".strip()


def _check_receipts(run: Run, figures: Figures) -> None:
    if run.twice:
        figures.problems.append(f"{len(run.twice)} requests ran more than once, such as {run.twice[:3]}")
    unknown = [number for number in run.receipts if number >= len(run.asked)]
    if unknown:
        figures.problems.append(f"engines ran what nobody asked for: {unknown[:3]}")
    missing = [n for n, asked in enumerate(run.asked) if asked.answered and n not in run.receipts]
    if missing:
        figures.problems.append(f"{len(missing)} requests were answered that no engine ran, such as {missing[:3]}")


# --- limits


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the ledger keeps of one account over all its windows, each with the highest limit that it ever had."""

    covered: Covered
    key: Key
    windows: Sequence[Account]
    limits: Sequence[int]

    @property
    def charged(self) -> int:
        return sum(account.charged for account in self.windows)

    @property
    def held(self) -> int:
        return sum(account.held for account in self.windows)


def _check_books(run: Run, figures: Figures) -> None:
    spent, definite = _spent(run), _definite(run)
    stranded, capacity = 0, 0
    for kept in _kept(run, spent):
        used = spent.get(kept.key, 0)
        if kept.charged > used:
            figures.problems.append(f"{kept.key} was charged {kept.charged}, but only {used} ran")
        if kept.covered.enforcement != "Enforce":
            continue
        figures.windows += len(kept.windows)
        figures.unbacked_enforced += sum(account.unbacked for account in kept.windows)
        _check_limit(figures, kept, used, definite)
        _check_told(figures, kept, used)
        if kept.covered.unit == "USD":
            figures.unreconciled_nano_usd += kept.held - kept.charged
            stranded, capacity = stranded + max(0, kept.held - used), capacity + sum(kept.limits)
    figures.stranded_percent = round(100 * stranded / capacity, 4) if capacity else 0.0
    _check_ledger(run.books, figures)
    _check_sessions(run, figures)


def _kept(run: Run, spent: Mapping[Key, int]) -> Iterator[_Kept]:
    accounts: dict[Key, list[Account]] = defaultdict(list)
    for account in run.books.accounts:
        accounts[account.budget, account.namespace, account.key].append(account)
    budgets = {covered.label: covered for covered in run.covered}
    for key in sorted(accounts.keys() | spent.keys()):
        windows = accounts.get(key, [])
        yield _Kept(budgets[key[0]], key, windows, [highest(run.limits, run.clocks, one) for one in windows])


def _check_ledger(books: Books, figures: Figures) -> None:
    if figures.unbacked_enforced:
        figures.problems.append(f"{figures.unbacked_enforced} was charged to enforced budgets without a lease")
    if books.violations:
        figures.problems.append(f"the ledger counts {books.violations} violations of its invariants")
    if books.holdings_of_closed:
        figures.problems.append(f"{books.holdings_of_closed} empty holdings are left of sessions that are closed")


def _check_sessions(run: Run, figures: Figures) -> None:
    """Only sessions whose volume is gone are left: every other one was closed by its router or its successor."""
    left = sum(count for state, count in run.books.sessions.items() if state != "Closed")
    gone = sum(fate == "VolumeLost" for fate in run.fates.values())
    if run.deadlocks:
        figures.problems.append(f"{run.deadlocks} transactions of ledgers waited for each other until one was ended")
    if run.swept:
        figures.problems.append(f"{run.swept} reservations were settled by nobody and swept")
    if run.untold:
        figures.problems.append(f"{run.untold} journals of kept volumes were not told to the ledger")
    if left > gone:
        figures.problems.append(
            f"{left} sessions are left open ({run.books.sessions}), but only {gone} volumes were lost"
        )


def _check_limit(figures: Figures, kept: _Kept, used: int, definite: Mapping[tuple[Key, int], int]) -> None:
    """What a window holds, and what surely ran in it, is within the highest limit; and so is all that ever ran."""
    over = 0
    for account, limit in zip(kept.windows, kept.limits, strict=True):
        true = max(account.held, definite.get((kept.key, round(account.start)), 0))
        over += max(0, true - limit)
        if true > limit:
            figures.problems.append(f"{kept.key} at {account.start:.0f}: {true} of at most {limit}")
    over = max(over, used - sum(kept.limits))
    if kept.covered.unit == "USD":
        figures.overspend_nano_usd += over
    else:
        figures.overspend_other += over


def _check_told(figures: Figures, kept: _Kept, used: int) -> None:
    """What ran is charged, or held against the budget until somebody tells."""
    if used > kept.held:
        figures.unbooked += used - kept.held
        unit = kept.covered.unit
        figures.problems.append(f"{kept.key}: {used} {unit} ran, but only {kept.held} is charged or unreconciled")


def highest(limits: Iterable[Limit], clocks: Iterable[ClockSpan], account: Account) -> int:
    """The highest limit in force while the ledger's clock was in the account's window, or shortly before it."""
    times = [
        (max(clock.begin, account.start - PREFETCH_S - clock.offset), min(clock.end, account.end - clock.offset))
        for clock in clocks
    ]
    times = [(begin - EDGE_S, end + EDGE_S) for begin, end in times if begin <= end]
    own = [limit for limit in limits if limit.budget == account.budget]
    found = [limit.amount for limit in own if any(limit.at <= end and begin <= limit.until for begin, end in times)]
    return max(found, default=max((limit.amount for limit in own), default=0))


def _units(covered: Covered, receipt: Receipt) -> int:
    if covered.unit == "USD":
        return receipt.nano
    return receipt.prompt + receipt.output if covered.unit == "Tokens" else 1


def _each(run: Run) -> Iterator[tuple[Covered, Key, Asked, Receipt]]:
    """Every receipt with every account that it counts in."""
    for number, receipt in run.receipts.items():
        asked = run.asked[number]
        for covered in run.covered:
            account = covered.account(asked)
            if account is not None:
                yield covered, (covered.label, *account), asked, receipt


def _spent(run: Run) -> dict[Key, int]:
    """What really ran, by account, over all windows."""
    spent: dict[Key, int] = defaultdict(int)
    for covered, key, _, receipt in _each(run):
        spent[key] += _units(covered, receipt)
    return spent


def _definite(run: Run) -> dict[tuple[Key, int], int]:
    """What surely ran in one window: well within it, at a time when nobody could think that it was another."""
    starts: dict[Key, dict[int, Account]] = defaultdict(dict)
    lengths: dict[str, int] = {}
    for one in run.books.accounts:
        length = lengths[one.budget] = round(one.end - one.start)
        if _clear(run.clocks, one.start - MEMORY_S, one.end):
            starts[one.budget, one.namespace, one.key][round(one.start) // length] = one
    spent: dict[tuple[Key, int], int] = defaultdict(int)
    for covered, key, asked, receipt in _each(run):
        window = int(asked.sent) // lengths.get(covered.label, 60)
        account = starts[key].get(window) if key in starts else None
        if account is not None and asked.sent > account.start + EDGE_S and receipt.started < account.end - EDGE_S:
            spent[key, round(account.start)] += _units(covered, receipt)
    return spent


def _clear(clocks: Iterable[ClockSpan], begin: float, end: float) -> bool:
    """Whether the ledger's clock was right all this time."""
    return not any(clock.offset and clock.begin <= end and begin <= clock.end for clock in clocks)


# --- usage


@dataclass(slots=True)
class _Sums:
    answered: int = 0
    ran: int = 0
    ran_nano: int = 0
    told: int = 0
    told_nano: int = 0
    cut: int = 0


def _check_usage(run: Run, figures: Figures) -> None:
    """Each answered request is in exactly one usage line of the router that answered it."""
    for (router, namespace, caller), sums in sorted(_sums(run).items()):
        where = f"{router} {namespace} {caller}"
        gone = sums.answered - sums.told
        if gone > 0 and run.fates.get(router) == "VolumeLost":
            figures.unattributed += gone
            figures.unattributed_nano_usd += max(0, sums.ran_nano - sums.told_nano)
        elif gone > 0:
            figures.lost += gone
            figures.problems.append(f"{where}: {sums.answered} were answered, {sums.told} are in the usage")
        if sums.told > sums.ran:
            figures.doubled += sums.told - sums.ran
            figures.problems.append(f"{where}: {sums.ran} ran, {sums.told} are in the usage")
        elif sums.told == sums.ran and sums.told_nano != sums.ran_nano and not sums.cut:
            figures.problems.append(f"{where}: {sums.ran_nano} nano-USD ran, {sums.told_nano} are in the usage")


def _sums(run: Run) -> dict[tuple[str, str, str], _Sums]:
    sums: dict[tuple[str, str, str], _Sums] = defaultdict(_Sums)
    for number, asked in enumerate(run.asked):
        receipt = run.receipts.get(number)
        if receipt is not None:
            one = sums[asked.router, asked.namespace, asked.caller]
            one.answered += asked.answered
            one.ran += 1
            one.ran_nano += receipt.nano
            one.cut += asked.status == UNANSWERED
    for line in run.books.lines:
        one = sums[line.router, line.namespace, line.caller]
        one.told += line.requests
        one.told_nano += line.nano
    return sums


# --- refusals


@dataclass(slots=True)
class Course:
    """How much of an account's window is spent or reserved at each time."""

    times: list[float]
    used: list[int]

    def most(self, begin: float, end: float) -> int:
        """The most in a time."""
        first = bisect_right(self.times, begin)
        before = self.used[first - 1] if first else 0
        return max(before, max(self.used[first : bisect_left(self.times, end)], default=0))


NOTHING: Final = Course([], [])


def _courses(run: Run) -> dict[tuple[Key, int], Course]:
    steps: dict[tuple[Key, int], list[tuple[float, int]]] = defaultdict(list)
    for covered, key, asked, receipt in _each(run):
        if covered.enforcement == "Enforce" and covered.per != "Workflow":
            length, bound = LENGTHS[covered.period], _bound(covered, asked)
            own = steps[key, int(receipt.started) // length * length]
            own += [(receipt.started, bound), (max(asked.done, receipt.started), _units(covered, receipt) - bound)]
    found = {}
    for place, own in steps.items():
        own.sort()
        found[place] = Course([at for at, _ in own], list(accumulate(change for _, change in own)))
    return found


def _bound(covered: Covered, asked: Asked) -> int:
    if covered.unit == "USD":
        return asked.bound
    return asked.size + TEMPLATE_TOKENS + asked.cap if covered.unit == "Tokens" else 1


def _check_rejections(run: Run, figures: Figures) -> None:
    """Whom budgets refused although the money was there: at that instant, and for longer than it takes to fetch it.

    It is there if every budget of the request has it. Which lease a ledger waits for that will never come back, since
    its router is gone, nobody knows before the session is lost; so the wrong one of two budgets may be named.
    """
    rooms, excuses = Rooms(run), Excuses([*run.excuses, *run.unheard, *run.starved])
    unheard, starved = Excuses(run.unheard), Excuses(run.starved)
    left: dict[tuple[Key, int], float] = {}
    for asked, covered, key in sorted(_refused(run, figures), key=lambda found: found[0].done):
        blind = any(_blind(span, asked) for span in unheard.of(asked, 0.0))
        figures.blind_rejections += blind and not starved.of(asked, 0.0)
        if excuses.of(asked, AGAIN_S) or not _can_judge(run.clocks, covered, asked):
            continue
        figures.judged_rejections += 1
        named, done = rooms.of(asked, covered, key), asked.done
        others = [rooms.of(asked, *other) for other in _followed(run.covered, asked) if other[1] != key]
        left.setdefault((key, _start(covered, asked)), named.left_percent(done))
        figures.false_rejections += all(room.has(done, done) for room in (named, *others))
        if named.has(done - LONG_S, done):
            everywhere = all(room.has(done - LONG_S, done) for room in others)
            figures.held_back += everywhere
            figures.misnamed += not everywhere
    figures.left_at_first_percent = round(median(left.values()), 3) if left else 0.0
    figures.false_rejection_percent = round(100 * figures.false_rejections / max(1, figures.judged_rejections), 3)
    if figures.blind_rejections:
        figures.problems.append(f"{figures.blind_rejections} were told 429 though the ledger told nothing of it")
    if figures.held_back > figures.judged_rejections * LATE_SHARE:
        figures.delays.append(f"{figures.held_back} were refused although the money was there for {LONG_S:g} s")


@dataclass(frozen=True, slots=True)
class Room:
    """What one account's window had for a request; ``open`` is the limit less what is stuck."""

    course: Course
    limit: int
    open: int
    bound: int

    def has(self, begin: float, end: float) -> bool:
        """Whether the request would have fitted all this time."""
        return self.course.most(begin, end) <= self.open - self.bound

    def left_percent(self, at: float) -> float:
        """Of the limit: neither spent nor reserved nor stuck."""
        return max(0.0, 100 * (self.open - self.course.most(at, at)) / self.limit)


class Rooms:
    """What accounts had for requests at the time of their refusals."""

    def __init__(self, run: Run) -> None:
        self._limits = run.limits
        self._courses, self._stuck = _courses(run), _stuck(run)

    def of(self, asked: Asked, covered: Covered, key: Key) -> Room:
        """The room of an account that covers a request, in the window in which it was refused."""
        place = key, _start(covered, asked)
        limit = _lowest(self._limits, covered.label, asked.sent, asked.done)
        stuck = self._stuck.get(place, NOTHING).most(asked.sent - LONG_S, asked.done + LONG_S)
        return Room(self._courses.get(place, NOTHING), limit, limit - stuck, _bound(covered, asked))


def _followed(covered: Iterable[Covered], asked: Asked) -> Iterator[tuple[Covered, Key]]:
    """The budgets that may refuse a request, with its accounts; money of workflows is not followed over time."""
    for one in covered:
        account = one.account(asked) if one.enforcement == "Enforce" and one.per != "Workflow" else None
        if account is not None:
            yield one, (one.label, *account)


def _refused(run: Run, figures: Figures) -> Iterator[tuple[Asked, Covered, Key]]:
    """Every request that a budget refused, with the account that refused it."""
    budgets = {covered.label: covered for covered in run.covered}
    for asked in run.asked:
        if asked.status != 429 or asked.code not in SPENT_CODES:
            continue
        figures.rejections += 1
        covered = budgets.get(asked.budget)
        account = covered.account(asked) if covered is not None else None
        if covered is None or account is None:
            figures.problems.append(f"{asked.budget} refused a request that it does not cover: {asked}")
        else:
            yield asked, covered, (covered.label, *account)


def _start(covered: Covered, asked: Asked) -> int:
    length = LENGTHS[covered.period]
    return int(asked.done) // length * length


def _can_judge(clocks: Iterable[ClockSpan], covered: Covered, asked: Asked) -> bool:
    """Whether it is certain which window refused; money of workflows is not followed over time."""
    begun = asked.sent >= _start(covered, asked) + LONG_S and asked.done - asked.sent < STARVED_S
    return begun and covered.per != "Workflow" and _clear(clocks, asked.done - MEMORY_S, asked.done)


def _blind(span: Span, asked: Asked) -> bool:
    """Whether a request waited its whole time and nothing was heard in it."""
    return asked.done - asked.sent > LONG_S - EDGE_S / 10 and span.begin <= asked.sent and asked.done <= span.end


def _stuck(run: Run) -> dict[tuple[Key, int], Course]:
    found: dict[tuple[Key, int], Course] = defaultdict(lambda: Course([], []))
    lengths = {covered.label: LENGTHS[covered.period] for covered in run.covered}
    for one in sorted(run.stuck, key=lambda stuck: stuck.at):
        key = one.budget, one.namespace, one.key
        course = found[key, round(one.window_end) - lengths[one.budget]]
        course.times.append(one.at)
        course.used.append(one.amount)
    return found


def _lowest(limits: Iterable[Limit], budget: str, begin: float, end: float) -> int:
    """The lowest limit in force shortly before and in a time; an increase ends before its end is written down."""
    begin, end = begin - LONG_S - EDGE_S, end + EDGE_S
    return min(one.amount for one in limits if one.budget == budget and one.at <= end and begin <= one.until)


def _check_errors(run: Run, figures: Figures) -> None:
    """Errors of the server's side have a reason, and a killed router is the only one that does not answer."""
    faults: Counter[str] = Counter()
    excuses = Excuses([*run.excuses, *run.unheard, *run.starved])
    for asked in run.asked:
        if asked.status in {200, 429}:
            continue
        if asked.status == UNANSWERED and run.fates.get(asked.router, "Stopped") != "Stopped":
            continue
        excused = asked.status == UNANSWERED or (asked.status == 503 and asked.code in _EXCUSED_CODES)
        if not excused or not excuses.of(asked, EXCUSE_S):
            faults[_outcome(asked) or "unanswered"] += 1
    figures.delays += [f"{count} times {fault} for no reason" for fault, count in faults.most_common(_SHOWN)]


def _note_pace(run: Run, figures: Figures) -> None:
    """How long ledgers took to answer: how fast the machine is with so many processes, so it fails nothing."""
    took = sorted(run.ledger_s)
    if took:
        figures.ledger_ms_p50, figures.ledger_ms_p99 = (round(1000 * took[len(took) * p // 100], 1) for p in (50, 99))


class Excuses:
    """When routers could not know, by router; those of all routers are under the empty name."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans: dict[str, list[Span]] = defaultdict(list)
        for span in sorted(spans, key=lambda span: span.begin):
            own = self._spans[span.router]
            if own and span.begin <= own[-1].end:
                own[-1] = Span(own[-1].begin, max(own[-1].end, span.end), span.router)
            else:
                own.append(span)

    def of(self, asked: Asked, after_s: float) -> list[Span]:
        """The times that a request falls into, or comes shortly after."""
        return [
            span
            for name in ("", asked.router)
            for span in self._near(name, asked.sent - after_s)
            if span.begin <= asked.done and asked.sent <= span.end + after_s
        ]

    def _near(self, name: str, begin: float) -> list[Span]:
        own = self._spans.get(name, [])
        first = bisect_left(own, begin, key=lambda span: span.end)
        return own[first : first + 8]
