"""Builders of what the autoscaler is told, and a pool that behaves as its curve says."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fairlead_operator.decide.autoscale import Memory, Observation, Settings, VariantState, Wish, step
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Objectives

START = 1_795_172_400_000
TICK_MS = 5_000
USD = 1_000_000_000
CURVE = Curve((5.0, 9.0, 10.0, 11.0, 12.0, 14.0), (1.0, 0.999, 0.99, 0.95, 0.87, 0.75))
"""A replica that takes ten requests a second at 99 %."""


def variant(name: str = "h100", current: int = 1, **fields: Any) -> VariantState:
    """A variant at 3 USD an hour that starts in two minutes, all of whose replicas are ready."""
    usual: dict[str, Any] = {
        "curves": ((1, CURVE),),
        "price": 3 * USD,
        "cold_start_ms": 120_000,
        "ready": current,
    }
    return VariantState(name=name, current=current, **(usual | fields))


def settings(*variants: VariantState, **fields: Any) -> Settings:
    """A pool of one to twenty replicas whose requests should meet the objectives 99 times in a hundred."""
    usual: dict[str, Any] = {"minimum": 1, "maximum": 20, "objectives": Objectives(2.0, 0.05, 0.99)}
    return Settings(variants=variants or (variant(),), **(usual | fields))


def observation(at_ms: int, arrivals: int = 0, **fields: Any) -> Observation:
    """A round in which as many requests finished, all within the objectives, as arrived."""
    usual: dict[str, Any] = {"finished": arrivals, "met": arrivals, "last_request_ms": at_ms if arrivals else 0}
    return Observation(at_ms=at_ms, arrivals=arrivals, **(usual | fields))


@dataclass
class Pool:
    """A pool whose replicas serve as the curve says, and the law that scales it, tick by tick."""

    given: Settings = field(default_factory=settings)
    seed: int = 1
    tick_ms: int = TICK_MS
    at_ms: int = START
    memory: Memory = field(default_factory=lambda: Memory(since_ms=START))
    wish: Wish | None = None
    starts: list[int] = field(default_factory=list)
    finished: int = 0
    missed: int = 0
    events: int = 0
    replica_seconds: float = 0.0
    waiting: float = 0.0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - chance, not a secret

    @property
    def current(self) -> int:
        """Replicas wanted so far."""
        return self.given.variants[0].current

    def run(self, seconds: float, rate: Callable[[float], float] | float, **fields: Any) -> Wish:
        """Let time pass with so many requests a second, at a time since the start; the last decision."""
        end = self.at_ms + round(seconds * 1000)
        while self.at_ms < end:
            now = (self.at_ms - START) / 1000
            self.tick(rate(now) if callable(rate) else rate, **fields)
        assert self.wish is not None
        return self.wish

    def tick(self, rate: float, **fields: Any) -> Wish:
        """One round."""
        self.at_ms += self.tick_ms
        one = self.given.variants[0]
        ready = [at for at in self.starts if at <= self.at_ms]
        self.starts = [at for at in self.starts if at > self.at_ms]
        one = replace(one, ready=one.ready + len(ready), start_ages_ms=(0,) * len(self.starts))
        arrivals = self._arrivals(rate * self.tick_ms / 1000)
        done, missed = self._serve(arrivals, one)
        seen = observation(self.at_ms, arrivals, finished=done, met=done - missed, missed=missed)
        held = round(self.waiting) if one.ready == 0 else 0
        seen = replace(seen, **({"held": held, "waiting": round(self.waiting) - held} | fields))
        self.given = replace(self.given, variants=(one, *self.given.variants[1:]))
        self.memory, wish = step(self.memory, seen, self.given)
        self._act(one, wish)
        self.wish = wish
        return wish

    def _arrivals(self, expected: float) -> int:
        return max(0, round(self.chance.gauss(expected, expected**0.5)))

    def _serve(self, arrivals: int, one: VariantState) -> tuple[int, int]:
        seconds = self.tick_ms / 1000
        asked = arrivals + self.waiting
        done = round(min(asked, one.ready * CURVE.loads[-1] * seconds))
        self.waiting = asked - done
        share = CURVE.share(asked / seconds / one.ready) if one.ready else 0.0
        missed = done - round(done * share)
        self.finished += done
        self.missed += missed
        self.replica_seconds += one.current * seconds
        return done, missed

    def _act(self, one: VariantState, wish: Wish) -> None:
        number = wish.counts[0][1]
        self.events += number != one.current
        self.starts += [self.at_ms + one.cold_start_ms] * max(0, number - one.current)
        fewer = max(0, one.current - number)
        cancelled = min(fewer, len(self.starts))
        self.starts = self.starts[: len(self.starts) - cancelled]
        ready = one.ready - (fewer - cancelled)
        one = replace(one, current=number, ready=ready)
        self.given = replace(self.given, variants=(one, *self.given.variants[1:]))
