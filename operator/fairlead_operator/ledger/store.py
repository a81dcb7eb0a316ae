"""The ledger's database: one writer thread that commits in groups, and readers beside it."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from fairlead_operator.ledger.schema import migrate, open_engine

GROUP = 16
WAITING = 1_000
CHECKPOINT_EVERY = 256
"""Groups between passive checkpoints: small ones between groups instead of a long one within a commit."""

T = TypeVar("T")
Job = tuple[Callable[[Connection], Any], Future[Any]]
log = logging.getLogger(__name__)


class OverloadError(RuntimeError):
    """Too much waits for the writer, or the database cannot be written now; nothing was applied."""


class Store:
    """Opens and migrates the database, runs writes one after another, and reads in the caller's thread."""

    def __init__(self, path: Path, observe: Callable[[float], None] = lambda _seconds: None) -> None:
        self._writing = open_engine(path, begin="BEGIN IMMEDIATE")
        self._reading = open_engine(path, begin="BEGIN")
        migrate(self._writing)
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=WAITING)
        self._observe = observe
        self._thread = threading.Thread(target=self._work, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Run a write; the future is done after its commit. Raises OverloadError."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that goes away must not take its message back half-way
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full as full:
            raise OverloadError(f"{WAITING} messages wait to be written; nothing was applied") from full
        return future

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on what is committed."""
        with self._reading.connect() as connection:
            return query(connection)

    def alive(self) -> bool:
        """Whether writes are being run."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what waits and close the database."""
        self._jobs.put(None)
        self._thread.join()
        self._writing.dispose()
        self._reading.dispose()

    def _work(self) -> None:
        groups = 0
        while group := self._next_group():
            started = time.perf_counter()
            run_group(self._writing, group)
            self._observe(time.perf_counter() - started)
            groups += 1
            if groups % CHECKPOINT_EVERY == 0:
                checkpoint(self._writing)

    def _next_group(self) -> list[Job]:
        """Whatever waits, up to a group's size; empty when the store closes."""
        group: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            group.append(job)
            if len(group) == GROUP or self._jobs.empty():
                return group
            job = self._jobs.get()
        if group:
            self._jobs.put(None)
        return group


def run_group(engine: Engine, group: list[Job]) -> None:
    """Run a group in one transaction; if one of its jobs raises, each alone, so that only that one fails."""
    try:
        with engine.begin() as connection:
            results = [job(connection) for job, _ in group]
    except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to its caller, the thread goes on
        if len(group) == 1:
            group[0][1].set_exception(_translated(error))
        else:
            for job in group:
                run_group(engine, [job])
        return
    for (_, future), result in zip(group, results, strict=True):
        future.set_result(result)


def _translated(error: Exception) -> Exception:
    if isinstance(error, OperationalError):
        log.error("the database refused a write; nothing was applied: %s", error)
        return OverloadError(f"the database refused the write: {error.orig}; nothing was applied")
    return error


def checkpoint(engine: Engine) -> None:
    """Move what is committed from the log into the database, as far as readers allow."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        raw.close()
