"""Rate cards: what a token costs, cut from the price of hardware and what it can do."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairlead_operator.decide.pricing import (
    PriceList,
    Seeds,
    VariantHardware,
    VariantPrice,
    half_even,
    seeds_for,
)
from fairlead_router.contract import PICO_PER_NANO, Card, CardRow

SECONDS_PER_HOUR = 3600
SOURCE_SEED = "Seed"
SOURCE_MEASURED = "Measured"
ONE_PPM = 1_000_000
CHANGE_EVERY_MS = 3_600_000
STEP_PERCENT = 25
"""A measure moves a rate by at most this in one change."""
DEADBAND_PERCENT = 5
"""A measure that differs by at most this from what is in force changes nothing."""
LEAST_PPM, MOST_PPM = ONE_PPM // 10, ONE_PPM * 10
"""However a measure turns out, rates stay within a tenth and ten times those of the seeds."""
_MEASURED = re.compile(r"Measured ([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9}) ppm of seeds, ([0-9a-f]{1,64})", re.ASCII)

Factors = tuple[int, int, int]
"""On the seeds' rates, in millionths: uncached prompt, cached prompt, output."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Pico-USD for one token of each kind."""

    prompt_pico: int
    cached_pico: int
    output_pico: int


@dataclass(frozen=True, slots=True)
class Basis:
    """What a measured card is cut from: factors on the seeds' rates, for the settings that ``key`` names."""

    factors: Factors
    key: str

    @property
    def text(self) -> str:
        """The source of a card, from which the next leader reads the basis again."""
        return f"{SOURCE_MEASURED} {'/'.join(str(one) for one in self.factors)} ppm of seeds, {self.key}"


@dataclass(frozen=True, slots=True)
class PoolCard:
    """A pool's rate card. A version never changes its rates: charges name it.

    ``source`` is ``Seed``, or the text of a ``Basis``.
    """

    version: int
    rates: Rates
    source: str
    at_ms: int


def card_from_seeds(per_hour: int, seeds: Seeds) -> Rates:
    """Rates of hardware that costs ``per_hour`` nano-USD and does the seeds' tokens in a second, half to even."""
    hour = per_hour * PICO_PER_NANO
    prompt, cached, output = (
        half_even(hour, SECONDS_PER_HOUR * speed) for speed in (seeds.prompt, seeds.cached, seeds.output)
    )
    return Rates(prompt, cached, output)


def dearest(rates: Iterable[Rates]) -> Rates | None:
    """The highest of each rate: until capacities are measured, no variant's requests are charged below its cost."""
    listed = list(rates)
    if not listed:
        return None
    return Rates(
        max(one.prompt_pico for one in listed),
        max(one.cached_pico for one in listed),
        max(one.output_pico for one in listed),
    )


def pool_rates(
    prices: PriceList, hardwares: Sequence[VariantHardware], variant_prices: Mapping[str, VariantPrice]
) -> Rates | None:
    """The pool's rates; ``None`` while a variant has no price or no seeds. Seeds are for one accelerator (one CPU)."""
    found = []
    for hardware in hardwares:
        price, seeds = variant_prices[hardware.name].accelerator, seeds_for(prices, hardware)
        if price is None or seeds is None:
            return None
        found.append(card_from_seeds(price, seeds))
    return dearest(found)


def basis_of(card: PoolCard | None) -> Basis | None:
    """What a card is cut from; ``None`` for one that is cut from seeds."""
    found = _MEASURED.fullmatch(card.source) if card is not None else None
    if found is None:
        return None
    prompt, cached, output, key = found.groups()
    return Basis((int(prompt), int(cached), int(output)), key)


def next_basis(last: PoolCard | None, factors: Factors | None, key: str, now_ms: int) -> Basis | None:
    """What the next card is cut from. Of other settings nothing is measured: their card is cut from seeds at once.

    Else a measure moves the factors in force, at most once an hour after the last card and by a bounded step; without
    one (``factors`` is ``None``) they stay.
    """
    held = basis_of(last)
    held = held if held is not None and held.key == key else None
    if factors is None or last is None or now_ms - last.at_ms < CHANGE_EVERY_MS:
        return held
    before = (ONE_PPM, ONE_PPM, ONE_PPM) if held is None else held.factors
    pairs = tuple(zip(before, factors, strict=True))
    if held is not None and all(abs(new - old) * 100 <= DEADBAND_PERCENT * old for old, new in pairs):
        return held
    prompt, cached, output = (_step(old, new) for old, new in pairs)
    return Basis((prompt, cached, output), key)


def at_basis(rates: Rates, basis: Basis | None) -> Rates:
    """The seeds' rates times the factors, half to even; what is not free stays so."""
    if basis is None:
        return rates
    prompt, cached, output = basis.factors
    return Rates(
        _times(rates.prompt_pico, prompt), _times(rates.cached_pico, cached), _times(rates.output_pico, output)
    )


def source_of(basis: Basis | None) -> str:
    """The source of a card that is cut from ``basis``."""
    return SOURCE_SEED if basis is None else basis.text


def source_word(source: str) -> str:
    """``Seed`` or ``Measured``, as the status shows it."""
    return source.partition(" ")[0]


def next_card(last: PoolCard | None, rates: Rates | None, source: str, now_ms: int) -> PoolCard | None:
    """The card in force: the last one while its rates hold, else the next version; ``None`` without rates."""
    if rates is None:
        return None
    if last is not None and last.rates == rates and last.source == source:
        return last
    return PoolCard(1 if last is None else last.version + 1, rates, source, now_ms)


def wire_card(card: PoolCard) -> Card:
    """The card as routers get it."""
    rates = card.rates
    return Card(
        version=card.version,
        prompt_pico=rates.prompt_pico,
        cached_pico=rates.cached_pico,
        output_pico=rates.output_pico,
    )


def card_row(pool: str, card: PoolCard) -> CardRow:
    """The card as the ledger stores it."""
    rates = card.rates
    return CardRow(
        pool=pool,
        version=card.version,
        prompt_pico=rates.prompt_pico,
        cached_pico=rates.cached_pico,
        output_pico=rates.output_pico,
        source=card.source,
        at_ms=card.at_ms,
    )


def card_of(row: CardRow) -> PoolCard:
    """The stored card, after a restart."""
    return PoolCard(row.version, Rates(row.prompt_pico, row.cached_pico, row.output_pico), row.source, row.at_ms)


def _step(old: int, new: int) -> int:
    bounded = max(old * (100 - STEP_PERCENT) // 100, min(new, old * (100 + STEP_PERCENT) // 100))
    return max(LEAST_PPM, min(bounded, MOST_PPM))


def _times(rate: int, factor: int) -> int:
    return max(min(rate, 1), half_even(rate * factor, ONE_PPM))
