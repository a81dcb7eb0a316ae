"""A copy of the ledger's database while it runs, and its return.

Only for SQLite: PostgreSQL has its own tools, which are named. A ledger that serves holds a lock on a file beside its
database, so that nothing replaces the database below it.
"""

import contextlib
import os
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from fairlead_operator.ledger import postgres, sqlite
from fairlead_operator.ledger import statements as sql
from fairlead_operator.ledger.schema import dialect_of, migrate, open_engine

CHECK: Final = "PRAGMA integrity_check"
RECOVERY: Final = "recovery_until"


class BackupError(RuntimeError):
    """Nothing was changed; the text says what to do."""


def back_up(database: str, file: Path) -> str:
    """Write a consistent copy while the ledger runs; the file appears when it is whole. Raises BackupError."""
    _only_sqlite(database, f"pg_dump --format=custom --file={file} URL, or pg_basebackup for point-in-time recovery")
    if not Path(database).is_file():
        raise BackupError(f"there is no database {database}: name it by --database or FAIRLEAD_DATABASE")
    part = file.with_name(f"{file.name}.part")
    try:
        with (
            closing(sqlite3.connect(f"file:{database}?mode=rw", uri=True)) as source,
            closing(sqlite3.connect(part)) as target,
        ):
            source.backup(target)  # in one step, beside the commits; between steps each commit would start it anew
            target.execute("PRAGMA journal_mode=DELETE")
            _check(target, part)
        _kept(part)
        part.replace(file)
    except (OSError, sqlite3.Error) as error:
        part.unlink(missing_ok=True)
        raise BackupError(f"{file} was not written: {error}") from error
    return f"{file}: {file.stat().st_size} bytes, checked"


def restore(database: str, file: Path, ttl_ms: int) -> str:
    """Put a copy in the place of the database, which is kept beside it. Raises BackupError, also while a ledger runs.

    The copy gets a new epoch, so that routers tell again what they charged since, and for one ttl nothing is granted.
    """
    _only_sqlite(database, "pg_restore, then the two statements of docs/how-to/back-up-the-ledger.md")
    place = Path(database)
    with closing(sqlite.hold(database)):
        part = place.with_name(f"{place.name}.restored")
        _copied(file, part)
        try:
            _renamed(part, ttl_ms)
        except Exception as error:
            part.unlink(missing_ok=True)
            raise BackupError(f"{file} is not a database that this ledger can use: {error}; nothing changed") from error
        old = _put_by(place)
        part.replace(place)
        _kept(place.parent)
    before = f"what it was before is {old}" if old else "there was none before"
    return f"{database} is now {file}; {before}; nothing is granted for {ttl_ms // 1000} s"


def _put_by(place: Path) -> Path | None:
    """Keep the database under another name as well; its log must not be taken for that of the copy."""
    if not place.exists():
        return None
    old = place.with_name(f"{place.name}.before-restore-{time.time_ns() // 1_000_000}")
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(place)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):  # still there only if the database cannot be read
        with contextlib.suppress(FileNotFoundError):
            Path(f"{place}{suffix}").replace(f"{old}{suffix}")
    os.link(place, old)
    return old


def _only_sqlite(database: str, instead: str) -> None:
    if dialect_of(database) is postgres:
        raise BackupError(f"the database is PostgreSQL: use {instead}")


def _copied(file: Path, part: Path) -> None:
    part.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(part)) as target,
        ):
            source.backup(target)
            _check(target, file)
            target.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError) as error:  # an empty file is a database, but it is no ledger's
        part.unlink(missing_ok=True)
        raise BackupError(f"{file} cannot be read as a ledger's database: {error}; nothing was changed") from error


def _check(connection: sqlite3.Connection, file: Path) -> None:
    found = connection.execute(CHECK).fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"{file} is damaged: {found}")


def _renamed(part: Path, ttl_ms: int) -> None:
    """Bring the copy to this version's schema, and note that it is another history."""
    engine = open_engine(part)
    try:
        migrate(engine)
        with engine.begin() as connection:
            _note(connection, ttl_ms)
        with engine.connect() as connection:
            connection.commit()
            connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    finally:
        engine.dispose()
    _kept(part)


def _note(connection: Connection, ttl_ms: int) -> None:
    now = int(time.time() * 1000)
    epoch = f"e{uuid.uuid4().hex[:8]}"
    sql.write(connection, sql.PUT_META, [{"k": "epoch", "v": epoch}, {"k": RECOVERY, "v": str(now + ttl_ms)}])
    sql.write(connection, sql.ADD_AUDIT, [{"at_ms": now, "who": "ledger", "what": "Restored", "detail": epoch}])


def _kept(file: Path) -> None:
    """A file or folder is on the disk before anything relies on it."""
    opened = os.open(file, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
