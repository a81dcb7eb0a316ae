"""The ledger's database: writers that run what is submitted, and readers beside them.

The writer commits in groups. On PostgreSQL other ledgers have theirs: a transaction that loses against another one is
run again from its start, so a job may do nothing but use its connection.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from fairlead_operator.ledger.schema import DIALECTS, dialect_of, migrate, open_engine

WAITING = 1_000
PACE_S = 0.1
"""Between transactions that nobody waits for: one costs half as much as a large message, however many it holds."""
COMPANY, COMPANY_S = 0.25, 0.01
"""Of the time that the last transaction took, and at most: so long the next waits for as many messages as it had."""
TIDY_EVERY = 64
"""Groups between checkpoints: small ones between groups instead of a long one within a commit."""
ATTEMPTS = 8

T = TypeVar("T")
Item = TypeVar("Item")
Handler = Callable[[Connection, Sequence[Item]], Sequence[T]]
"""Applies items in their order, and returns a result for each."""
log = logging.getLogger(__name__)


class OverloadError(RuntimeError):
    """Too much waits for the writers; nothing was applied."""


class UnwritableError(OverloadError):
    """The database cannot be written now; nothing was applied."""


class AgainError(OverloadError):
    """Others changed what a transaction was decided on: it is run again, after ``first`` was done in it."""

    def __init__(self, first: Callable[[Connection], None]) -> None:
        super().__init__("others kept changing the same rows; nothing was applied")
        self.first = first


@dataclass(frozen=True, slots=True)
class Job:
    """What waits to be written. Jobs of one handler that follow each other are given to it together.

    ``alone``: it locks rows step by step. In one transaction with others it could wait for a ledger that waits for it.
    ``patient``: nobody is held up while it waits for others to be committed with.
    """

    handler: Handler[Any, Any]
    item: Any
    future: Future[Any] | asyncio.Future[Any]
    alone: bool = True
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What the last transaction had, and until when the next one waits, by the clock of ``time.perf_counter``.

    ``patient_until``: while nobody needs an answer. ``company_until``: while fewer messages came than the last one had,
    because those who were answered together mostly speak again together.
    """

    size: int = 0
    patient_until: float = 0.0
    company_until: float = 0.0


class Store:
    """Opens and migrates a database (a file's path, or a postgresql:// URL), runs writes, reads where it is called."""

    def __init__(
        self,
        database: Path | str,
        observe: Callable[[float], None] = lambda _seconds: None,
        *,
        recovery_ms: int | None = None,
    ) -> None:
        """``recovery_ms``: how long nothing is granted after the database may have lost commits (None: it cannot)."""
        dialect = dialect_of(database)
        self._lock = dialect.hold(str(database))
        self._writing = open_engine(database)
        self._reading = open_engine(database, reading=True)
        self.name = self._writing.url.render_as_string(hide_password=True)
        migrate(self._writing)
        dialect.watch(self._writing, recovery_ms)
        self._group = dialect.GROUP
        self._shared = dialect.SHARED
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._observe = observe
        self._threads = [
            threading.Thread(target=self._work, name=f"ledger-writer-{number}", daemon=True)
            for number in range(dialect.WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Run a write; the future is done after its commit. Raises OverloadError."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that goes away must not take its message back half-way
        self._put(Job(each, job, future))
        return future

    async def apply(self, handler: Handler[Item, T], item: Item, *, alone: bool, patient: bool) -> T:
        """Have a handler write one item, maybe together with others; returns after the commit. Raises OverloadError."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(Job(handler, item, future, alone, patient))
        return await future

    def _put(self, job: Job) -> None:
        if self._jobs.qsize() >= WAITING:
            raise OverloadError(f"{WAITING} messages wait to be written; nothing was applied")
        self._jobs.put(job)

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on one state of what is committed."""
        with self._reading.begin() as connection:
            return query(connection)

    def alive(self) -> bool:
        """Whether writes are being run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Finish what waits and close the database."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._writing.dispose()
        self._reading.dispose()
        self._lock.close()

    def _work(self) -> None:
        groups, last = 0, Round()
        while group := self._next_group(last):
            started = time.perf_counter()
            for part in transactions(group) if self._shared else [group]:
                run_group(self._writing, part)
            ended = time.perf_counter()
            took = ended - started
            last = Round(len(group), started + PACE_S, ended + min(COMPANY_S, COMPANY * took))
            self._observe(took)
            groups += 1
            if groups % TIDY_EVERY == 0:
                DIALECTS[self._writing.dialect.name].tidy(self._writing)

    def _next_group(self, last: Round) -> list[Job]:
        """Whatever waits, up to a group's size, and what comes soon (``Round``); empty: the store closes."""
        group: list[Job] = []
        patient = True
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) == self._group:
                return group
            patient = patient and job.patient
            due = last.patient_until if patient else last.company_until if len(group) < last.size else 0.0
            try:
                job = self._jobs.get(timeout=max(0.0, due - time.perf_counter()))
            except queue.Empty:
                return group
        if group:
            self._jobs.put(None)
        return group


def transactions(group: list[Job]) -> list[list[Job]]:
    """A group as transactions where other ledgers write as well: those that must be alone are."""
    parts: list[list[Job]] = []
    for alone, jobs in groupby(group, key=attrgetter("alone")):
        together = list(jobs)
        parts += [[job] for job in together] if alone else [together]
    return parts


def each(connection: Connection, jobs: Sequence[Callable[[Connection], Any]]) -> list[Any]:
    """The handler of jobs that have nothing in common."""
    return [job(connection) for job in jobs]


def run_group(engine: Engine, group: list[Job]) -> None:
    """Run a group in one transaction; if one of its jobs raises, each alone, so that only that one fails."""
    try:
        results = _committed(engine, group)
    except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to its caller, the thread goes on
        if len(group) == 1:
            _finish(group, [_translated(engine, error)])
        else:
            for job in group:
                run_group(engine, [job])
        return
    _finish(group, results)


def _committed(engine: Engine, group: list[Job]) -> list[Any]:
    """The results of a group's jobs after their commit."""
    first: Callable[[Connection], None] = _nothing
    for attempt in range(ATTEMPTS):
        try:
            with engine.begin() as connection:
                first(connection)
                return _run(connection, group)
        except AgainError as error:
            if attempt == ATTEMPTS - 1:
                raise
            first = error.first
        except Exception as error:
            if attempt == ATTEMPTS - 1 or _state(error) not in DIALECTS[engine.dialect.name].RETRIED:
                raise
    raise AssertionError  # the last attempt returned or raised


def _nothing(_connection: Connection) -> None:
    """What comes before a transaction that was not run before."""


def _run(connection: Connection, group: list[Job]) -> list[Any]:
    results: list[Any] = []
    for handler, jobs in groupby(group, key=attrgetter("handler")):
        results.extend(handler(connection, [job.item for job in jobs]))
    return results


def _finish(group: list[Job], results: Sequence[Any]) -> None:
    """Tell all who wait; an event loop is woken once for all of its own."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
    for job, result in zip(group, results, strict=True):
        if isinstance(job.future, asyncio.Future):
            loops[job.future.get_loop()].append((job.future, result))
        else:
            _settle(job.future, result)
    for loop, settled in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in settled:
        if not future.done():  # its caller went away
            _settle(future, result)


def _settle(future: Future[Any] | asyncio.Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _driver(error: BaseException) -> BaseException:
    """The driver's error, whether SQLAlchemy wrapped it or not."""
    return getattr(error, "orig", None) or error


def _state(error: BaseException) -> str:
    return str(getattr(_driver(error), "sqlstate", "") or "")


def _translated(engine: Engine, error: Exception) -> Exception:
    found = _driver(error)
    if isinstance(found, DIALECTS[engine.dialect.name].REFUSALS):
        log.error("the database refused a write; nothing was applied: %s", found)
        return UnwritableError(f"the database refused the write: {found}; nothing was applied")
    return error
