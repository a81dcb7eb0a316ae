"""What goes wrong in a run, and when: decided by the seed before it begins."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx
import msgspec

from fairlead_router.contract import PutBudgets, TemporaryIncrease
from tests.chaos.processes import Ledger, Place
from tests.chaos.truth import Limit, Span
from tests.chaos.world import COVERED, ledger_budget

Kind = Literal["Kill", "KillWithVolume", "Move", "Partition", "Freeze", "KillLedger", "SkewLedger", "Edit"]
ODDS: Final[dict[Kind, int]] = {
    "Kill": 36, "KillWithVolume": 12, "Move": 4, "Partition": 14, "Freeze": 8,
    "KillLedger": 6, "SkewLedger": 2, "Edit": 18,
}  # fmt: skip
SKEW_S: Final = 300
_SKEWED_SHARE: Final = 0.3
_DOWN_S: Final = 3.0
_PARTED_S: Final = (2.0, 15.0)
_FROZEN_S: Final = (1.0, 8.0)
_SKEWED_FOR_S: Final = (10.0, 25.0)
_FACTORS: Final = (0.5, 0.8, 1.3)
_INCREASE_S: Final = (10.0, 40.0)
_MOVED_S: Final = 400.0
"""Another pod may speak for a silent one only after 1.1 times the ledger's ttl."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, ``at`` seconds after the begin. ``place`` is a router's, ``amount`` is of 0 to 1."""

    at: float
    kind: Kind
    place: int
    amount: float
    other: float


def schedule(pick: random.Random, seconds: float, every_s: float, places: int, *, skew: bool) -> list[Fault]:
    """All faults of a run. The last tenth of it is calm, so that what is broken can heal."""
    odds = {kind: odd for kind, odd in ODDS.items() if skew or kind != "SkewLedger"}
    faults, at = [], every_s
    while at < seconds * 0.9:
        kind = pick.choices(list(odds), list(odds.values()))[0]
        if kind == "Move" and at > seconds - _MOVED_S:
            kind = "Kill"
        faults.append(Fault(at, kind, pick.randrange(places), pick.random(), pick.random()))
        at += pick.expovariate(1 / every_s)
    return faults


def skew_of(place: int, amount: float) -> float:
    """How far a router's clock is ahead: a part of them is wrong, by up to five minutes."""
    if (place * 7 + int(amount * 100)) % 100 >= _SKEWED_SHARE * 100:
        return 0.0
    return round((amount * 2 - 1) * SKEW_S) or 1.0


@dataclass(slots=True)
class Limits:
    """The limits as they are now, and as they were: edits are whole states with a version, as an operator puts them."""

    ledgers: Sequence[Ledger]
    base: dict[str, int]
    now: dict[str, int]
    history: list[Limit] = field(default_factory=list)
    version: int = 0
    _open: dict[str, tuple[float, int]] = field(default_factory=dict)
    _increases: dict[str, TemporaryIncrease] = field(default_factory=dict)

    async def put(self) -> None:
        """Tell the ledger, until it says yes."""
        self.version += 1
        budgets = tuple(
            ledger_budget(covered, self.now[covered.label], self._increases.get(covered.label)) for covered in COVERED
        )
        content = msgspec.json.encode(PutBudgets(version=(1, self.version), budgets=budgets))
        begun = time.time()
        for _ in range(600):
            try:
                answer = await self.ledgers[0].put("/v1/budgets", content)
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 200:
                break
            if answer.status_code != 503:
                raise RuntimeError(f"the ledger answered {answer.status_code} to the budgets: {answer.text[:500]}")
            await asyncio.sleep(0.2)
        self._note(begun, time.time())

    def _note(self, begun: float, done: float) -> None:
        for label, limit in self.now.items():
            increase = self._increases.get(label)
            amount = limit + (increase.amount if increase else 0)
            before = self._open.get(label)
            if before is not None and before[1] != amount:
                self.history.append(Limit(label, before[0], done, before[1]))
            if before is None or before[1] != amount:
                self._open[label] = begun, amount

    async def edit(self, fault: Fault, sleep: Callable[[float], Awaitable[None]]) -> None:
        """One budget's limit goes up, down or back; or it gets more for a while."""
        label = COVERED[int(fault.amount * len(COVERED))].label
        if fault.other < 0.3:
            more, length = max(1, self.base[label] // 4), _between(_INCREASE_S, fault.amount)
            until = int((time.time() + length) * 1000)
            self._increases[label] = TemporaryIncrease(amount=more, until=until)
            await self.put()
            await sleep(length)
            self._increases.pop(label, None)
        else:
            factor = (*_FACTORS, 1.0)[int((fault.other - 0.3) / 0.7 * 4)]
            self.now[label] = max(1, int(self.base[label] * factor))
        await self.put()

    def ended(self) -> list[Limit]:
        """All limits that ever were."""
        last = [Limit(label, begun, float("inf"), amount) for label, (begun, amount) in self._open.items()]
        return self.history + last


@dataclass(slots=True)
class Trouble:
    """Makes the faults happen. ``done`` counts those that did; one whose place is busy with another is left out."""

    places: Sequence[Place]
    ledgers: Sequence[Ledger]
    limits: Limits
    excuses: list[Span]
    skew: bool
    done: Counter[str] = field(default_factory=Counter)
    _ledger: asyncio.Lock = field(default_factory=asyncio.Lock)
    _editing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, each at its time."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, begin + fault.at - loop.time()))
                tasks.create_task(self._one(fault))

    async def _one(self, fault: Fault) -> None:
        if fault.kind == "Edit":
            async with self._editing:
                await self.limits.edit(fault, asyncio.sleep)
        elif fault.kind in {"KillLedger", "SkewLedger"}:
            await self._trouble_ledger(fault)
        else:
            place = self.places[fault.place]
            if place.busy:
                return
            place.busy = True
            try:
                await self._trouble_router(place, fault)
            finally:
                place.busy = False
        self.done[fault.kind] += 1

    async def _trouble_router(self, place: Place, fault: Fault) -> None:
        if fault.kind == "Partition":
            await self._part(place, _between(_PARTED_S, fault.amount))
        elif fault.kind == "Freeze":
            await self._freeze(place, _between(_FROZEN_S, fault.amount))
        else:
            await place.kill()
            if fault.kind == "KillWithVolume":
                place.lose_volume()
            elif fault.kind == "Move":
                place.pods += 1
            place.skew = skew_of(fault.place, fault.amount) if self.skew else 0.0
            await asyncio.sleep(fault.other * _DOWN_S)
            await place.start()

    async def _part(self, place: Place, seconds: float) -> None:
        begun = time.time()
        place.proxy.cut = True
        await asyncio.sleep(seconds)
        place.proxy.cut = False
        self.excuses.append(Span(begun, time.time(), place.name))

    async def _freeze(self, place: Place, seconds: float) -> None:
        begun = time.time()
        place.frozen = True
        place.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        place.signal(signal.SIGCONT)
        place.frozen = False
        self.excuses.append(Span(begun, time.time(), place.name))

    async def _trouble_ledger(self, fault: Fault) -> None:
        if self._ledger.locked():
            return
        ledger = self.ledgers[int(fault.other * len(self.ledgers))]
        async with self._ledger:
            begun = time.time()
            await ledger.kill()
            await asyncio.sleep(fault.amount * _DOWN_S)
            offset = float(SKEW_S if fault.other < 0.5 else -SKEW_S) if fault.kind == "SkewLedger" else 0.0
            await ledger.start(offset)
            if offset:
                await asyncio.sleep(_between(_SKEWED_FOR_S, fault.amount))
                await ledger.kill()
                await ledger.start()
            self.excuses.append(Span(begun, time.time()))


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])
