"""``make chaos-budget``: real routers and ledgers under kills, lost volumes, a bad network, wrong clocks and edits.

Afterwards what really ran is compared with what the ledger wrote: nothing may be overspent, lost or counted twice.
The same seed asks for the same requests and makes the same faults at the same times. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import pickle
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import uvloop
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from tests.builders import postgres
from tests.chaos import engines, world
from tests.chaos.books import read_books, read_deadlocks, read_stuck
from tests.chaos.checker import check
from tests.chaos.clients import Door, Load
from tests.chaos.control import Operator
from tests.chaos.faults import Limits, Trouble, schedule
from tests.chaos.processes import Ledger, Place, faketime, metric
from tests.chaos.proxy import Odds, Proxy
from tests.chaos.truth import Fate, Run, Span, Stuck

ENGINES: Final = 4
_SWEPT: Final = "fairlead_reservations_swept_total"
_UNTOLD: Final = "fairlead_journal_predecessors"
_VIOLATIONS: Final = "fairlead_ledger_invariant_violations"
_AT_ONCE: Final = 4
"""Processes that start or stop together."""
_SHOWN: Final = 40
_SAMPLE_S: Final = 1.0
_STEP_S: Final = 0.05
_LATE_S: Final = 0.3
_TIMELY: Final = 0.01
"""A machine is too busy to judge by its clock if this process was kept waiting for a larger share of the time."""
_HEAL_S: Final = 20.0
_UPKEEP_S: Final = 12.0
_REST_S: Final = (75.0, 0.75)
"""Time for healing and reading, and for starting and stopping each router."""
WATCHED: Final = tuple(one.label for one in world.COVERED if one.enforcement == "Enforce" and one.per != "Workflow")


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for."""

    routers: int = 50
    requests: int = 1_000_000
    minutes: float = 60.0
    database: str = "sqlite"
    seed: int = 1
    fault_s: float = 4.0
    skew: bool = True
    keep: Path | None = None
    """Where logs, database and what was seen stay; ``None``: nothing stays."""

    @property
    def seconds(self) -> float:
        """How long requests are made."""
        return max(10.0, self.minutes * 60 - _REST_S[0] - self.routers * _REST_S[1])

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / (0.97 * self.seconds)


@dataclass(slots=True)
class Chaos:
    """One run against one database."""

    options: Options
    folder: Path
    ledgers: list[Ledger]
    reading: Engine
    receipts: engines.Receipts
    places: list[Place] = field(default_factory=list)
    fates: dict[str, Fate] = field(default_factory=dict)
    excuses: list[Span] = field(default_factory=list)
    unheard: list[Span] = field(default_factory=list)
    starved: list[Span] = field(default_factory=list)
    stuck: list[Stuck] = field(default_factory=list)
    late_s: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    async def run(self) -> Run:
        """Start all, make load and trouble, stop all, and say what was seen."""
        options, pick = self.options, _pick(self.options.seed, "order")
        listening, addresses = await engines.listen(self.receipts, ENGINES)
        operator = Operator(addresses)
        base = world.limits(options.rate, options.seconds)
        limits = Limits(self.ledgers, base, dict(base))
        trouble = Trouble(self.places, self.ledgers, limits, self.excuses, options.skew)
        load = Load(world.Demand(_pick(options.seed, "demand")), pick, self._doors)
        try:
            for ledger in self.ledgers:
                await ledger.start()
            await limits.put()
            await self._start_routers(await operator.listen())
            await self._go(load, trouble)
            await self._stop()
        finally:
            self._abandon()
            operator.close()
            for server in listening:
                server.close()
        self.notes["faults"] = dict(sorted(trouble.done.items()))
        self.notes["messages"] = dict(sum((place.proxy.fates for place in self.places), Counter[str]()))
        self.notes["deadlocks"] = read_deadlocks(self.reading)
        books = replace(read_books(self.reading), violations=int(self.notes["violations"]))
        self.notes["sessions"] = books.sessions
        self.notes["accounts"] = len(books.accounts)
        self._note_waits(load)
        return Run(
            covered=world.COVERED,
            asked=load.asked,
            receipts=self.receipts.kept,
            twice=self.receipts.twice,
            books=books,
            limits=limits.ended(),
            clocks=[span for ledger in self.ledgers for span in ledger.spans],
            fates=self.fates,
            ledger_s=[took for place in self.places for took in place.proxy.took],
            deadlocks=int(self.notes["deadlocks"]),
            swept=int(self.notes[_SWEPT]),
            untold=int(self.notes[_UNTOLD]),
            excuses=self.excuses,
            unheard=self.unheard,
            starved=self.starved,
            stuck=self.stuck,
        )

    def _abandon(self) -> None:
        for place in self.places:
            place.abandon()
            place.proxy.close()
        for ledger in self.ledgers:
            ledger.abandon()

    def _doors(self) -> Sequence[Door | None]:
        return [place.door for place in self.places]

    async def _start_routers(self, operator: str) -> None:
        options = self.options
        for index in range(options.routers):
            ports = tuple(ledger.port for ledger in self.ledgers)
            folder = self.folder / f"router-{index}"
            folder.mkdir()
            place = Place(index, folder, self.fates, self.excuses, self.unheard, operator)
            place.proxy = Proxy(ports, _pick(options.seed, f"network {index}"), Odds(), place.waited)
            place.url = await place.proxy.listen()
            self.places.append(place)
        await _in_groups(place.start() for place in self.places)
        self.notes["rss_mib_before"] = [round(sum(place.rss_mib() for place in self.places) / options.routers, 1)]

    async def _go(self, load: Load, trouble: Trouble) -> None:
        options, loop = self.options, asyncio.get_running_loop()
        faults = schedule(
            _pick(options.seed, "faults"), options.seconds, options.fault_s, options.routers, skew=options.skew
        )
        begun = loop.time()
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(self._sample(load))
            watching = tasks.create_task(self._watch())
            troubling = tasks.create_task(trouble.run(faults))
            await load.run(options.requests, options.rate, begun + options.seconds)
            await troubling
            await asyncio.sleep(_HEAL_S)
            sampling.cancel()
            watching.cancel()
        self.notes["late_s"] = round(self.late_s, 1)
        self.notes["load_s"] = round(loop.time() - begun, 1)

    async def _sample(self, load: Load) -> None:
        """What nobody can spend, and how far we are."""
        loop, shown = asyncio.get_running_loop(), 0.0
        while True:
            await asyncio.sleep(_SAMPLE_S)
            sessions = set[str]().union(*(place.stuck_sessions() for place in self.places))
            with contextlib.suppress(SQLAlchemyError):
                self.stuck += await asyncio.to_thread(read_stuck, self.reading, time.time(), sessions, WATCHED)
            if loop.time() - shown > 30:
                shown = loop.time()
                _say(f"{len(load.asked)} asked, {len(self.receipts.kept)} ran, {len(self.fates)} kills")

    async def _watch(self) -> None:
        """When this process itself had no time, nobody's waiting proves anything."""
        loop = asyncio.get_running_loop()
        while True:
            begun, expected = time.time(), loop.time() + _STEP_S
            await asyncio.sleep(_STEP_S)
            if loop.time() - expected > _LATE_S:
                self.starved.append(Span(begun, time.time()))
                self.late_s += loop.time() - expected

    async def _stop(self) -> None:
        self.notes["rss_mib_after"] = round(sum(place.rss_mib() for place in self.places) / self.options.routers, 1)
        for name in (_SWEPT, _UNTOLD):
            self.notes[name] = sum([await metric(place.admin_url, name) for place in self.places])
        self.notes["exits"] = dict(Counter(await _in_groups(place.stop() for place in self.places)))
        await asyncio.sleep(_UPKEEP_S)
        found = [await metric(ledger.url, _VIOLATIONS) for ledger in self.ledgers]
        self.notes["violations"] = max(found)
        self.notes["ledger_rss_mib"] = [ledger.rss_mib() for ledger in self.ledgers]
        self.notes["ledger_exits"] = [await ledger.stop() for ledger in self.ledgers]
        self.notes["ledger_kills"] = sum(ledger.kills for ledger in self.ledgers)
        self.notes["kills"] = sum(fate != "Stopped" for fate in self.fates.values())

    def _note_waits(self, load: Load) -> None:
        """From the caller's sending until the engine begins, in milliseconds."""
        waits = sorted(receipt.started - load.asked[number].sent for number, receipt in self.receipts.kept.items())
        for percent in (50, 99):
            self.notes[f"wait_ms_p{percent}"] = round(1000 * waits[len(waits) * percent // 100], 1) if waits else 0.0


def _pick(seed: int, what: str) -> random.Random:
    return random.Random(f"{seed} {what}")  # noqa: S311 - choices that can be repeated


async def _in_groups(work: Iterable[Awaitable[Any]]) -> list[Any]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(job: Awaitable[Any]) -> Any:
        async with room:
            return await job

    return await asyncio.gather(*(one(job) for job in work))


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str, Engine, int]]:
    """A new database: how ledgers are told of it, how it is read, and how many ledgers share it."""
    if kind == "sqlite":
        path = str(folder / "ledger.db")
        engine = create_engine(f"sqlite:///{path}")
        yield path, engine, 1
        engine.dispose()
        return
    url = postgres.fresh_url(migrated=False)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield url, engine, 2
    finally:
        engine.dispose()
        postgres.server().stop()


async def once(options: Options, kind: str, folder: Path) -> dict[str, Any]:
    """One run against one kind of database; its figures."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with databases(kind, folder) as (database, engine, count):
        # On PostgreSQL all ledgers go by the database's clock, which nobody skews here.
        ledgers = [Ledger(database, folder / f"ledger-{index}", own_clock=count == 1) for index in range(count)]
        chaos = Chaos(options, folder, ledgers, engine, engines.Receipts(options.seed))
        seen = await chaos.run()
    if options.keep is not None:
        (folder / "seen.pickle").write_bytes(pickle.dumps(seen))
    figures = check(seen)
    timely = chaos.late_s <= _TIMELY * chaos.notes["load_s"]
    judged = figures.delays if timely else []
    for problem in (figures.problems + judged)[:_SHOWN]:
        _say(f"FAILED {kind}: {problem}")
    for delay in () if timely else figures.delays:
        _say(f"not judged, since this machine had no time for {chaos.late_s:.0f} s: {kind}: {delay}")
    return asdict(figures) | chaos.notes | {"timely": timely, "problems": len(figures.problems), "delays": len(judged)}


def run(options: Options) -> dict[str, Any]:
    """A run for each database, which share requests and time; their folders go afterwards unless they are kept."""
    if options.skew and not faketime():
        sys.exit("libfaketime is not installed (Debian: apt-get install libfaketime); or give --no-skew")
    kinds = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    share = replace(options, requests=options.requests // len(kinds), minutes=options.minutes / len(kinds))
    runs = {}
    for kind in kinds:
        with _folder(options, kind) as folder:
            runs[kind] = uvloop.run(once(share, kind, folder))
            _say(json.dumps({kind: runs[kind]}))
    return result(options, runs)


@contextlib.contextmanager
def _folder(options: Options, kind: str) -> Iterator[Path]:
    if options.keep is not None:
        folder = options.keep / kind
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fairlead-chaos-") as name:
        folder = Path(name)
        yield folder


_SUMS: Final = (
    "requests",
    "overspend_nano_usd",
    "overspend_other",
    "lost",
    "doubled",
    "unattributed",
    "kills",
    "problems",
    "delays",
)
_WORST: Final = ("stranded_percent", "false_rejection_percent")


def result(options: Options, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The line that ends everything: sums over the databases, and the worst of the shares."""
    found: dict[str, Any] = {name: sum(one[name] for one in runs.values()) for name in _SUMS}
    found |= {name: max(one[name] for one in runs.values()) for name in _WORST}
    given = {"seed": options.seed, "minutes": options.minutes, "routers": options.routers}
    return {"ok": not found["problems"] + found["delays"], **given, "database": options.database, **found}


def main() -> None:
    """Run, print, and fail if something is wrong."""
    parser = argparse.ArgumentParser(prog="tests.chaos.run", description=__doc__)
    parser.add_argument("--routers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1_000_000, help="on all databases together")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all databases together")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault-seconds", type=float, default=4.0, help="mean time between two faults")
    parser.add_argument("--no-skew", action="store_true", help="leave all clocks right")
    parser.add_argument("--keep", type=Path, help="a new folder for logs, database and what was seen (seen.pickle)")
    given = parser.parse_args()
    options = Options(
        given.routers, given.requests, given.minutes, given.database, given.seed, given.fault_seconds,
        not given.no_skew, given.keep,
    )  # fmt: skip
    found = run(options)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.exit(not found["ok"])


if __name__ == "__main__":
    main()
