"""What an autoscaling policy sees at a tick of the simulation, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from fairlead_operator.performance.step import Mix


@dataclass(frozen=True, slots=True)
class Recent:
    """Latencies of the last minute in seconds, by tick: to the first token, as it came; per token, at the finish."""

    ttft_parts: tuple[list[float], ...]
    tpot_parts: tuple[list[float], ...]

    @property
    def ttft(self) -> list[float]:
        """All times to the first token."""
        return list(chain.from_iterable(self.ttft_parts))

    @property
    def tpot(self) -> list[float]:
        """All times per output token, of requests with more than one."""
        return list(chain.from_iterable(self.tpot_parts))


@dataclass(frozen=True, slots=True)
class View:
    """The fleet at a tick. Counts are since the policy's previous tick; seconds.

    ``ready``, ``starting`` and ``draining`` are replicas by variant, ``start_ages`` the ages of those starting, oldest
    first. ``running``, ``waiting`` are requests on ready and draining replicas, ``held`` those that the gateway holds
    because nothing is ready; ``waiting_tokens`` are their prompt tokens not computed yet. ``kv_use`` (0..1),
    ``running_by`` and ``waiting_by`` are by ready replica, in the order of ``ready``. ``met_ttft`` and the like count
    finished requests; one of a single output token has met its time per output token. ``samples`` are prompt and
    output tokens of finished requests.
    """

    now: float
    ready: tuple[int, ...]
    starting: tuple[int, ...]
    draining: tuple[int, ...]
    start_ages: tuple[tuple[float, ...], ...]
    arrivals: int
    finished: int
    met: int
    missed: int
    met_ttft: int
    missed_ttft: int
    met_tpot: int
    missed_tpot: int
    prompt_tokens: int
    output_tokens: int
    running: int
    waiting: int
    held: int
    waiting_tokens: int
    kv_use: tuple[float, ...]
    running_by: tuple[int, ...]
    waiting_by: tuple[int, ...]
    recent: Recent
    samples: Mix

    @property
    def ttft_p90(self) -> float:
        """Time to the first token that 90 % of the last minute's requests kept; 0 = none."""
        return quantile(self.recent.ttft, 0.9)

    @property
    def tpot_p90(self) -> float:
        """The same of the time per output token."""
        return quantile(self.recent.tpot, 0.9)

    @property
    def ttft_mean(self) -> float:
        """Mean time to the first token in the last minute; 0 = none."""
        return mean(self.recent.ttft)

    @property
    def tpot_mean(self) -> float:
        """The same of the time per output token."""
        return mean(self.recent.tpot)


class Policy(Protocol):
    """Asked every ``interval`` seconds for the replicas that it wants."""

    interval: float

    def desired(self, view: View) -> Sequence[int]:
        """Replicas wanted by variant; the simulator keeps them within the variants' bounds."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 of none."""
    return sum(values) / len(values) if values else 0.0
