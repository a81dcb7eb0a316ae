"""The simulated fleet: routing, starting, draining, holding, accounts, and what a policy sees."""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_operator.performance.step import Engine, Objectives, StepTime
from fairlead_operator.simulate.fleet import Latencies, run
from fairlead_operator.simulate.model import Result, Variant, Workload
from fairlead_operator.simulate.policy import Recent, View, mean, quantile

STEP = StepTime(base=0.01, per_context_token=1e-7, per_token=3e-5)
ENGINE = Engine(step=STEP, kv_tokens=200_000)
KIND = Variant(ENGINE, price_per_hour=36.0, cold_start=100.0, minimum=1, maximum=9)
OBJECTIVES = Objectives(ttft=2.0, tpot=0.05)


class Planned:
    """A policy with a plan by time; it keeps what it saw."""

    def __init__(self, plan: Callable[[float], Sequence[int]], interval: float = 10.0) -> None:
        self.plan = plan
        self.interval = interval
        self.views: list[View] = []

    def desired(self, view: View) -> Sequence[int]:
        self.views.append(view)
        return self.plan(view.now)


def steady(*replicas: int, interval: float = 10.0) -> Planned:
    return Planned(lambda _now: replicas, interval)


def workload(rate: float, duration: float, seed: int = 1, *, prompt: int = 1000, output: int = 100) -> Workload:
    chance = random.Random(seed)  # noqa: S311 - chance, not a secret
    at = 0.0
    arrivals = array("d")
    while (at := at + chance.expovariate(rate)) < duration:
        arrivals.append(at)
    prompts = [chance.randint(1, 2 * prompt) for _ in arrivals]
    outputs = [chance.randint(1, 2 * output) for _ in arrivals]
    return Workload(arrivals, prompts, outputs, duration)


def simulated(of: Workload, policy: Planned, *variants: Variant, count_from: float = 0.0, seed: int = 1) -> Result:
    return run(of, variants or (KIND,), OBJECTIVES, policy, count_from=count_from, seed=seed)


# --- requests


def test_every_request_counts_once_and_all_meet_the_objectives_where_there_is_room() -> None:
    of = workload(5.0, 600.0)
    result = simulated(of, steady(2), replace(KIND, initial=2))
    assert (result.requests, result.met, result.unfinished, result.refused) == (
        len(of.arrivals),
        len(of.arrivals),
        0,
        0,
    )
    assert result.attainment == result.attainment_rest == 1.0
    assert sum(minute.arrivals for minute in result.minutes) == len(of.arrivals)
    assert sum(minute.missed for minute in result.minutes) == 0


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.floats(0.5, 30.0),
    st.integers(0, 1000),
    st.sampled_from((0.0, 35.0, 100.0)),
)
def test_whatever_the_policy_does_no_request_is_lost(
    plan: list[int], rate: float, seed: int, cold_start: float
) -> None:
    of = workload(rate, 120.0, seed)
    policy = Planned(lambda now: [plan[int(now / 20) % len(plan)]])
    result = simulated(of, policy, replace(KIND, minimum=0, cold_start=cold_start), seed=seed)
    finished = sum(view.finished for view in policy.views)
    assert sum(view.arrivals for view in policy.views) == result.requests == len(of.arrivals)
    assert finished + result.unfinished == result.requests
    assert sum(view.met for view in policy.views) == result.met
    assert sum(minute.missed for minute in result.minutes) == result.requests - result.met
    assert 0 <= result.held_met <= result.held <= result.requests


def test_requests_of_a_replica_that_goes_finish_there() -> None:
    of = workload(4.0, 100.0, output=1000)
    policy = Planned(lambda now: [3 if now < 50 else 1])
    result = simulated(of, policy, replace(KIND, initial=3))
    assert (result.unfinished, result.met) == (0, result.requests)
    assert policy.views[5].draining == (2,)
    assert policy.views[-1].draining == (0,)


def test_more_than_the_fleet_can_do_misses() -> None:
    result = simulated(workload(60.0, 300.0), steady(1))
    assert result.attainment < 0.5
    assert result.ttft_p99 > 2.0
    assert result.met <= min(result.met_ttft, result.met_tpot)


def test_what_has_not_finished_ten_minutes_after_the_end_has_missed() -> None:
    result = simulated(workload(100.0, 600.0, output=400), steady(1))
    assert result.unfinished > 0
    assert sum(minute.missed for minute in result.minutes) == result.requests - result.met


def test_a_request_larger_than_every_kv_cache_is_refused() -> None:
    of = Workload([1.0, 2.0], [100, 300_000], [10, 10], 60.0)
    result = simulated(of, steady(1))
    assert (result.requests, result.refused, result.met, result.unfinished) == (2, 1, 1, 0)


def test_a_large_request_goes_to_a_replica_that_holds_it() -> None:
    small = replace(KIND, engine=replace(ENGINE, kv_tokens=1000))
    of = Workload([1.0, 2.0], [5000, 5000], [10, 10], 60.0)
    assert simulated(of, steady(1, 1), small, KIND).met == 2


def test_the_router_sends_to_the_fewest_outstanding_tokens_by_weight() -> None:
    of = Workload([1.0 + number / 1000 for number in range(40)], [100] * 40, [400] * 40, 60.0)
    policy = steady(1, 1, interval=2.0)
    simulated(of, policy, KIND, replace(KIND, weight=3.0))
    assert policy.views[0].running_by == (10, 30)


def test_prefix_caches_speed_up_what_shares_its_beginning() -> None:
    of = workload(3.0, 300.0, prompt=4000)
    shared = replace(of, prefixes=[tuple(range(prompt // 512)) for prompt in of.prompt_tokens])
    assert simulated(shared, steady(1)).ttft_p99 < simulated(of, steady(1)).ttft_p99


# --- replicas


def test_a_new_replica_serves_after_its_cold_start_and_is_paid_from_its_beginning() -> None:
    policy = Planned(lambda now: [2 if now >= 50 else 1])
    result = simulated(workload(1.0, 300.0), policy)
    assert {view.now: view.starting for view in policy.views if view.starting != (0,)} == {
        float(now): (1,) for now in range(60, 151, 10) if now < 150
    }
    assert [view.start_ages for view in policy.views if view.now == 80.0] == [((30.0,),)]
    assert policy.views[14].ready == (2,)
    assert result.replica_seconds == pytest.approx((300.0 + 250.0,))
    assert result.dollars == pytest.approx(5.50)
    assert result.dollars_starting == pytest.approx(1.00)
    assert (result.scale_events, result.pods_started) == (1, 1)


def test_a_drained_replica_is_paid_until_it_is_empty() -> None:
    of = Workload([49.0], [100], [1000], 300.0)
    result = simulated(of, Planned(lambda now: [0 if now >= 50 else 1]), replace(KIND, minimum=0, initial=1))
    alone = 49.0 + STEP.base + 100 * STEP.per_token
    alone += 999 * (STEP.base + STEP.per_token) + STEP.per_context_token * sum(range(101, 1100))
    assert result.replica_seconds == pytest.approx((alone,))
    assert result.met == 1


def test_the_accounts_open_late_and_close_at_the_end() -> None:
    of = workload(2.0, 400.0)
    result = simulated(of, steady(1), count_from=100.0)
    assert result.requests == sum(1 for at in of.arrivals if at >= 100.0)
    assert result.replica_seconds == pytest.approx((300.0,))
    assert result.replica_hours == pytest.approx(300.0 / 3600)


def test_fewer_replicas_end_those_that_start_first_and_the_youngest_of_them() -> None:
    plan = {50: 3, 60: 4, 70: 2}
    policy = Planned(lambda now: [plan.get(int(now), 2 if now > 70 else 1)])
    result = simulated(workload(1.0, 300.0), policy)
    assert policy.views[5].start_ages == ((10.0, 10.0),)
    assert policy.views[6].start_ages == ((20.0, 20.0, 10.0),)
    assert policy.views[7].start_ages == ((30.0,),)
    assert result.replica_seconds == pytest.approx((300.0 + 250.0 + 20.0 + 10.0,))


def test_the_emptiest_ready_replica_goes() -> None:
    of = Workload([1.0, 2.0], [100, 100], [4000, 10], 120.0)
    policy = Planned(lambda now: [1 if now >= 10 else 2])
    result = simulated(of, policy, replace(KIND, initial=2))
    assert policy.views[1].draining == (0,)
    assert policy.views[1].running == 1
    assert result.replica_seconds == pytest.approx((130.0,))


def test_answers_are_kept_within_the_bounds() -> None:
    policy = Planned(lambda now: [99 if now < 200 else -5])
    result = simulated(workload(1.0, 400.0), policy, replace(KIND, minimum=1, maximum=3))
    assert max(view.ready[0] + view.starting[0] for view in policy.views) == 3
    assert policy.views[-1].ready == (1,)
    assert result.pods_started == 2


def test_cold_starts_vary_by_the_seed_alone() -> None:
    of = workload(4.0, 600.0)
    kind = replace(KIND, cold_start_spread=0.5)
    first, again, other = (simulated(of, Planned(lambda _: [3]), kind, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.dollars_starting != other.dollars_starting


# --- held


def test_the_gateway_holds_requests_while_nothing_is_ready_and_their_time_counts_from_then() -> None:
    of = Workload([5.0, 6.0, 200.0], [100, 100, 100], [10, 10, 10], 300.0)
    policy = Planned(lambda _now: [1])
    result = simulated(of, policy, replace(KIND, minimum=0))
    assert (result.held, result.held_met, result.met, result.requests) == (2, 2, 3, 3)
    assert policy.views[0].held == 2
    assert policy.views[0].waiting_tokens == 200
    assert result.ttft_p99 < 1.0
    assert result.attainment_rest == 1.0


def test_requests_that_nothing_ever_serves_are_unfinished() -> None:
    result = simulated(Workload([5.0], [100], [10], 30.0), steady(0), replace(KIND, minimum=0))
    assert (result.requests, result.held, result.unfinished, result.met, result.dollars) == (1, 1, 1, 0, 0.0)
    assert result.attainment == 0.0


# --- views


def test_a_view_counts_what_happened_since_the_last() -> None:
    of = Workload([1.0, 2.0, 12.0], [100, 200, 400], [10, 1, 30], 60.0)
    policy = steady(1)
    simulated(of, policy)
    first, second = policy.views[:2]
    assert (first.arrivals, first.prompt_tokens, first.finished, first.output_tokens) == (2, 300, 2, 11)
    assert (second.arrivals, second.prompt_tokens, second.finished, second.output_tokens) == (1, 400, 1, 30)
    assert sorted(first.samples) == [(100, 10), (200, 1)]
    assert (first.met, first.missed, first.met_ttft, first.missed_ttft) == (2, 0, 2, 0)
    assert (first.met_tpot, first.missed_tpot) == (2, 0)
    assert len(second.recent.ttft) == 3
    assert len(second.recent.tpot) == 2
    assert policy.views[-1].finished == 0


def test_a_view_shows_each_ready_replica_by_variant() -> None:
    of = Workload([number / 10 for number in range(1, 80)], [1000] * 79, [500] * 79, 60.0)
    policy = steady(1, 2)
    one_at_a_time = replace(ENGINE, max_sequences=1)
    simulated(of, policy, replace(KIND, engine=one_at_a_time), replace(KIND, initial=2))
    view = policy.views[0]
    assert view.ready == (1, 2)
    assert view.running_by[0] == 1
    assert view.waiting_by[0] > 0
    assert view.waiting_by[1:] == (0, 0)
    assert view.waiting == sum(view.waiting_by)
    assert view.running == sum(view.running_by)
    assert 0 < view.kv_use[0] < view.kv_use[1] < 1
    assert view.waiting_tokens == 1000 * view.waiting


def test_latencies_older_than_a_minute_are_not_recent() -> None:
    policy = steady(1)
    simulated(Workload([1.0], [100], [10], 200.0), policy)
    assert [len(view.recent.ttft) for view in policy.views[:7]] == [1, 1, 1, 1, 1, 1, 0]
    assert policy.views[0].ttft_p90 == policy.views[0].ttft_mean == pytest.approx(0.013)
    assert policy.views[0].tpot_p90 == policy.views[0].tpot_mean > 0.01
    assert policy.views[6].ttft_p90 == policy.views[6].tpot_mean == 0.0


def test_a_minute_shows_wishes_and_replicas() -> None:
    result = simulated(workload(1.0, 300.0), Planned(lambda now: [2 if now >= 60 else 1]))
    assert [(minute.wanted, minute.ready) for minute in result.minutes[:4]] == [(1, 1), (2, 1), (2, 2), (2, 2)]


@given(st.lists(st.floats(0.0, 1e3), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_the_least_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_nothing_has_quantile_and_mean_zero() -> None:
    assert (quantile([], 0.9), mean([])) == (0.0, 0.0)
    assert Recent(([1.0], [3.0, 2.0]), ()).ttft == [1.0, 3.0, 2.0]


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=50), st.floats(0.05, 1.0))
def test_a_histogram_of_latencies_knows_its_quantiles_to_one_percent(values: list[float], share: float) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = quantile(values, share - 1e-9)
    assert exact <= latencies.quantile(share) * (1 + 1e-9)
    assert latencies.quantile(share) <= exact * 1.011


# --- determinism, errors


def test_a_run_gives_the_same_numbers_every_time_compiled_or_not() -> None:
    result = simulated(workload(25.0, 900.0, seed=7), Planned(lambda now: [1 + int(now / 90) % 4]), count_from=60.0)
    found = asdict(result)
    del found["minutes"]
    assert found == GOLDEN


GOLDEN = {
    "requests": 20985,
    "met": 5728,
    "met_ttft": 7389,
    "met_tpot": 5884,
    "held": 0,
    "held_met": 0,
    "unfinished": 0,
    "refused": 0,
    "replica_seconds": (2016.3039566285115,),
    "dollars": 20.163039566285118,
    "dollars_starting": 6.7,
    "scale_events": 10,
    "pods_started": 8,
    "preemptions": 28,
    "ttft_p99": pytest.approx(46.38956469062767),
    "tpot_p99": pytest.approx(0.0913620161642468),
}


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (Workload([2.0, 1.0], [1, 1], [1, 1], 9.0), "request 1 arrives at 1.0"),
        (Workload([10.0], [1], [1], 9.0), "request 0 arrives at 10.0"),
        (Workload([float("nan")], [1], [1], 9.0), "request 0 arrives at nan"),
        (Workload([-1.0], [1], [1], 9.0), "request 0 arrives at -1.0"),
        (Workload([1.0], [0], [1], 9.0), "0 prompt and 1 output tokens"),
        (Workload([1.0], [1], [0], 9.0), "1 prompt and 0 output tokens"),
        (Workload([1.0], [1, 2], [1], 9.0), "columns differ in length"),
    ],
)
def test_a_workload_out_of_order_is_an_error(of: Workload, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simulated(of, steady(1))


def test_a_policy_answers_with_one_number_for_each_variant_and_has_an_interval() -> None:
    with pytest.raises(ValueError, match="wants 2 numbers"):
        simulated(workload(1.0, 60.0), steady(1, 1))
    with pytest.raises(ValueError, match="interval is 0"):
        simulated(workload(1.0, 60.0), steady(1, interval=0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 10},
        {"initial": 10},
        {"minimum": -1},
        {"price_per_hour": float("nan")},
        {"weight": 0.0},
        {"cold_start": -1.0},
        {"cold_start": float("inf")},
        {"cold_start_spread": 2.0},
    ],
)
def test_a_variant_that_cannot_be_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give|order them"):
        replace(KIND, **wrong)  # type: ignore[arg-type]


def test_nothing_to_do_costs_only_the_minimum() -> None:
    result = simulated(Workload([], [], [], 3600.0), steady(1))
    assert (result.requests, result.attainment, result.dollars) == (0, 1.0, 36.0)
