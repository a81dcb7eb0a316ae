"""What simulations came to: a table for people, JSON lines for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fairlead_operator.simulate.model import Result

DAY: Final = 86_400.0
GOAL: Final = 0.99
CAVEATS: Final = (
    "simulated, no GPU was used: the step's time is a formula, and only as good as its numbers",
    "requests go to the replica with the fewest outstanding tokens; prefixes are cached where requests name them",
    "other autoscalers are written anew from their published formulas, without every default of theirs",
    "llm-d's flow control is what waits beyond 5 per replica; its law on latency sees measured latencies",
    "the clairvoyant schedule knows the demand, pays for starting, and is a reference: no bound is proven",
)
TRACE_CAVEATS: Final = (
    "S1 and S2 have the rates of 2024, read off a figure, with the lengths of 2023",
    *CAVEATS,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run: a policy on a workload. ``seconds`` is the time that the accounts cover.

    ``over_percent`` is the cost over the clairvoyant schedule's, None where that is unknown or where the policy misses
    the attainment: a cheap failure has no ratio.
    """

    scenario: str
    policy: str
    cold_start: float
    seed: int
    seconds: float
    requests: int
    attainment: float
    attainment_ttft: float
    attainment_tpot: float
    ttft_p99: float
    tpot_p99: float
    replica_hours: float
    dollars: float
    dollars_starting: float
    scale_events: int
    pods_started: int
    preemptions: int
    held: int
    attainment_rest: float
    over_percent: float | None = None

    @property
    def replicas(self) -> float:
        """Their mean."""
        return self.replica_hours * 3600 / self.seconds

    @property
    def events_per_day(self) -> float:
        """Scale events in as many hours as a day has."""
        return self.scale_events * DAY / self.seconds

    @property
    def dollars_per_thousand(self) -> float:
        """USD for 1,000 requests."""
        return 1000 * self.dollars / max(1, self.requests)


def row(
    scenario: str, policy: str, result: Result, *, cold_start: float, seed: int, seconds: float, reference: float | None
) -> Row:
    """The row of a result; ``reference`` is the dollars of the clairvoyant schedule on the same requests."""
    over = None
    if reference and round(result.attainment, 4) >= GOAL:
        over = 100 * (result.dollars / reference - 1)
    total = max(1, result.requests)
    return Row(
        scenario=scenario,
        policy=policy,
        cold_start=cold_start,
        seed=seed,
        seconds=seconds,
        requests=result.requests,
        attainment=result.attainment,
        attainment_ttft=result.met_ttft / total,
        attainment_tpot=result.met_tpot / total,
        ttft_p99=result.ttft_p99,
        tpot_p99=result.tpot_p99,
        replica_hours=result.replica_hours,
        dollars=result.dollars,
        dollars_starting=result.dollars_starting,
        scale_events=result.scale_events,
        pods_started=result.pods_started,
        preemptions=result.preemptions,
        held=result.held,
        attainment_rest=result.attainment_rest,
        over_percent=over,
    )


# --- the table

_HEAD: Final = (
    "scenario", "policy", "cold", "seeds", "met %", "ttft %", "tpot %", "p99 ttft", "p99 tpot", "replica-h", "mean",
    "USD/1k", "start USD", "events/day", "pods/day", "over %",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """A line for each scenario, policy and cold start: the mean of the seeds, with least…greatest where they differ."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for one in rows:
        groups.setdefault((one.scenario, one.policy, one.cold_start), []).append(one)
    lines = [_HEAD, *(_line(group) for group in groups.values())]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_HEAD))]
    left = 2
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _line(group: Sequence[Row]) -> tuple[str, ...]:
    first = group[0]
    over = [one.over_percent for one in group]
    known = [value for value in over if value is not None]
    return (
        first.scenario,
        first.policy,
        f"{first.cold_start:g} s",
        str(len(group)),
        _spread([100 * one.attainment for one in group], 2),
        _spread([100 * one.attainment_ttft for one in group], 2),
        _spread([100 * one.attainment_tpot for one in group], 2),
        f"{_mean([one.ttft_p99 for one in group]):.2f} s",
        f"{1000 * _mean([one.tpot_p99 for one in group]):.0f} ms",
        _spread([one.replica_hours for one in group], 1),
        f"{_mean([one.replicas for one in group]):.2f}",
        f"{_mean([one.dollars_per_thousand for one in group]):.3f}",
        f"{_mean([one.dollars_starting for one in group]):.0f}",
        f"{_mean([one.events_per_day for one in group]):.0f}",
        f"{_mean([one.pods_started * DAY / one.seconds for one in group]):.0f}",
        _spread(known, 1, sign="+") if len(known) == len(over) else "-",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float], places: int, sign: str = "") -> str:
    """The mean, and the range if it shows at these places."""
    low, middle, high = (f"{value:{sign}.{places}f}" for value in (min(values), _mean(values), max(values)))
    return middle if low == high else f"{middle} ({low}…{high})"


# --- for programs


def record(one: Row) -> dict[str, object]:
    """One line of JSON: the row's numbers, rounded to what they can mean."""
    return {
        "scenario": one.scenario,
        "policy": one.policy,
        "cold_start_s": one.cold_start,
        "seed": one.seed,
        "requests": one.requests,
        "attainment_percent": round(100 * one.attainment, 3),
        "ttft_attainment_percent": round(100 * one.attainment_ttft, 3),
        "tpot_attainment_percent": round(100 * one.attainment_tpot, 3),
        "ttft_p99_s": round(one.ttft_p99, 3),
        "tpot_p99_s": round(one.tpot_p99, 4),
        "replica_hours": round(one.replica_hours, 2),
        "replicas": round(one.replicas, 3),
        "dollars": round(one.dollars, 2),
        "dollars_per_thousand_requests": round(one.dollars_per_thousand, 4),
        "dollars_starting": round(one.dollars_starting, 2),
        "events_per_day": round(one.events_per_day, 1),
        "pods_started": one.pods_started,
        "preemptions": one.preemptions,
        "held": one.held,
        "attainment_of_rest_percent": round(100 * one.attainment_rest, 3),
        "over_clairvoyant_percent": None if one.over_percent is None else round(one.over_percent, 2),
    }
