"""How the ledger speaks to PostgreSQL: its lists, its writes, its engine. ``sqlite`` has the same names."""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec
from psycopg import InternalError, OperationalError
from psycopg.adapt import Loader
from psycopg.errors import LockNotAvailable
from psycopg.types.numeric import Int8BinaryDumper
from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Select,
    Table,
    bindparam,
    cast,
    column,
    create_engine,
    delete,
    event,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy import (
    Text as TextType,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSON, psycopg
from sqlalchemy.types import TypeEngine

WRITERS: Final = 1
"""Of each ledger: more of them would wait for the same rows, and make smaller groups."""
SHARED: Final = True
"""Several ledgers may write."""
GROUP: Final = 16
"""Messages in one commit: rows that many want are locked once for all of them, and not for long."""
RETRIED: Final = ("40001", "40P01", "23505")
"""Serialization failure, deadlock, and a row that another ledger added first: the message is applied from its start."""
REFUSALS: Final = (OperationalError, InternalError)
"""Errors of a database that cannot be used now: away, full, or a standby."""
READERS: Final = 4
OVERFLOW: Final = 8
CONNECT_S: Final = 5
LOCK_MS: Final = 10_000
_DIALECT: Any = psycopg.dialect()  # type: ignore[no-untyped-call]
_new = tuple.__new__
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """One statement as psycopg takes it; ``row`` is the type of its rows, ``order`` names the values of a write.

    ``listed``: it takes all rows of a write at once, an array for each column. That is half the server's work of the
    same rows as JSON, whose every value it parses twice.
    """

    text: str
    order: tuple[str, ...]
    row: type[tuple[Any, ...]]
    listed: bool

    def read(self, connection: Connection, parameters: dict[str, Any]) -> list[Any]:
        """All rows: whole numbers and text, as the server has them and not as text to read."""
        row = self.row
        return [_new(row, values) for values in raw(connection).execute(self.text, parameters, binary=True).fetchall()]

    def run(self, connection: Connection, parameters: dict[str, Any]) -> int:
        """How many rows were touched."""
        return int(raw(connection).execute(self.text, parameters).rowcount)

    def write(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> Callable[[], int]:
        """Run for all rows, or for each where it takes no list; tells how many were touched, once that is answered."""
        sent = [self._lists(rows)] if self.listed else [dict(zip(self.order, row, strict=True)) for row in rows]
        cursors = [raw(connection).execute(self.text, parameters) for parameters in sent]
        return lambda: sum(cursor.rowcount for cursor in cursors)

    def change(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Write rows that come as a list; how many were found."""
        return self.run(connection, self._lists(rows))

    def change_at_once(
        self, connection: Connection, rows: Sequence[Sequence[Any]], lock: "Text", parameters: dict[str, Any]
    ) -> int:
        """``change`` of rows that are first locked, by ``lock``. 0, where others keep one locked: it cannot go on then.

        It may have locked whatever it likes before: who does not wait is in no circle of those who do. A short wait
        would not do: others may have waited for long already, and PostgreSQL look for circles at that moment.
        """
        try:
            with unanswered(connection):
                raw(connection).execute(lock.text, parameters)
                cursor = raw(connection).execute(self.text, self._lists(rows))
        except LockNotAvailable:
            return 0
        return int(cursor.rowcount)

    def _lists(self, rows: Sequence[Sequence[Any]]) -> dict[str, str]:
        columns = map(array, zip(*rows, strict=True))
        return dict(zip(self.order, columns, strict=True))


def raw(connection: Connection) -> Any:
    """The driver's connection: SQLAlchemy's own way to it costs more than most statements here."""
    return connection.connection.driver_connection


def compiled(statement: ClauseElement, row: type[tuple[Any, ...]], listed: Sequence[str] | None = None) -> Text:
    """A statement as text; ``listed``: the names of what it takes a list of."""
    done: Any = statement.compile(dialect=_DIALECT)
    return Text(str(done), tuple(done.params) if listed is None else tuple(listed), row, listed is not None)


def array(values: Sequence[str | int | None]) -> str:
    """Values as PostgreSQL writes an array. JSON differs from it in the brackets, and in how it escapes."""
    listed = msgspec.json.encode(values).decode()
    if "\\" in listed:
        listed = f"[{','.join(map(_element, values))}]"
    return f"{{{listed[1:-1]}}}"


def _element(value: str | int | None) -> str:
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def ids(name: str, kind: type[TypeEngine[Any]]) -> Select[Any]:
    """The values of a list that comes as one JSON parameter. Whole numbers are written there as in an array."""
    if issubclass(kind, Integer):
        written = func.translate(cast(bindparam(name), TextType), literal_column("'[]'"), literal_column("'{}'"))
        return select(func.unnest(cast(written, postgresql.ARRAY(kind))))
    table = func.json_array_elements_text(cast(bindparam(name), JSON)).table_valued(column("value", TextType()))
    return select(cast(table.c.value, kind))


def listed(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The parameters of ``rows``: an array for each column."""
    return {f"column{index}": array(values) for index, values in enumerate(zip(*rows, strict=True))}


def rows(*types: type[TypeEngine[Any]]) -> tuple[Any, Sequence[ColumnElement[Any]]]:
    """A list of rows as a table, and its columns."""
    columns = [column(f"column{index}", kind) for index, kind in enumerate(types)]
    arrays = (cast(bindparam(item.name), postgresql.ARRAY(item.type)) for item in columns)
    table = func.unnest(*arrays).table_valued(*columns).render_derived(name="sent")
    return table, list(table.c)


def larger(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """The larger of two values."""
    return func.greatest(one, other)


def _sent(table: Table, names: dict[str, str]) -> Any:
    """The rows of a write as a table; ``names`` says which column of ``table`` has the type of each of theirs."""
    columns = [column(name, table.c[source].type) for name, source in names.items()]
    arrays = (cast(bindparam(item.name), postgresql.ARRAY(item.type)) for item in columns)
    return func.unnest(*arrays).table_valued(*columns).render_derived(name="sent")


def adding(table: Table, columns: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """An insert of all rows of a write, and the order of their values."""
    sent = _sent(table, {name: name for name in columns})
    return postgresql.insert(table).from_select(list(columns), select(*(sent.c[name] for name in columns))), columns


def updating(table: Table, keys: dict[str, str], columns: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """An update by all rows of a write, and the order of their values.

    ``keys`` names the parameters of the columns that a row is found by; they are the last.
    """
    sent = _sent(table, {parameter: name for name, parameter in keys.items()} | {name: name for name in columns})
    found = (table.c[name] == sent.c[parameter] for name, parameter in keys.items())
    changed = {name: sent.c[name] for name in columns}
    return update(table).where(*found).values(changed), (*columns, *keys.values())


def deleting(table: Table, keys: dict[str, str]) -> tuple[Any, Sequence[str]]:
    """A deletion by all rows of a write, and the order of their values."""
    sent = _sent(table, {parameter: name for name, parameter in keys.items()})
    found = (table.c[name] == sent.c[parameter] for name, parameter in keys.items())
    return delete(table).where(*found), tuple(keys.values())


_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_EXCLUSIVE = "SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))"


def now(connection: Connection) -> int | None:
    """The database's clock in milliseconds: the one that all ledgers on it share."""
    return int(raw(connection).execute(_NOW).fetchone()[0])


def unanswered(connection: Connection) -> AbstractContextManager[Any]:
    """Statements follow each other without waiting for the answer to each."""
    pipeline: AbstractContextManager[Any] = raw(connection).pipeline()
    return pipeline


def exclusive(connection: Connection, name: str) -> None:
    """Wait until no other transaction holds this name; held until the transaction ends."""
    raw(connection).execute(_EXCLUSIVE, {"name": f"fairlead-ledger/{name}"})


_TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
_STORED = "SELECT v FROM meta WHERE k = 'pg_timeline'"
_STORE = "INSERT INTO meta VALUES ('pg_timeline', %s) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
_RECOVER = """
INSERT INTO meta
SELECT 'recovery_until', ((extract(epoch FROM clock_timestamp()) * 1000)::bigint + %s)::text
ON CONFLICT (k) DO UPDATE SET v = greatest(meta.v::bigint, excluded.v::bigint)::text
"""
_PROMOTED = """
INSERT INTO audit (at_ms, who, what, detail)
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, 'ledger', 'Promoted', %s
"""


def hold(_database: str) -> IO[str]:
    """Nothing to hold: several ledgers may use it."""
    return io.StringIO()


def watch(engine: Engine, recovery_ms: int | None) -> None:
    """Look at each new connection whether a standby was promoted, which may lack the last commits.

    Then nothing is granted for ``recovery_ms``, while routers tell again what they hold; None where standbys are
    synchronous and lack nothing. The name of the log file now written shows the timeline at once, the control file
    only after a checkpoint.
    """

    def look(connection: Any, _record: Any) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('fairlead-ledger/timeline', 0))")
            (now,) = connection.execute(_TIMELINE).fetchone()
            stored = connection.execute(_STORED).fetchone()
            if stored is not None and stored[0] == now:
                return
            connection.execute(_STORE, (now,))
            if stored is not None:
                log.error("PostgreSQL went from timeline %s to %s", stored[0], now)
                connection.execute(_PROMOTED, (f"{stored[0]} to {now}",))
                if recovery_ms is not None:
                    connection.execute(_RECOVER, (recovery_ms,))

    with engine.connect() as connection:
        look(raw(connection), None)
    engine.dispose()
    event.listen(engine, "connect", look)


class _Whole(Loader):
    """Sums of BIGINT come as NUMERIC; all numbers of the ledger are whole."""

    def load(self, data: Any) -> int:
        return int(bytes(data))


def open_engine(database: str, *, reading: bool) -> Engine:
    """An engine on the database of a URL. Readers see one state of it for as long as their transaction lasts."""
    url = database.replace("postgresql://", "postgresql+psycopg://", 1).replace(
        "postgres://", "postgresql+psycopg://", 1
    )
    engine = create_engine(
        url,
        pool_size=READERS if reading else WRITERS,
        max_overflow=OVERFLOW if reading else 1,
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ" if reading else "READ COMMITTED",
        connect_args={
            "connect_timeout": CONNECT_S,
            "application_name": "fairlead-ledger",
            "options": f"-c lock_timeout={LOCK_MS} -c timezone=UTC",
        },
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # One type for all whole numbers, or a statement would be prepared anew for each size that comes.
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        connection.adapters.register_loader("numeric", _Whole)

    @event.listens_for(engine, "rollback")
    def _forget(connection: Connection) -> None:
        # What a transaction left in memory (``remembered``) is not what the database holds if it was undone. A
        # connection that broke has taken it along.
        if not connection.invalidated:
            connection.info.clear()

    return engine


def tidy(_engine: Engine) -> None:
    """Nothing: autovacuum and checkpoints are the server's."""
