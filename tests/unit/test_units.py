import re
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator import units

amounts = st.from_regex(units.USD_PATTERN.removesuffix("$") + r"\Z", fullmatch=True)
durations = st.from_regex(r"([0-9]{1,5}(h|m|s|ms)){1,4}", fullmatch=True).filter(
    lambda text: len(text) <= units.MAX_DURATION_TEXT
)


@given(amounts)
def test_an_amount_becomes_exactly_its_nano_usd(text: str) -> None:
    assert units.parse_usd(text) == Decimal(text) * units.NANO_PER_USD


@given(st.integers(0, (units.MAX_USD + 1) * 10**6 - 1))
def test_micro_usd_survive_the_way_to_text_and_back(micro: int) -> None:
    assert units.parse_usd(units.format_usd(micro * 1000)) == micro * 1000


@given(st.integers(-(10**24), 10**24), st.integers(0, 9))
def test_text_is_rounded_half_to_even(nano: int, places: int) -> None:
    exact = Decimal(nano).scaleb(-9)
    shown = Decimal(units.format_usd(nano, places))
    with_places = Decimal(1).scaleb(-places)
    assert abs(shown - exact) * 2 <= with_places
    if abs(nano) < 10**18:
        assert shown == exact.quantize(with_places, ROUND_HALF_EVEN)


@pytest.mark.parametrize(
    ("nano", "places", "text"),
    [
        (1_942_200_000_000, 2, "1942.20"),
        (87_550_000, 6, "0.087550"),
        (0, 2, "0.00"),
        (-4_999_999, 2, "0.00"),
        (-12_500_000_000, 2, "-12.50"),
        (5_000_000, 2, "0.00"),
        (15_000_000, 2, "0.02"),
        (12_000_000_000, 0, "12"),
    ],
)
def test_amounts_print_with_fixed_places(nano: int, places: int, text: str) -> None:
    assert units.format_usd(nano, places) == text


def test_more_places_than_nano_usd_have_are_refused() -> None:
    with pytest.raises(ValueError, match="10 decimal places were asked for: 0 to 9 exist"):
        units.format_usd(1, 10)


@pytest.mark.parametrize(("limit", "places"), [("10", 2), ("5000", 2), ("9.999999", 6), ("0.0003", 6), ("0", 6)])
def test_budgets_below_ten_usd_print_six_places(limit: str, places: int) -> None:
    assert units.usd_places(units.parse_usd(limit)) == places


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "01", "1e3", "0.1234567", "1 ", "1000000000000", "٣", "1\n"])
def test_what_is_not_an_amount_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match=r"write digits with at most six decimal places, such as 0\.40"):
        units.parse_usd(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 90_000), ("1h30m", 5_400_000), ("1500ms", 1500), ("0s", 0), ("1s1s", 2000), ("1ms1m", 60_001)],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, ms: int) -> None:
    assert units.parse_duration_ms(text) == ms


@given(st.integers(0, units.MAX_DURATION_MS))
def test_milliseconds_survive_the_way_to_text_and_back(ms: int) -> None:
    text = units.format_duration(ms)
    assert units.parse_duration_ms(text) == ms
    assert re.fullmatch(units.DURATION_PATTERN, text)
    assert len(text) <= units.MAX_DURATION_TEXT


@given(durations)
def test_canonical_text_means_the_same(text: str) -> None:
    ms = units.parse_duration_ms(text)
    if ms <= units.MAX_DURATION_MS:
        assert units.parse_duration_ms(units.format_duration(ms)) == ms


@pytest.mark.parametrize("text", ["", "5", "h", "-1s", "1.5s", "1d", "123456s", "1s1s1s1s1s", "1s\n", "1 s"])
def test_what_is_not_a_duration_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="write up to four parts of h, m, s and ms, such as 1h30m or 90s"):
        units.parse_duration_ms(text)


@pytest.mark.parametrize("ms", [-1, units.MAX_DURATION_MS + 1])
def test_a_time_that_no_duration_can_say_is_refused(ms: int) -> None:
    with pytest.raises(ValueError, match="cannot be written as a duration"):
        units.format_duration(ms)


@pytest.mark.parametrize(("ms", "text"), [(0, "0ms"), (1310, "1310ms"), (99_999, "99999ms"), (100_000, "100s")])
def test_latencies_print_in_milliseconds_up_to_a_hundred_seconds(ms: int, text: str) -> None:
    assert units.format_latency(ms) == text
    assert re.fullmatch(units.DURATION_PATTERN, text)


@given(st.integers(0, 10**24), st.integers(1, 10**24))
def test_a_hundred_percent_means_used_up(used: int, limit: int) -> None:
    assert (units.used_percent(used, limit) >= 100) == (used >= limit)


def test_a_closed_budget_is_used_up() -> None:
    assert units.used_percent(0, 0) == 100
