"""What the leader remembers between reconciles: values by name, lost at a restart and learned again."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead_operator.decide.capacity import Evidence
from fairlead_operator.decide.outlook import Outlook
from fairlead_operator.decide.placement import NoRoom
from fairlead_operator.decide.rates import PoolCard
from fairlead_operator.decide.replicas import STARTS_REMEMBERED, Memory
from fairlead_operator.decide.rounds import Seen
from fairlead_operator.decide.second_writer import ForeignWrites
from fairlead_operator.reconcile.autoscaler import Past, PoolLaw
from fairlead_router.contract import SpendAnswer

BudgetsVersion = tuple[int, int]
PODS_REMEMBERED = 4096
"""More than a pool can have; a pod that is forgotten would be counted again."""


@dataclass(frozen=True, slots=True)
class Start:
    """When a pod of a variant was created and when it became ready."""

    variant: str
    created_ms: int
    ready_ms: int

    @property
    def took_ms(self) -> int:
        """Milliseconds between them."""
        return self.ready_ms - self.created_ms


@dataclass(slots=True)
class Starts:
    """How long the last pods took from their creation to ready; each pod counts once."""

    counted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    measured: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Milliseconds of the newest starts, by variant."""

    def note(self, ready: Mapping[str, Start], since_ms: int) -> dict[str, int]:
        """Add the starts (by uid) that were not counted yet, and answer those that ended after ``since_ms``.

        Only pods that were also created since then are measured: a readiness that came back after days is no start.
        """
        new = {uid: start for uid, start in ready.items() if uid not in self.counted}
        self.counted.update(dict.fromkeys(new))
        while len(self.counted) > PODS_REMEMBERED:
            self.counted.popitem(last=False)
        for start in new.values():
            if start.created_ms >= since_ms:
                before = self.measured.get(start.variant, ())
                self.measured[start.variant] = (*before, start.took_ms)[-STARTS_REMEMBERED:]
        return {uid: start.took_ms for uid, start in new.items() if start.ready_ms >= since_ms}


@dataclass(slots=True)
class PoolBook:
    """One pool. ``opened_ms``: since when this process watches it; what was before, another one has told."""

    opened_ms: int
    memory: Memory
    seen: Seen = field(default_factory=Seen)
    starts: Starts = field(default_factory=Starts)
    evidence: Evidence = field(default_factory=Evidence)
    foreign: ForeignWrites = field(default_factory=ForeignWrites)
    foreign_seen: dict[str, object] = field(default_factory=dict)
    """The generation of each Deployment whose foreign write is noted."""
    law: PoolLaw = field(default_factory=PoolLaw)
    past: Past | None = None
    full: dict[str, NoRoom] = field(default_factory=dict)
    """Variants whose pods find no node."""
    cost_per_hour: int = 0
    """Nano-USD of the replicas that were decided last; 0 while a price is missing."""


@dataclass(slots=True)
class Books:
    """Everything that is remembered. ``cards`` is complete once ``cards_known`` is set."""

    pools: dict[str, PoolBook] = field(default_factory=dict)
    cards: dict[str, PoolCard] = field(default_factory=dict)
    cards_known: bool = False
    cost_per_thousand: dict[str, int] = field(default_factory=dict)
    spend: dict[str, SpendAnswer] = field(default_factory=dict)
    outlooks: dict[str, Outlook] = field(default_factory=dict)
    """Burn and forecast of each budget's fullest account."""
    ledger_answered_ms: int = 0
    led_since_ms: int = 0
    """When this process began to talk with the ledger, which is when it began to lead."""
    budgets_version: BudgetsVersion = (0, 0)
    """The newest version that the ledger has taken."""
    budget_in: dict[str, BudgetsVersion] = field(default_factory=dict)
    """The version with which each budget reached the ledger as it is now."""

    def pool(self, key: str, now_ms: int) -> PoolBook:
        """The book of a pool, opened now if there is none."""
        if key not in self.pools:
            self.pools[key] = PoolBook(now_ms // 1000 * 1000, Memory(since_ms=now_ms))
        return self.pools[key]

    def costs_per_hour(self) -> dict[str, int]:
        """What every pool's replicas cost, in nano-USD."""
        return {key: book.cost_per_hour for key, book in self.pools.items()}

    def close_pool(self, key: str) -> None:
        """The pool is gone."""
        self.pools.pop(key, None)
        self.cost_per_thousand.pop(key, None)
