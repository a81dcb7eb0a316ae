"""Capacity curves, computed in other processes and kept: one at a time, each for a kind of engine, mix and aim."""

import asyncio
import logging
import math
import sys
from asyncio.subprocess import PIPE
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from fairlead_operator import curve_worker
from fairlead_operator.curve_worker import Result, Task
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Engine, Mix, Objectives

log = logging.getLogger(__name__)

KEPT = 1024
MAX_WAITING = 256
SHARING = (1, 2, 4, 8, 16)
"""Numbers of replicas that share a load, for which curves are computed."""
LIKE = 0.1
"""Engines and mixes whose numbers differ by less, in logarithms, are taken for the same."""
TINY = 1e-30
SEED = 1
LONGEST_S = 120.0
AGAIN_S = 60.0
"""After a process that failed or took too long."""

Compute = Callable[[Task], Awaitable[Result]]
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What a curve is wanted of; ``replicas`` share the load."""

    engine: Engine
    mix: Mix
    objectives: Objectives
    replicas: int

    @property
    def key(self) -> Key:
        """The same for questions whose answers hardly differ."""
        return (*(_rounded(one) for one in self.numbers), *self.settings)

    def like(self, other: "Question") -> bool:
        """Whether the answer to the other one will do: it was asked before, and to ask anew moves the answer."""
        pairs = zip(self.numbers, other.numbers, strict=True)
        return self.settings == other.settings and all(abs(_log(one) - _log(two)) <= LIKE for one, two in pairs)

    @property
    def numbers(self) -> tuple[float, ...]:
        """What may differ a little."""
        engine, step = self.engine, self.engine.step
        return (step.base, step.per_context_token, step.per_token, float(engine.kv_tokens), *_moments(self.mix))

    @property
    def settings(self) -> tuple[object, ...]:
        """What must be the same."""
        return self.engine.token_budget, self.engine.max_sequences, sharing(self.replicas), self.objectives


class Curves:
    """What was computed lately. ``compute`` runs another process unless a test says otherwise."""

    def __init__(self, compute: Compute | None = None) -> None:
        self._compute = compute or elsewhere
        self._known: OrderedDict[Key, Curve | None] = OrderedDict()
        self._waiting: dict[Key, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(1)

    def find(self, question: Question) -> Curve | None:
        """The curve, or ``None`` while it is not known: then it is computed, unless too many others are."""
        key = question.key
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._waiting and len(self._waiting) < MAX_WAITING:
            self._waiting[key] = asyncio.create_task(self._answer(key, question))
        return None

    def waits(self, question: Question) -> bool:
        """Whether it was asked and is not answered yet."""
        return question.key in self._waiting

    async def close(self) -> None:
        """Compute nothing more."""
        tasks = list(self._waiting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, key: Key, question: Question) -> None:
        try:
            async with self._turn:
                self._keep(key, await self._asked(key, question))
        finally:
            del self._waiting[key]

    async def _asked(self, key: Key, question: Question) -> Curve | None:
        task = Task(question.engine, question.mix, question.objectives, SEED, sharing(question.replicas))
        try:
            result = await self._compute(task)
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            log.warning("no capacity was computed: %s %s; again in %gs", type(error).__name__, error, AGAIN_S)
            asyncio.get_running_loop().call_later(AGAIN_S, self._known.pop, key, None)
            return None
        if result.error:
            log.warning("no capacity of %s: %s", question.engine, result.error)
        return result.curve

    def _keep(self, key: Key, found: Curve | None) -> None:
        self._known[key] = found
        while len(self._known) > KEPT:
            self._known.popitem(last=False)


async def elsewhere(task: Task) -> Result:
    """Compute in another process. Raises OSError, TimeoutError or DecodeError where that gives no result."""
    command = (sys.executable, "-m", curve_worker.__name__)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        async with asyncio.timeout(LONGEST_S):
            answer, _ = await process.communicate(msgspec.json.encode(task))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return msgspec.json.decode(answer, type=Result)


def sharing(replicas: int) -> int:
    """The nearest number from below for which a curve is computed: fewer replicas share a load less evenly."""
    return max((one for one in SHARING if one <= replicas), default=SHARING[0])


@lru_cache(maxsize=MAX_WAITING)
def _moments(mix: Mix) -> tuple[float, ...]:
    """Means and root mean squares of prompts and outputs."""
    count = max(1, len(mix))
    prompts, outputs = [prompt for prompt, _ in mix], [output for _, output in mix]
    squares = [math.sqrt(sum(one * one for one in sizes) / count) for sizes in (prompts, outputs)]
    return (sum(prompts) / count, sum(outputs) / count, *squares)


def _rounded(value: float) -> int:
    return round(_log(value) / LIKE)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.log(TINY)
