"""Quantiles of what a bench measured."""

from collections.abc import Sequence


def quantile(values: Sequence[float], percent: int) -> float:
    """Nearest rank; 0 without values."""
    ordered = sorted(values)
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0
