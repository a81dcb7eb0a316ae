"""What the routers of one pool count, second by second: its requests, and the engines that serve them.

Engines are in the middle of what they do: a step's time follows from the requests that run at once, and those from how
long they run. Requests that no engine has room for wait, and miss the objectives when they wait for too long.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead_operator.performance.step import Engine
from fairlead_router.contract import EngineSignals, PoolSignals
from tests.bench.operator.fleet import KINDS, Plan, engine

SAMPLES: Final = 16
"""As many as a router tells."""
SPREAD: Final = 0.5
"""Of the logarithm of a request's sizes."""
MICRO: Final = 1_000_000
PERMILLE: Final = 1000


@dataclass(slots=True)
class Served:
    """One engine: its counters, and what it does now. ``step`` is the time of one, in seconds."""

    running: float = 0.0
    step: float = 0.0
    gaps: float = 0.0
    gaps_us: float = 0.0
    computed: float = 0.0


@dataclass(slots=True)
class Totals:
    """What entry routers have counted of a pool."""

    arrivals: int = 0
    finished: int = 0
    met: int = 0
    missed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    sizes: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))


class Traffic:
    """One pool's."""

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self._kind = KINDS[plan.kind]
        self._plan = plan
        self._chance = chance
        self._each = Each(engine(self._kind), plan.prompt, plan.output)
        self._rest = 0.0
        self.waiting = 0.0
        self.last_ms = 0
        self.totals = Totals()
        self.engines: dict[str, Served] = {}

    def advance(self, seconds: float, rate: float, ready: Sequence[str], now_ms: int) -> None:
        """So many requests/s arrive for so long; these engines serve them."""
        self.engines = {name: self.engines.get(name) or Served() for name in ready}
        mean = rate * seconds
        arrivals = max(0, round(self._chance.gauss(mean, math.sqrt(mean))))
        self.totals.arrivals += arrivals
        self.totals.prompt_tokens += arrivals * self._plan.prompt
        self.last_ms = now_ms if arrivals else self.last_ms
        wanted = self.waiting + arrivals
        served = min(wanted, self._each.most * len(ready) * seconds)
        self.waiting = wanted - served
        each = served / seconds / len(ready) if ready else 0.0
        for one in self.engines.values():
            self._work(one, each, seconds)
        self._finish(served, self._each.step(each), each * len(ready))

    def _work(self, one: Served, rate: float, seconds: float) -> None:
        one.step = self._each.step(rate)
        one.running = rate * self._plan.output * one.step
        tokens = rate * self._plan.output * seconds
        one.gaps += tokens
        one.gaps_us += tokens * one.step * MICRO
        one.computed += rate * self._plan.prompt * seconds

    def _finish(self, served: float, step: float, rate: float) -> None:
        """Count the requests that ended; what is left of one ends with the next."""
        self._rest += served
        done = int(self._rest)
        self._rest -= done
        ttft = 2 * step + (self.waiting / rate if rate else 0.0)
        in_time = step <= self._kind.tpot and ttft <= self._kind.ttft
        totals = self.totals
        totals.finished += done
        totals.met += done if in_time else 0
        totals.missed += 0 if in_time else done
        totals.output_tokens += done * self._plan.output
        for _ in range(min(done, SAMPLES)):
            totals.sizes.append((self._size(self._plan.prompt), self._size(self._plan.output)))

    def _size(self, mean: int) -> int:
        return max(1, round(mean * math.exp(self._chance.gauss(-SPREAD * SPREAD / 2, SPREAD))))

    def entry(self, pool: str, share: int, of: int) -> PoolSignals:
        """What one of several entry routers tells: each has as many of the requests."""
        totals, decoding = self.totals, sum(one.running for one in self.engines.values())
        step = max((one.step for one in self.engines.values()), default=0.0)

        def part(value: float) -> int:
            return (int(value) + share) // of

        return PoolSignals(
            pool=pool,
            held=part(self.waiting),
            peak_held=part(self.waiting),
            last_request_ms=self.last_ms,
            requests_total=part(totals.finished),
            prompt_tokens_total=part(totals.prompt_tokens),
            output_tokens_total=part(totals.output_tokens),
            ttft_ms_p99=math.ceil(2000 * step),
            tpot_ms_p99=math.ceil(1000 * step),
            arrivals_total=part(totals.arrivals),
            arrived_tokens_total=part(totals.prompt_tokens),
            finished_total=part(totals.finished),
            met_total=part(totals.met),
            missed_total=part(totals.missed),
            waiting_tokens=part(self.waiting * self._plan.prompt),
            decoding=part(decoding),
            context_tokens=part(decoding * self._plan.prompt),
            samples=tuple(totals.sizes),
        )

    def sidecar(self, pool: str, pod: str) -> tuple[PoolSignals, EngineSignals]:
        """What the router beside an engine tells of it."""
        one, replica = self.engines.get(pod) or Served(), self._each.engine
        running = round(one.running)
        used = round(one.running * self._each.context * PERMILLE / replica.kv_tokens)
        told = EngineSignals(
            kv_tokens=replica.kv_tokens,
            kv_permille=min(PERMILLE, used),
            running=running,
            waiting=0,
            gaps_total=int(one.gaps),
            gaps_us_total=int(one.gaps_us),
            computed_total=int(one.computed),
        )
        return PoolSignals(pool=pool, running=running, peak_running=running), told


class Each:
    """An engine whose requests all have the same sizes."""

    def __init__(self, replica: Engine, prompt: int, output: int) -> None:
        self.engine = replica
        self.context = prompt + output / 2
        self._output = output
        time = replica.step
        self._cost = time.per_context_token * self.context * output + time.per_token * (output + prompt)
        slots = min(replica.max_sequences, replica.kv_tokens / self.context)
        self.most = slots / (output * time.base + slots * self._cost)
        """Requests/s with which all its slots are taken."""

    def step(self, rate: float) -> float:
        """Seconds of a step at so many requests/s: t = base + rate · t · cost."""
        return self.engine.step.base / (1 - min(rate, self.most) * self._cost)
