"""The clairvoyant schedule: what it costs, that nothing cheaper exists on its table, and how it is acted on."""

import itertools
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.performance.step import Engine, Objectives, StepTime
from fairlead_operator.simulate.clairvoyant import (
    POOLS,
    SLOT,
    Reference,
    Schedule,
    Table,
    clairvoyant,
    demand,
    expected,
    fluid,
    priced,
    scheduled,
    searched,
    tabulate,
)
from fairlead_operator.simulate.model import Result, Variant, Workload
from fairlead_operator.simulate.workloads import paired, poisson
from tests.unit.test_simulate_baselines import view
from tests.unit.test_simulate_workloads import chance

ENGINE = Engine(StepTime(0.02, 0.0, 1e-3), kv_tokens=100_000, token_budget=256)
KIND = Variant(ENGINE, price_per_hour=36.0, cold_start=60.0, minimum=0, maximum=6)
OBJECTIVES = Objectives(ttft=4.0, tpot=0.4)
TABLE = Table((1.0, 2.0, 3.0), ((1.0, 0.9, 0.2),) * len(POOLS), ((1.0, 4.0, 20.0),) * len(POOLS))


def cost(rates: list[float], replicas: list[int], price: float, cold_start: float) -> float:
    ups = sum(max(0, after - before) for before, after in itertools.pairwise(replicas))
    missed = sum(rate * (1 - TABLE.share(rate / n, n)) if n else rate for rate, n in zip(rates, replicas, strict=True))
    return sum(replicas) * SLOT + ups * cold_start + price * missed * SLOT


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 200), st.integers(0, 90))
def test_no_schedule_is_cheaper_on_the_table(rates: list[int], price: int, cold_start: int) -> None:
    variant = replace(KIND, cold_start=float(cold_start), maximum=4)
    demanded = [float(rate) for rate in rates]
    found = scheduled(demanded, TABLE, variant, float(price))
    least = min(
        cost(demanded, list(other), price, cold_start) for other in itertools.product(range(5), repeat=len(rates))
    )
    assert cost(demanded, found, price, cold_start) == pytest.approx(least)


def test_a_dip_shorter_than_a_start_is_not_left() -> None:
    rates = [4.0] * 20 + [0.5] * 3 + [4.0] * 20
    patient = scheduled(rates, TABLE, replace(KIND, cold_start=600.0), 50.0)
    assert len(set(patient)) == 1
    assert len(set(scheduled(rates, TABLE, replace(KIND, cold_start=0.0), 50.0))) > 1


def test_the_price_found_is_the_one_at_which_the_table_expects_the_share() -> None:
    wide, rates = replace(KIND, maximum=20), [float(2 + at % 7) for at in range(200)]
    for share in (0.9, 0.97, 0.999):
        found = priced(rates, TABLE, wide, share)
        assert expected(rates, TABLE, found) >= share
    assert sum(priced(rates, TABLE, wide, 0.9)) < sum(priced(rates, TABLE, wide, 0.999))


def test_a_table_interpolates_and_finds_its_capacity() -> None:
    assert TABLE.share(0.0, 1) == 1.0
    assert TABLE.share(1.5, 3) == pytest.approx(0.95)
    assert TABLE.share(100.0, 50) == 0.0
    assert TABLE.capacity(0.95) == pytest.approx(1.5)
    assert TABLE.concurrency(0.95) == pytest.approx(2.5)
    assert TABLE.capacity(0.1) == 3.0


def test_between_pools_the_share_is_between_theirs() -> None:
    table = Table((1.0, 2.0), ((1.0, 0.2), (1.0, 0.4), (1.0, 0.8), (1.0, 0.9)), TABLE.running)
    shares = [table.share(2.0, replicas) for replicas in (1, 2, 3, 4, 8, 90)]
    assert shares == sorted(shares)
    assert (shares[0], shares[1], shares[3], shares[-1]) == (0.2, 0.4, 0.8, 0.9)


def test_demand_is_smoothed_over_a_minute_and_loses_nothing() -> None:
    arrivals = array("d", [at / 10 for at in range(6000)])
    lengths = array("i", [1] * 6000)
    rates = demand(Workload(arrivals, lengths, lengths, 600.0))
    assert rates == pytest.approx([10.0] * 40)


def test_the_fluid_bound_pays_for_fractions_but_for_the_minimum() -> None:
    assert fluid([10.0, 0.0], 4.0, 1) == pytest.approx((2.5 + 1.0) * SLOT)


def test_a_schedule_asks_a_cold_start_ahead_and_gives_up_at_once() -> None:
    policy = Schedule([1, 1, 1, 1, 4, 4, 1, 1], cold_start=30.0)
    asked = [policy.desired(view(now=at))[0] for at in (15.0, 30.0, 45.0, 60.0, 75.0, 90.0, 105.0)]
    assert asked == [1, 4, 4, 4, 4, 1, 1]


def test_after_its_end_a_schedule_stays() -> None:
    assert Schedule([3, 2], cold_start=30.0).desired(view(now=1e6)) == (2,)


# --- the search


def trial_of(reached: float, dollars: float) -> Reference:
    result = Result(
        requests=10_000, met=round(10_000 * reached), met_ttft=0, met_tpot=0, held=0, held_met=0, unfinished=0,
        refused=0, replica_seconds=(1.0,), dollars=dollars, dollars_starting=0.0, scale_events=0, pods_started=0,
        preemptions=0, ttft_p99=0.0, tpot_p99=0.0, minutes=(),
    )  # fmt: skip
    return Reference((), 0.0, result)


def test_the_search_corrects_what_the_table_expects_by_what_the_simulation_shows() -> None:
    asked = []

    def trial(share: float) -> Reference:
        asked.append(share)
        return trial_of(share - 0.004, dollars=share)

    found = searched(trial, 0.99)
    assert 0.99 <= found.result.attainment <= 0.9902
    assert len(asked) <= 3


def test_the_search_prefers_what_attains_and_then_what_costs_less() -> None:
    reached = iter([(0.98, 1.0), (0.995, 5.0), (0.992, 4.0), (0.985, 2.0), (0.993, 3.0)])
    last = (0.98, 9.0)
    found = searched(lambda _share: trial_of(*next(reached, last)), 0.99)
    assert (found.result.attainment, found.result.dollars) == (0.993, 3.0)


def test_of_trials_that_never_attain_the_best_stays() -> None:
    reached = iter([(0.5, 1.0), (0.7, 5.0)])
    assert searched(lambda _share: trial_of(*next(reached, (0.6, 2.0))), 0.99).result.attainment == 0.7


# --- the whole


def test_a_small_workload_is_scheduled_at_the_attainment_asked_for() -> None:
    rates = [0.8, 2.4, 0.8, 3.2, 0.4, 1.6]
    arrivals = poisson([(600.0 * at, 600.0 * (at + 1), rate) for at, rate in enumerate(rates)], chance())
    workload = paired(arrivals, 3600.0, [(400, 30), (900, 10)], chance())
    variant = replace(KIND, minimum=1)
    table = tabulate(workload, variant, OBJECTIVES, seconds=600.0)
    assert all(later <= earlier for row in table.shares for earlier, later in itertools.pairwise(row))
    assert table.capacity(0.99, pool=0) < table.capacity(0.99, pool=3)
    found = clairvoyant(workload, table, variant, OBJECTIVES, count_from=0.0)
    assert 0.99 <= found.result.attainment < 0.998
    fixed = max(found.replicas)
    assert sum(found.replicas) < 0.9 * fixed * len(found.replicas)
    assert found.result.replica_hours * 3600 >= fluid(demand(workload), table.capacity(0.99, pool=3), 1)
