"""``fairlead cost``: what was charged to whom, what stood idle, and the bill that both add up to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fairlead_operator.units import NANO_PER_USD, format_usd, parse_duration_ms, usd_places
from fairlead_router.contract import CostRow, UsageAnswer, UsageRow

DIMENSIONS = ("namespace", "caller", "feature", "model", "pool", "variant", "route", "cache")
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
LONGEST_DAYS = 400
_DAYS = re.compile(r"[0-9]{1,3}d", re.ASCII)
_COUNTS = ((1_000_000_000, "B"), (1_000_000, "M"))
_PLAIN_BELOW = 1_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """A time, in milliseconds since the epoch."""

    since_ms: int
    until_ms: int


def parse_since(text: str) -> int:
    """Milliseconds of ``7d``, ``24h`` or ``1h30m``.

    Raises:
        ValueError: the text is no such time, or longer than is kept.
    """
    try:
        length = int(text[:-1]) * DAY_MS if _DAYS.fullmatch(text) else parse_duration_ms(text)
    except ValueError:
        length = 0
    if not 0 < length <= LONGEST_DAYS * DAY_MS:
        raise ValueError(f"--since {text!r} is no time to look back: write 7d, 24h or 1h30m, {LONGEST_DAYS}d at most")
    return length


def parse_dimensions(text: str) -> tuple[str, ...]:
    """The dimensions of ``--by``.

    Raises:
        ValueError: one of them does not exist.
    """
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise ValueError(f"--by {unknown[0]!r}: there is {', '.join(DIMENSIONS)}")
    return names


def cost_table(answer: UsageAnswer) -> str:
    """The table. Amounts are rounded together, so that every printed column adds up."""
    bill = sum(row.nano_usd for row in answer.costs)
    charged = sum(row.nano_usd for row in answer.rows)
    places = usd_places(max(bill, charged))
    texts = rounded([*(row.nano_usd for row in answer.rows), bill - charged], places)
    sums = [format_usd(sum(texts[:-1]), places), format_usd(texts[-1], places), format_usd(sum(texts), places)]
    head = [*(name.upper() for name in answer.by), "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "CHARGED", "SHARE", "$/1K"]
    lines = [
        [*row.group, *_figures(row, charged, format_usd(text, places))]
        for row, text in zip(answer.rows, texts, strict=False)
    ]
    pad = [""] * (len(answer.by) - 1)
    total = _total(answer.rows)
    foot = [
        ["charged", *pad, *_figures(total, charged, sums[0])],
        ["idle", *pad, "", "", "", "", sums[1], "", ""],
        ["bill", *pad, "", "", "", "", sums[2], "", _per_thousand(bill, total.requests)],
    ]
    return "\n".join([_span(answer), *aligned([head, *lines, *foot], len(answer.by)), *_bills(answer.costs)])


def rounded(amounts: Sequence[int], places: int) -> list[int]:
    """The amounts in nano-USD, each rounded to so many places, and their sum rounded too: by largest remainder."""
    step = NANO_PER_USD // 10**places
    floors = [amount // step * step for amount in amounts]
    total = sum(amounts)
    goal = (total + step // 2) // step * step
    spare = (goal - sum(floors)) // step
    order = sorted(range(len(amounts)), key=lambda index: floors[index] - amounts[index])
    for index in order[: max(0, spare)]:
        floors[index] += step
    return floors


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns as wide as their widest cell; the first ``left`` are flush left, figures are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def count_text(count: int) -> str:
    """``2.90M`` for 2,900,000; below a million as it is."""
    if count < _PLAIN_BELOW:
        return f"{count:,}"
    size, unit = next(one for one in _COUNTS if count >= one[0])
    return f"{count / size:.2f}{unit}"


def _figures(row: UsageRow, charged: int, amount: str) -> list[str]:
    cached = f"{row.cached * 100 // row.prompt}%" if row.prompt else ""
    share = f"{row.nano_usd * 1000 // charged / 10:.1f}%" if charged else ""
    counts = [count_text(row.requests), count_text(row.prompt), cached, count_text(row.output)]
    return [*counts, amount, share, _per_thousand(row.nano_usd, row.requests)]


def _per_thousand(nano_usd: int, requests: int) -> str:
    return format_usd(nano_usd * 1000 // requests, 3) if requests else ""


def _total(rows: Sequence[UsageRow]) -> UsageRow:
    return UsageRow(
        group=(),
        requests=sum(row.requests for row in rows),
        prompt=sum(row.prompt for row in rows),
        cached=sum(row.cached for row in rows),
        output=sum(row.output for row in rows),
        nano_usd=sum(row.nano_usd for row in rows),
        saved=0,
        cost_p50_nano=0,
        cost_p95_nano=0,
        cost_p99_nano=0,
    )


def _bills(costs: Sequence[CostRow]) -> list[str]:
    """What the bill is made of."""
    return [
        f"  {row.pool} {row.variant}: {row.replica_ms / HOUR_MS:.2f} replica-hours, {format_usd(row.nano_usd)} USD"
        for row in costs
    ]


def _span(answer: UsageAnswer) -> str:
    texts = [datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ") for at in (answer.since, answer.until)]
    return f"{texts[0]} to {texts[1]}"
