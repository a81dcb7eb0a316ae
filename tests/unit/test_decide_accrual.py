"""The bill of pools, in quarter hours."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.accrual import (
    Accrual,
    BilledPod,
    CostKey,
    CostTotal,
    accrue,
    billed_pod,
    cost_rows,
    resume,
)
from fairlead_operator.decide.facts import NodeFact
from fairlead_operator.decide.pricing import VariantHardware, parse_prices
from fairlead_router.contract import BUCKET_MS
from tests.builders.decisions import NOW, pod

HOUR = 3_600_000


def billed(start: int, end: int | None = None, price: int = 2_950_000_000) -> BilledPod:
    return BilledPod("a/chat", "h100", start, end, price)


def total(accrual: Accrual) -> tuple[int, int]:
    rows = cost_rows(accrual)
    return sum(row.replica_ms for row in rows), sum(row.nano_usd for row in rows)


def test_an_hour_of_a_pod_costs_its_price_split_at_the_quarters() -> None:
    accrual = accrue(Accrual(0), [billed(0)], HOUR, 0)
    assert total(accrual) == (HOUR, 2_950_000_000)
    assert [key.bucket for key, _ in accrual.totals] == [0, BUCKET_MS, 2 * BUCKET_MS, 3 * BUCKET_MS]


def test_a_pod_costs_until_it_has_ended() -> None:
    assert total(accrue(Accrual(0), [billed(1000, 2000)], HOUR, 0))[0] == 1000


def test_a_restart_goes_on_from_what_the_ledger_has() -> None:
    first = accrue(Accrual(0), [billed(0)], 100_000, 0)
    resumed = accrue(resume(cost_rows(first), first.until_ms), [billed(0)], 200_000, 0)
    assert total(resumed) == total(accrue(Accrual(0), [billed(0)], 200_000, 0))


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    first = accrue(Accrual(0), [billed(0)], 100_000, 0)
    assert accrue(first, [billed(0)], 50_000, 0) == first


def test_buckets_that_the_ledger_has_are_forgotten() -> None:
    accrual = accrue(Accrual(0), [billed(0)], HOUR, BUCKET_MS + 1)
    assert min(key.bucket for key, _ in accrual.totals) == BUCKET_MS


def test_a_pod_is_billed_from_when_it_holds_a_node_with_a_price() -> None:
    prices = parse_prices("accelerators: [{resourceName: cpu, perHour: '0.5', effectiveFrom: 2026-01-01}]")
    hardware = VariantHardware("h100", "cpu", {}, 2000)
    node = NodeFact("gpu-1", {}, frozenset({"cpu"}))
    bill = billed_pod(prices, hardware, pod(), node, NOW)
    assert bill == BilledPod("ai-platform/chat-8b", "h100", NOW - HOUR, None, 1_000_000_000)
    assert billed_pod(prices, hardware, pod(), None, NOW) is None
    assert billed_pod(prices, hardware, pod(unscheduled="no node", ready=False), None, NOW) is None


@given(
    st.integers(0, 3 * BUCKET_MS),
    st.integers(0, 10**10),
    st.lists(st.integers(1, 600_000), min_size=1, max_size=20),
)
def test_the_sum_does_not_depend_on_the_steps(start: int, price: int, steps: list[int]) -> None:
    pods = [billed(start, price=price)]
    accrual, now = Accrual(0), 0
    for step in steps:
        now += step
        accrual = accrue(accrual, pods, now, 0)
    assert accrual == accrue(Accrual(0), pods, now, 0)


def test_totals_are_by_pool_variant_and_bucket() -> None:
    accrual = accrue(Accrual(0), [billed(0, price=HOUR), billed(0, price=HOUR)], 1000, 0)
    assert accrual.totals == ((CostKey("a/chat", "h100", 0), CostTotal(2000, 2000)),)
