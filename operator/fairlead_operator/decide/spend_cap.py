"""What the budgets leave for a pool's replicas: nano-USD.

Only budgets that count idle cost bound replicas: the others bound requests. While nothing is paced, what is left must
last for an hour, so that replicas which are started now are paid until they can be taken away again. Once Pace is in
force it must last until the window ends. A pool that may go to zero keeps its last replica only while what is left pays
for it until it is gone, so that no budget is overspent for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.variants import VariantOption
from fairlead_router.contract import LedgerBudget, SpendAnswer

HOUR_MS = 3_600_000
SHORTEST_MS = 60_000
LAG_MS = 20_000
"""The longest until a cost has led to a decision: told to the ledger each 10 s, read each second, decided each 5 s."""


@dataclass(frozen=True, slots=True)
class Left:
    """What an account leaves, and what it pays for beside the pool.

    ``amount`` is nano-USD, below 0 if too much is spent; ``others`` is what other pools cost an hour.
    """

    amount: int
    others: int
    window_ms: int
    paced: bool

    @property
    def per_hour(self) -> int:
        """What the pool may cost an hour."""
        lasts_ms = self.window_ms if self.paced else min(self.window_ms, HOUR_MS)
        return self.amount * HOUR_MS // lasts_ms - self.others

    def pays(self, cost: int, lasts_ms: int) -> bool:
        """Whether it pays for a pool that costs so much an hour, and for the others, for so long in this window."""
        return self.amount * HOUR_MS >= (cost + self.others) * min(lasts_ms, self.window_ms)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a pool pays for: replicas that are wanted, those that leave, and one that would be started.

    Money is nano-USD an hour; ``drain_ms`` is the longest that a replica still costs after it was told to go.
    """

    wanted: int
    leaving: int
    first: int
    cold_start_ms: int
    drain_ms: int


def accounts_left(
    pool: str,
    budgets: Iterable[LedgerBudget],
    spend: Mapping[str, SpendAnswer],
    costs: Mapping[str, int],
    now_ms: int,
) -> tuple[Left, ...]:
    """What each account leaves that bounds the pool.

    ``spend`` is by namespace/name of the budget, ``costs`` are the nano-USD an hour of every pool by namespace/name.
    """
    place = pool.partition("/")[0]
    return tuple(
        Left(
            amount=_amount(budget, answer, place),
            others=_others(budget, place, pool, costs),
            window_ms=max(SHORTEST_MS, answer.window.end - now_ms),
            paced="Pace" in answer.active,
        )
        for budget in budgets
        if place in budget.idle_namespaces and budget.enforcement == "Enforce"
        if (answer := spend.get(f"{budget.namespace}/{budget.name}")) is not None and _covers(budget, answer, place)
    )


def spend_cap(accounts: Iterable[Left]) -> int | None:
    """The least that an account leaves for an hour, at least 0; ``None`` where none bounds the pool."""
    caps = [account.per_hour for account in accounts]
    return max(0, min(caps)) if caps else None


def pays_a_replica(accounts: Iterable[Left], upkeep: Upkeep) -> bool:
    """Whether what is left pays for the pool until all that runs is gone; at zero, whether a start is worth it.

    A replica is started only where it can serve for as long as it starts.
    """
    cost, lasts_ms = upkeep.wanted + upkeep.leaving, LAG_MS + upkeep.drain_ms
    if not upkeep.wanted:
        cost, lasts_ms = cost + upkeep.first, lasts_ms + 2 * upkeep.cold_start_ms
    return not cost or all(account.pays(cost, lasts_ms) for account in accounts)


def upkeep_of(options: Sequence[VariantOption], pods: Iterable[PodFact], cold_start_ms: int, drain_ms: int) -> Upkeep:
    """What a pool with these variants and pods pays for; what has no price is in no bill and costs nothing."""
    prices = {one.name: one.price or 0 for one in options}
    return Upkeep(
        wanted=sum(prices[one.name] * one.current for one in options),
        leaving=sum(prices.get(pod.variant, 0) for pod in pods if pod.terminating),
        first=min((one.price for one in options if one.price is not None), default=0),
        cold_start_ms=cold_start_ms,
        drain_ms=drain_ms,
    )


def _covers(budget: LedgerBudget, answer: SpendAnswer, place: str) -> bool:
    """Whether the answer has the account that the pool's idle cost is counted in."""
    return budget.per == "Total" or not answer.keys or any(key.namespace == place for key in answer.keys)


def _amount(budget: LedgerBudget, answer: SpendAnswer, place: str) -> int:
    """What is left of the account."""
    account = next((key for key in answer.keys if budget.per == "Total" or key.namespace == place), None)
    taken = 0 if account is None else account.charged + account.unreconciled + account.reserved
    idle = answer.idle if account is None or account is answer.keys[0] else 0
    return answer.limit + answer.extra - taken - idle


def _others(budget: LedgerBudget, place: str, pool: str, costs: Mapping[str, int]) -> int:
    """What the other pools cost that the same account pays for."""
    places = frozenset(budget.idle_namespaces) if budget.per == "Total" else frozenset({place})
    return sum(cost for key, cost in costs.items() if key != pool and key.partition("/")[0] in places)
