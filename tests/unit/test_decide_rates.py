"""From one rate card to the next: what a measure moves, how far and how often, and what survives a restart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_operator.decide.rates import (
    CHANGE_EVERY_MS,
    LEAST_PPM,
    MOST_PPM,
    ONE_PPM,
    Basis,
    Factors,
    PoolCard,
    Rates,
    at_basis,
    basis_of,
    card_of,
    card_row,
    next_basis,
    next_card,
    source_of,
    source_word,
)
from tests.builders.decisions import NOW

BASE = Rates(29_501, 2_950, 88_502)
KEY = "0a1b2c3d"
FACTORS = st.tuples(*[st.integers(1, 10**9)] * 3)
LATER = NOW + CHANGE_EVERY_MS


def card(basis: Basis | None = None, version: int = 3, at_ms: int = NOW) -> PoolCard:
    return PoolCard(version, at_basis(BASE, basis), source_of(basis), at_ms)


def same(factor: int) -> Factors:
    return (factor, factor, factor)


@given(FACTORS)
def test_what_a_card_is_cut_from_survives_the_ledger_and_a_restart(factors: Factors) -> None:
    basis = Basis(factors, KEY)
    stored = card_of(card_row("a/b", card(basis)))
    assert basis_of(stored) == (basis if max(factors) < 10**9 else None)
    assert source_word(stored.source) == "Measured"


@pytest.mark.parametrize(
    "source", ["Seed", "", "Measured", "Measured 1/2 ppm of seeds, ab", "Measured ١/2/3 ppm of seeds, ab"]
)
def test_another_source_is_no_measure(source: str) -> None:
    assert basis_of(PoolCard(1, BASE, source, NOW)) is None
    assert basis_of(None) is None


def test_the_first_measure_moves_the_seeds_by_one_step_and_only_after_an_hour() -> None:
    assert next_basis(card(), same(200_000), KEY, LATER - 1) is None
    assert next_basis(card(), same(200_000), KEY, LATER) == Basis(same(750_000), KEY)
    assert next_basis(None, same(200_000), KEY, LATER) is None, "a pool begins with its seeds"


def test_a_measure_that_agrees_with_the_seeds_is_still_one() -> None:
    assert next_basis(card(), same(1_010_000), KEY, LATER) == Basis(same(1_010_000), KEY)


def test_steps_lead_to_the_measure_and_end_there() -> None:
    last, steps, now = card(), 0, NOW
    while (basis := next_basis(last, same(200_000), KEY, now := now + CHANGE_EVERY_MS)) != basis_of(last):
        last, steps = card(basis, last.version + 1, now), steps + 1
    assert basis_of(last) == Basis(same(200_000), KEY)
    assert steps == 6


def test_a_small_difference_changes_nothing() -> None:
    held = Basis((500_000, 400_000, 600_000), KEY)
    assert next_basis(card(held), (524_000, 381_000, 630_000), KEY, LATER) == held
    assert next_basis(card(held), (530_000, 400_000, 600_000), KEY, LATER) == Basis((530_000, 400_000, 600_000), KEY)


def test_without_a_measure_the_last_one_stays() -> None:
    held = Basis(same(500_000), KEY)
    assert next_basis(card(held), None, KEY, LATER) == held


def test_other_settings_are_charged_by_their_seeds_at_once() -> None:
    held = Basis(same(500_000), KEY)
    assert next_basis(card(held), None, "ffff", NOW + 1) is None
    assert next_basis(card(held), same(500_000), "ffff", LATER) == Basis(same(750_000), "ffff")


@given(FACTORS, FACTORS)
def test_a_step_is_bounded_and_stays_within_the_bounds_of_the_seeds(before: Factors, wanted: Factors) -> None:
    clamped = [max(LEAST_PPM, min(one, MOST_PPM)) for one in before]
    held = Basis((clamped[0], clamped[1], clamped[2]), KEY)
    found = next_basis(card(held), wanted, KEY, LATER)
    assert found is not None
    for old, new, aim in zip(held.factors, found.factors, wanted, strict=True):
        assert old * 3 // 4 <= new <= old * 5 // 4
        assert LEAST_PPM <= new <= MOST_PPM
        assert min(old, aim) <= new <= max(old, aim) or new in {LEAST_PPM, MOST_PPM, old * 3 // 4, old * 5 // 4}


@given(st.integers(0, 10**12), st.integers(LEAST_PPM, MOST_PPM))
def test_no_rate_but_one_of_zero_becomes_zero(rate: int, factor: int) -> None:
    found = at_basis(Rates(rate, rate, rate), Basis(same(factor), KEY)).prompt_pico
    assert (found == 0) == (rate == 0)
    assert abs(found * ONE_PPM - rate * factor) <= max(ONE_PPM // 2, ONE_PPM - rate * factor)


def test_a_price_that_changes_counts_at_once_and_keeps_the_measure() -> None:
    last = card(Basis(same(500_000), KEY))
    basis = next_basis(last, same(300_000), KEY, NOW + 5)
    dearer = next_card(last, at_basis(Rates(60_000, 6_000, 180_000), basis), source_of(basis), NOW + 5)
    assert dearer is not None
    assert dearer.version == last.version + 1
    assert dearer.rates == Rates(30_000, 3_000, 90_000)
    assert source_word(dearer.source) == "Measured"
