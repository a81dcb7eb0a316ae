"""What a pool was measured to do: when it counts as busy, what is counted, and the factors that follow."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.capacity import (
    LONGEST_STEP_MS,
    ROW_MS,
    ROWS_KEPT,
    ROWS_NEEDED,
    ROWS_TO_FIT,
    Evidence,
    Look,
    Row,
    between,
    counters_of,
    is_busy,
    measure,
    note,
    settings_key,
)
from fairlead_operator.decide.pricing import parse_prices
from fairlead_operator.decide.rates import Basis, Factors, Rates, at_basis
from fairlead_operator.decide.signals import Report, Router
from fairlead_router.contract import PoolSignals, Signals
from tests.builders.decisions import GONE, NOW, USD, load
from tests.builders.resources import make_pool

POOL = "ai-platform/chat"
GATEWAY, ONE, TWO = Router("fairlead/gw"), Router("ai-platform/one", POOL), Router("ai-platform/two", POOL)
BASE = Rates(29_501, 2_950, 88_502)
HOURLY = 2_950_000_000
SEEDS = "rateCard: {seeds: {default: {promptTokensPerSecond: 9, cachedTokensPerSecond: 90, outputTokensPerSecond: 3}}}"


def seen(at_ms: int = NOW, counters: Any = None, **fields: Any) -> Look:
    usual: dict[str, Any] = {"key": "k", "busy": True, "cost_per_hour": HOURLY, "base": BASE}
    return Look(at_ms=at_ms, counters={"gw": (0, 0, 0)} if counters is None else counters, **(usual | fields))


def row(uncached: int, cached: int, output: int, cost: int = 1_000_000, busy_ms: int = ROW_MS) -> Row:
    return Row(busy_ms, (uncached, cached, output), cost)


def mixed(mix: tuple[int, int, int], cost: int) -> Row:
    return row(10_000_000 * mix[0], 10_000_000 * mix[1], 10_000_000 * mix[2], cost)


def evidence(*rows: Row) -> Evidence:
    return Evidence("k", None, Row(), rows)


def charged(factors: Factors, rows: Sequence[Row]) -> Fraction:
    """What the rows are charged at the factors, as a share of their cost."""
    kinds = zip(factors, *(one.charges for one in rows), strict=True)
    return Fraction(sum(kind[0] * sum(kind[1:]) for kind in kinds), 1_000_000 * sum(one.cost for one in rows))


# --- busy


def test_a_pool_is_busy_when_requests_fill_most_slots_of_all_its_engines() -> None:
    assert is_busy(POOL, 100, [GATEWAY, ONE, TWO], load(160))
    assert not is_busy(POOL, 100, [GATEWAY, ONE, TWO], load(159))
    assert not is_busy(POOL, 100, [GATEWAY], load(0)), "a pool without engines is not busy"


def test_a_pool_is_not_busy_while_something_about_it_is_not_known() -> None:
    assert not is_busy(POOL, 100, [GATEWAY, ONE], load(100, missing=(GONE,)))
    assert not is_busy(POOL, 100, [GATEWAY, ONE, replace(TWO, terminating=True)], load(200))


def test_nothing_is_measured_where_a_team_may_change_the_router() -> None:
    assert not is_busy(POOL, 100, [GATEWAY, replace(ONE, platform=False)], load(100))
    told = counters_of(POOL, [GATEWAY, replace(ONE, platform=False)], {ONE.router: report(ONE, 9, 1, 1)})
    assert told == {}


def report(router: Router, prompt: int, cached: int, output: int) -> Report:
    totals = PoolSignals(pool=POOL, prompt_tokens_total=prompt, cached_tokens_total=cached, output_tokens_total=output)
    signals = Signals(router=router.router, config_version="", endpoints_version="", pools=(totals,))
    return Report(router.router, NOW, signals)


def test_counters_are_each_routers_totals_with_cached_tokens_apart() -> None:
    reports = {GATEWAY.router: report(GATEWAY, 100, 30, 7), TWO.router: Report(TWO.router, NOW, None)}
    assert counters_of(POOL, [GATEWAY, ONE, TWO], reports) == {GATEWAY.router: (70, 30, 7)}
    assert counters_of("other/pool", [GATEWAY], reports) == {GATEWAY.router: (0, 0, 0)}


# --- what lies between two looks


def test_between_two_looks_lie_what_tokens_are_charged_and_what_replicas_cost() -> None:
    after = seen(NOW + 5000, {"gw": (1000, 200, 50)})
    assert between(seen(), after) == Row(5000, (29_501_000, 590_000, 4_425_100), 2_950_000_000_000 * 5 // 3600)


@pytest.mark.parametrize(
    "after",
    [
        seen(NOW + 5000, busy=False),
        seen(NOW),
        seen(NOW + LONGEST_STEP_MS + 1),
        seen(NOW + 5000, {"gw": (-1, 0, 0)}),
        seen(NOW + 5000, {"gw": (1, 0, 0), "new": (1, 0, 0)}),
        seen(NOW + 5000, cost_per_hour=2 * HOURLY),
        seen(NOW + 5000, base=None),
    ],
)
def test_what_cannot_be_compared_is_not_counted(after: Look) -> None:
    assert between(seen(), after) is None
    assert note(Evidence("k", seen()), after) == Evidence("k", after)


def test_a_pool_whose_cost_is_not_known_is_not_measured() -> None:
    assert between(seen(cost_per_hour=0), seen(NOW + 5000, cost_per_hour=0)) is None


def test_looks_add_up_to_rows_and_only_the_newest_rows_stay() -> None:
    found = note(Evidence(), seen())
    for number in range(1, 60 * (ROWS_KEPT + 3) + 31):
        found = note(found, seen(NOW + 5000 * number, {"gw": (100 * number, 0, 10 * number)}))
    assert len(found.rows) == ROWS_KEPT
    assert found.rows[0].busy_ms == ROW_MS
    assert found.filling.busy_ms == ROW_MS // 2
    assert found.rows[0].charges == (6000 * 29_501, 0, 600 * 88_502)


def test_other_settings_forget_what_was_measured() -> None:
    old = Evidence("k", seen(), row(1, 1, 1), (row(1, 1, 1),))
    other = seen(NOW + 5000, key="other")
    assert note(old, other) == Evidence("other", other)


def test_the_key_is_about_what_an_engine_can_do_and_not_about_how_many_there_are() -> None:
    pool, prices = make_pool("chat").variant("h100").autoscaling(8), parse_prices(SEEDS)
    key = settings_key(pool.parsed().spec, prices)
    assert settings_key(make_pool("chat").variant("h100").autoscaling(9).parsed().spec, prices) == key
    assert settings_key(make_pool("chat").variant("l40s").autoscaling(8).parsed().spec, prices) != key
    assert settings_key(pool.parsed().spec, parse_prices(SEEDS.replace("90", "91"))) != key


# --- the factors


def test_without_enough_busy_time_nothing_is_said_but_how_much_there_is() -> None:
    told = measure(evidence(*[row(500_000, 0, 500_000)] * (ROWS_NEEDED - 1)))
    assert told.factors is None
    assert told.reason == "capacity not measured yet, 25m of 30m of busy time"


def test_one_mix_scales_all_seeds_by_one_factor() -> None:
    told = measure(evidence(*[row(1_000_000, 200_000, 800_000)] * ROWS_TO_FIT))
    assert told.factors == (500_000, 500_000, 500_000)
    assert told.reason == "the seeds' proportions scaled to 45m of busy time, 0.5 of the seeds'"


def test_time_in_which_the_same_work_took_very_different_time_measures_nothing() -> None:
    told = measure(evidence(*[row(1_000_000, 0, 0), row(2_000_000, 0, 0)] * ROWS_NEEDED))
    assert told.factors is None
    assert told.reason == "capacity not measured, 60m of busy time differ by 50%"


def test_busy_time_without_tokens_measures_nothing() -> None:
    told = measure(evidence(*[row(1, 1, 1)] * ROWS_NEEDED, row(0, 0, 0)))
    assert told.factors is None
    assert "without tokens" in told.reason


def test_mixes_that_vary_tell_the_kinds_apart() -> None:
    truth = (400_000, 300_000, 700_000)
    mixes = [(1, 4, 2), (4, 1, 2), (2, 2, 5), (5, 3, 1), (1, 1, 6), (3, 6, 1), (6, 2, 2), (2, 5, 4), (3, 3, 3)]
    rows = [mixed(mix, _cost(truth, mix)) for mix in mixes]
    told = measure(evidence(*rows))
    assert told.factors == truth
    assert told.reason == "fitted by kind of token to 45m of busy time, 0.4/0.3/0.7 of the seeds'"


def test_a_fit_that_no_row_agrees_with_is_not_believed() -> None:
    mixes = [(1, 4, 2), (4, 1, 2), (2, 2, 5), (5, 3, 1), (1, 1, 6), (3, 6, 1), (6, 2, 2), (2, 5, 4), (3, 3, 3)]
    rows = [mixed(mix, 40_000_000 + 9_000_000 * (n % 3)) for n, mix in enumerate(mixes)]
    assert "fitted" not in measure(evidence(*rows)).reason


def test_a_kind_that_never_comes_cannot_be_fitted() -> None:
    rows = [row(10_000_000 * n, 0, 10_000_000 * (10 - n), cost=10_000_000 * 10) for n in range(1, 10)]
    assert measure(evidence(*rows)).factors == (1_000_000,) * 3


def _cost(factors: Factors, mix: tuple[int, int, int]) -> int:
    return sum(10 * factor * part for factor, part in zip(factors, mix, strict=True))


MIXES = st.tuples(*[st.integers(10_000_000, 10_000_000_000)] * 3)
ROWS = st.lists(
    st.builds(lambda mix, cost: row(mix[0], mix[1], mix[2], cost), MIXES, st.integers(10_000_000, 10**10)),
    max_size=ROWS_KEPT,
)


@given(ROWS)
def test_whenever_there_is_a_measure_its_busy_time_is_charged_what_it_cost(rows: list[Row]) -> None:
    told = measure(evidence(*rows))
    assert told.reason
    if told.factors is not None:
        assert len(rows) >= ROWS_NEEDED
        assert min(told.factors) > 0
        # Factors are whole millionths.
        assert abs(charged(told.factors, rows) - 1) <= Fraction(1, min(told.factors))


@given(MIXES, st.integers(1, 8), st.integers(100_000_000, 20 * USD), st.integers(0, 4))
def test_a_full_replica_hour_of_the_measured_mix_is_charged_the_price_of_the_hour(
    mix: tuple[int, int, int], replicas: int, price: int, speed: int
) -> None:
    tokens = tuple(max(1, one // 10_000_000 * 2**speed) for one in mix)
    found = note(Evidence(), seen(cost_per_hour=replicas * price))
    for number in range(1, 60 * ROWS_NEEDED + 1):
        counters = {"gw": tuple(one * replicas * number for one in tokens)}
        found = note(found, seen(NOW + 5000 * number, counters, cost_per_hour=replicas * price))
    factors = measure(found).factors
    assert factors is not None
    rates = at_basis(BASE, Basis(factors, "k"))
    pico = sum(
        rate * 720 * one
        for rate, one in zip((rates.prompt_pico, rates.cached_pico, rates.output_pico), tokens, strict=True)
    )
    # A rate is whole pico-USD and a factor whole millionths: a token may be off by half of one and of the other.
    slack = sum(720 * one for one in tokens) + pico // min(factors) + 720 * 1000
    assert abs(pico - price * 1000) <= slack
