"""Whether drafts pay, and what would pay more."""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.speculation import (
    GAIN,
    HALF_LIFE_S,
    Advice,
    Counted,
    Judgement,
    Missing,
    Setting,
    count,
    judge,
    kept_by_place,
    place_shares,
)
from fairlead_operator.performance.step import StepTime
from fairlead_router.contract import EngineSignals

STEP = StepTime(base=0.010, per_context_token=1e-8, per_token=2e-5)
"""Of a model of 8 billion parameters in 16 bits on an H100, about."""
PRICE = 3.0
DATA = Path(__file__).parents[1] / "bench" / "data" / "acceptance_lengths.csv"
NGRAM = Setting("ngram", tokens=4, max_batch=0, slots=256)
DRAFT = Setting("draft_model", tokens=4, max_batch=0, slots=256)


def counted(*shares: float, batch: float = 8.0, drafting: float = 1.0, drafted: float = 4.0) -> Counted:
    """10,000 steps of sequences, a share of them with drafts of so many tokens, of which these shares are kept."""
    steps = 10_000.0
    drafts = drafting * steps
    return Counted(
        told=True,
        drafts=drafts,
        drafted=drafted * drafts,
        kept=tuple(share * drafts for share in shares),
        steps=steps,
        step_s=steps * 0.012,
        sequences=steps * batch,
        context=steps * batch * 1_000,
        prompts=0.0,
        watched_s=steps * 0.012 / batch,
    )


def judged(found: Counted, setting: Setting = NGRAM, **changes: Any) -> Judgement:
    known: dict[str, Any] = {"step": STEP, "cost": 0.0, "usd_per_hour": PRICE}
    return judge(found, setting, **(known | changes))


# --- what is known ---


def test_without_counters_nothing_is_known_and_it_says_so() -> None:
    assert judged(Counted()) == Judgement(Advice.UNKNOWN, Missing.COUNTERS, tokens=4)


def test_a_few_drafts_say_nothing_of_what_is_kept() -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4, drafting=0.01))
    assert (found.advice, found.missing, found.batch, found.acceptance) == (
        Advice.UNKNOWN,
        Missing.DRAFTS,
        8.0,
        None,
    )


@pytest.mark.parametrize(
    ("changes", "missing"), [({"step": None}, Missing.STEP), ({"cost": None}, Missing.COST)], ids=["step", "cost"]
)
def test_without_the_time_of_a_step_or_a_draft_only_what_is_kept_is_known(
    changes: dict[str, Any], missing: Missing
) -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4), **changes)
    assert (found.advice, found.missing) == (Advice.UNKNOWN, missing)
    assert found.acceptance == pytest.approx(2.3 / 4)
    assert found.length == pytest.approx(3.3)
    assert found.speed_up is None


def test_a_variant_without_a_price_is_advised_without_dollars() -> None:
    found = judged(counted(0.9, 0.85, 0.8, 0.75), usd_per_hour=None)
    assert found.advice is Advice.MORE
    assert (found.usd_per_million, found.usd_per_million_advised, found.usd_per_hour) == (None, None, None)


# --- the speed-up ---


def test_the_speed_up_is_the_tokens_of_a_step_over_how_much_longer_it_takes() -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4))
    plain = STEP.step(8, 0, 8_000)
    assert found.speed_up == pytest.approx(3.3 * plain / (plain + STEP.per_token * 8 * 4))


def test_drafting_itself_makes_a_step_longer() -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4), DRAFT, cost=0.05)
    step = STEP.step(8, 0, 8_000)
    plain = (step - STEP.per_token * 8) / 1.2 + STEP.per_token * 8
    assert found.speed_up == pytest.approx(3.3 * plain / (plain * 1.2 + STEP.per_token * 8 * 4))


def test_prompts_take_their_time_with_drafts_or_without() -> None:
    found = judged(replace(counted(0.8, 0.6, 0.5, 0.4), prompts=33_000 * 50.0))
    plain, prompts = STEP.step(8, 0, 8_000), STEP.per_token * 8 * 50
    assert found.speed_up == pytest.approx(3.3 * (plain + prompts) / (plain + STEP.per_token * 8 * 4 + 3.3 * prompts))
    assert (found.speed_up or 0) < (judged(counted(0.8, 0.6, 0.5, 0.4)).speed_up or 0)


def test_where_ngrams_are_found_in_some_steps_only_those_are_faster() -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4, drafting=0.25))
    plain = STEP.step(8, 0, 8_000)
    assert found.speed_up == pytest.approx((1 + 0.25 * 2.3) * plain / (plain + 0.25 * STEP.per_token * 8 * 4))
    assert found.length == pytest.approx(3.3), "of a step that has a draft"


def test_drafts_pay_up_to_the_batch_at_which_the_speed_up_is_one() -> None:
    pays_below = judged(counted(0.5, 0.3, 0.15, 0.05)).pays_below
    assert pays_below is not None
    assert math.isfinite(pays_below)
    at = judged(counted(0.5, 0.3, 0.15, 0.05, batch=pays_below))
    assert at.speed_up == pytest.approx(1.0)
    assert (judged(counted(0.5, 0.3, 0.15, 0.05, batch=pays_below / 2)).speed_up or 0) > 1


# --- advice ---


def test_more_tokens_are_advised_where_nearly_all_are_kept() -> None:
    found = judged(counted(0.95, 0.92, 0.9, 0.88))
    assert found.advice is Advice.MORE
    assert found.tokens == 8, "twice what is drafted now, as nothing is known farther off"
    assert found.speed_up is not None
    assert found.speed_up_advised is not None
    assert found.speed_up_advised > GAIN * found.speed_up


def test_fewer_tokens_are_advised_where_the_last_are_seldom_kept_and_the_batch_is_large() -> None:
    found = judged(counted(0.7, 0.2, 0.02, 0.0, batch=128))
    assert found.advice is Advice.FEWER
    assert found.tokens == 1
    assert (found.speed_up_advised or 0) > (found.speed_up or 0)


def test_drafts_are_advised_against_where_a_draft_costs_more_than_it_yields() -> None:
    found = judged(counted(0.2, 0.05, 0.0, 0.0), DRAFT, cost=0.3)
    assert (found.advice, found.pays_below, found.speed_up_advised) == (Advice.OFF, 0.0, 1.0)
    assert (found.speed_up or 0) < 1
    assert (found.usd_per_hour or 0) > 0


def test_a_batch_at_which_drafts_begin_to_cost_is_advised_as_the_largest() -> None:
    busy = counted(0.2, batch=200)
    setting = replace(NGRAM, tokens=1)
    found = judged(replace(busy, drafted=busy.drafts), setting)
    assert found.advice is Advice.LIMIT
    assert found.max_batch == int(found.pays_below or 0) == 142
    assert (found.speed_up or 1) < 1 == found.speed_up_advised
    assert (found.usd_per_hour or 0) > 0


def test_above_the_largest_batch_nothing_is_drafted_and_a_higher_limit_is_advised_if_it_pays() -> None:
    found = judged(counted(0.9, 0.8, 0.7, 0.6, batch=40, drafting=0.1), replace(DRAFT, max_batch=8, slots=64))
    assert found.speed_up == 1.0
    assert found.advice is Advice.LIMIT
    assert found.max_batch == 0
    assert (found.speed_up_advised or 0) > 2


def test_a_setting_that_is_near_the_best_is_kept() -> None:
    found = judged(counted(0.8, 0.5, 0.3, 0.05), replace(NGRAM, max_batch=230))
    assert found.advice is Advice.KEEP
    assert (found.tokens, found.max_batch) == (4, 230)
    assert found.speed_up_advised == found.speed_up
    assert found.usd_per_hour == 0


# --- dollars ---


def test_a_million_tokens_cost_what_a_replica_costs_while_it_makes_them() -> None:
    found = judged(counted(0.8, 0.6, 0.5, 0.4))
    seconds = 1e6 / (8 * 3.3 / 0.012)
    assert found.usd_per_million == pytest.approx(PRICE * seconds / 3600)


def test_the_dollars_of_an_advice_are_those_of_the_present_load() -> None:
    found = judged(counted(0.95, 0.92, 0.9, 0.88))
    now, advised = found.usd_per_million or 0, found.usd_per_million_advised or 0
    tokens_per_hour = 8 * 4.65 / 0.012 * 3600
    assert found.usd_per_hour == pytest.approx((now - advised) * tokens_per_hour / 1e6)
    assert found.usd_per_hour == pytest.approx(PRICE * (1 - (found.speed_up or 0) / (found.speed_up_advised or 1)))


# --- places ---


def test_what_is_kept_never_rises_along_a_draft() -> None:
    assert kept_by_place(counted(0.5, 0.6, 0.2)) == (0.5, 0.5, 0.2)


def measured() -> list[list[float]]:
    """Published mean tokens a step by drafted tokens, from one on, of each model (tests/bench/data/NOTICE)."""
    lengths: dict[tuple[str, ...], list[float]] = {}
    with DATA.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            key = (row["model"], row["drafter"], row["thinking"], row["run"])
            lengths.setdefault(key, []).append(float(row["mean_length"]))
    return list(lengths.values())


def shares_of(lengths: Sequence[float]) -> tuple[float, ...]:
    """What was kept at each place; means measured apart may rise from one place to the next, shares do not."""
    steps = [max(0.0, after - before) for before, after in zip((1.0, *lengths), lengths, strict=False)]
    return tuple(min(steps[: place + 1]) for place in range(len(steps)))


def test_places_that_were_never_drafted_are_kept_about_as_measurements_say() -> None:
    errors = [
        (1 + sum(place_shares(shares_of(lengths)[:drafted], 2 * drafted))) / lengths[2 * drafted - 1] - 1
        for lengths in measured()
        for drafted in (1, 2, 3)
    ]
    assert len(errors) > 40
    assert sum(abs(error) for error in errors) / len(errors) < 0.05
    assert max(abs(error) for error in errors) < 0.18


@pytest.mark.parametrize("lengths", measured())
def test_measured_lengths_pay_for_a_lone_sequence_and_less_for_a_full_batch(lengths: Sequence[float]) -> None:
    lone = judged(counted(*shares_of(lengths)[:4], batch=1), DRAFT, cost=0.02)
    busy = judged(counted(*shares_of(lengths)[:4], batch=250), DRAFT, cost=0.02)
    assert (busy.speed_up or 0) < (lone.speed_up or 0)
    assert (lone.speed_up or 0) > 2
    assert busy.advice is not Advice.MORE


# --- counting ---


def reading(drafts: int, *kept: int, steps: int = 0, seconds: float = 0.0, **more: Any) -> EngineSignals:
    told: dict[str, Any] = {
        "drafts_total": drafts, "draft_tokens_total": 4 * drafts, "accepted_total": sum(kept), "kv_tokens": 10_000,
        "accepted_by_position": kept, "gaps_total": steps, "gaps_us_total": int(1e6 * seconds), "computed_total": 0,
        "running": 2, "kv_permille": 200,
    }  # fmt: skip
    return EngineSignals(**(told | more))


BEFORE = reading(100, 90, 50, steps=1000, seconds=10)
AFTER = reading(300, 240, 100, steps=1250, seconds=20, computed_total=500)


def test_counts_are_differences_of_an_engines_totals() -> None:
    found = count(Counted(), [(BEFORE, AFTER, 5.0)], 5.0)
    assert found == Counted(
        told=True, drafts=200, drafted=800, kept=(150, 50), steps=250, step_s=10, sequences=500, context=500_000,
        prompts=500, watched_s=5,
    )  # fmt: skip
    assert (found.batch, found.tokens, found.tokens_per_step) == (2.0, 450, 1.8)


def test_engines_are_added_up_and_what_was_counted_fades() -> None:
    once = count(Counted(), [(BEFORE, AFTER, 5.0)], 5.0)
    assert count(Counted(), [(BEFORE, AFTER, 5.0)] * 2, 5.0).drafts == 400
    later = count(once, [], HALF_LIFE_S)
    assert (later.told, later.drafts, later.kept) == (True, 100, (75, 25))
    assert later.watched_s == pytest.approx(2.5 + HALF_LIFE_S)


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (EngineSignals(), EngineSignals(), 5.0),
        (BEFORE, EngineSignals(gaps_total=1, gaps_us_total=1, computed_total=1), 5.0),
        (AFTER, BEFORE, 5.0),
        (BEFORE, AFTER, 0.0),
        (BEFORE, reading(300, 240, 100, steps=900, seconds=20), 5.0),
    ],
    ids=["says nothing", "does not draft", "began anew", "at once", "fewer steps"],
)
def test_readings_that_do_not_follow_each_other_count_nothing(
    before: EngineSignals, after: EngineSignals, seconds: float
) -> None:
    assert count(Counted(), [(before, after, seconds)], 5.0) == Counted(watched_s=5.0)


def test_an_engine_that_does_not_tell_the_places_counts_nothing() -> None:
    assert not count(Counted(), [(BEFORE, reading(300, steps=1250, seconds=20, accepted_total=340), 5.0)], 5.0).told


# --- anything ---

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(
    SHARES,
    st.floats(0.01, 4096),
    st.floats(0, 1),
    st.sampled_from(["ngram", "draft_model"]),
    st.integers(1, 32),
    st.sampled_from([0, 1, 16, 4096]),
    st.floats(0, 3),
    st.floats(1e-6, 1.0),
    st.floats(0, 1e-3),
)
def test_an_advice_never_promises_less_than_what_runs(  # noqa: PLR0917 - what a judgement is made of
    shares: list[float], batch: float, drafting: float, method: str, tokens: int, limit: int, cost: float, base: float,
    each: float,
) -> None:  # fmt: skip
    found = judge(
        counted(*shares, batch=batch, drafting=drafting),
        Setting(method, tokens, limit, 256),
        StepTime(base, 1e-9, each),
        cost,
        PRICE,
    )
    if found.missing:
        assert found.speed_up is None
        return
    assert found.speed_up is not None
    assert found.speed_up_advised is not None
    assert found.speed_up_advised >= found.speed_up * (1 - 1e-9)
    assert 0 <= (found.acceptance or 0) <= 1
    assert 0 <= found.max_batch <= 4096
    assert 1 <= found.tokens <= 32
    assert (found.usd_per_hour or 0) >= -1e-9


TOTALS = st.integers(-1, 2**63 - 1) | st.integers(-1, 2000)
TOLD = st.builds(
    EngineSignals,
    drafts_total=TOTALS,
    draft_tokens_total=TOTALS,
    accepted_total=TOTALS,
    accepted_by_position=st.lists(TOTALS, max_size=3).map(tuple),
    gaps_total=TOTALS,
    gaps_us_total=TOTALS,
    computed_total=TOTALS,
    running=TOTALS,
    kv_permille=TOTALS,
    kv_tokens=TOTALS,
)


def agreeing(one: EngineSignals) -> EngineSignals:
    return msgspec.structs.replace(one, accepted_total=sum(one.accepted_by_position))


@given(
    st.lists(st.tuples(TOLD.map(agreeing) | TOLD, TOLD.map(agreeing), st.floats(0, 1e5)), max_size=3), st.floats(0, 1e9)
)
def test_whatever_engines_tell_there_is_a_judgement_and_no_share_above_all(
    readings: list[tuple[EngineSignals, EngineSignals, float]], passed: float
) -> None:
    for step in (STEP, StepTime(0, 0, 0)):
        found = judged(count(Counted(), readings, passed), step=step)
        assert 0 <= (found.acceptance or 0) <= 1
        assert 1 <= (found.length or 1) <= 33


def test_counts_that_cannot_be_are_not_counted() -> None:
    more_kept_than_drafted = reading(300, 400, 100, steps=1250, seconds=20)
    too_few_tokens = reading(300, 240, 100, steps=1250, seconds=20, draft_tokens_total=450)
    for after in (more_kept_than_drafted, too_few_tokens):
        assert not count(Counted(), [(BEFORE, after, 5.0)], 5.0).told
