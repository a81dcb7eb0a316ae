"""Rows of choices in which every two that go together are together once."""

from collections.abc import Callable, Sequence
from itertools import combinations

Choice = tuple[int, int]
"""Dimension, and number of the value in it."""


def rows(sizes: Sequence[int], fits: Callable[[Choice, Choice], bool]) -> list[tuple[int, ...]]:
    """Rows of one value for each dimension that cover all pairs of values that ``fits`` allows.

    A pair that no row can hold, as nothing goes with both, is left out. The first value of each dimension goes with
    everything.
    """
    every = [(dimension, value) for dimension, size in enumerate(sizes) for value in range(size)]
    allowed = {pair for pair in combinations(every, 2) if pair[0][0] != pair[1][0] and fits(*pair)}
    left, found = dict.fromkeys(sorted(allowed)), []
    while left:
        row = dict(next(iter(left)))
        for dimension, size in enumerate(sizes):
            if dimension not in row:
                row[dimension] = _best(dimension, size, row, allowed, left)
        chosen = sorted(row.items())
        for pair in [next(iter(left)), *combinations(chosen, 2)]:
            left.pop(pair, None)
        found.append(tuple(value for _, value in chosen))
    return found


def _best(
    dimension: int,
    size: int,
    row: dict[int, int],
    allowed: set[tuple[Choice, Choice]],
    left: dict[tuple[Choice, Choice], None],
) -> int:
    """The value that covers most of what is left, among those that go with the row so far."""
    counts = {}
    for value in range(size):
        pairs = [_ordered((dimension, value), chosen) for chosen in row.items()]
        if all(pair in allowed for pair in pairs):
            counts[value] = sum(pair in left for pair in pairs)
    return max(counts, key=lambda value: counts[value]) if counts else 0


def _ordered(one: Choice, other: Choice) -> tuple[Choice, Choice]:
    return (one, other) if one < other else (other, one)
