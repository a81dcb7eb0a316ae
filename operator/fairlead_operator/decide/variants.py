"""Which hardware the replicas run on: the cheapest whole numbers within the variants' bounds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fairlead_operator.api.v1alpha1 import ModelPoolSpec

Counts = tuple[tuple[str, int], ...]
"""Replicas by variant, in the order of the spec."""


@dataclass(frozen=True, slots=True)
class VariantOption:
    """One variant to choose from. ``price`` is nano-USD for a replica-hour; unknown counts as the dearest."""

    name: str
    current: int = 0
    minimum: int = 0
    maximum: int | None = None
    price: int | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A distribution; ``short`` replicas found no variant with room."""

    counts: Counts
    short: int = 0

    @property
    def total(self) -> int:
        """Replicas over all variants."""
        return sum(count for _, count in self.counts)


def variant_options(
    spec: ModelPoolSpec, current: Mapping[str, int], prices: Mapping[str, int | None]
) -> tuple[VariantOption, ...]:
    """The spec's variants with what is wanted of each now and what a replica-hour of each costs."""
    return tuple(
        VariantOption(one.name, current.get(one.name, 0), one.min_replicas, one.max_replicas, prices.get(one.name))
        for one in spec.variants
    )


def distribute(total: int, options: Sequence[VariantOption]) -> Split:
    """``total`` replicas at the least cost that stops none that is still wanted.

    Variants' minima come first, then what runs, then what would have to start, each cheapest first. Every replica has
    the same capacity, so taking units one by one is exact: no exchange of two of the same kind lowers the sum. A loaded
    replica is never moved to cheaper hardware at the same total: its capacity would be gone for the length of a start.
    """
    ranked = sorted(_units(total, options))
    chosen = Counter(unit.name for unit in ranked[:total])
    counts = tuple((one.name, chosen[one.name]) for one in options)
    return Split(counts, max(0, total - len(ranked)))


def cost_per_hour(counts: Iterable[tuple[str, int]], options: Sequence[VariantOption]) -> int | None:
    """Nano-USD an hour of a distribution; ``None`` when a variant that is used has no price."""
    prices = {one.name: one.price for one in options}
    used = [(prices.get(name), count) for name, count in counts if count > 0]
    known = [price * count for price, count in used if price is not None]
    return sum(known) if len(known) == len(used) else None


def change_text(counts: Counts, options: Sequence[VariantOption]) -> str:
    """Such as ``+1 l40s, -2 h100``; empty when nothing changes."""
    current = {one.name: one.current for one in options}
    changes = [(count - current.get(name, 0), name) for name, count in counts]
    return ", ".join(f"{change:+d} {name}" for change, name in changes if change)


class _Unit(NamedTuple):
    """One possible replica; units sort in the order in which they are taken."""

    held: int
    """0: reserved by the variant's minimum, 1: running already, 2: would have to start."""
    unpriced: bool
    price: int
    place: int
    number: int
    name: str


def _units(total: int, options: Sequence[VariantOption]) -> list[_Unit]:
    return [
        _unit(place, number, option)
        for place, option in enumerate(options)
        for number in range(total if option.maximum is None else min(total, option.maximum))
    ]


def _unit(place: int, number: int, option: VariantOption) -> _Unit:
    held = 0 if number < option.minimum else 1 if number < option.current else 2
    return _Unit(held, option.price is None, option.price or 0, place, number, option.name)
