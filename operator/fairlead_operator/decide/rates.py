"""Rate cards: what a token costs, cut from the price of hardware and what it can do."""

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


@dataclass(frozen=True, slots=True)
class Rates:
    """Pico-USD for one token of each kind."""

    prompt_pico: int
    cached_pico: int
    output_pico: int


@dataclass(frozen=True, slots=True)
class PoolCard:
    """A pool's rate card. A version never changes its rates: charges name it."""

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
