"""What clients saw during each event, counted. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

AFTER_KILL_S = 3.0
"""So long after an engine is killed a request that ran on it may take to notice."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is over, as traffic.py tells it. Times are seconds since the epoch, 0 = never."""

    path: str
    stream: bool
    began_s: float
    ended_s: float
    first_s: float
    status: int
    tokens: int
    role: str
    finish: str
    whole: bool
    error: str

    @property
    def failed(self) -> bool:
        """Nothing of an answer came."""
        return not self.whole and not self.truncated

    @property
    def truncated(self) -> bool:
        """An answer began and has not all that was asked for."""
        return not self.whole and self.status == 200


@dataclass(frozen=True, slots=True)
class Window:
    """An event: from its act to the next event's. Times are seconds since the epoch.

    ``took_s``: until the pool was as it should be. ``killed_s``: when an engine was killed, 0 = none was.
    ``extra_replica_s``: replica-seconds beyond those asked for. ``note``: what else is to be told.
    """

    name: str
    began_s: float
    ended_s: float
    took_s: float
    killed_s: float = 0.0
    extra_replica_s: float = 0.0
    retried: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """An event's requests. ``lost`` broke with the engine that was killed; they are in no other count."""

    window: Window
    requests: int = 0
    failed: int = 0
    truncated: int = 0
    lost: int = 0
    examples: tuple[str, ...] = field(default=())

    @property
    def fine(self) -> bool:
        """Whether no request failed or was truncated that need not."""
        return self.failed == 0 and self.truncated == 0


def read(lines: Iterable[str]) -> list[Request]:
    """What traffic.py printed; a line that is cut off by its end is left out."""
    return [Request(**json.loads(line)) for line in lines if line.endswith("}\n")]


def row(requests: Sequence[Request], window: Window, examples: int = 3) -> Row:
    """Count the requests that ended in a window."""
    inside = [one for one in requests if window.began_s <= one.ended_s < window.ended_s]
    lost = [one for one in inside if not one.whole and _on_the_killed(one, window)]
    bad = [one for one in inside if not one.whole and one not in lost]
    return Row(
        window=window,
        requests=len(inside),
        failed=sum(one.failed for one in bad),
        truncated=sum(one.truncated for one in bad),
        lost=len(lost),
        examples=tuple(_words(one, window) for one in bad[:examples]),
    )


def first_token_s(requests: Sequence[Request], role: str, since_s: float) -> float | None:
    """Seconds from a change to the first token of an engine that speaks as ``role``; ``None`` if none came."""
    firsts = [one.first_s for one in requests if one.role == role and one.first_s >= since_s]
    return min(firsts) - since_s if firsts else None


def _on_the_killed(one: Request, window: Window) -> bool:
    """A stream that had begun when an engine was killed, and broke with it."""
    dies = 0 < window.killed_s <= one.ended_s <= window.killed_s + AFTER_KILL_S
    return dies and one.truncated and one.began_s < window.killed_s


def _words(one: Request, window: Window) -> str:
    kind = "stream" if one.stream else "whole"
    at = f"{one.ended_s - window.began_s:.1f}s after the act, {one.ended_s - one.began_s:.1f}s after it was sent"
    return f"{one.path} {kind} status {one.status} {one.tokens} tokens {one.finish!r}, {at}: {one.error[:200]}"


HEADINGS = ("EVENT", "REQUESTS", "FAILED", "TRUNCATED", "LOST", "RETRIED", "SECONDS", "EXTRA", "NOTE")


def cells(found: Row) -> tuple[str, ...]:
    """A row of the table; EXTRA is replica-seconds beyond those asked for."""
    window = found.window
    counts = (found.requests, found.failed, found.truncated, found.lost, window.retried)
    return (window.name, *map(str, counts), f"{window.took_s:.1f}", f"{window.extra_replica_s:.0f}", window.note)


def table(rows: Sequence[Row]) -> str:
    """All rows below their headings, in columns; what broke is told below the row."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADINGS))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for place, found in reversed(list(enumerate(rows))):
        texts[place + 2 : place + 2] = [f"    {words}" for words in found.examples]
    return "\n".join(texts)


def summary(rows: Sequence[Row], figures: dict[str, Any]) -> dict[str, Any]:
    """The run as one object, for programs."""
    events = {
        found.window.name: {
            "requests": found.requests,
            "failed": found.failed,
            "truncated": found.truncated,
            "lost": found.lost,
            "retried": found.window.retried,
            "seconds": round(found.window.took_s, 1),
            "extraReplicaSeconds": round(found.window.extra_replica_s, 1),
        }
        for found in rows
    }
    totals = {
        "requests": sum(found.requests for found in rows),
        "failed": sum(found.failed for found in rows),
        "truncated": sum(found.truncated for found in rows),
        "lostWithTheKilledEngine": sum(found.lost for found in rows),
        "retried": sum(found.window.retried for found in rows),
    }
    return {"ok": all(found.fine for found in rows), **totals, **figures, "events": events}
