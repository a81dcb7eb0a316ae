"""The values that people write and read, and the integers that the code computes with.

Money is nano-USD inside and decimal text with at most six places outside. Durations are milliseconds inside and
GEP-2257 text outside (``1h30m``, ``90s``, ``1500ms``).
"""

import re

NANO_PER_USD = 1_000_000_000
MAX_USD_TEXT = 19
MAX_USD = 999_999_999_999
USD_PATTERN = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$"
MAX_PERCENT = 1_000_000
MAX_DURATION_TEXT = 24
DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
MAX_DURATION_MS = 99_999 * 3_600_000 + 59 * 60_000 + 59 * 1000 + 999

_PLACES = 9
_USD = re.compile(USD_PATTERN, re.ASCII)
_DURATION = re.compile(DURATION_PATTERN, re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+)(h|ms|m|s)", re.ASCII)
_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_MAX_LATENCY_MS = 99_999
_CENTS_FROM_NANO = 10 * NANO_PER_USD
_FULL = 100


def parse_usd(text: str) -> int:
    """Nano-USD of an amount such as ``0.40``; exact, because text carries at most six places.

    Raises:
        ValueError: the text is not such an amount.
    """
    if len(text) > MAX_USD_TEXT or not _USD.fullmatch(text):
        raise ValueError(
            f"{text[:40]!r} is not an amount: write digits with at most six decimal places,"
            f" such as 0.40; at most {MAX_USD}"
        )
    whole, _, fraction = text.partition(".")
    return int(whole) * NANO_PER_USD + int(fraction.ljust(_PLACES, "0"))


def format_usd(nano: int, places: int = 6) -> str:
    """Decimal text of nano-USD with a fixed number of places (0 to 9), rounded half to even."""
    if not 0 <= places <= _PLACES:
        raise ValueError(f"{places} decimal places were asked for: 0 to {_PLACES} exist")
    scaled = _divide_half_even(abs(nano), 10 ** (_PLACES - places))
    whole, fraction = divmod(scaled, 10**places)
    sign = "-" if nano < 0 and scaled else ""
    return f"{sign}{whole}.{fraction:0{places}d}" if places else f"{sign}{whole}"


def usd_places(limit_nano: int) -> int:
    """How many places the amounts of a budget print with: 2 when its limit is at least 10 USD, 6 when it is smaller."""
    return 2 if limit_nano >= _CENTS_FROM_NANO else 6


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a GEP-2257 duration: the sum of its parts.

    Raises:
        ValueError: the text is not such a duration.
    """
    if len(text) > MAX_DURATION_TEXT or not _DURATION.fullmatch(text):
        raise ValueError(
            f"{text[:40]!r} is not a duration: write up to four parts of h, m, s and ms, such as 1h30m or 90s"
        )
    return sum(int(count) * _MS[unit] for count, unit in _DURATION_PART.findall(text))


def format_duration(ms: int) -> str:
    """GEP-2257 text of a duration with its largest units first: ``1h30m``, ``90s`` becomes ``1m30s``, 0 is ``0s``."""
    if not 0 <= ms <= MAX_DURATION_MS:
        raise ValueError(f"{ms} ms cannot be written as a duration: 0 to {MAX_DURATION_MS} ms can")
    parts, rest = [], ms
    for unit, size in _MS.items():
        count, rest = divmod(rest, size)
        parts.append(f"{count}{unit}" if count else "")
    return "".join(parts) or "0s"


def format_latency(ms: int) -> str:
    """Text of a latency such as ``1310ms``; from 100 seconds on in whole seconds, so that it stays a duration."""
    return f"{ms}ms" if ms <= _MAX_LATENCY_MS else f"{ms // 1000}s"


def used_percent(used: int, limit: int) -> int:
    """Whole percent of a limit that is used, rounded down, so that 100 means used up. A limit of 0 is used up."""
    return min(used * _FULL // limit, MAX_PERCENT) if limit > 0 else _FULL


def _divide_half_even(number: int, divisor: int) -> int:
    quotient, rest = divmod(number, divisor)
    return quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))
