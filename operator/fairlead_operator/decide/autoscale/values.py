"""What the autoscaler is told and what it answers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead_operator.decide.variants import Counts
from fairlead_operator.performance.curve import Curve
from fairlead_operator.performance.step import Objectives

STEADY: Final = "Steady"


class CapBound(StrEnum):
    """What kept the number of replicas from what demand asks for, besides the bounds of the spec."""

    COST = "CostPerThousandRequests"
    SPEND = "SpendCap"
    STEP = "StepLimit"


@dataclass(frozen=True, slots=True)
class Observation:
    """One round of scrapes. Counts are since the round before."""

    at_ms: int
    arrivals: int = 0
    """Requests that asked for the pool, those that are held included."""
    finished: int = 0
    met: int = 0
    """Finished within all objectives."""
    missed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    running: int = 0
    waiting: int = 0
    """At the engines, before their first step."""
    held: int = 0
    """At the gateways."""
    waiting_tokens: int = 0
    """Prompt tokens that are not yet computed."""
    last_request_ms: int = 0
    """When the newest request came; 0 = none is known."""
    complete: bool = True
    """False while some router is silent: then the counts are lower bounds, and nothing is taken away."""


@dataclass(frozen=True, slots=True)
class VariantState:
    """One kind of replica as it is now.

    ``curves``: the share of requests that meet the objectives by load of one replica, for pools of so many replicas
    (ascending, at least one): replicas that share their load can each take more of it. ``current``: replicas wanted so
    far, ready or starting. ``price``: nano-USD for a replica-hour; unknown counts as the dearest.
    """

    name: str
    curves: tuple[tuple[int, Curve], ...]
    price: int | None
    cold_start_ms: int
    current: int = 0
    ready: int = 0
    start_ages_ms: tuple[int, ...] = ()
    minimum: int = 0
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Requests a second in past days, oldest first, from ``start_ms`` in steps of ``step_ms``; None = not known."""

    start_ms: int
    step_ms: int
    rates: tuple[float | None, ...]

    def at(self, at_ms: int) -> float | None:
        """The rate at a time, if it is known."""
        place = (at_ms - self.start_ms) // self.step_ms
        return self.rates[place] if 0 <= place < len(self.rates) else None


@dataclass(frozen=True, slots=True)
class Settings:
    """What is not measured by the routers. Money is nano-USD; None = no limit, or never to zero."""

    minimum: int
    maximum: int
    variants: tuple[VariantState, ...]
    objectives: Objectives
    zero_after_ms: int | None = None
    max_cost_per_thousand: int | None = None
    spend_cap_per_hour: int | None = None
    pays_a_replica: bool = True
    """Whether the budgets pay for what runs until it is gone; if not, a pool without a minimum goes to zero."""
    history: History | None = None

    @property
    def current(self) -> int:
        """Replicas wanted so far."""
        return sum(variant.current for variant in self.variants)

    @property
    def ready(self) -> int:
        """Replicas that serve."""
        return sum(variant.ready for variant in self.variants)


@dataclass(frozen=True, slots=True)
class Wish:
    """How many replicas, on which variants, and why.

    ``message`` is the sentence of ``status.scaling``, ``because`` the short form for an Event. ``bound_by`` names what
    kept the number from ``wanted``. Rates are requests/s; ``forecast_high`` is exceeded one time in ten. Money is
    nano-USD; costs an hour are ``None`` without a price.
    """

    counts: Counts
    current: int
    wanted: int
    reason: str
    message: str
    because: str
    bound_by: str = ""
    signals_missing: bool = False
    rate: float = 0.0
    forecast: float = 0.0
    forecast_high: float = 0.0
    horizon_ms: int = 0
    capacity: float = 0.0
    """Requests/s that one replica of the variant that is cheapest by the request takes at the objectives."""
    backlog: int = 0
    attainment: float = 1.0
    """Share of the rolling day's requests that met the objectives."""
    misses_left: int = 0
    """Requests that may still miss; negative = overdrawn."""
    miss_price: int = 0
    """What the decision pays to avoid one miss."""
    cost_per_hour_before: int | None = None
    cost_per_hour_after: int | None = None

    @property
    def replicas(self) -> int:
        """Replicas over all variants."""
        return sum(count for _, count in self.counts)

    @property
    def changed(self) -> bool:
        """Whether the number of replicas changes."""
        return self.replicas != self.current
