"""Tables and the JSON line: medians over the rounds, and ratios to a baseline of the same run."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

BASELINE: Final = "vllmr-rr"
OURS: Final = "fairlead"


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one row of one target in one round."""

    round: int
    target: str
    row: str
    figures: dict[str, float]
    foreign_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its extremes."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of ours must reach: at least or at most ``limit`` times the baseline's, or itself with none."""

    row: str
    figure: str
    sense: Literal["at least", "at most"]
    limit: float
    baseline: str = ""


GOALS: Final = (
    Goal("rps1k", "requests_per_s", "at least", 2.0, BASELINE),
    Goal("rps400k", "requests_per_s", "at least", 1.2, BASELINE),
    Goal("lat1k", "added_p50_ms", "at most", 0.8, BASELINE),
    Goal("lat1k", "added_p99_ms", "at most", 1.0, BASELINE),
    Goal("stream64", "cpu_s_per_100k", "at most", 1.0, BASELINE),
    Goal("stream64", "ttft_p50_ms", "at most", 1.0, BASELINE),
    Goal("stream512", "errors", "at most", 0),
    Goal("stream512", "gap_p99_ms", "at most", 1.1, "direct"),
    Goal("idle", "rss_mb", "at most", 60),
    Goal("memory", "growth_mb", "at most", 20),
    Goal("leave", "stream_p99_ms", "at most", 50),
    Goal("leave", "unstarted_p99_ms", "at most", 50),
    Goal("leave", "whole_p99_ms", "at most", 50),
    Goal("leave", "unseen", "at most", 0),
)


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def values(samples: Iterable[Sample], target: str, row: str, figure: str) -> dict[int, float]:
    """A figure by round."""
    found = (sample for sample in samples if (sample.target, sample.row) == (target, row))
    return {sample.round: sample.figures[figure] for sample in found if figure in sample.figures}


def ratio(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """The ratio of the medians, with the extremes of the ratios within a round; nothing without a positive base."""
    within = [value / theirs[number] for number, value in ours.items() if theirs.get(number, 0) > 0]
    if not within or statistics.median(theirs.values()) <= 0:
        return None
    return Spread(statistics.median(ours.values()) / statistics.median(theirs.values()), min(within), max(within))


def reached(goal: Goal, samples: Sequence[Sample]) -> dict[str, object] | None:
    """How a goal stands, or nothing when its row was not measured."""
    ours = values(samples, OURS, goal.row, goal.figure)
    if not ours:
        return None
    got = spread(list(ours.values()))
    if goal.baseline:
        compared = ratio(ours, values(samples, goal.baseline, goal.row, goal.figure))
        if compared is None:
            return None
        got = compared
    met = got.median >= goal.limit if goal.sense == "at least" else got.median <= goal.limit
    return {**asdict(goal), "got": _rounded(got), "met": met}


def figures_of(samples: Iterable[Sample], row: str) -> list[str]:
    """The names of a row's figures, in the order in which they were first given."""
    return list(dict.fromkeys(name for sample in samples if sample.row == row for name in sample.figures))


def table(samples: Sequence[Sample], row: str) -> str:
    """One row's figures by target."""
    names = figures_of(samples, row)
    targets = dict.fromkeys(sample.target for sample in samples if sample.row == row)
    lines = [[row, *names]]
    lines += [
        [target, *(_cell(list(values(samples, target, row, name).values())) for name in names)] for target in targets
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (lines[0], ["-" * width for width in widths], *lines[1:])
    )


def _cell(found: list[float]) -> str:
    if not found:
        return "-"
    one = spread(found)
    middle, least, most = (number(value) for value in (one.median, one.least, one.most))
    return middle if least == most else f"{middle} [{least} to {most}]"


def number(value: float) -> str:
    """Three figures of a number, as many as are worth reading."""
    for least, digits in ((100, 0), (10, 1)):
        if abs(value) >= least:
            return f"{value:.{digits}f}"
    return f"{value:.2f}"


def _rounded(found: Spread) -> list[float]:
    return [round(value, 3) for value in (found.median, found.least, found.most)]


def summary(samples: Sequence[Sample], foreign_percent: float) -> dict[str, object]:
    """What the last line says: goals, ratios to the baseline, and what others used of the machine.

    A ratio is a list: of the medians, then the least and the most of a round.
    """
    targets = dict.fromkeys(sample.target for sample in samples)
    return {
        "baseline": BASELINE,
        "rounds": len({sample.round for sample in samples}),
        "foreign_percent_of_a_core": round(foreign_percent, 1),
        "goals": [found for goal in GOALS if (found := reached(goal, samples)) is not None],
        "ratios": {target: ratios(samples, target) for target in targets if target != BASELINE},
    }


def ratios(samples: Sequence[Sample], target: str) -> dict[str, dict[str, list[float]]]:
    """A target's figures against the baseline's, by row and name, where both have them."""
    out: dict[str, dict[str, list[float]]] = {}
    for row in dict.fromkeys(sample.row for sample in samples if sample.target == target):
        for name in figures_of(samples, row):
            found = ratio(values(samples, target, row, name), values(samples, BASELINE, row, name))
            if found is not None and not name.endswith("core_percent"):
                out.setdefault(row, {})[name] = _rounded(found)
    return out


def words(samples: Sequence[Sample]) -> str:
    """All tables, then how the goals stand."""
    rows = dict.fromkeys(sample.row for sample in samples)
    out = [table(samples, row) for row in rows]
    goals = [found for goal in GOALS if (found := reached(goal, samples)) is not None]
    out += ["\n".join(_goal_line(goal) for goal in goals)] if goals else []
    return "\n\n".join(out)


def _goal_line(goal: dict[str, object]) -> str:
    got = goal["got"]
    base = f" times {goal['baseline']}" if goal["baseline"] else ""
    verdict = "reached" if goal["met"] else "missed"
    middle = got[0] if isinstance(got, list) else 0.0
    return f"{verdict}: {goal['row']} {goal['figure']} {number(middle)}{base}, wanted {goal['sense']} {goal['limit']}"


def json_line(samples: Sequence[Sample]) -> str:
    """The last line."""
    shares = [sample.foreign_percent for sample in samples]
    return json.dumps(summary(samples, statistics.median(shares) if shares else 0.0))
