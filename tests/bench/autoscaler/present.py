"""How much of the distance to the clairvoyant schedule is the future's: a law that is told the present, on days of S3.

It is told each window's rate twenty seconds after the window began, and the chances of the next one by the windows of
the other days, but not the future. By these it plans the cheapest replicas (a Markov decision process over rates and
replicas, relative value iteration; Puterman 1994, 8.5) for a price of a miss, and a price of a change, which bounds
their number. A law that has to find rates and chances by itself will hardly come nearer. The last line is JSON.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

from fairlead_operator.simulate.clairvoyant import Table
from fairlead_operator.simulate.fleet import run
from fairlead_operator.simulate.model import Result
from fairlead_operator.simulate.policy import View
from fairlead_operator.simulate.workloads import scaled
from tests.bench.autoscaler.cases import CLAIRVOYANT, Case, reference, table
from tests.bench.autoscaler.scenarios import SCENARIOS, TEN_MINUTES, client_windows

DAYS: Final = 14
TOLD_AFTER: Final = 20.0
LOWEST, HIGHEST, RATES = 15.0, 220.0, 32
"""Rates (requests/s) that are told apart, evenly by their logarithm."""
ALIKE: Final = 0.25
"""Windows count for the chances of a rate the less, the further their logarithm is from its."""
REPLICAS: Final = range(2, 17)
ROUNDS: Final = 25
PRICES: Final = (0.1, 2.0)
"""A miss, in replica-seconds: the least and the most that are tried."""
TRIALS: Final = 5
CHANGES: Final = (0.0, 600.0, 1200.0)
"""A change, in replica-seconds."""

Plan = list[list[int]]
"""Replicas by the bin of the rate and the replicas before."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Replica-seconds for a request that misses and for a change of the replicas."""

    miss: float
    change: float


def rates(day: int) -> list[float]:
    """Of the day's windows."""
    windows = client_windows("m-large", day, lambda _client: True)
    return [rate for _start, _end, rate in scaled(windows, SCENARIOS["S3"].mean)]


def bin_of(rate: float) -> int:
    """The bin of a rate."""
    part = math.log(max(rate, LOWEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return min(RATES - 1, round(part * (RATES - 1)))


def rate_of(place: int) -> float:
    """The rate in the middle of a bin."""
    return LOWEST * math.exp(math.log(HIGHEST / LOWEST) * place / (RATES - 1))


@cache
def chances(day: int) -> tuple[tuple[float, ...], ...]:
    """By the bin of a window's rate, the chances of the next one's: the changes on the other days near that rate."""
    found = [[0.0] * RATES for _ in range(RATES)]
    for other in (one for one in range(DAYS) if one != day):
        known = rates(other)
        for now, later in pairwise(known):
            for place, row in enumerate(found):
                rate = rate_of(place)
                row[bin_of(rate * later / now)] += math.exp(-((math.log(rate / now) / ALIKE) ** 2) / 2)
    return tuple(tuple(one / sum(row) for one in row) for row in found)


def window_cost(measured: Table, rate: float, change: tuple[int, int], cold_start: float, prices: Prices) -> float:
    """Replica-seconds of a window at this rate, in which replicas change from one number to another."""
    before, after = change
    late = TOLD_AFTER + (cold_start if after > before else 0.0)
    seconds = ((before, late), (after, TEN_MINUTES - late))
    missed = sum(rate * (1 - measured.share(rate / replicas, replicas)) * long for replicas, long in seconds)
    paid = before * TOLD_AFTER + after * (TEN_MINUTES - TOLD_AFTER)
    return paid + prices.miss * missed + (prices.change if after != before else 0.0)


def plan(measured: Table, day: int, cold_start: float, prices: Prices) -> Plan:
    """The replicas that cost least in the long run."""
    costs = [
        [[window_cost(measured, rate_of(at), (old, new), cold_start, prices) for new in REPLICAS] for old in REPLICAS]
        for at in range(RATES)
    ]
    numbers, next_rates = range(len(REPLICAS)), chances(day)
    values = [[0.0] * len(REPLICAS) for _ in range(RATES)]
    best: Plan = []
    for _ in range(ROUNDS):
        ahead = [
            [sum(chance * values[at][n] for at, chance in enumerate(row) if chance) for n in numbers]
            for row in next_rates
        ]
        best = [[_least(costs[at][n], ahead[at]) for n in numbers] for at in range(RATES)]
        values = [[costs[at][n][best[at][n]] + ahead[at][best[at][n]] for n in numbers] for at in range(RATES)]
        lowest = values[0][0]
        values = [[value - lowest for value in row] for row in values]
    return best


def _least(costs: Sequence[float], ahead: Sequence[float]) -> int:
    return min(range(len(costs)), key=lambda at: costs[at] + ahead[at])


@dataclass(slots=True)
class Told:
    """The plan as a policy."""

    plan: Plan
    rates: Sequence[float]
    replicas: int
    interval: float = 5.0
    _window: int = -1

    def desired(self, view: View) -> Sequence[int]:
        """Decides once in each window."""
        window = min(len(self.rates) - 1, max(0, int((view.now - TOLD_AFTER) // TEN_MINUTES)))
        if window != self._window:
            self._window = window
            before = min(REPLICAS[-1], max(REPLICAS[0], self.replicas)) - REPLICAS[0]
            self.replicas = REPLICAS[self.plan[bin_of(self.rates[window])][before]]
        return (self.replicas,)


def trial(case: Case, day: int, prices: Prices) -> Result:
    """The day with the plan of these prices."""
    policy = Told(plan(table(case), day, case.cold_start, prices), rates(day), case.variant.minimum)
    return run(case.workload(), (case.variant,), case.objectives, policy, count_from=case.count_from)


def cheapest(case: Case, day: int, change: float) -> Result:
    """At the least price of a miss that was found to keep the objectives."""
    low, high = PRICES
    found = trial(case, day, Prices(high, change))
    for _ in range(TRIALS):
        middle = math.sqrt(low * high)
        one = trial(case, day, Prices(middle, change))
        enough = one.attainment >= case.objectives.attainment
        low, high, found = (low, middle, one) if enough else (middle, high, found)
    return found


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.autoscaler.present", description=__doc__)
    parser.add_argument("--days", default="5,8")
    parser.add_argument("--cold", type=float, default=120.0)
    asked = parser.parse_args()
    summary = {}
    for day in map(int, asked.days.split(",")):
        case = Case("S3", CLAIRVOYANT, asked.cold, day=None if day == SCENARIOS["S3"].day else day)
        best = reference(case).result
        for change in CHANGES:
            found = cheapest(case, day, change)
            over = 100 * (found.dollars / best.dollars - 1)
            print(
                f"day {day}, a change counts {change:g} s: {100 * found.attainment:.2f} %, "
                f"{found.replica_hours:.1f} h, {found.scale_events} changes, {over:+.1f} %",
                flush=True,
            )
            summary[f"day {day}, {change:g} s"] = {
                "attainment_percent": round(100 * found.attainment, 3),
                "over_clairvoyant_percent": round(over, 2),
                "scale_events": found.scale_events,
            }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
