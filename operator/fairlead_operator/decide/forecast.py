"""PURE: what a window will have spent when it ends, with an interval.

The method is the best of those that ``tests/bench/forecast.py`` compares on recorded demand: the level of the last
hours fades into that of the last weeks, times a profile of the hours of the day that counts as much as days resemble
each other. The interval comes from the method's own errors at earlier times of the same history.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fairlead_operator.units import format_duration

HOUR_MS = 3_600_000
DAY = 24
HISTORY = 28 * DAY
"""Hours of history that are used."""
_RECENT, _LONG = 0.5 ** (1 / 6), 0.5 ** (1 / 168)
"""What an hour counts of the one after it: a half after 6 hours in the recent level, after a week in the long one."""
_FADE = 0.5 ** (1 / 24)
"""What is left, hour by hour, of the difference between the recent level and the long one."""
_PROFILE_DAYS = 7
_ALIKE_DAYS = 14
_ORIGINS = 24
_BLOCKS = 4
"""Errors are measured over at most this part of the history, so that there are several of them."""
_SHARE = 0.8
_PRIOR = (0.25, 0.5)
"""Errors (logarithms of actual / forecast) that are assumed besides those measured: a calm history proves little."""
_UNKNOWN = math.log(2)

Point = tuple[int, int]
"""The start of an hour, in ms, and what was spent in it."""
Method = Literal["LinearBurn", "FadingLevel"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Spending at the window's end, in the budget's unit: spent <= low <= at_end <= high.

    The interval is meant to hold four outcomes of five or more, if the future is like the history.
    """

    at_end: int
    low: int
    high: int
    method: Method
    reason: str


def forecast(history: Sequence[Point], *, spent: int, now: int, start: int, end: int) -> Forecast:
    """What a window from ``start`` (or since when it is counted) to ``end`` will have spent.

    ``history`` has the spending by hour, also from before the window, in any order; an hour that is missing after the
    first spent nothing. With less than a day of it, or in a window of an hour or less, spending goes on as it did in
    the window so far. Times are in ms.
    """
    left = max(0, end - now) / HOUR_MS
    first, hours = _complete(history, now)
    if len(hours) < DAY or end - start <= HOUR_MS:
        return _linear(spent, now, start, left)
    whole = now / HOUR_MS - (first + len(hours))
    rest = _expected(hours, first, whole, left)
    width = _width(hours, first, left)
    reason = f"the level of the last hours fades into that of {len(hours) // DAY} days, by the hours of the day"
    return _around(spent, rest, width, "FadingLevel", reason)


def _around(spent: int, rest: float, width: float, method: Method, reason: str) -> Forecast:
    low, middle, high = (spent + round(rest * math.exp(by)) for by in (-width, 0, width))
    return Forecast(middle, low, high, method, reason)


def _linear(spent: int, now: int, start: int, left: float) -> Forecast:
    elapsed = max(0, now - start)
    rest = spent * left / (elapsed / HOUR_MS) if elapsed else 0.0
    reason = f"as in the {format_duration(elapsed // 1000 * 1000)} so far: there is less than a day of history"
    return _around(spent, rest, _UNKNOWN, "LinearBurn", reason)


def _complete(history: Sequence[Point], now: int) -> tuple[int, list[int]]:
    """The number of the first hour, and the spending of every whole hour since, up to now."""
    current = now // HOUR_MS
    spending: dict[int, int] = {}
    for at, amount in history:
        spending[at // HOUR_MS] = spending.get(at // HOUR_MS, 0) + amount
    first = max(min(spending, default=current), current - HISTORY)
    return first, [spending.get(hour, 0) for hour in range(first, current)]


def _expected(hours: Sequence[int], first: int, skip: float, length: float) -> float:
    """Spending of ``length`` hours that begin ``skip`` hours after the history."""
    profile = _profile(hours, first)
    recent, long = _levels(hours, first, profile)
    total = 0.0
    for ahead in range(math.ceil(skip + length)):
        share = min(ahead + 1.0, skip + length) - max(float(ahead), skip)
        if share > 0:
            level = long + (recent - long) * _FADE**ahead
            total += share * level * profile[(first + len(hours) + ahead) % DAY]
    return total


def _profile(hours: Sequence[int], first: int) -> list[float]:
    """What each hour of the day (UTC) is to the mean one, drawn to 1 as far as days do not resemble each other."""
    begin = max(0, len(hours) - _PROFILE_DAYS * DAY)
    sums, counts = [0] * DAY, [0] * DAY
    for index in range(begin, len(hours)):
        sums[(first + index) % DAY] += hours[index]
        counts[(first + index) % DAY] += 1
    mean = sum(sums) / sum(counts)
    if mean == 0:
        return [1.0] * DAY
    alike = _alike(hours[-_ALIKE_DAYS * DAY :])
    return [1 + alike * (total / count / mean - 1) for total, count in zip(sums, counts, strict=True)]


def _alike(hours: Sequence[int]) -> float:
    """The correlation of hours with those a day before, 0 to 1; 0 with less than two days."""
    mean = sum(hours) / len(hours)
    spread = sum((hour - mean) ** 2 for hour in hours) / len(hours)
    pairs = list(zip(hours, hours[DAY:], strict=False))
    if len(pairs) < DAY or spread == 0:
        return 0.0
    return min(1.0, max(0.0, sum((a - mean) * (b - mean) for a, b in pairs) / len(pairs) / spread))


def _levels(hours: Sequence[int], first: int, profile: Sequence[float]) -> tuple[float, float]:
    """Spending of an hour of mean profile, as the last hours and as the last weeks have it."""
    spending, expected = [0.0, 0.0], [0.0, 0.0]
    for index, hour in enumerate(hours):
        for at, decay in enumerate((_RECENT, _LONG)):
            spending[at] = spending[at] * decay + hour
            expected[at] = expected[at] * decay + profile[(first + index) % DAY]
    return spending[0] / expected[0], spending[1] / expected[1]


def _width(hours: Sequence[int], first: int, length: float) -> float:
    """The logarithm by which the interval is wider than the forecast, either way.

    It is the quantile of the errors at times spread over the history. Errors over spans that overlap tell the same
    news several times, so the quantile is raised by how few spans there are side by side.
    """
    known = len(hours) - DAY
    span = max(1, min(math.ceil(length), known // _BLOCKS))
    if known < span:
        return _UNKNOWN
    spans = known / span + len(_PRIOR) / 2
    errors = sorted([*_PRIOR, *_errors(hours, first, span)])
    return _quantile(errors, min(1.0, _SHARE * (spans + 1) / spans))


def _errors(hours: Sequence[int], first: int, span: int) -> list[float]:
    last = len(hours) - span
    origins = sorted({DAY + (last - DAY) * number // (_ORIGINS - 1) for number in range(_ORIGINS)})
    outcomes = [(_expected(hours[:at], first, 0, span), sum(hours[at : at + span])) for at in origins]
    return [abs(math.log(actual / told)) for told, actual in outcomes if told > 0 and actual > 0]


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 2)
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)
