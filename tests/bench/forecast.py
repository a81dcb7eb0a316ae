"""What a window will have spent at its end: methods side by side on recorded demand.

Each row is one method, each window length has the mean absolute error in percent of the window's true total when 25, 50
and 75 % of the window are gone. The operator's own method runs as it is shipped; its intervals are counted, too. Every
window that the series allow is used; what is known at a time is the hours before it. The last line is one JSON object.
"""

import csv
import gzip
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fairlead_operator.decide.forecast import DAY, HOUR_MS, Forecast, forecast

DATA: Final = Path(__file__).parent / "data" / "hourly_demand.csv.gz"
WINDOWS: Final = (DAY, 4 * DAY, 7 * DAY)
"""Hours. The longest series has 14 days."""
GONE: Final = (25, 50, 75)
KNOWN: Final = {DAY: DAY}
"""Hours of history before the first window, where they are not two days."""
WEEK: Final = 7 * DAY


@dataclass(frozen=True, slots=True)
class Case:
    """One forecast: the hours before it, where its window begins in them, and the window."""

    hours: Sequence[int]
    start: int
    now: int
    end: int

    @property
    def known(self) -> Sequence[int]:
        return self.hours[: self.now]

    @property
    def spent(self) -> int:
        return sum(self.hours[self.start : self.now])

    @property
    def total(self) -> int:
        return sum(self.hours[self.start : self.end])


def linear_burn(case: Case) -> float:
    """As in the window so far."""
    return case.spent / (case.now - case.start) * (case.end - case.now)


def last_day(case: Case) -> float:
    """As in the last 24 hours."""
    return statistics.mean(case.known[-DAY:]) * (case.end - case.now)


def last_hours(case: Case) -> float:
    """As in the last 6 hours."""
    return statistics.mean(case.known[-6:]) * (case.end - case.now)


def same_hour_yesterday(case: Case) -> float:
    """As in the same hours of the last day."""
    return sum(case.known[-DAY:][ahead % DAY] for ahead in range(case.end - case.now))


def same_hour_last_week(case: Case) -> float:
    """As in the same hours of the last week, of the last day while there is no week."""
    if len(case.known) < WEEK:
        return same_hour_yesterday(case)
    return sum(case.known[-WEEK:][ahead % WEEK] for ahead in range(case.end - case.now))


def profile_times_level(case: Case) -> float:
    """The mean hour of the day over a week, times what the last day was to it."""
    known = case.known[-WEEK:]
    means = [statistics.mean(known[hour::DAY]) for hour in range(DAY)]
    level = sum(known[-DAY:]) / max(1.0, sum(means))
    return level * sum(means[(len(known) + ahead) % DAY] for ahead in range(case.end - case.now))


def shipped(case: Case) -> Forecast:
    """The operator's own."""
    history = [(hour * HOUR_MS, amount) for hour, amount in enumerate(case.known)]
    start, now, end = (hour * HOUR_MS for hour in (case.start, case.now, case.end))
    return forecast(history, spent=case.spent, now=now, start=start, end=end)


RIVALS: Final[tuple[Callable[[Case], float], ...]] = (
    linear_burn,
    last_day,
    last_hours,
    same_hour_yesterday,
    same_hour_last_week,
    profile_times_level,
)


def read() -> dict[str, list[int]]:
    """The series by name."""
    series: defaultdict[str, list[int]] = defaultdict(list)
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            series[row["series"]].append(int(row["requests"]))
    return series


def cases(series: dict[str, list[int]], length: int, gone: int) -> Iterator[Case]:
    """Every window of that length that begins at a midnight with enough history before it."""
    for hours in series.values():
        for start in range(KNOWN.get(length, 2 * DAY), len(hours) - length + 1, DAY):
            yield Case(hours, start, start + length * gone // 100, start + length)


def error(case: Case, at_end: float) -> float:
    """Percent of the true total."""
    return abs(at_end - case.total) / case.total * 100


def main() -> int:
    """Print the table."""
    series = read()
    columns = [(length, gone) for length in WINDOWS for gone in GONE]
    head = " ".join(f"{length // DAY}d@{gone}%".rjust(7) for length, gone in columns)
    print(f"{'error, % of the total':24s}{head}    mean")
    means = {}
    for rival in RIVALS:
        found = [[error(case, case.spent + rival(case)) for case in cases(series, *column)] for column in columns]
        means[rival.__name__] = row(rival.__name__, [statistics.mean(errors) for errors in found])
    told = [[(case, shipped(case)) for case in cases(series, *column)] for column in columns]
    errors = [statistics.mean(error(case, one.at_end) for case, one in some) for some in told]
    inside = [statistics.mean(100 * (one.low <= case.total <= one.high) for case, one in some) for some in told]
    width = [statistics.mean(100 * (one.high - one.low) / case.total for case, one in some) for some in told]
    mean = row("fading level (shipped)", errors)
    row("  in its interval, %", inside)
    row("  interval, % of total", width)
    print(f"{'windows':24s}{' '.join(f'{len(some):7d}' for some in told)}")
    rest = {f"mape_{gone}": round(statistics.mean(errors[at :: len(GONE)]), 2) for at, gone in enumerate(GONE)}
    last = {"method": "FadingLevel", "mape": mean, **rest, "coverage_percent": round(statistics.mean(inside), 1)}
    print(msgspec.json.encode(last | {"others": means}).decode())
    return 0


def row(name: str, figures: Sequence[float]) -> float:
    """Print a row and return its mean."""
    mean = statistics.mean(figures)
    print(f"{name:24s}{' '.join(f'{figure:7.1f}' for figure in figures)} {mean:7.2f}")
    return round(mean, 2)


if __name__ == "__main__":
    sys.exit(main())
