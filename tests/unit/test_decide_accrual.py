"""The bill of pools, in quarter hours."""

from typing import Any

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
from fairlead_operator.decide.facts import pod_fact, time_text
from fairlead_router.contract import BUCKET_MS
from tests.builders.decisions import NOW, pod, pod_object

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
    bill = billed_pod(pod(), 1_000_000_000)
    assert bill == BilledPod("ai-platform/chat-8b", "h100", NOW - HOUR, None, 1_000_000_000)
    assert billed_pod(pod(), None) is None
    unplaced = pod_object(unscheduled="no node", ready=False)
    del unplaced["status"]["startTime"]
    assert billed_pod(pod_fact(unplaced), 1_000_000_000) is None


def test_a_pod_that_was_evicted_costs_until_then_and_one_that_never_started_nothing() -> None:
    evicted = pod_object(ready=False)
    evicted["status"] |= {"phase": "Failed", "reason": "Evicted", "containerStatuses": [], "initContainerStatuses": []}
    evicted["status"]["conditions"][1]["lastTransitionTime"] = time_text(NOW - HOUR // 2)
    assert _cost(evicted) == HOUR // 2
    rejected = pod_object(ready=False)
    rejected["status"] |= {"phase": "Failed", "containerStatuses": [], "initContainerStatuses": []}
    rejected["status"]["conditions"] = []
    assert _cost(rejected) == 0


def test_a_terminating_pod_still_costs() -> None:
    assert _cost(pod_object(deleting=True)) == HOUR


def _cost(body: dict[str, Any]) -> int:
    bill = billed_pod(pod_fact(body), HOUR)
    assert bill is not None
    return total(accrue(Accrual(NOW - 2 * HOUR), [bill], NOW, 0))[1]


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
