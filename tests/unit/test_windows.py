"""Windows partition time, in every zone, over every change of its offset."""

from datetime import UTC, datetime, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.ledger.windows import UnknownZoneError, window_at, zone, zones
from fairlead_router.contract import Period

PERIODS: tuple[Period, ...] = get_args(Period)
DAY = 24 * 3_600_000
ZONES = st.sampled_from(sorted(zones()))
INSTANTS = st.integers(0, 80 * 365 * DAY)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def changes(name: str, since: int, until: int, step: int = 14 * DAY) -> list[int]:
    """The instants at which a zone's offset changes."""
    tz, found = zone(name), []
    for start in range(since, until, step):
        low, high = start, start + step
        if offset(tz, low) == offset(tz, high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(tz, middle) == offset(tz, start) else (low, middle)
        found.append(high)
    return found


def offset(tz: ZoneInfo, instant: int) -> timedelta | None:
    return datetime.fromtimestamp(instant / 1000, UTC).astimezone(tz).utcoffset()


def assert_partition(instant: int, period: Period, name: str) -> None:
    """The window contains the instant, its edges are its own, and its neighbours touch it."""
    span = window_at(instant, period, name)
    assert span.start <= instant < span.end
    assert window_at(span.start, period, name) == span
    assert window_at(span.end - 1, period, name) == span
    assert window_at(span.end, period, name).start == span.end
    assert window_at(span.start - 1, period, name).end == span.start


@settings(max_examples=400, deadline=None)
@given(name=ZONES, period=st.sampled_from(PERIODS), instant=INSTANTS)
def test_windows_have_no_gaps_and_no_overlaps_anywhere(name: str, period: Period, instant: int) -> None:
    assert_partition(instant, period, name)


def test_windows_partition_time_around_every_change_of_every_zone_for_years() -> None:
    checked = 0
    since, until = at("2006-01-01T00:00Z"), at("2012-01-01T00:00Z")
    for name in sorted(zones()):
        for change in changes(name, since, until):
            for instant in (change - 1, change):
                assert_partition(instant, "Day", name)
                assert_partition(instant, "Hour", name)
            checked += 1
    assert checked > 3_000


@pytest.mark.parametrize(
    ("name", "day", "start", "hours"),
    [
        ("America/St_Johns", "2010-11-07", "2010-11-07T02:30Z", 25),
        ("America/Goose_Bay", "2009-11-01", "2009-11-01T03:00Z", 25),
        ("America/Moncton", "2005-10-30", "2005-10-30T03:00Z", 25),
        ("Antarctica/Casey", "2010-03-05", None, None),
    ],
)
def test_clocks_that_fall_back_over_midnight_open_the_day_once(
    name: str, day: str, start: str | None, hours: int | None
) -> None:
    """At 00:01 local time goes back to 23:01 of the day before: those minutes belong to the day that had begun."""
    noon = at(f"{day}T12:00Z")
    for instant in range(noon - DAY, noon + DAY, 600_000):
        assert_partition(instant, "Day", name)
    span = window_at(noon + 6 * 3_600_000, "Day", name)
    if start is not None and hours is not None:
        assert span.start == at(start)
        assert (span.end - span.start) // 3_600_000 == hours
        assert span.label == day


@pytest.mark.parametrize(
    ("name", "instant", "start", "end"),
    [
        ("Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("America/Santiago", "2026-09-06T12:00Z", "2026-09-06T04:00Z", "2026-09-07T03:00Z"),
        ("Asia/Kathmandu", "2026-11-20T12:00Z", "2026-11-19T18:15Z", "2026-11-20T18:15Z"),
        ("Pacific/Apia", "2011-12-30T12:00Z", "2011-12-30T10:00Z", "2011-12-31T10:00Z"),
    ],
)
def test_days_begin_when_local_time_first_reaches_midnight(name: str, instant: str, start: str, end: str) -> None:
    span = window_at(at(instant), "Day", name)
    assert (span.start, span.end) == (at(start), at(end))


def test_an_hour_that_happens_twice_is_two_windows_with_two_names() -> None:
    first = window_at(at("2026-10-25T00:30Z"), "Hour", "Europe/Berlin")
    second = window_at(at("2026-10-25T01:30Z"), "Hour", "Europe/Berlin")
    assert first.end == second.start
    assert (first.label, second.label) == ("2026-10-25T02", "2026-10-25T02+0100")


def test_an_offset_that_moves_by_half_an_hour_cuts_the_hour() -> None:
    change = at("2026-04-04T15:00Z")
    before = window_at(change - 1, "Hour", "Australia/Lord_Howe")
    after = window_at(change, "Hour", "Australia/Lord_Howe")
    assert before.end == change == after.start
    assert after.end - after.start == 1_800_000


@pytest.mark.parametrize(
    ("period", "label", "start", "end"),
    [
        ("Minute", "2026-11-20T10:05", "2026-11-20T10:05Z", "2026-11-20T10:06Z"),
        ("Hour", "2026-11-20T10", "2026-11-20T10:00Z", "2026-11-20T11:00Z"),
        ("Day", "2026-11-20", "2026-11-20T00:00Z", "2026-11-21T00:00Z"),
        ("Week", "2026-W47", "2026-11-16T00:00Z", "2026-11-23T00:00Z"),
        ("Month", "2026-11", "2026-11-01T00:00Z", "2026-12-01T00:00Z"),
        ("Quarter", "2026-Q4", "2026-10-01T00:00Z", "2027-01-01T00:00Z"),
        ("Year", "2026", "2026-01-01T00:00Z", "2027-01-01T00:00Z"),
    ],
)
def test_each_period_has_its_window_and_its_name(period: Period, label: str, start: str, end: str) -> None:
    span = window_at(at("2026-11-20T10:05:59Z"), period, "UTC")
    assert (span.label, span.start, span.end) == (label, at(start), at(end))


def test_a_week_at_new_year_is_named_by_its_iso_year() -> None:
    assert window_at(at("2027-01-01T12:00Z"), "Week", "UTC").label == "2026-W53"


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe"])
def test_a_zone_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(UnknownZoneError, match="IANA"):
        window_at(0, "Day", name)
