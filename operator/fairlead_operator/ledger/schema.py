"""The ledger's tables and how its database is opened and brought up to date.

Amounts are in the unit of their budget (nano-USD, tokens, requests); times are milliseconds since the epoch, UTC.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Engine,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

from fairlead_operator.ledger import postgres, sqlite

DIALECTS: Final[Mapping[str, ModuleType]] = {"sqlite": sqlite, "postgresql": postgres}
"""What speaks to each database, by SQLAlchemy's name of it."""

metadata = MetaData()


def _id() -> Column[int]:
    return Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)


def _text(name: str, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=nullable)


def _big(name: str, *, key: bool = False, default: int | None = None) -> Column[int]:
    server_default = None if default is None else str(default)
    return Column(name, BigInteger, primary_key=key, nullable=False, server_default=server_default, autoincrement=False)


meta = Table("meta", metadata, _text("k", key=True), _text("v"))
budget = Table(
    "budget",
    metadata,
    _text("namespace", key=True),
    _text("name", key=True),
    _big("series_id"),
    _text("uid"),
    _text("spec"),
    Column("deleted", SmallInteger, nullable=False, server_default="0"),
)
series = Table(
    "series",
    metadata,
    _id(),
    _text("namespace"),
    _text("name"),
    _text("unit"),
    _text("per"),
    _text("period"),
    _text("tz"),
    _big("created_ms"),
    UniqueConstraint("namespace", "name", "unit", "per", "period", "tz", name="series_identity"),
)
budget_window = Table(
    "budget_window",
    metadata,
    _id(),
    _big("series_id"),
    _big("start_ms"),
    _big("end_ms"),
    UniqueConstraint("series_id", "start_ms", name="budget_window_start"),
    CheckConstraint("end_ms > start_ms", name="budget_window_has_length"),
)
window_ns = Table(
    "window_ns",
    metadata,
    _big("window_id", key=True),
    _text("namespace", key=True),
    Column("keys", Integer, nullable=False),
)
account = Table(
    "account",
    metadata,
    _id(),
    _big("window_id"),
    _text("namespace"),
    _text("key"),
    _big("held", default=0),
    _big("charged", default=0),
    _big("unbacked", default=0),
    _big("unreconciled", default=0),
    Column("holders", Integer, nullable=False, server_default="0"),
    _big("recall_until", default=0),
    _big("refused_ms", default=0),
    _big("cap_high", default=0),
    Column("acted", SmallInteger, nullable=False, server_default="0"),
    Column("pace_from", BigInteger),
    Column("pace_base", BigInteger),
    UniqueConstraint("window_id", "namespace", "key", name="account_place"),
    CheckConstraint("held >= 0", name="account_held"),
    CheckConstraint("unreconciled >= 0", name="account_unreconciled"),
)
session = Table(
    "session",
    metadata,
    _text("id", key=True),
    _text("pod_uid"),
    _text("pod"),
    _big("seq"),
    _big("seen_ms"),
    _text("state"),
    Column("taken", SmallInteger, nullable=False, server_default="0"),
    CheckConstraint("state IN ('Open', 'Lost', 'Replaying', 'Closed')", name="session_state"),
    Index("session_seen", "state", "seen_ms"),
)
holding = Table(
    "holding",
    metadata,
    _text("session_id", key=True),
    _big("account_id", key=True),
    Column("class", SmallInteger, primary_key=True, nullable=False, autoincrement=False),
    _big("granted"),
    _big("returned"),
    _big("charged"),
    _big("unbacked"),
    _big("reserved"),
    CheckConstraint("granted - returned - charged + unbacked >= 0", name="holding_out"),
    Index("holding_account", "account_id"),
    sqlite_with_rowid=False,
)
dim = Table(
    "dim",
    metadata,
    _id(),
    _text("hash"),
    _text("namespace"),
    _text("caller"),
    _text("feature"),
    _text("model"),
    _text("pool"),
    _text("variant"),
    _text("route"),
    _text("cache"),
    _text("attempt"),
    _text("basis"),
    _big("card"),
    UniqueConstraint("hash", name="dim_hash"),
    Index("dim_namespace", "namespace"),
)
usage = Table(
    "usage",
    metadata,
    _big("bucket", key=True),
    _big("dim_id", key=True),
    _big("requests"),
    _big("prompt"),
    _big("cached"),
    _big("output"),
    _big("nano_usd"),
    _big("saved"),
    Index("usage_dim", "dim_id", "bucket"),
    sqlite_with_rowid=False,
)
cost_hist = Table(
    "cost_hist",
    metadata,
    _big("bucket", key=True),
    _big("dim_id", key=True),
    Column("bin", SmallInteger, primary_key=True, nullable=False, autoincrement=False),
    _big("n"),
    sqlite_with_rowid=False,
)
rate_card = Table(
    "rate_card",
    metadata,
    _text("pool", key=True),
    _big("version", key=True),
    _big("prompt_pico"),
    _big("cached_pico"),
    _big("output_pico"),
    _text("source"),
    _big("at_ms"),
)
pool_cost = Table(
    "pool_cost",
    metadata,
    _big("bucket", key=True),
    _text("pool", key=True),
    _text("variant", key=True),
    _big("replica_ms"),
    _big("nano_usd"),
    sqlite_with_rowid=False,
)
audit = Table(
    "audit",
    metadata,
    _id(),
    _big("at_ms"),
    _text("who"),
    _text("what"),
    _text("detail"),
    Index("audit_at", "at_ms"),
)


class NewerSchemaError(RuntimeError):
    """The database was written by a newer version of the ledger."""


def open_engine(database: Path | str, *, reading: bool = False) -> Engine:
    """An engine on a database: a file's path for SQLite, or a postgresql:// URL."""
    engine: Engine = dialect_of(database).open_engine(str(database), reading=reading)
    return engine


def dialect_of(database: Path | str) -> ModuleType:
    """The module that speaks to such a database."""
    return postgres if str(database).startswith(("postgresql://", "postgres://")) else sqlite


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the database to this version's schema; raises NewerSchemaError if it is ahead of it.

    Ledgers that start together on one database do this one after the other.
    """
    config = Config()
    config.set_main_option("script_location", str(files("fairlead_operator.ledger").joinpath("migrations")))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        DIALECTS[engine.dialect.name].exclusive(connection, "schema")
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise NewerSchemaError(
                f"the database has schema {current}, this ledger knows up to {max(known)}; nothing was changed: "
                "run the version that wrote it, or restore a backup of before"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
