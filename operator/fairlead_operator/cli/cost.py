"""``fairlead cost``: what was charged to whom, what stood idle, and the bill that both add up to."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fairlead_operator.cli.ask import UsageError, minute_text
from fairlead_operator.units import NANO_PER_USD, format_usd, usd_places
from fairlead_router.contract import CostRow, UsageAnswer, UsageRow

TIME = "time"
DIMENSIONS = ("namespace", "caller", "feature", "model", "pool", "variant", "route", "cache", "attempt", TIME)
HOUR_MS = 3_600_000
_COUNTS = ((1_000_000_000, "B"), (1_000_000, "M"))
_PLAIN_BELOW = 1_000_000
_WHOLE_HOURS_FROM = 100
_LABEL = "charged  "


@dataclass(frozen=True, slots=True)
class Span:
    """A time, in milliseconds since the epoch."""

    since_ms: int
    until_ms: int


def parse_dimensions(text: str) -> tuple[str, ...]:
    """The dimensions of ``--by``. Raises UsageError: one does not exist, or is there twice."""
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if name not in DIMENSIONS or names.count(name) > 1]
    if wrong:
        raise UsageError(f"--by {wrong[0]!r}: there is {', '.join(DIMENSIONS)}, each once")
    return names


# --- the table


def cost_table(answer: UsageAnswer) -> str:
    """The table. Amounts are rounded together, so that every printed column adds up."""
    bill, charged = sum(row.nano_usd for row in answer.costs), sum(row.nano_usd for row in answer.rows)
    whole = charged == sum(row.charged for row in answer.costs)
    others = [bill - charged] if whole else []
    places = usd_places(max(bill, charged))
    texts = rounded([*(row.nano_usd for row in answer.rows), *others], places)
    split = len(answer.rows)
    body = _body(answer, [format_usd(text, places) for text in texts[:split]], format_usd(sum(texts[:split]), places))
    if whole:
        sums = format_usd(texts[-1], places), format_usd(sum(texts), places)
        foot = [
            _foot("idle", _idle(answer.costs, places), sums[0], _owners(answer.costs), body),
            _foot("bill", _replicas(answer.costs), sums[1], _per_thousand(bill, _total(answer.rows).requests), body),
        ]
    else:
        foot = _partial(answer.costs, bill, places)
    return "\n".join([_span(answer), *body, *(line for lines in foot for line in lines), *_notes(answer)])


def _body(answer: UsageAnswer, amounts: Sequence[str], charged: str) -> list[str]:
    total = _total(answer.rows)
    units = [_unit(getattr(total, name)) for name in _SUMS]
    head = [*(name.upper() for name in answer.by), "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "CHARGED", "SHARE", "$/1K"]
    lines = [
        [*_named(answer.by, row.group), *_figures(row, total.nano_usd, amount, units)]
        for row, amount in zip(answer.rows, amounts, strict=True)
    ]
    pad = [""] * (len(answer.by) - 1)
    last = ["charged", *pad, *_figures(total, total.nano_usd, charged, units)]
    return aligned([head, *lines, last], len(answer.by))


_SUMS = ("requests", "prompt", "output")


def _foot(name: str, text: str, amount: str, after: str, body: Sequence[str]) -> list[str]:
    """A line under the table: the amount ends where CHARGED ends, and a text that does not fit is a line below."""
    edge = body[0].index("CHARGED") + len("CHARGED")
    fits = len(_LABEL) + len(text) + 2 + len(amount) <= edge
    line = f"{name.ljust(len(_LABEL))}{text if fits else ''}".ljust(edge - len(amount)) + amount
    return [f"{line}  {after}".rstrip(), *([] if fits or not text else [f"  {text}"])]


def _idle(costs: Sequence[CostRow], places: int) -> str:
    """What each pool left idle: below 0 where requests were charged more than the replicas cost."""
    idle = Counter[str]()
    for row in costs:
        idle[row.pool] += row.nano_usd - row.charged
    alone = len({pool.partition("/")[0] for pool in idle}) == 1
    return " + ".join(
        f"{pool.partition('/')[2] if alone else pool} {format_usd(nano, places)}" for pool, nano in idle.items() if nano
    )


def _owners(costs: Sequence[CostRow]) -> str:
    names = sorted({row.pool.partition("/")[0] for row in costs})
    return f"owner: {', '.join(names)}" if names else ""


def _replicas(costs: Sequence[CostRow]) -> str:
    """Replica-hours and what one cost, by pool and variant: ``352 x 2.95``."""
    times, bills = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in costs:
        times[row.pool, row.variant] += row.replica_ms
        bills[row.pool, row.variant] += row.nano_usd
    return " + ".join(
        f"{_hours(replica_ms)} × {format_usd(bills[place] * HOUR_MS // replica_ms, 2)}"
        for place, replica_ms in times.items()
        if replica_ms
    )


def _hours(replica_ms: int) -> str:
    hours = replica_ms / HOUR_MS
    return f"{hours:.0f}" if hours >= _WHOLE_HOURS_FROM else f"{hours:.2f}".rstrip("0").rstrip(".")


def _partial(costs: Sequence[CostRow], bill: int, places: int) -> list[list[str]]:
    """The bills of the pools shown, where charges and bills are not about the same requests."""
    if not costs:
        return []
    idle = bill - sum(row.charged for row in costs)
    return [
        [f"idle {format_usd(idle, places)} of the bill {format_usd(bill, places)} of these pools ({_owners(costs)})"],
        ["  (the bill is for everybody's requests there: with what is charged above it does not add up)"],
    ]


def _notes(answer: UsageAnswer) -> list[str]:
    if answer.since >= answer.days_until:
        return []
    return [f"before {minute_text(answer.days_until)} there are sums by day (UTC) only: the time was widened to days"]


def _span(answer: UsageAnswer) -> str:
    span = f"{minute_text(answer.since)} to {minute_text(answer.until)}"
    if not answer.settled:
        return span
    settled = datetime.fromtimestamp(answer.settled / 1000, UTC)
    same_day = settled.date() == datetime.fromtimestamp(answer.until / 1000, UTC).date()
    return f"{span}     settled up to {settled.strftime('%H:%M:%SZ' if same_day else '%Y-%m-%dT%H:%M:%SZ')}"


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


def _unit(largest: int) -> tuple[int, str]:
    return next((one for one in _COUNTS if largest >= one[0]), (1, ""))


def count_text(count: int, unit: tuple[int, str] | None = None) -> str:
    """``2.90M`` for 2,900,000; below a million as it is. ``unit`` is that of a column."""
    size, name = _unit(count) if unit is None else unit
    return f"{count / size:.2f}{name}" if name else f"{count:,}"


def _named(by: tuple[str, ...], group: tuple[str, ...]) -> list[str]:
    return [minute_text(int(value)) if name == TIME else shown(value) for name, value in zip(by, group, strict=True)]


def shown(name: str) -> str:
    """A name as it is printed: what would move a terminal's cursor, or end a line, is a replacement character."""
    return name if name.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in name)


def _figures(row: UsageRow, charged: int, amount: str, units: Sequence[tuple[int, str]]) -> list[str]:
    cached = f"{_share(row.cached, row.prompt, 100)}%" if row.prompt else ""
    share = f"{_share(row.nano_usd, charged, 1000) / 10:.1f}%" if charged else ""
    requests, prompt, output = (count_text(getattr(row, name), unit) for name, unit in zip(_SUMS, units, strict=True))
    return [requests, prompt, cached, output, amount, share, _per_thousand(row.nano_usd, row.requests)]


def _share(part: int, whole: int, of: int) -> int:
    """The part of a whole, in so many parts, to the nearest."""
    return (2 * part * of + whole) // (2 * whole)


def _per_thousand(nano_usd: int, requests: int) -> str:
    return format_usd(nano_usd * 1000 // requests, 3) if requests else ""


def _total(rows: Sequence[UsageRow]) -> UsageRow:
    sums = {name: sum(getattr(row, name) for row in rows) for name in ("requests", "prompt", "cached", "output")}
    nano_usd = sum(row.nano_usd for row in rows)
    return UsageRow(group=(), **sums, nano_usd=nano_usd, saved=0, cost_p50_nano=0, cost_p95_nano=0, cost_p99_nano=0)


# --- CSV

_FORMULA = ("=", "+", "-", "@")


def cell(name: str) -> str:
    """A name for a CSV file. Clients choose names, so one that a spreadsheet would run begins with an apostrophe."""
    return f"'{name}" if name.startswith(_FORMULA) else name


_CSV_FIGURES = ("requests", "prompt", "cached", "output", "usd", "usd_p50", "usd_p95", "usd_p99")


def cost_csv(answer: UsageAnswer) -> str:
    """One line for each row, and one for what each pool and variant left idle; exact amounts, to the nano."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        ["kind", *answer.by, "requests", "prompt", "cached", "output", "usd", "usd_p50", "usd_p95", "usd_p99"]
    )
    for row in answer.rows:
        costs = (row.nano_usd, row.cost_p50_nano, row.cost_p95_nano, row.cost_p99_nano)
        counts = (row.requests, row.prompt, row.cached, row.output)
        names = map(cell, _named(answer.by, row.group))
        lines.writerow(["charged", *names, *counts, *(format_usd(cost, 9) for cost in costs)])
    for cost in answer.costs:
        known = {"namespace": cost.pool.partition("/")[0], "pool": cost.pool, "variant": cost.variant}
        known[TIME] = minute_text(cost.bucket)
        idle = format_usd(cost.nano_usd - cost.charged, 9)
        lines.writerow(["idle", *(cell(known.get(name, "")) for name in answer.by), "", "", "", "", idle, "", "", ""])
    return text.getvalue().rstrip("\n")
