"""The operator with stopwatches: the program itself, and a line of JSON for each thing that was timed.

A line is [what, of what, its end in seconds of the monotonic clock, seconds it took]. ``round`` is one round of
scrapes, ``reconcile`` one pool from what is known to what is written, ``request`` a call to the API server: their time
is that of waiting, too. The others run without a pause, so their time is theirs alone: ``observe`` (what a round told,
for all pools), ``decision`` (one pool's), ``compile`` (the routers' configuration), ``snapshot`` (the cluster's).

usage: FAIRLEAD_STOPWATCH=FILE python -m tests.bench.operator.stopwatch [the operator's arguments]
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from fairlead_operator import main
from fairlead_operator.kube.api import Api
from fairlead_operator.kube.cluster import Cluster
from fairlead_operator.reconcile.configuration import Compiler
from fairlead_operator.reconcile.modelpool import PoolReconciler
from fairlead_operator.signals.scrape import Scraper

FILE: Final = "FAIRLEAD_STOPWATCH"
Note = Callable[[str, str, float], None]
Of = Callable[..., str]


def _nothing(*_: object) -> str:
    return ""


PAUSELESS: Final[tuple[tuple[str, type, str, Of], ...]] = (
    ("observe", PoolReconciler, "observe", _nothing),
    ("decision", PoolReconciler, "_decide", lambda _, facts, *__: str(facts.pool.key)),
    ("compile", Compiler, "refresh", _nothing),
    ("snapshot", Cluster, "_build", _nothing),
)
AWAITED: Final[tuple[tuple[str, type, str, Of], ...]] = (
    ("round", Scraper, "round", _nothing),
    ("reconcile", PoolReconciler, "__call__", lambda _, key: f"{key.namespace}/{key.name}"),
    ("request", Api, "request", lambda _, method, *__: str(method)),
)
"""What is timed: its name, whose method, and of what a call is."""


def timed(note: Note, what: str, work: Callable[..., Any], of: Of) -> Callable[..., Any]:
    """The function, timed."""

    @functools.wraps(work)
    def run(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return work(*arguments, **options)
        finally:
            note(what, of(*arguments), began)

    return run


def awaited(note: Note, what: str, work: Callable[..., Any], of: Of) -> Callable[..., Any]:
    """The coroutine function, timed from its first step to its last."""

    @functools.wraps(work)
    async def run(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return await work(*arguments, **options)
        finally:
            note(what, of(*arguments), began)

    return run


def into(out: TextIO) -> Note:
    """Writes a line of what began then and ends now."""

    def note(what: str, of: str, began: float) -> None:
        now = time.monotonic()
        out.write(msgspec.json.encode((what, of, round(now, 4), round(now - began, 6))).decode() + "\n")

    return note


def install(note: Note) -> None:
    """Put the stopwatches around the operator's parts."""
    for wrap, parts in ((timed, PAUSELESS), (awaited, AWAITED)):
        for what, owner, name, of in parts:
            setattr(owner, name, wrap(note, what, getattr(owner, name), of))


if __name__ == "__main__":
    with Path(os.environ[FILE]).open("a", encoding="utf-8", buffering=1) as lines:
        install(into(lines))
        sys.exit(main.main())
