"""The operator's own law as a policy of the simulator: what a tick shows becomes one round of scrapes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead_operator.decide.autoscale import Memory, Observation, Settings, VariantState, Wish, step
from fairlead_operator.decide.autoscale.mix import MAX_MIX, mixed
from fairlead_operator.performance.curve import Curve, curve, stable_load
from fairlead_operator.performance.step import Engine, Mix, Objectives
from fairlead_operator.simulate.model import Variant
from fairlead_operator.simulate.policy import View

POOLS: Final = (1, 2, 4, 8)
"""Numbers of replicas whose curves the law is given, as far as the bounds allow."""
REFRESH: Final = 300.0
"""Seconds after which the requests of late are compared with those that the curves were measured on."""
MOVED: Final = 0.1
"""Change of what an engine could serve at most, as a logarithm, from which on curves are measured anew: without need it
moves them by chance, and what was learned of the pool fits them no more."""
SOME: Final = 512
"""Requests from which on capacities are measured on them."""
UNKNOWN_MIX: Final[Mix] = ((1000, 200),)
"""Until requests have finished."""
NANO: Final = 1_000_000_000


@dataclass(slots=True)
class Fairlead:
    """The law with its memory, asked every 5 s. Of each variant it is told the engine, the price and the cold start."""

    variants: Sequence[Variant]
    objectives: Objectives
    zero_after: float | None = None
    interval: float = 5.0
    wish: Wish | None = None
    _memory: Memory = field(default_factory=lambda: Memory(since_ms=0))
    _mix: Mix = ()
    _curves: dict[Engine, tuple[tuple[int, Curve], ...]] = field(default_factory=dict)
    _measured_on: Mix = ()
    _checked: float = 0.0
    _last_request: float = 0.0

    def desired(self, view: View) -> Sequence[int]:
        """Replicas by variant."""
        self._mix = mixed(self._mix, view.samples, self.interval)
        if view.arrivals:
            self._last_request = view.now
        self._refresh(view.now)
        self._memory, self.wish = step(self._memory, self._observation(view), self._settings(view))
        return [replicas for _name, replicas in self.wish.counts]

    def _refresh(self, now: float) -> None:
        """Measure the curves once without requests, and then whenever it is time."""
        if self._curves and not self._due(now):
            return
        mix = self._mix or UNKNOWN_MIX
        most = max(self._most, 1)
        pools = [pool for pool in POOLS if pool <= most]
        for variant in self.variants:
            self._curves[variant.engine] = tuple(
                (pool, curve(variant.engine, mix, self.objectives, replicas=pool)) for pool in pools
            )
        self._checked, self._measured_on = now, mix

    def _due(self, now: float) -> bool:
        """Once there are some requests, once there are as many as are kept, then where their sizes changed."""
        known, before = len(self._mix), len(self._measured_on)
        if known < SOME:
            return False
        if before < SOME or before < known == MAX_MIX:
            return True
        if now < self._checked + REFRESH:
            return False
        self._checked = now
        return any(self._moved(variant.engine) for variant in self.variants)

    def _moved(self, engine: Engine) -> bool:
        """Whether the engine could serve clearly more or fewer of the requests of late than of those measured on."""
        return abs(math.log(stable_load(engine, self._mix) / stable_load(engine, self._measured_on))) > MOVED

    @property
    def _most(self) -> int:
        return sum(variant.maximum for variant in self.variants)

    def _observation(self, view: View) -> Observation:
        return Observation(
            at_ms=int(view.now * 1000),
            arrivals=view.arrivals,
            finished=view.finished,
            met=view.met,
            missed=view.missed,
            prompt_tokens=view.prompt_tokens,
            output_tokens=view.output_tokens,
            running=view.running,
            waiting=view.waiting,
            held=view.held,
            waiting_tokens=view.waiting_tokens,
            last_request_ms=int(self._last_request * 1000),
        )

    def _settings(self, view: View) -> Settings:
        states = tuple(
            VariantState(
                name=f"variant-{number}",
                curves=self._curves[variant.engine],
                price=int(variant.price_per_hour * NANO),
                cold_start_ms=int(variant.cold_start * 1000),
                current=view.ready[number] + view.starting[number],
                ready=view.ready[number],
                start_ages_ms=tuple(int(age * 1000) for age in view.start_ages[number]),
                minimum=variant.minimum,
                maximum=variant.maximum,
            )
            for number, variant in enumerate(self.variants)
        )
        zero_after = None if self.zero_after is None else int(self.zero_after * 1000)
        least = sum(variant.minimum for variant in self.variants)
        return Settings(least, self._most, states, self.objectives, zero_after_ms=zero_after)
