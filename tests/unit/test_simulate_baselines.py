"""Other autoscalers' laws, each against its published formula."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.performance.step import Engine, Objectives, StepTime
from fairlead_operator.simulate.baselines import (
    BASELINES,
    GUARD,
    Apa,
    Behaviour,
    Demand,
    Dynamo,
    Fixed,
    Horizontal,
    Hpa,
    Keda,
    Knative,
    KubeAi,
    Profile,
    SloAware,
    WvaSaturation,
    WvaTokens,
    active,
    arima,
    by_tokens,
    epp_guard,
    epp_queue,
    epp_saturation,
    kalman,
    last,
    running_mean,
)
from fairlead_operator.simulate.policy import Policy, Recent, View

ENGINE = Engine(StepTime(0.01, 0.0, 1e-4), kv_tokens=100_000)
PROFILE = Profile(ENGINE, Objectives(ttft=2.0, tpot=0.05), capacity=5.0, concurrency=40.0, peak=42.0)
EMPTY = View(
    now=15.0, ready=(1,), starting=(0,), draining=(0,), start_ages=((),), arrivals=0, finished=0, met=0, missed=0,
    met_ttft=0, missed_ttft=0, met_tpot=0, missed_tpot=0, prompt_tokens=0, output_tokens=0, running=0, waiting=0,
    held=0, waiting_tokens=0, kv_use=(0.0,), running_by=(0,), waiting_by=(0,), recent=Recent((), ()), samples=(),
)  # fmt: skip


def view(ready: int = 1, starting: int = 0, *, kv: float = 0.0, queue: int = 0, **changes: Any) -> View:
    """A tick: ``ready`` replicas alike, each with that KV use and that queue."""
    told = {"kv_use": (kv,) * ready, "waiting_by": (queue,) * ready, "waiting": queue * ready, **changes}
    return replace(EMPTY, ready=(ready,), starting=(starting,), running_by=(0,) * ready, **told)


def recent(ttft: float, tpot: float = 0.0) -> Recent:
    return Recent(([ttft],), ([tpot],))


def one(policy: Policy, seen: View) -> int:
    (replicas,) = policy.desired(seen)
    return replicas


# --- acting


def test_the_down_window_keeps_the_most_of_it() -> None:
    acts = Horizontal(Behaviour(down_window=300.0))
    assert acts.settle(0.0, 8, 8) == 8
    assert acts.settle(290.0, 8, 2) == 8
    assert acts.settle(301.0, 8, 2) == 2


def test_the_up_window_waits_for_agreement() -> None:
    acts = Horizontal(Behaviour(up_window=30.0))
    assert acts.settle(0.0, 2, 2) == 2
    assert acts.settle(15.0, 2, 4) == 2
    assert acts.settle(31.0, 2, 4) == 4


def test_a_period_adds_the_more_of_percent_and_pods() -> None:
    acts = Horizontal(Behaviour())
    assert acts.settle(0.0, 2, 50) == 6
    assert acts.settle(1.0, 6, 50) == 6
    assert acts.settle(16.0, 6, 50) == 12


def test_a_period_removes_no_more_than_its_pods() -> None:
    acts = Horizontal(Behaviour(down_window=0.0, remove_pods=1, remove_period=120.0))
    assert acts.settle(0.0, 5, 1) == 4
    assert acts.settle(60.0, 4, 1) == 4
    assert acts.settle(121.0, 4, 1) == 3


# --- laws


def test_fixed_has_a_tenth_more_than_the_peak_needs() -> None:
    assert one(Fixed(PROFILE), view()) == 10  # 1.1 * 42 / 5 = 9.24


def test_hpa_takes_the_greater_metric_and_keeps_within_a_tenth() -> None:
    assert one(Hpa(), view(4, kv=0.75, queue=0)) == 4
    assert one(Hpa(), view(4, kv=0.2, queue=3)) == 6
    assert one(Hpa(), view(4, 3, kv=0.9)) == 7  # never below what starts, on the way up


def test_keda_divides_a_total_by_a_threshold() -> None:
    assert one(Keda(active, 28.0), view(2, running=100)) == 4
    assert one(Keda(active, 50.0), view(2, running=104)) == 2


def test_knative_panics_at_twice_its_replicas_and_then_never_falls_for_a_minute() -> None:
    law = Knative(target=10.0)
    assert one(law, view(2, running=20, now=15.0)) == 2
    assert one(law, view(2, running=60, now=30.0)) == 6
    assert one(law, view(6, running=10, now=60.0)) == 6
    assert one(law, view(6, running=10, now=200.0)) == 3  # no less than half


def test_aibrix_acts_beyond_a_tenth_and_at_most_doubles() -> None:
    assert one(Apa(running_mean, 10.0), view(2, running=21)) == 2
    assert one(Apa(running_mean, 10.0), view(2, running=30)) == 3
    assert one(Apa(running_mean, 10.0), view(2, running=400)) == 4


def test_kubeai_removes_after_half_a_minute_of_agreement() -> None:
    law = KubeAi(target=10.0)
    assert one(law, view(1, running=35, now=15.0)) == 4
    law = KubeAi(target=10.0)
    assert [one(law, view(4, running=5, now=now)) for now in (15.0, 30.0, 45.0)] == [4, 4, 1]


def test_wva_adds_one_without_spare_and_removes_one_that_the_others_can_carry() -> None:
    assert one(WvaSaturation(), view(2, kv=0.75)) == 3
    assert one(WvaSaturation(), view(2, 1, kv=0.75)) == 3  # one starts already
    assert one(WvaSaturation(), view(2, kv=0.9)) == 3
    law = WvaSaturation()
    assert one(law, view(3, kv=0.1, now=15.0)) == 2
    assert one(WvaSaturation(), view(2, kv=0.5)) == 2


def test_wva_by_tokens_keeps_between_its_two_marks() -> None:
    engine_tokens = 80_000.0
    assert one(WvaTokens(PROFILE), view(2, kv=0.6)) == 2
    assert one(WvaTokens(PROFILE), view(2, kv=1.0)) == 3  # 200,000 / 0.85 - 2 * 80,000 = 75,294
    law = WvaTokens(PROFILE)
    assert law._capacity([0.0], [0]) == engine_tokens
    assert law._capacity([30_000.0], [5]) == 30_000.0
    assert law._capacity([0.0], [0]) == 30_000.0


def test_endpoint_pickers_queue_and_running_requests_make_replicas() -> None:
    assert epp_queue(view(2, queue=8, running=20, held=1)) == 7
    assert epp_queue(view(2, running=40)) == 3
    assert epp_guard(view(2, 3, queue=8, running=20, held=1)) == 5
    assert epp_guard(view(2, 3, running=40)) == 3
    assert epp_saturation(view(2, kv=0.4, running=10)) == 1
    assert epp_saturation(view(2, kv=0.6, running=10)) == 2


def test_token_aware_counts_prompt_tokens_and_cache() -> None:
    law = by_tokens(PROFILE)
    assert PROFILE.prefill_rate == pytest.approx(2048 / 0.2148)
    assert law(view(2, waiting_tokens=40_000)) == 3
    assert law(view(4, kv=0.5)) == 3


def test_slo_aware_follows_its_band() -> None:
    fine = recent(0.2, 0.024)
    assert one(SloAware(PROFILE.objectives), view(4, recent=fine)) == 4  # 0.48 is within 0.40 to 0.55
    slow = recent(1.6, 0.02)
    law = SloAware(PROFILE.objectives)
    assert one(law, view(4, now=15.0, recent=slow)) == 6  # 4 + ceil(4 * (0.8 / 0.55 - 1))
    assert one(SloAware(PROFILE.objectives), view(4, 2, recent=slow)) == 6  # credit 4/6: 0.8 * 4/6 < 0.55
    assert one(SloAware(PROFILE.objectives), view(4)) == 3  # silent: no more than one of them goes at once


def test_dynamos_forecasts() -> None:
    assert last([1.0, 2.0, 5.0]) == 5.0
    assert 1.0 < kalman([1.0, 2.0, 5.0]) < 5.0
    assert arima([1.0, 2.0, 3.0, 4.0]) == pytest.approx(5.0)
    assert arima([3.0]) == 3.0


def test_dynamo_sets_a_floor_each_three_minutes_and_moves_by_one_with_latency() -> None:
    law = Dynamo(PROFILE)
    slow, fine = recent(3.0), recent(1.9)
    assert one(law, view(2, now=5.0, recent=slow)) == 3
    assert one(law, view(3, now=10.0, recent=fine)) == 3
    assert one(law, view(2, now=180.0, arrivals=3600, recent=fine)) == 4
    assert one(law, view(5, now=185.0)) == 4


@given(
    st.sampled_from(sorted(BASELINES)),
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 4), st.floats(0.0, 1.0), st.integers(0, 99), st.integers(0, 500)),
        min_size=1,
        max_size=30,
    ),
)
def test_every_law_answers_any_fleet_with_a_number(name: str, ticks: list[tuple[int, int, float, int, int]]) -> None:
    law = BASELINES[name](PROFILE)
    for number, (ready, starting, kv, queue, running) in enumerate(ticks, start=1):
        seen = view(ready, starting, kv=kv, queue=queue, now=law.interval * number, running=running, arrivals=running)
        assert one(law, seen) >= 0


def test_laws_of_a_name_share_no_memory() -> None:
    first, second = BASELINES["kubeai"](PROFILE), BASELINES["kubeai"](PROFILE)
    one(first, view(1, running=1000))
    assert one(second, view(1, running=100)) == 1


def test_a_demand_law_waits_through_its_window() -> None:
    law = Demand(epp_guard, GUARD)
    assert one(law, view(4, now=15.0, running=64)) == 4
    assert one(law, view(4, now=30.0)) == 4
    assert one(law, view(4, now=316.0)) == 1
