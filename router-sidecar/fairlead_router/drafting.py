"""What this pod's engine drafts ahead of its model, and how much of it is kept: for Prometheus.

vLLM counts drafts, their tokens and the tokens that were kept, by their place in the draft; they begin anew with each
engine. Engines that do not speculate have none of them, and then nothing is shown.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from fairlead_router.contract import EngineSignals
from fairlead_router.exposition import Labels
from fairlead_router.telemetry import (
    DRAFT_ACCEPTED,
    DRAFT_LENGTH,
    DRAFT_RATIO,
    DRAFT_TOKENS,
    DRAFTS,
    Telemetry,
)

WINDOW_S: Final = 300.0
_MARK_S: Final = 30.0
_MARKS: Final = 12

Samples = list[tuple[Labels, float]]


@dataclass(slots=True, eq=False)
class Drafting:
    """The engine's counters of speculative decoding: the newest, and marks of the last five minutes."""

    now: Callable[[], float] = time.monotonic
    _newest: EngineSignals | None = None
    _marks: deque[tuple[float, EngineSignals]] = field(default_factory=lambda: deque(maxlen=_MARKS))

    def note(self, told: EngineSignals | None) -> None:
        """Take a reading; ``None``: the engine could not be read."""
        if told is None or min(told.drafts_total, told.draft_tokens_total, told.accepted_total) < 0:
            self._newest = None
            self._marks.clear()
            return
        if self._newest is not None and told.drafts_total < self._newest.drafts_total:
            self._marks.clear()
        if not self._marks or self.now() - self._marks[-1][0] >= _MARK_S:
            self._marks.append((self.now(), told))
        self._newest = told

    def drafts(self, pool: str) -> Samples:
        """Times that tokens were drafted."""
        return [((pool,), float(self._newest.drafts_total))] if self._newest is not None else []

    def tokens(self, pool: str) -> Samples:
        """Tokens drafted."""
        return [((pool,), float(self._newest.draft_tokens_total))] if self._newest is not None else []

    def accepted(self, pool: str) -> Samples:
        """Tokens kept, by their place in the draft from 1 on."""
        by_position = self._newest.accepted_by_position if self._newest is not None else ()
        return [((pool, str(place)), float(count)) for place, count in enumerate(by_position, 1)]

    def ratio(self, pool: str) -> Samples:
        """The share of the last minutes' drafted tokens that was kept."""
        drafts, tokens, accepted = self._recent()
        return [((pool,), accepted / tokens)] if drafts and tokens else []

    def length(self, pool: str) -> Samples:
        """Mean tokens of the last minutes' drafted steps."""
        drafts, _, accepted = self._recent()
        return [((pool,), 1 + accepted / drafts)] if drafts else []

    def _recent(self) -> tuple[int, int, int]:
        """Drafts, their tokens and those kept in the last minutes."""
        first = next((told for at, told in self._marks if at > self.now() - WINDOW_S), None)
        last = self._newest
        if first is None or last is None:
            return 0, 0, 0
        return (
            last.drafts_total - first.drafts_total,
            last.draft_tokens_total - first.draft_tokens_total,
            last.accepted_total - first.accepted_total,
        )


def show_drafting(telemetry: Telemetry, drafting: Drafting, pool: str) -> None:
    """Serve the metrics of the engine of a pod of ``pool``."""
    for metric, read in (
        (DRAFTS, drafting.drafts),
        (DRAFT_TOKENS, drafting.tokens),
        (DRAFT_ACCEPTED, drafting.accepted),
        (DRAFT_RATIO, drafting.ratio),
        (DRAFT_LENGTH, drafting.length),
    ):
        telemetry.read(metric, partial(read, pool))
