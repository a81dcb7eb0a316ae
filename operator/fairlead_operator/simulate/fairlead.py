"""The operator's own law as a policy of the simulator: what a tick shows becomes one round of scrapes."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fairlead_operator.decide.autoscale import Memory, Observation, Settings, VariantState, Wish, step
from fairlead_operator.performance.curve import Curve, curve
from fairlead_operator.performance.step import MAX_MIX, Engine, Mix, Objectives
from fairlead_operator.simulate.model import Variant
from fairlead_operator.simulate.policy import View

POOLS: Final = (1, 2, 4, 8)
"""Numbers of replicas whose curves the law is given, as far as the bounds allow."""
REFRESH: Final = 3600.0
"""Seconds after which the curves are measured anew, on the requests of late."""
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
    _mix: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MAX_MIX))
    _curves: dict[Engine, tuple[tuple[int, Curve], ...]] = field(default_factory=dict)
    _measured: float | None = None
    _last_request: float = 0.0

    def desired(self, view: View) -> Sequence[int]:
        """Replicas by variant."""
        self._mix.extend(view.samples)
        if view.arrivals:
            self._last_request = view.now
        self._refresh(view.now)
        self._memory, self.wish = step(self._memory, self._observation(view), self._settings(view))
        return [replicas for _name, replicas in self.wish.counts]

    def _refresh(self, now: float) -> None:
        """Measure the curves once without requests, once when there are enough of them, and then every hour."""
        full = len(self._mix) == MAX_MIX
        if self._curves and (not full or (self._measured is not None and now < self._measured + REFRESH)):
            return
        mix = tuple(self._mix) or UNKNOWN_MIX
        most = max(self._most, 1)
        pools = [pool for pool in POOLS if pool <= most]
        for variant in self.variants:
            self._curves[variant.engine] = tuple(
                (pool, curve(variant.engine, mix, self.objectives, replicas=pool)) for pool in pools
            )
        self._measured = now if full else None

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
