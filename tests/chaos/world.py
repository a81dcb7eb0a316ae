"""The tenants of a run, their budgets, and what they ask for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead_router.contract import (
    BudgetConfig,
    Card,
    LedgerBudget,
    PoolConfig,
    RouterConfig,
    TemporaryIncrease,
    reserve_nano,
)
from tests.builders.router import POOL, chat, configuration, policy, route
from tests.chaos.truth import Asked, Covered

CARD: Final = Card(version=1, prompt_pico=1_000_000, cached_pico=100_000, output_pico=4_000_000)
CONTEXT: Final = 200_000
MEAN_NANO: Final = 900_000
"""What a request costs in the middle: 200 prompt tokens and 200 of output."""
MEAN_TOKENS: Final = 400
TENANTS: Final = ("hot", "minute", "flow", "plain")
SHARES: Final = (0.25, 0.35, 0.2, 0.2)
CALLERS: Final = 10
LOOP_CAP: Final = 30
_TEMPLATE: Final = 256
_PERIOD_S: Final = {"Minute": 60, "Hour": 3600}
_OUTPUTS: Final = (4, 11)
"""The least and the largest power of two that callers write as max_tokens."""

COVERED: Final = (
    Covered("hot/hour", "USD", "Total", "Hour", ("hot",)),
    Covered("minute/minute", "USD", "Total", "Minute", ("minute",)),
    Covered("minute/callers", "USD", "Caller", "Minute", ("minute",)),
    Covered("flow/loops", "Requests", "Workflow", "Hour", ("flow",)),
    Covered("flow/tokens", "Tokens", "Namespace", "Minute", ("flow",)),
    Covered("plain/roomy", "USD", "Namespace", "Hour", ("plain",)),
    Covered("platform/audit", "USD", "Total", "Hour", TENANTS, "Audit"),
)


def limits(rate: float, seconds: float) -> dict[str, int]:
    """The limits of a run with so many requests a second: tight ones below what is asked for, the others above."""
    usd = {tenant: rate * share * MEAN_NANO for tenant, share in zip(TENANTS, SHARES, strict=True)}
    return {
        "hot/hour": int(usd["hot"] * min(seconds, 3600) * 0.6),
        "minute/minute": int(usd["minute"] * 60 * 0.7),
        "minute/callers": int(usd["minute"] * 60 / CALLERS * 1.1),
        "flow/loops": LOOP_CAP,
        "flow/tokens": int(rate * SHARES[2] * MEAN_TOKENS * 60 * 2),
        "plain/roomy": int(usd["plain"] * 3600 * 3),
        "platform/audit": int(sum(usd.values()) * min(seconds, 3600) * 0.5),
    }


def ledger_budget(covered: Covered, limit: int, increase: TemporaryIncrease | None = None) -> LedgerBudget:
    """A budget as the ledger is told of it."""
    namespace, _, name = covered.label.partition("/")
    return LedgerBudget(
        namespace=namespace,
        name=name,
        uid=covered.label,
        unit=covered.unit,
        per=covered.per,
        period=covered.period,
        time_zone="UTC",
        limit=limit,
        namespaces=covered.namespaces,
        enforcement=covered.enforcement,
        temporary_increase=increase,
    )


def router_configuration() -> RouterConfig:
    """What routers are told."""
    return configuration(
        pools=(PoolConfig(pool=POOL, max_context_tokens=CONTEXT, slots=4096, card=CARD),),
        policies=(policy(routes=(route(context=CONTEXT),)),),
        budgets=tuple(_router_budget(covered) for covered in COVERED),
    )


def _router_budget(covered: Covered) -> BudgetConfig:
    namespace, _, name = covered.label.partition("/")
    return BudgetConfig(
        namespace=namespace,
        name=name,
        unit=covered.unit,
        per=covered.per,
        namespaces=covered.namespaces,
        enforcement=covered.enforcement,
        window_ms=_PERIOD_S[covered.period] * 1000,
        time_zone="UTC",
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request as a caller means it."""

    namespace: str
    caller: str
    workflow: str
    cap: int
    stream: bool
    body: bytes

    def asked(self, router: str, sent: float) -> Asked:
        """The request as it goes to a router."""
        size = len(self.body)
        bound = reserve_nano(CARD, size + _TEMPLATE, self.cap)
        return Asked(self.namespace, f"sa:{self.caller}", self.workflow, router, size, self.cap, bound, sent)


class Demand:
    """Requests of all tenants, one after another; the same for the same seed."""

    def __init__(self, pick: random.Random) -> None:
        self._pick = pick
        self._loops = [f"loop-{index}" for index in range(20)]
        self._made = len(self._loops)

    def next(self, number: int) -> Wanted:
        """The request with this number."""
        pick = self._pick
        namespace = pick.choices(TENANTS, SHARES)[0]
        caller = f"c{min(int(pick.expovariate(0.4)), CALLERS - 1)}"
        cap = int(2 ** pick.uniform(*_OUTPUTS))
        stream = pick.random() < 0.3
        text = f"mark-{number:09d} " + "word " * pick.randrange(40, 200)
        members = {"max_tokens": cap, "temperature": 0} | ({"stream": True} if stream else {})
        workflow = self._loop() if namespace == "flow" else ""
        return Wanted(namespace, caller, workflow, cap, stream, chat(text, **members))

    def _loop(self) -> str:
        """Workflows run a while beyond their cap, and others begin."""
        pick = self._pick
        index = pick.randrange(len(self._loops))
        name = self._loops[index]
        if pick.random() < 1 / (1.4 * LOOP_CAP):
            self._loops[index] = f"loop-{self._made}"
            self._made += 1
        return name


def zipf(count: int, pick: random.Random) -> Sequence[float]:
    """How unevenly callers spread over routers: Zipf with skew 1.1 in a random order."""
    weights = [1 / (rank + 1) ** 1.1 for rank in range(count)]
    pick.shuffle(weights)
    return weights
