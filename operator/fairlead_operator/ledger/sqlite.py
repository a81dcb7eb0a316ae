"""How the ledger speaks to SQLite: its lists, its writes, its engine. ``postgres`` has the same names."""

import fcntl
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

WRITERS: Final = 1
SHARED: Final = False
"""One process has the file."""
GROUP: Final = 64
"""Messages in one commit: the disk is waited for once for all of them."""
RETRIED: Final[tuple[str, ...]] = ()
REFUSALS: Final = (sqlite3.OperationalError,)
"""Errors of a database that cannot be used now: the disk is full, read-only, or the file is locked."""
WAL_PAGES: Final = 4_000
BUSY_MS: Final = 5_000
AT_ONCE: Final = (64, 8)
"""Rows of one INSERT, where there are as many: to step from row to row costs the driver more than SQLite the row."""
_DIALECT = sqlite.dialect(paramstyle="qmark")
_new = tuple.__new__


@dataclass(frozen=True, slots=True)
class Text:
    """One statement as SQLite takes it: its parameters are given in ``order``; ``row`` is the type of its rows.

    ``inserts``: it inserts one row, and can be made to insert many.
    """

    text: str
    order: tuple[str, ...]
    row: type[tuple[Any, ...]]
    inserts: bool = False

    def read(self, connection: Connection, parameters: dict[str, Any]) -> list[Any]:
        """All rows."""
        cursor = raw(connection).execute(self.text, [parameters[name] for name in self.order])
        row = self.row
        return [_new(row, values) for values in cursor.fetchall()]

    def run(self, connection: Connection, parameters: dict[str, Any]) -> int:
        """How many rows were touched."""
        return int(raw(connection).execute(self.text, [parameters[name] for name in self.order]).rowcount)

    def write(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> Callable[[], int]:
        """Run for each row, in their order; tells how many were touched."""
        driver, done = raw(connection), 0
        before = driver.total_changes
        for size in AT_ONCE if self.inserts else ():
            while len(rows) - done >= size:
                driver.execute(of_rows(self.text, size), list(chain.from_iterable(rows[done : done + size])))
                done += size
        driver.executemany(self.text, rows[done:])
        touched = driver.total_changes - before
        return lambda: int(touched)


@lru_cache(maxsize=256)
def of_rows(text: str, count: int) -> str:
    """An INSERT of one row as one of many."""
    before, values, row_and_rest = text.partition(" VALUES ")
    row, end, rest = row_and_rest.partition(")")
    return f"{before}{values}{', '.join([row + end] * count)}{rest}"


def raw(connection: Connection) -> Any:
    """The driver's connection: SQLAlchemy's own way to it costs more than most statements here."""
    return connection.connection.driver_connection


def compiled(statement: ClauseElement, row: type[tuple[Any, ...]], columns: Sequence[str] | None = None) -> Text:
    """A statement as text."""
    done: Any = statement.compile(dialect=_DIALECT, column_keys=columns)
    return Text(str(done), tuple(done.positiontup or ()), row, inserts=isinstance(statement, sqlite.Insert))


def ids(name: str, _type: type[TypeEngine[Any]]) -> Select[Any]:
    """The values of a list that comes as one JSON parameter."""
    return select(func.json_each(bindparam(name)).table_valued("value").c.value)


def listed(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The parameters of ``rows``."""
    return {"rows": msgspec.json.encode(rows).decode()}


def rows(*types: type[TypeEngine[Any]]) -> tuple[Any, Sequence[ColumnElement[Any]]]:
    """Lists in a list, as a table, and its columns."""
    table = func.json_each(bindparam("rows")).table_valued("value")
    fields = [func.json_extract(table.c.value, literal_column(f"'$[{index}]'")) for index in range(len(types))]
    return table, fields


def larger(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """The larger of two values."""
    return func.max(one, other)


def adding(table: Table, columns: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """An insert of each row of a write, and its columns."""
    return sqlite.insert(table), columns


def updating(table: Table, keys: dict[str, str], columns: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """An update by each row of a write, and the columns that it changes.

    ``keys`` names the parameters of the columns that a row is found by; they are the last.
    """
    return update(table).where(*_found(table, keys)), columns


def deleting(table: Table, keys: dict[str, str]) -> tuple[Any, None]:
    """A deletion by each row of a write."""
    return delete(table).where(*_found(table, keys)), None


def _found(table: Table, keys: dict[str, str]) -> Iterable[ColumnElement[bool]]:
    parameters: dict[str, BindParameter[Any]] = {name: bindparam(parameter) for name, parameter in keys.items()}
    return (table.c[name] == parameter for name, parameter in parameters.items())


def now(_connection: Connection) -> int | None:
    """None: the one ledger's clock is the database's."""
    return None


def unanswered(_connection: Connection) -> AbstractContextManager[Any]:
    """Nothing: there is no way to wait for."""
    return nullcontext()


def exclusive(_connection: Connection, _name: str) -> None:
    """Nothing: a transaction that writes is alone."""


class InUseError(RuntimeError):
    """Another process has the database; nothing was changed."""


def hold(database: str) -> TextIO:
    """Keep other ledgers, and a restore, off this database until the file is closed. Raises InUseError."""
    held = Path(f"{database}.lock").open("w")  # noqa: SIM115 - open for as long as the ledger runs
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise InUseError(f"a ledger runs on {database}: stop it first; nothing was changed") from error
    return held


def watch(_engine: Engine, _recovery_ms: int | None) -> None:
    """Nothing: a file does not change its history by itself."""


def open_engine(database: str, *, reading: bool) -> Engine:
    """An engine on the database file. Its writing transactions start as such: none has to be given up half-way."""
    engine = create_engine(f"sqlite:///{Path(database)}", connect_args={"timeout": BUSY_MS / 1000})
    begin = "BEGIN" if reading else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would otherwise put off BEGIN until the first write
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"wal_autocheckpoint={WAL_PAGES}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        raw(connection).execute(begin)

    return engine


def tidy(engine: Engine) -> None:
    """Move what is committed from the log into the database, as far as readers allow."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.close()
