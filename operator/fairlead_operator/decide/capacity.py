"""What a pool was measured to do while it was busy, and the factors on its seeds that follow from it.

While a pool is busy, what its replicas cost is known, and so is what its tokens would be charged at the seeds' rates.
The factors make the two equal: a busy hour is charged what it costs. One total cannot tell three kinds of tokens apart,
so each kind gets the same factor, unless the mix of kinds varied enough for a fit of three.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from fairlead_operator.api.v1alpha1 import ModelPoolSpec
from fairlead_operator.decide.pricing import PriceList, hardware_of, seeds_for
from fairlead_operator.decide.rates import ONE_PPM, Factors, Rates
from fairlead_operator.decide.signals import Load, Report, Router
from fairlead_router.contract import PICO_PER_NANO, PoolSignals, Signals

BUSY_PERCENT = 80
"""Of the slots of all replicas: an engine does the most with its batch full."""
LONGEST_STEP_MS = 30_000
"""Between two looks; what lies in a longer gap is not counted."""
ROW_MS = 300_000
"""Busy time in a row: long beside a request, whose tokens are all counted at its end."""
ROWS_NEEDED = 6
ROWS_KEPT = 24
ROWS_TO_FIT = 9
SPREAD_PERCENT = 30
"""Rows differ by at most this from the middle one, or the measure is not stable."""
RESIDUAL_PERCENT = 10
"""A fit is off by at most this in every row."""
POSED = Fraction(1, 100)
"""Least determinant of the normalised normal equations; 0 = the kinds always came in one mix, 1 = independent."""
APART = 3
"""A fitted factor is at most this times above or below the common one."""
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
KEY_CHARS = 8

Tokens = tuple[int, int, int]
"""Uncached prompt, cached prompt, output."""


@dataclass(frozen=True, slots=True)
class Look:
    """A pool as it was seen at one time.

    ``counters`` are the totals of each router. ``cost_per_hour`` (nano-USD) is what the replicas cost, 0 where that is
    not known. ``key`` names the settings and the seeds that a measure holds for, ``base`` are the seeds' rates.
    """

    at_ms: int
    key: str
    busy: bool
    counters: Mapping[str, Tokens]
    cost_per_hour: int
    base: Rates | None


@dataclass(frozen=True, slots=True)
class Row:
    """Busy time: what its tokens are charged at the seeds' rates, by kind, and what the replicas cost (pico-USD)."""

    busy_ms: int = 0
    charges: Tokens = (0, 0, 0)
    cost: int = 0

    def __add__(self, other: "Row") -> "Row":
        mine, theirs = self.charges, other.charges
        charges = (mine[0] + theirs[0], mine[1] + theirs[1], mine[2] + theirs[2])
        return Row(self.busy_ms + other.busy_ms, charges, self.cost + other.cost)

    @property
    def factor(self) -> Fraction:
        """Cost by charge."""
        return Fraction(self.cost, sum(self.charges))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a pool with the settings ``key``: whole rows of busy time, newest last, and one that fills."""

    key: str = ""
    last: Look | None = None
    filling: Row = field(default_factory=Row)
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """``factors`` are ``None`` while nothing can be said; ``reason`` is a clause for people either way."""

    factors: Factors | None
    reason: str


def settings_key(spec: ModelPoolSpec, prices: PriceList) -> str:
    """Names the model, engine, hardware and seeds; how many replicas there are is no part of it."""
    text = spec.model_dump_json(exclude={"replicas", "autoscaling", "rollout"}, exclude_none=True)
    seeds = [str(seeds_for(prices, hardware_of(spec, variant))) for variant in spec.variants]
    return hashlib.sha256("\n".join([text, *seeds]).encode()).hexdigest()[:KEY_CHARS]


def is_busy(pool: str, slots: int, routers: Sequence[Router], load: Load) -> bool:
    """Whether every router has reported and requests fill most of the slots of all engines.

    Never where a router stands in pods that a team may change: it could count tokens that no engine made, and so make
    all tokens cheap.
    """
    engines = [one for one in routers if one.pool == pool]
    still = all(one.platform and not one.terminating for one in engines)
    return still and load.complete and (load.running + load.waiting) * 100 >= BUSY_PERCENT * slots * len(engines) > 0


def counters_of(pool: str, routers: Sequence[Router], reports: Mapping[str, Report]) -> dict[str, Tokens]:
    """The totals of every router that has reported and whose word counts."""
    told = [(one.router, reports[one.router].signals) for one in routers if one.platform and one.router in reports]
    return {router: _tokens(signals, pool) for router, signals in told if signals is not None}


def note(evidence: Evidence, look: Look) -> Evidence:
    """Evidence with one more look. With other settings all of it is forgotten."""
    if look.key != evidence.key:
        return Evidence(look.key, look)
    row = None if evidence.last is None else between(evidence.last, look)
    if row is None:
        return replace(evidence, last=look)
    filling = evidence.filling + row
    if filling.busy_ms < ROW_MS:
        return replace(evidence, last=look, filling=filling)
    return Evidence(look.key, look, Row(), (*evidence.rows, filling)[-ROWS_KEPT:])


def between(before: Look, after: Look) -> Row | None:
    """What lies between two looks; ``None`` unless the pool was busy and the same at both and every counter went on."""
    took_ms = after.at_ms - before.at_ms
    same = before.counters.keys() == after.counters.keys() and before.cost_per_hour == after.cost_per_hour
    if not (before.busy and after.busy and same and 0 < took_ms <= LONGEST_STEP_MS):
        return None
    gained = [_minus(after.counters[name], before.counters[name]) for name in after.counters]
    if after.base is None or after.cost_per_hour <= 0 or any(min(one) < 0 for one in gained):
        return None
    uncached, cached, output = (sum(one[kind] for one in gained) for kind in range(3))
    base = after.base
    charges = (uncached * base.prompt_pico, cached * base.cached_pico, output * base.output_pico)
    return Row(took_ms, charges, after.cost_per_hour * PICO_PER_NANO * took_ms // HOUR_MS)


def measure(evidence: Evidence) -> Measure:
    """The factors that make the rows' charges equal their cost, or why there are none."""
    rows, minutes = evidence.rows, len(evidence.rows) * ROW_MS // MINUTE_MS
    if len(rows) < ROWS_NEEDED:
        needed = ROWS_NEEDED * ROW_MS // MINUTE_MS
        return Measure(None, f"capacity not measured yet, {minutes}m of {needed}m of busy time")
    if any(sum(row.charges) == 0 for row in rows):
        return Measure(None, "capacity not measured, busy time without tokens")
    total = sum(rows, Row())
    fitted = _fit(rows, total)
    if fitted is not None:
        return Measure(fitted, f"fitted by kind of token to {minutes}m of busy time, {_text(fitted)} of the seeds'")
    spread = _spread_percent(rows)
    if spread > SPREAD_PERCENT:
        return Measure(None, f"capacity not measured, {minutes}m of busy time differ by {spread}%")
    common = _millionths([total.factor] * 3)
    return Measure(common, f"the seeds' proportions scaled to {minutes}m of busy time, {_text(common)} of the seeds'")


def _fit(rows: Sequence[Row], total: Row) -> Factors | None:
    """Least squares of cost on the three charges; ``None`` where the mix hardly varied or the fit is not believable."""
    if len(rows) < ROWS_TO_FIT:
        return None
    solved = _least_squares(rows)
    if solved is None:
        return None
    # The sum of the rows is met exactly: a busy hour is charged what it costs.
    whole = _predicted(solved, total)
    if min(solved) <= 0 or whole <= 0:
        return None
    factors = [one * total.cost / whole for one in solved]
    near = all(total.factor / APART <= one <= total.factor * APART for one in factors)
    close = all(abs(_predicted(factors, row) - row.cost) * 100 <= RESIDUAL_PERCENT * row.cost for row in rows)
    return _millionths(factors) if near and close else None


def _least_squares(rows: Sequence[Row]) -> list[Fraction] | None:
    gram = [[sum(row.charges[i] * row.charges[j] for row in rows) for j in range(3)] for i in range(3)]
    right = [sum(row.charges[i] * row.cost for row in rows) for i in range(3)]
    determinant, scale = _determinant(gram), gram[0][0] * gram[1][1] * gram[2][2]
    if scale == 0 or Fraction(determinant, scale) < POSED:
        return None
    columns = [[[right[i] if j == k else gram[i][j] for j in range(3)] for i in range(3)] for k in range(3)]
    return [Fraction(_determinant(column), determinant) for column in columns]


def _determinant(m: Sequence[Sequence[int]]) -> int:
    return (
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )


def _predicted(factors: Sequence[Fraction], row: Row) -> Fraction:
    return sum((factor * charge for factor, charge in zip(factors, row.charges, strict=True)), Fraction(0))


def _spread_percent(rows: Sequence[Row]) -> int:
    """How far a row lies from the middle one, at most, in percent of the middle one."""
    factors = sorted(row.factor for row in rows)
    middle = factors[len(factors) // 2]
    return -(-max(middle - factors[0], factors[-1] - middle) * 100 // middle)


def _millionths(factors: Sequence[Fraction]) -> Factors:
    prompt, cached, output = (max(1, round(one * ONE_PPM)) for one in factors)
    return prompt, cached, output


def _text(factors: Factors) -> str:
    return "/".join(f"{one / ONE_PPM:.3g}" for one in (factors if len(set(factors)) > 1 else factors[:1]))


def _tokens(signals: Signals, pool: str) -> Tokens:
    told = next((one for one in signals.pools if one.pool == pool), PoolSignals(pool=pool))
    return told.prompt_tokens_total - told.cached_tokens_total, told.cached_tokens_total, told.output_tokens_total


def _minus(after: Tokens, before: Tokens) -> Tokens:
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]
