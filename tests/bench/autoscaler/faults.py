"""The law on signals that are lost, late, wrong or doubled, and beside replicas that lie: how much harm is done.

Two hours of S3 in which demand rises by half at once and falls to half later; each fault comes twice, for the ten
minutes around the rise and around the fall. The last line is one JSON object.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fairlead_operator.decide.autoscale import Observation
from fairlead_operator.simulate.fairlead import Fairlead
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result, Variant
from fairlead_operator.simulate.policy import View
from tests.bench.autoscaler.cases import LAWS, OURS, Case, code, kept

Told = Callable[[Observation, Sequence[Observation]], Observation]
"""What the law is told instead, given what really was and the rounds before, newest first."""

STEPS: Final = Case("S3", OURS, 120.0, slice=True)
SINCE_MS: Final = (2_100_000, 5_100_000)
LASTS_MS: Final = 600_000
LATE_ROUNDS: Final = 12
REMEMBERED: Final = 32
COUNTS: Final = ("arrivals", "finished", "met", "missed", "prompt_tokens", "output_tokens")
STATES: Final = ("running", "waiting", "held", "waiting_tokens")


def scaled(seen: Observation, factor: float) -> Observation:
    """Every count and state times a factor."""
    told: dict[str, Any] = {name: int(getattr(seen, name) * factor) for name in (*COUNTS, *STATES)}
    return replace(seen, **told)


def silent(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """No router answers."""
    return Observation(at_ms=seen.at_ms, last_request_ms=seen.last_request_ms, complete=False)


def half(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """Half of the routers do not answer."""
    return replace(scaled(seen, 0.5), complete=False)


def late(seen: Observation, before: Sequence[Observation]) -> Observation:
    """What is told is a minute old."""
    return seen if len(before) < LATE_ROUNDS else replace(before[LATE_ROUNDS - 1], at_ms=seen.at_ms)


def doubled(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """Everything is told twice."""
    return scaled(seen, 2)


def wild(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """A hundred times as much as there is, in one round of the minute."""
    return scaled(seen, 100) if seen.at_ms // 5000 % 12 == 0 else seen


def nothing(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """Routers answer, and count nothing."""
    return Observation(at_ms=seen.at_ms, last_request_ms=seen.last_request_ms)


def flattering(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """Replicas say that every request met its objectives, and that none waits."""
    return replace(seen, met=seen.finished, missed=0, waiting=0, waiting_tokens=0)


def complaining(seen: Observation, _before: Sequence[Observation]) -> Observation:
    """Replicas say that every third request missed."""
    missed = max(seen.missed, seen.finished // 3)
    return replace(seen, met=seen.finished - missed, missed=missed)


FAULTS: Final[dict[str, Told]] = {
    one.__name__: one for one in (silent, half, late, doubled, wild, nothing, flattering, complaining)
}


@dataclass(frozen=True, slots=True)
class Harm:
    """What came of it. ``taken_unknown``: replicas taken away in a round that was not complete."""

    attainment: float
    dollars: float
    most: int
    taken_unknown: int


@dataclass(slots=True)
class Deceived(Fairlead):
    """The law, told something else for a while."""

    told: Told = silent
    lasts_ms: int = LASTS_MS
    most: int = 0
    taken_unknown: int = 0
    _before: deque[Observation] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def desired(self, view: View) -> Sequence[int]:
        """Replicas by variant."""
        wanted = Fairlead.desired(self, view)
        assert self.wish is not None
        self.most = max(self.most, self.wish.replicas)
        if not self._before[0].complete:
            self.taken_unknown += max(0, self.wish.current - self.wish.replicas)
        return wanted

    def _observation(self, view: View) -> Observation:
        real = Fairlead._observation(self, view)
        told = any(0 <= real.at_ms - since < self.lasts_ms for since in SINCE_MS)
        seen = self.told(real, self._before) if told else real
        # What was told before is of the real rounds; whether the last one was complete is of the one told.
        self._before.appendleft(replace(real, complete=seen.complete))
        return seen


def harm(name: str) -> Harm:
    """Of one fault; ``none`` is without any."""
    return kept("faults", (name, SINCE_MS, STEPS, code(*LAWS[OURS], "simulate/fairlead.py")), Harm, lambda: _harm(name))


def _harm(name: str) -> Harm:
    policy = deceived(STEPS.variant, name)
    result = simulate(policy)
    return Harm(result.attainment, result.dollars, policy.most, policy.taken_unknown)


def deceived(variant: Variant, name: str) -> Deceived:
    """The law under a fault."""
    fault = FAULTS.get(name)
    lasts = LASTS_MS if fault is not None else 0
    return Deceived((variant,), STEPS.objectives, told=fault or silent, lasts_ms=lasts)


def simulate(policy: Deceived) -> Result:
    """Two hours of S3."""
    return run(STEPS.workload(), (STEPS.variant,), STEPS.objectives, policy, count_from=STEPS.count_from)


def main() -> None:
    """Run, print."""
    found = {name: harm(name) for name in ("none", *FAULTS)}
    whole = found["none"].dollars
    print(f"{'fault':12} {'met %':>7} {'dollars':>9} {'over %':>7} {'most':>5}  taken away while unknown")
    for name, one in found.items():
        over = 100 * (one.dollars / whole - 1)
        print(f"{name:12} {100 * one.attainment:7.2f} {one.dollars:9.2f} {over:7.1f} {one.most:5}  {one.taken_unknown}")
    summary = {
        name: {
            "attainment_percent": round(100 * one.attainment, 3),
            "over_percent": round(100 * (one.dollars / whole - 1), 2),
            "most_replicas": one.most,
            "taken_unknown": one.taken_unknown,
        }
        for name, one in found.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
