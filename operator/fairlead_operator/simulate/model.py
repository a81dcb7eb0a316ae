"""What a simulation is of, and what comes out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_operator.performance.step import Engine


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrival: seconds from the start, and tokens, 1 at least.

    ``prefixes`` are the ids of the blocks of 512 tokens that each prompt begins with, for the replicas' prefix caches;
    None = no request shares a prefix. ``duration`` (seconds) is when the accounts close.
    """

    arrivals: Sequence[float]
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    duration: float
    prefixes: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the model.

    ``price_per_hour`` is in USD per replica, ``cold_start`` in seconds, varied evenly by ``cold_start_spread`` of it
    either way. ``initial`` replicas are ready at the start (None = the minimum). ``weight`` is its capacity beside the
    other variants': the router sends to the replica with the fewest outstanding tokens by weight. The router keeps
    requests back that a replica would run beyond its ``slots``; None = it sends them all on.
    """

    engine: Engine
    price_per_hour: float
    cold_start: float
    minimum: int
    maximum: int
    initial: int | None = None
    weight: float = 1.0
    cold_start_spread: float = 0.0
    slots: int | None = None

    def __post_init__(self) -> None:
        initial = self.minimum if self.initial is None else self.initial
        if not 0 <= self.minimum <= initial <= self.maximum:
            raise ValueError(
                f"a variant has {self.minimum} to {self.maximum} replicas, {initial} at the start: order them"
            )
        if not (self.price_per_hour >= 0 and self.weight > 0):
            raise ValueError(
                f"a variant's price is {self.price_per_hour}, its weight {self.weight}: give at least 0, above 0"
            )
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"a variant's replicas run {self.slots} requests at once: give at least 1")
        if not (0 <= self.cold_start < math.inf and 0 <= self.cold_start_spread <= 1):
            raise ValueError(
                f"a cold start is {self.cold_start} s, spread by {self.cold_start_spread}: give seconds, 0 to 1"
            )


@dataclass(frozen=True, slots=True)
class Minute:
    """Arrivals of a minute, those of them that missed an objective, and replicas at its last tick (0 without one)."""

    arrivals: int
    missed: int
    wanted: int
    ready: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to, of the requests and the replica time between ``count_from`` and the workload's end.

    ``requests`` are all that arrived. ``held`` of them waited at the gateway because nothing was ready; their time to
    the first token counts from the moment a replica was. ``unfinished`` and ``refused`` (larger than a replica's KV
    cache, or left waiting too long) have missed. ``attainment`` (0..1) is the share that met all objectives,
    ``attainment_rest`` that of those not held. ``dollars_starting`` of the dollars were paid for replicas while they
    started.
    """

    requests: int
    met: int
    met_ttft: int
    met_tpot: int
    held: int
    held_met: int
    unfinished: int
    refused: int
    replica_seconds: tuple[float, ...]
    dollars: float
    dollars_starting: float
    scale_events: int
    pods_started: int
    preemptions: int
    ttft_p99: float
    tpot_p99: float
    minutes: tuple[Minute, ...]

    @property
    def attainment(self) -> float:
        """Share of all requests that met all objectives; 1 of none."""
        return self.met / self.requests if self.requests else 1.0

    @property
    def attainment_rest(self) -> float:
        """Share of the requests not held that met all objectives; 1 of none."""
        rest = self.requests - self.held
        return (self.met - self.held_met) / rest if rest else 1.0

    @property
    def replica_hours(self) -> float:
        """Hours paid, of all variants."""
        return sum(self.replica_seconds) / 3600
