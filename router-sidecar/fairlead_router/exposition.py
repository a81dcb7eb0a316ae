"""Metrics as Prometheus reads them: what a metric is, and its text.

The router writes the text itself: prometheus_client needs 12 µs for a sample, so that a scrape of a few thousand would
hold up every request for as long as 65 ms. https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Final, Literal, NamedTuple

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]

SLOTS: Final = 96
"""Length of a histogram's counts. Slot ``e`` counts values in (2^(e-1), 2^e] of the unit, as ``math.frexp`` tells.

Python's negative indices give slots for the exponents -52 to 43: in microseconds, anything that a clock can tell, a
millionth of that, and 100 days.
"""
_NEGATIVE: Final = 44
_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Buckets(NamedTuple):
    """The bounds that a histogram shows: ``2**first`` to ``2**last`` units, each double the one before."""

    unit: float
    first: int
    last: int

    def bounds(self) -> list[float]:
        """Upper bounds, without +Inf."""
        return [2**exponent * self.unit for exponent in range(self.first, self.last + 1)]

    def cumulated(self, counts: Sequence[int]) -> list[int]:
        """The count up to each bound, and of all values; of ``SLOTS`` counts."""
        below = sum(counts[_NEGATIVE:]) + sum(counts[: self.first])
        shown = list(accumulate(counts[self.first : self.last + 1], initial=below))[1:]
        return [*shown, sum(counts)]


class Metric(NamedTuple):
    """One metric: its name as Prometheus shows it, what it says, and its labels."""

    name: str
    kind: Kind
    text: str
    labels: Labels = ()
    buckets: Buckets | None = None

    def head(self) -> str:
        """The two lines before a metric's samples."""
        return f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}\n"

    def sample(self, labels: Labels, value: float) -> str:
        """One line."""
        return f"{self.name}{_braced(self._pairs(labels))} {float(value)!r}\n"

    def histogram(self, labels: Labels, counts: Sequence[int], total: float) -> str:
        """The lines of one series: ``counts`` has ``SLOTS`` slots, ``total`` is the sum of the values."""
        assert self.buckets is not None  # noqa: S101 - a histogram has buckets
        pairs = self._pairs(labels)
        start = f"{self.name}_bucket{{{','.join([*pairs, 'le='])}"
        cumulated = self.buckets.cumulated(counts)
        lines = [f"{start}{end}{count}" for end, count in zip(_ends(self.buckets), cumulated, strict=True)]
        rest = _braced(pairs)
        lines += [f"{self.name}_sum{rest} {float(total)!r}", f"{self.name}_count{rest} {cumulated[-1]}", ""]
        return "\n".join(lines)

    def _pairs(self, labels: Labels) -> list[str]:
        """Labels and values, sorted by label."""
        named = sorted(zip(self.labels, labels, strict=True))
        return [f'{label}="{value.translate(_ESCAPED)}"' for label, value in named]


@cache
def _ends(buckets: Buckets) -> list[str]:
    """Each bound, quoted, up to the count."""
    return [f'"{bound}"}} ' for bound in (*map(repr, buckets.bounds()), "+Inf")]


def _braced(pairs: Sequence[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""
