"""How many replicas a pool should have, and what it says about it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.autoscale import Wish
from fairlead_operator.decide.replicas import (
    DEFAULT_COLD_START_MS,
    MAX_PEAKS,
    Bounds,
    Inputs,
    Memory,
    Peak,
    Spending,
    bounds_of,
    cold_start_ms,
    cost_text,
    decide,
    remember,
    slots_of,
    window_ms,
)
from tests.builders.decisions import GONE, NOW, bounds, inputs, load, memory, option
from tests.builders.resources import make_pool


def test_demand_above_what_a_replica_holds_adds_one_at_once() -> None:
    decision = decide(inputs(load=load(running=4, waiting=2, held=6)))
    assert (decision.replicas, decision.reason) == (2, "QueueDepth")
    assert decision.message == "4 running + 8 waiting need 2 replicas: one takes 4 running + 2 waiting. No limit bound."
    assert decision.because == "12 requests are above the 6 that 1 replica may hold"
    assert (decision.cost_per_hour_before, decision.cost_per_hour_after) == (2_950_000_000, 5_900_000_000)


def test_a_held_request_wakes_a_pool_at_zero() -> None:
    decision = decide(inputs(bounds=bounds(minimum=0), options=(option(current=0),), load=load(held=1)))
    assert (decision.replicas, decision.reason) == (1, "HeldRequests")
    assert decision.because == "1 request waits and no replica runs"


def test_a_replica_stays_until_a_whole_window_would_have_fitted_without_it() -> None:
    three = (option(current=3),)
    assert decide(inputs(options=three, memory=memory(9))).replicas == 3
    down = decide(inputs(options=three, memory=memory(3)))
    assert (down.replicas, down.reason) == (1, "LowDemand")
    assert down.message == (
        "At most 3 requests at once in 1m32s, the time that a start takes, fit 1 replica: one runs 4. No limit bound."
    )


def test_a_memory_shorter_than_the_window_removes_nothing() -> None:
    assert decide(inputs(options=(option(current=3),), memory=memory(0, minutes=1))).replicas == 3


def test_a_silent_router_keeps_the_number_and_says_who_is_silent() -> None:
    decision = decide(inputs(options=(option(current=4),), load=load(missing=(GONE,))))
    assert (decision.replicas, decision.signals_missing) == (4, True)
    assert decision.message.startswith(
        "No signals from router ai-platform/chat-8b-h100-2mwq8 since 10:59:13Z (47s; 15s allowed). It keeps 4 replicas."
    )


def test_what_the_other_routers_report_still_adds_replicas() -> None:
    assert decide(inputs(load=load(running=13, missing=(GONE,)))).replicas == 3


@pytest.mark.parametrize(("idle_minutes", "replicas"), [(29, 1), (30, 0)])
def test_a_pool_goes_to_zero_after_its_idle_time(idle_minutes: int, replicas: int) -> None:
    last = NOW - idle_minutes * 60_000
    quiet = inputs(bounds=bounds(minimum=0, zero_after_ms=1_800_000), memory=memory(0, last_request_ms=last))
    decision = decide(quiet)
    assert decision.replicas == replicas
    if replicas == 0:
        assert (decision.reason, decision.because) == ("Idle", "no request for 30m")


def test_idle_time_without_any_request_counts_from_when_watching_began() -> None:
    zero = bounds(minimum=0, zero_after_ms=1_800_000)
    assert decide(inputs(bounds=zero, memory=memory(0, minutes=29))).replicas == 1
    assert decide(inputs(bounds=zero, memory=memory(0, minutes=31))).replicas == 0


def test_max_replicas_is_named_when_it_binds() -> None:
    decision = decide(inputs(bounds=bounds(maximum=2), load=load(running=4, held=30)))
    assert (decision.replicas, decision.wanted, decision.bound_by) == (2, 6, "MaxReplicas")
    assert "autoscaling.maxReplicas is 2." in decision.message


def test_a_raised_minimum_is_the_reason_for_the_change() -> None:
    decision = decide(inputs(bounds=bounds(minimum=3)))
    assert (decision.replicas, decision.reason, decision.bound_by) == (3, "MinReplicas", "MinReplicas")
    assert decision.because == "the minimum is 3 (autoscaling.minReplicas)"
    assert decision.message.startswith("The minimum is 3 (autoscaling.minReplicas). 0 running + 0 waiting keep")


def test_a_new_pool_without_signals_says_just_that_its_minimum_is_one() -> None:
    new = inputs(options=(option(current=0),), load=load(missing=(GONE,)))
    decision = decide(new)
    assert (decision.replicas, decision.reason) == (1, "MinReplicas")
    assert decision.message == "The minimum is 1 (autoscaling.minReplicas)."


def test_a_minimum_that_the_variants_reserve_is_named_after_them() -> None:
    decision = decide(inputs(bounds=bounds(minimum=2), options=(option(minimum=2),)))
    assert decision.because == "the minimum is 2 (the variants' minReplicas)"


def test_a_router_whose_clock_is_ahead_keeps_no_pool_awake() -> None:
    seen = remember(Memory(NOW), load(last_request_ms=NOW + 86_400_000), NOW, 30_000)
    assert seen.last_request_ms == NOW


def test_a_lowered_maximum_is_the_reason_for_the_change() -> None:
    decision = decide(inputs(bounds=bounds(maximum=2), options=(option(current=5),), load=load(running=20)))
    assert (decision.replicas, decision.reason) == (2, "MaxReplicas")


def test_variants_without_room_are_named() -> None:
    decision = decide(inputs(options=(option(maximum=2),), load=load(running=4, held=30)))
    assert (decision.replicas, decision.bound_by) == (2, "VariantBounds")
    assert "The variants' maxReplicas allow 2 together." in decision.message


def test_a_fixed_number_is_taken_as_it_is() -> None:
    spec = make_pool("chat").replicas(3).parsed().spec
    decision = decide(inputs(bounds=bounds_of(spec), load=load(missing=(GONE,))))
    assert (decision.replicas, decision.reason, decision.signals_missing) == (3, "ReplicasSet", False)
    assert decision.because == "spec.replicas is 3"


def test_the_cheapest_addition_is_named_when_there_is_a_choice() -> None:
    options = (option("h100", 3), option("l40s", 0, price=1_550_000_000))
    decision = decide(inputs(options=options, load=load(running=12, held=7)))
    assert dict(decision.counts) == {"h100": 3, "l40s": 1}
    assert decision.message.endswith("+1 l40s is the cheapest set.")
    assert (decision.cost_per_hour_before, decision.cost_per_hour_after) == (8_850_000_000, 10_400_000_000)


def test_minimums_of_variants_raise_the_pools() -> None:
    spec = make_pool("chat").variant("a", minReplicas=2).variant("b", minReplicas=1).autoscaling(8).parsed().spec
    assert bounds_of(spec).minimum == 3


def test_slots_are_those_of_the_smallest_variant() -> None:
    spec = (
        make_pool("chat").engine(maxSequences=64).variant("a").variant("b", engine={"maxSequences": 16}).parsed().spec
    )
    assert slots_of(spec) == 16


@pytest.mark.parametrize(
    ("resource", "label", "engine", "slots"),
    [
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", {}, 1024),
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", {"maxBatchedTokens": 512}, 512),
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", {"maxSequences": 64}, 64),
        ("nvidia.com/gpu", "NVIDIA-A100-SXM4-80GB", {}, 256),
        ("nvidia.com/gpu", "NVIDIA-L40S", {}, 256),
        ("nvidia.com/gpu", "a-name-that-nobody-knows", {}, 256),
        ("cpu", "", {}, 128),
    ],
)
def test_an_engine_that_is_told_no_number_takes_what_vllm_takes_on_its_hardware(
    resource: str, label: str, engine: dict[str, int], slots: int
) -> None:
    one = {"accelerator": {"resourceName": resource}, "nodeSelector": {"nvidia.com/gpu.product": label}}
    pool = make_pool("chat").engine(**engine).variant("one", **one)
    assert slots_of(pool.parsed().spec) == slots
    both = pool.variant("l40s", nodeSelector={"nvidia.com/gpu.product": "NVIDIA-L40S"})
    assert slots_of(both.parsed().spec) == min(slots, 256), "of the variants the smallest"


def test_cheap_hardware_is_priced_with_more_places() -> None:
    decision = decide(inputs(options=(option("cpu", 1, price=20_000_000),), load=load(running=4, held=8)))
    assert cost_text(decision) == "0.0200 to 0.0400 USD/h"
    assert cost_text(decide(inputs(options=(option(price=None),)))) == "cost unknown"


def test_a_cold_start_is_the_ninetieth_percentile_of_the_newest() -> None:
    assert cold_start_ms(()) == DEFAULT_COLD_START_MS
    assert cold_start_ms(range(1000, 11_000, 1000)) == 9000
    assert window_ms(1000) == 30_000


def test_memory_keeps_only_the_maxima_that_can_still_matter() -> None:
    seen = Memory(NOW)
    for second, demand in enumerate((9, 3, 5, 2)):
        seen = remember(seen, load(running=demand), NOW + second * 1000, 30_000)
    assert [peak.demand for peak in seen.peaks] == [9, 5, 2]
    assert remember(seen, load(), NOW + 31_000, 30_000).highest == 5


def test_a_round_with_a_silent_router_starts_the_window_anew() -> None:
    seen = remember(memory(5, last_request_ms=NOW - 5), load(missing=(GONE,)), NOW, 30_000)
    assert seen == Memory(NOW, (), NOW - 5)


def test_memory_is_bounded_and_forgets_no_maximum() -> None:
    peaks = tuple(Peak(NOW - 10_000 + place, 10_000 - place) for place in range(MAX_PEAKS))
    seen = remember(Memory(0, peaks), load(running=1), NOW, 60_000)
    assert len(seen.peaks) == MAX_PEAKS
    assert seen.highest == 10_000


demands = st.integers(0, 500)
situations = st.builds(
    lambda current, running, held, seen, minutes, low, high, missing: inputs(
        bounds=bounds(minimum=low, maximum=low + high + 1, zero_after_ms=60_000 if low == 0 else None),
        options=(option("a", current), option("b", current // 2, price=None)),
        load=load(running, held, missing=(GONE,) if missing else ()),
        memory=memory(*seen, minutes=minutes),
    ),
    current=st.integers(0, 20),
    running=demands,
    held=demands,
    seen=st.lists(demands, max_size=4),
    minutes=st.integers(0, 60),
    low=st.integers(0, 5),
    high=st.integers(0, 30),
    missing=st.booleans(),
)


def carried_out(given_inputs: Inputs) -> Inputs:
    decision = decide(given_inputs)
    counts = dict(decision.counts)
    options = tuple(replace(one, current=counts[one.name]) for one in given_inputs.options)
    return replace(given_inputs, options=options)


@given(situations)
def test_the_number_is_always_within_the_bounds(situation: Inputs) -> None:
    decision = decide(situation)
    assert situation.bounds.minimum <= decision.replicas <= situation.bounds.maximum
    assert sum(count for _, count in decision.counts) == decision.replicas


@given(situations)
def test_deciding_again_changes_nothing(situation: Inputs) -> None:
    assert not decide(carried_out(situation)).changed


@given(situations)
def test_unknown_never_lowers(situation: Inputs) -> None:
    blind = replace(situation, load=replace(situation.load, missing=(GONE,)))
    assert decide(blind).replicas >= min(situation.current, situation.bounds.maximum)


@given(situations, st.integers(1, 100))
def test_more_demand_never_gives_fewer_replicas(situation: Inputs, more: int) -> None:
    fuller = replace(situation.load, held=situation.load.held + more, peak=situation.load.peak + more)
    assert decide(replace(situation, load=fuller)).replicas >= decide(situation).replicas


@given(situations)
def test_no_replica_goes_that_the_demand_of_now_needs(situation: Inputs) -> None:
    decision = decide(situation)
    if decision.replicas < situation.current and not decision.bound_by:
        assert situation.load.demand <= decision.replicas * situation.slots


# --- objectives of latency beside the queue, and what may be paid ---


def wish(count: int, **fields: Any) -> Wish:
    """What the law of latency wants of the variant h100."""
    usual: dict[str, Any] = {
        "counts": (("h100", count),), "current": 1, "wanted": count, "reason": "Forecast", "message": "m",
        "because": "b",
    }  # fmt: skip
    return Wish(**(usual | fields))


def test_what_latency_asks_for_is_taken_with_its_reasons_while_the_queue_asks_for_no_more() -> None:
    decision = decide(inputs(latency=wish(3), load=load(running=4, held=6)))
    assert (decision.replicas, decision.reason, decision.message, decision.because) == (3, "Forecast", "m", "b")
    assert (decision.cost_per_hour_before, decision.cost_per_hour_after) == (2_950_000_000, 8_850_000_000)


def test_a_longer_queue_than_latency_reckons_with_adds_replicas() -> None:
    decision = decide(inputs(latency=wish(3), load=load(running=4, held=30)))
    assert (decision.replicas, decision.reason) == (6, "QueueDepth")


def test_the_queue_keeps_no_replica_that_latency_lets_go() -> None:
    busy = memory(40)
    given = inputs(latency=wish(1, reason="Unneeded"), options=(option(current=5),), memory=busy)
    assert (decide(given).replicas, decide(given).reason) == (1, "Unneeded")
    assert decide(replace(given, latency=None)).replicas == 5


def test_replicas_that_the_queue_adds_go_on_top_of_the_variants_that_latency_chose() -> None:
    dear, cheap = option("h100", 0), option("l40s", 0, 1)
    chosen = wish(1, counts=(("h100", 1), ("l40s", 0)))
    decision = decide(inputs(latency=chosen, options=(dear, cheap), load=load(held=14)))
    assert decision.counts == (("h100", 1), ("l40s", 2))


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ("CostPerThousandRequests", "CostPerRequest"),
        ("SpendCap", "Budget"),
        ("MaxReplicas", "MaxReplicas"),
        ("MinReplicas", "MinReplicas"),
        ("VariantBounds", "VariantBounds"),
        ("StepLimit", ""),
        ("", ""),
    ],
)
def test_what_bound_the_law_is_said_in_the_words_of_conditions(bound: str, reason: str) -> None:
    assert decide(inputs(latency=wish(2, bound_by=bound))).bound_by == reason


def test_replicas_that_change_their_variant_are_a_change() -> None:
    options = (option("h100", 1), option("l40s", 0, 1))
    swapped = decide(inputs(latency=wish(1, counts=(("h100", 0), ("l40s", 1))), options=options))
    assert (swapped.replicas, swapped.current, swapped.changed) == (1, 1, True)
    assert not decide(inputs(latency=wish(1))).changed


def test_a_thousand_requests_that_would_cost_too_much_add_nothing_and_take_nothing_away() -> None:
    crowd, dear = load(running=4, held=30), Spending(per_thousand=2_950_000_000, requests_per_hour=2_999)
    decision = decide(inputs(load=crowd, spending=dear))
    assert (decision.replicas, decision.wanted, decision.bound_by) == (2, 6, "CostPerRequest")
    assert decision.message.endswith(
        "One more would cost above 2.95 USD for a thousand requests (maxCostPerThousandRequests)."
    )
    kept = decide(inputs(load=crowd, spending=dear, options=(option(current=4),)))
    assert (kept.replicas, kept.bound_by) == (4, "CostPerRequest")


def test_a_cheaper_variant_is_tried_before_a_limit_of_cost_binds() -> None:
    options = (option("h100", 1), option("l40s", 0, 1_000_000_000))
    limit = Spending(per_thousand=4_000_000_000, requests_per_hour=1_000)
    decision = decide(inputs(load=load(running=4, held=4), spending=limit, options=options))
    assert decision.counts == (("h100", 1), ("l40s", 1))


def test_the_first_replica_of_a_pool_at_zero_is_not_held_back_by_its_cost() -> None:
    limit = Spending(per_thousand=1, requests_per_hour=0)
    given = inputs(bounds=bounds(minimum=0), options=(option(current=0),), load=load(held=30), spending=limit)
    assert decide(given).replicas == 1


def test_what_budgets_do_not_leave_goes_down_to_the_minimum() -> None:
    broke = inputs(load=load(running=40), options=(option(current=8),), spending=Spending(per_hour=0))
    decision = decide(broke)
    assert (decision.replicas, decision.bound_by) == (1, "Budget")
    assert "The budgets leave 0.00 USD/h for the pool." in decision.message
    assert decide(replace(broke, bounds=bounds(minimum=3))).replicas == 3


def test_a_pool_without_a_minimum_goes_to_zero_before_its_last_replica_cannot_be_paid() -> None:
    spent = Spending(per_hour=2_950_000_000, pays_a_replica=False)
    broke = inputs(bounds=bounds(minimum=0), load=load(running=40), options=(option(current=2),), spending=spent)
    decision = decide(broke)
    assert (decision.replicas, decision.reason, decision.bound_by) == (0, "MaxReplicas", "Budget")
    assert decision.message.startswith("The budgets do not pay for a replica until it is gone again.")
    empty = decide(replace(broke, options=(option(current=0),), load=load(held=30)))
    assert (empty.replicas, empty.bound_by) == (0, "Budget")
    unasked = decide(replace(broke, options=(option(current=0),), load=load()))
    assert (unasked.replicas, unasked.wanted, unasked.bound_by) == (0, 1, "Budget")
    assert unasked.message.endswith("The budgets do not pay for a replica until it is gone again.")
    assert decide(replace(broke, options=(option(current=0),), bounds=Bounds(0, 0, 0, 0, None))).bound_by == ""
    free = decide(replace(broke, options=(option(current=2, price=0),)))
    assert (free.replicas, free.bound_by) == (free.wanted, "")
    assert decide(replace(broke, bounds=bounds(minimum=1))).replicas == 1


def test_the_larger_wish_of_the_queue_starts_nothing_that_cannot_be_paid() -> None:
    spent = Spending(per_hour=0, pays_a_replica=False)
    zero = inputs(
        bounds=bounds(minimum=0), latency=wish(0), load=load(held=30), options=(option(current=0),), spending=spent
    )
    assert decide(zero).replicas == 0


def test_a_number_that_somebody_set_is_not_cut_by_money() -> None:
    fixed = Bounds(5, 5, 5, 0, None)
    assert decide(inputs(bounds=fixed, spending=Spending(per_hour=0, per_thousand=0))).replicas == 5


def test_a_price_that_is_not_known_is_above_every_limit() -> None:
    given = inputs(load=load(running=4, held=30), options=(option(price=None),), spending=Spending(per_hour=10**15))
    assert (decide(given).replicas, decide(given).bound_by) == (1, "Budget")


@given(st.integers(0, 200), st.integers(0, 10), st.integers(0, 40), st.integers(1, 100_000))
def test_no_decision_spends_more_than_budgets_leave_above_the_minimum(
    demand: int, current: int, dollars: int, rate: int
) -> None:
    cap = Spending(per_hour=dollars * 10**9, per_thousand=10**9, requests_per_hour=rate)
    decision = decide(inputs(load=load(running=demand), options=(option(current=current),), spending=cap))
    assert decision.cost_per_hour_after is not None
    assert decision.replicas <= 1 or decision.cost_per_hour_after <= dollars * 10**9
