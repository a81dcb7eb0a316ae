"""What a run knows for certain: what really ran, what callers were told, which limits held when, and who was killed.

All times are seconds of the harness's own clock since the epoch, which is never skewed. Money is nano-USD.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from fairlead_router.contract import Enforcement, Per, Period, Unit

Fate = Literal["Stopped", "Killed", "VolumeLost"]
"""How an incarnation of a router ended: by SIGTERM, killed with its volume kept, killed with its volume gone."""
UNANSWERED: Final = 0
"""Status of a request whose answer did not come whole: its router was killed, or its time was up."""


@dataclass(slots=True)
class Asked:
    """A request of a caller. ``router`` names the incarnation that was asked, ``bound`` the most that it can cost.

    ``code``, ``budget`` and ``opens`` (the end of the refusing window) are what a refusal said.
    """

    namespace: str
    caller: str
    workflow: str
    router: str
    size: int
    cap: int
    bound: int
    sent: float
    done: float = 0.0
    status: int = UNANSWERED
    code: str = ""
    budget: str = ""
    opens: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether the caller has the whole answer of an engine."""
        return self.status == 200


@dataclass(slots=True)
class Receipt:
    """What an engine ran for a request, whoever heard of it."""

    started: float
    prompt: int
    cached: int
    output: int
    nano: int
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit as it was put: the highest of the amounts that counted from ``at`` on until the next one.

    ``until`` is when the ledger had surely taken the next one; infinite for the last.
    """

    budget: str
    at: float
    until: float
    amount: int


@dataclass(frozen=True, slots=True)
class ClockSpan:
    """A life of a ledger: its clock was ``offset`` seconds ahead of the harness's."""

    begin: float
    end: float
    offset: float


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which something was so, of one router or (empty) of all."""

    begin: float
    end: float
    router: str = ""


@dataclass(frozen=True, slots=True)
class Covered:
    """A budget, whose requests it covers, and whether its money is tight enough to watch for false rejections."""

    label: str
    unit: Unit
    per: Per
    period: Period
    namespaces: tuple[str, ...]
    enforcement: Enforcement = "Enforce"

    def account(self, asked: Asked) -> tuple[str, str] | None:
        """Namespace and key of the account that a request counts in; ``None``: the budget does not cover it."""
        if asked.namespace not in self.namespaces:
            return None
        if self.per == "Total":
            return "", ""
        key = {"Caller": asked.caller, "Workflow": asked.workflow}.get(self.per, "")
        return (asked.namespace, key) if key or self.per == "Namespace" else None


@dataclass(frozen=True, slots=True)
class Account:
    """An account in the ledger's database at the end."""

    budget: str
    namespace: str
    key: str
    start: float
    end: float
    held: int
    charged: int
    unbacked: int
    unreconciled: int


@dataclass(frozen=True, slots=True)
class Line:
    """The usage of one namespace, caller and router incarnation (told as the feature) in the ledger's database."""

    namespace: str
    caller: str
    router: str
    requests: int
    prompt: int
    output: int
    nano: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """What nobody could spend of an account at an instant, because its holder was dead or cut off."""

    at: float
    budget: str
    namespace: str
    key: str
    window_end: float
    amount: int


@dataclass(frozen=True, slots=True)
class Books:
    """The ledger's database at the end."""

    accounts: Sequence[Account] = ()
    lines: Sequence[Line] = ()
    sessions: dict[str, int] = field(default_factory=dict)
    holdings_of_closed: int = 0
    violations: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """All that the checker compares. ``asked`` and ``receipts`` are by the number that a request's body carries."""

    covered: Sequence[Covered]
    asked: Sequence[Asked]
    receipts: dict[int, Receipt]
    twice: Sequence[int]
    books: Books
    limits: Sequence[Limit]
    clocks: Sequence[ClockSpan]
    fates: dict[str, Fate]
    excuses: Sequence[Span] = ()
    """When a router could not know: the ledger was down or its clock wrong, the router cut off or just started."""
    unheard: Sequence[Span] = ()
    """When a router had asked the ledger and was not answered yet, if that was long."""
    starved: Sequence[Span] = ()
    """When the process that watches had no time itself: what it saw then tells nothing of how long anybody waited."""
    stuck: Sequence[Stuck] = ()
    ledger_s: Sequence[float] = ()
    """How long ledgers took for each answer that came."""
    deadlocks: int = 0
    swept: int = 0
    """Reservations that nobody settled, of the routers that lived to the end."""
    untold: int = 0
    """Predecessors on kept volumes that their successors could not tell of."""
