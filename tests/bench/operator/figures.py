"""The bench's figures, from what the stopwatches wrote and what the kernel counted."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgspec

from tests.bench.quantiles import quantile

ROUND_S: Final = 5.0
"""How often every pool is to be decided."""
MS: Final = 1000
TIMED: Final = ("round", "observe", "decision", "reconcile", "compile", "snapshot", "request")


@dataclass(frozen=True, slots=True)
class Timed:
    """One thing that was timed: what, of what, when it ended, and the seconds that it took."""

    what: str
    of: str
    at: float
    took: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: seconds of CPU, those of children that ended, and bytes of memory now and at most."""

    cpu: float
    children: float
    resident: int
    highest: int


def read(lines: Iterable[str]) -> list[Timed]:
    """What was timed; a line that is not whole yet is left out."""
    return [Timed(*msgspec.json.decode(line)) for line in lines if line.endswith("\n")]


def times_ms(timed: Iterable[Timed]) -> dict[str, dict[str, float]]:
    """How often each thing happened, and how long it took."""
    by_what: dict[str, list[float]] = {what: [] for what in TIMED}
    for one in timed:
        by_what[one.what].append(one.took * MS)
    return {
        what: {
            "count": len(took),
            "p50_ms": round(quantile(took, 50), 2),
            "p99_ms": round(quantile(took, 99), 2),
            "max_ms": round(max(took, default=0.0), 2),
            "total_s": round(sum(took) / MS, 2),
        }
        for what, took in by_what.items()
    }


def lags(timed: Iterable[Timed], pools: Collection[str]) -> list[list[float]]:
    """For each round but the last: seconds from its end to the first decision of each pool that had one in it."""
    rounds: list[float] = []
    decided: dict[str, list[float]] = {pool: [] for pool in pools}
    for one in timed:
        if one.what == "round":
            rounds.append(one.at)
        elif one.what == "decision" and one.of in decided:
            decided[one.of].append(one.at)
    rounds.sort()
    for times in decided.values():
        times.sort()
    return [
        [lag for times in decided.values() if (lag := _first(times, begin, end)) is not None]
        for begin, end in pairwise(rounds)
    ]


def _first(times: Sequence[float], begin: float, end: float) -> float | None:
    at = bisect_left(times, begin)
    return times[at] - begin if at < len(times) and times[at] < end else None


def punctuality(timed: Sequence[Timed], pools: Collection[str], seconds: float) -> dict[str, float]:
    """Whether every pool was decided after every round, and how long after it; ``expected`` is rounds times pools."""
    by_round = lags(timed, pools)
    decided = [lag for found in by_round for lag in found]
    expected = (seconds / ROUND_S - 1) * len(pools)
    return {
        "rounds": len(by_round) + 1 if by_round else 0,
        "rounds_expected": round(seconds / ROUND_S, 1),
        "decisions_in_time": len(decided),
        "decisions_expected": round(expected),
        "decided_percent": round(100 * len(decided) / expected, 1) if expected > 0 else 0.0,
        "decided_after_p50_ms": round(MS * quantile(decided, 50)),
        "decided_after_p99_ms": round(MS * quantile(decided, 99)),
    }


def share(before: Usage, after: Usage, seconds: float) -> dict[str, float]:
    """Percent of a core, and memory in MiB."""
    mib = 1024 * 1024
    return {
        "cpu_percent": round(100 * (after.cpu - before.cpu) / seconds, 1),
        "children_percent": round(100 * (after.children - before.children) / seconds, 1),
        "resident_mib": round(after.resident / mib),
        "highest_mib": round(after.highest / mib),
    }


def metric(text: str, name: str) -> dict[str, float]:
    """The series of a metric in Prometheus' text format, by their labels as they are written."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        label, _, rest = series.partition("{")
        if label == name:
            found[rest.rstrip("}")] = float(value)
    return found


def by_method(timed: Iterable[Timed], seconds: float) -> dict[str, float]:
    """Calls to the API server a second."""
    counts = Counter(one.of for one in timed if one.what == "request")
    return {method: round(count / seconds, 2) for method, count in sorted(counts.items())}
