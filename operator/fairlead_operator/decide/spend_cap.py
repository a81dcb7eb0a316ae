"""What the budgets leave for a pool's replicas: nano-USD an hour.

Only budgets that count idle cost bound replicas: the others bound requests. While nothing is paced, what is left must
last for an hour, so that replicas which are started now are paid until they can be taken away again. Once Pace is in
force it must last until the window ends.
"""

from collections.abc import Iterable, Mapping

from fairlead_router.contract import LedgerBudget, SpendAnswer

HOUR_MS = 3_600_000
SHORTEST_MS = 60_000


def spend_cap(
    pool: str,
    budgets: Iterable[LedgerBudget],
    spend: Mapping[str, SpendAnswer],
    costs: Mapping[str, int],
    now_ms: int,
) -> int | None:
    """The least that a budget leaves, at least 0; ``None`` where none bounds the pool.

    ``spend`` is by namespace/name of the budget, ``costs`` are the nano-USD an hour of every pool by namespace/name.
    """
    place = pool.partition("/")[0]
    caps = [
        _left(budget, answer, place, now_ms) - _others(budget, place, pool, costs)
        for budget in budgets
        if place in budget.idle_namespaces and budget.enforcement == "Enforce"
        if (answer := spend.get(f"{budget.namespace}/{budget.name}")) is not None and _covers(budget, answer, place)
    ]
    return max(0, min(caps)) if caps else None


def _covers(budget: LedgerBudget, answer: SpendAnswer, place: str) -> bool:
    """Whether the answer has the account that the pool's idle cost is counted in."""
    return budget.per == "Total" or not answer.keys or any(key.namespace == place for key in answer.keys)


def _left(budget: LedgerBudget, answer: SpendAnswer, place: str, now_ms: int) -> int:
    """What is left of the account, by the hour."""
    account = next((key for key in answer.keys if budget.per == "Total" or key.namespace == place), None)
    taken = 0 if account is None else account.charged + account.unreconciled + account.reserved
    idle = answer.idle if account is None or account is answer.keys[0] else 0
    left = answer.limit + answer.extra - taken - idle
    window_ms = max(SHORTEST_MS, answer.window.end - now_ms)
    lasts_ms = window_ms if "Pace" in answer.active else min(window_ms, HOUR_MS)
    return left * HOUR_MS // lasts_ms


def _others(budget: LedgerBudget, place: str, pool: str, costs: Mapping[str, int]) -> int:
    """What the other pools cost that the same account pays for."""
    places = frozenset(budget.idle_namespaces) if budget.per == "Total" else frozenset({place})
    return sum(cost for key, cost in costs.items() if key != pool and key.partition("/")[0] in places)
