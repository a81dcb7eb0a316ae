"""The bill: running totals of what pools' pods cost, in quarter hours, as integers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fairlead_operator.decide.facts import PodFact
from fairlead_operator.decide.pricing import half_even
from fairlead_router.contract import BUCKET_MS, CostRow

HOUR_MS = 3_600_000
KEEP_MS = 7 * 24 * HOUR_MS
"""How long totals wait for a ledger that does not answer."""


@dataclass(frozen=True, slots=True)
class BilledPod:
    """One pod and what it costs: from the moment it holds a node until it has ended."""

    pool: str
    variant: str
    start_ms: int
    end_ms: int | None
    nano_per_hour: int


@dataclass(frozen=True, slots=True, order=True)
class CostKey:
    """What a running total is about; ``bucket`` is the start of the quarter hour (ms)."""

    pool: str
    variant: str
    bucket: int


@dataclass(frozen=True, slots=True)
class CostTotal:
    """Replica time and cost so far."""

    replica_ms: int
    nano_usd: int


@dataclass(frozen=True, slots=True)
class Accrual:
    """Totals of the last buckets, counted up to ``until_ms``."""

    until_ms: int
    totals: tuple[tuple[CostKey, CostTotal], ...] = ()


def billed_pod(pod: PodFact, nano_per_hour: int | None) -> BilledPod | None:
    """The pod's bill at this price; ``None`` while it holds no node or has no price."""
    start = pod.scheduled_ms or pod.started_ms
    if start is None or nano_per_hour is None:
        return None
    return BilledPod(pod.pool, pod.variant, start, pod.ended_ms, nano_per_hour)


def accrue(accrual: Accrual, pods: Sequence[BilledPod], now_ms: int, stored_ms: int) -> Accrual:
    """Adds what the pods cost since ``until_ms``. The sum does not depend on how often this is called.

    ``stored_ms``: up to when the ledger has taken the totals; buckets that ended before are forgotten.
    """
    until = max(now_ms, accrual.until_ms)
    totals = dict(accrual.totals)
    for pod in pods:
        for key, piece in _pieces(pod, accrual.until_ms, until):
            old = totals.get(key, CostTotal(0, 0))
            totals[key] = CostTotal(old.replica_ms + piece.replica_ms, old.nano_usd + piece.nano_usd)
    oldest = max(stored_ms, until - KEEP_MS)
    kept = {key: total for key, total in totals.items() if key.bucket + BUCKET_MS > oldest}
    return Accrual(until, tuple(sorted(kept.items())))


def resume(rows: Iterable[CostRow], until_ms: int) -> Accrual:
    """Goes on from what the ledger has, so that a restart counts nothing twice and leaves no gap."""
    totals = {CostKey(row.pool, row.variant, row.bucket): CostTotal(row.replica_ms, row.nano_usd) for row in rows}
    return Accrual(until_ms, tuple(sorted(totals.items())))


def cost_rows(accrual: Accrual) -> tuple[CostRow, ...]:
    """The totals as the ledger takes them."""
    return tuple(
        CostRow(
            pool=key.pool,
            variant=key.variant,
            bucket=key.bucket,
            replica_ms=total.replica_ms,
            nano_usd=total.nano_usd,
        )
        for key, total in accrual.totals
    )


def _pieces(pod: BilledPod, after_ms: int, until_ms: int) -> Iterator[tuple[CostKey, CostTotal]]:
    begin = max(pod.start_ms, after_ms)
    end = until_ms if pod.end_ms is None else min(pod.end_ms, until_ms)
    while begin < end:
        bucket = begin - begin % BUCKET_MS
        edge = min(end, bucket + BUCKET_MS)
        # Measured from one anchor, rounding telescopes: many small steps add up to the same as one long one.
        anchor = max(pod.start_ms, bucket)
        nano = _cost(pod, edge - anchor) - _cost(pod, begin - anchor)
        yield CostKey(pod.pool, pod.variant, bucket), CostTotal(edge - begin, nano)
        begin = edge


def _cost(pod: BilledPod, elapsed_ms: int) -> int:
    return half_even(pod.nano_per_hour * elapsed_ms, HOUR_MS)
