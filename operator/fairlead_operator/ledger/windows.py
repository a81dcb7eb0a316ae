"""PURE: calendar windows of budgets in any IANA time zone.

Windows of a day or longer begin at the first instant whose local time has reached a local midnight. So they have no
gaps and no overlaps even where clocks fall back over midnight (then the repeated minutes stay in the new window) or a
midnight, or a whole day, does not exist. Minutes and hours go by elapsed time, aligned to the offset: an hour that
happens twice is two windows.

Zone data comes from the pinned ``tzdata`` package, never from the machine, so that every image agrees.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from fairlead_router.contract import Period

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
ELAPSED_MS: dict[Period, int] = {"Minute": 60_000, "Hour": 3_600_000}
DAYS: dict[Period, int] = {"Day": 1, "Week": 7}
MONTHS: dict[Period, int] = {"Month": 1, "Quarter": 3, "Year": 12}


class UnknownZoneError(ValueError):
    """A time zone that the pinned tzdata does not have."""


@dataclass(frozen=True, slots=True)
class Span:
    """A window: [start, end) in milliseconds since the epoch, and its name for people."""

    start: int
    end: int
    label: str


@cache
def zones() -> frozenset[str]:
    """All zone names that budgets may use."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The zone of that name; raises UnknownZoneError."""
    if name not in zones():
        raise UnknownZoneError(
            f"time zone {name!r} is not in the IANA database; use a name such as Europe/Berlin or UTC"
        )
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def window_at(now_ms: int, period: Period, zone_name: str) -> Span:
    """The window that contains an instant."""
    tz = zone(zone_name)
    if period in ELAPSED_MS:
        return _elapsed_window(now_ms, ELAPSED_MS[period], tz)
    first = _first_day(_local(now_ms, tz).date(), period)
    following = _following(first, period)
    while (end := _boundary(following, tz)) <= now_ms:
        # Clocks fell back over the boundary: local time is before it again, the new window has begun.
        first, following = following, _following(following, period)
    return Span(_boundary(first, tz), end, _day_label(first, period))


def _local(instant_ms: int, tz: ZoneInfo) -> datetime:
    return (EPOCH + timedelta(milliseconds=instant_ms)).astimezone(tz)


def _first_day(day: date, period: Period) -> date:
    if period == "Day":
        return day
    if period == "Week":
        return day - timedelta(days=day.weekday())
    return date(day.year, 1 + (day.month - 1) // MONTHS[period] * MONTHS[period], 1)


def _following(first: date, period: Period) -> date:
    if period in DAYS:
        return first + timedelta(days=DAYS[period])
    years, month = divmod(first.month - 1 + MONTHS[period], 12)
    return date(first.year + years, month + 1, 1)


def _boundary(day: date, tz: ZoneInfo) -> int:
    """The first instant whose local time is at or after midnight of ``day``."""
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - a wall-clock time; the zone is asked below
    before = (midnight.replace(tzinfo=tz, fold=0) - EPOCH) // MILLISECOND
    after = (midnight.replace(tzinfo=tz, fold=1) - EPOCH) // MILLISECOND
    if before <= after:
        return before
    return _first(after, before, lambda instant: _local(instant, tz).replace(tzinfo=None) >= midnight)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first instant in (low, high] for which a condition holds that, once true, stays true."""
    return low + bisect_left(range(low, high), True, key=holds)


def _elapsed_window(now_ms: int, length: int, tz: ZoneInfo) -> Span:
    phase = _phase(now_ms, length, tz)
    start = (now_ms + phase) // length * length - phase
    end = start + length
    # An offset that changes by a part of the length (Lord Howe's half hour) starts a new grid: windows end there.
    if _phase(start, length, tz) != phase:
        start = _first(start, now_ms, lambda instant: _phase(instant, length, tz) == phase)
    if _phase(end - 1, length, tz) != phase:
        end = _first(now_ms, end, lambda instant: _phase(instant, length, tz) != phase)
    return Span(start, end, _time_label(start, length, tz))


def _phase(instant_ms: int, length: int, tz: ZoneInfo) -> int:
    offset = _local(instant_ms, tz).utcoffset() or timedelta()
    return offset // MILLISECOND % length


def _day_label(first: date, period: Period) -> str:
    match period:
        case "Week":
            year, week, _ = first.isocalendar()
            return f"{year}-W{week:02}"
        case "Month":
            return f"{first:%Y-%m}"
        case "Quarter":
            return f"{first.year}-Q{(first.month + 2) // 3}"
        case "Year":
            return str(first.year)
        case _:
            return first.isoformat()


def _time_label(start: int, length: int, tz: ZoneInfo) -> str:
    local = _local(start, tz)
    text = local.strftime("%Y-%m-%dT%H" if length == ELAPSED_MS["Hour"] else "%Y-%m-%dT%H:%M")
    return f"{text}{local:%z}" if local.fold else text
