"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _budgets()
    _accounts()
    _holders()
    _usage()
    _prices()


def _budgets() -> None:
    op.create_table(
        "meta",
        sa.Column("k", sa.Text(), nullable=False),
        sa.Column("v", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("k"),
    )
    op.create_table(
        "budget",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("deleted", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name"),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("per", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("namespace", "name", "unit", "per", "period", "tz", name="series_identity"),
    )
    op.create_table(
        "budget_window",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("end_ms > start_ms", name="budget_window_has_length"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("series_id", "start_ms", name="budget_window_start"),
    )


def _accounts() -> None:
    op.create_table(
        "window_ns",
        sa.Column("window_id", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("keys", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("window_id", "namespace"),
    )
    op.create_table(
        "account",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("window_id", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("held", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("charged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unbacked", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unreconciled", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("holders", sa.Integer(), server_default="0", nullable=False),
        sa.Column("recall_until", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("refused_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cap_high", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("held >= 0", name="account_held"),
        sa.CheckConstraint("unreconciled >= 0", name="account_unreconciled"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("window_id", "namespace", "key", name="account_place"),
    )


def _holders() -> None:
    op.create_table(
        "session",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pod_uid", sa.Text(), nullable=False),
        sa.Column("pod", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("taken", sa.SmallInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('Open', 'Lost', 'Replaying', 'Closed')", name="session_state"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("session_seen", "session", ["state", "seen_ms"], unique=False)
    op.create_table(
        "holding",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("class", sa.SmallInteger(), nullable=False),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.Column("returned", sa.BigInteger(), nullable=False),
        sa.Column("charged", sa.BigInteger(), nullable=False),
        sa.Column("unbacked", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("granted - returned - charged + unbacked >= 0", name="holding_out"),
        sa.PrimaryKeyConstraint("session_id", "account_id", "class"),
        sqlite_with_rowid=False,
    )
    op.create_index("holding_account", "holding", ["account_id"], unique=False)


def _usage() -> None:
    op.create_table(
        "dim",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("cache", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Text(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("card", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash", name="dim_hash"),
    )
    op.create_index("dim_namespace", "dim", ["namespace"], unique=False)
    op.create_table(
        "usage",
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("dim_id", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt", sa.BigInteger(), nullable=False),
        sa.Column("cached", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.Column("saved", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "dim_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("usage_dim", "usage", ["dim_id", "bucket"], unique=False)
    op.create_table(
        "cost_hist",
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("dim_id", sa.BigInteger(), nullable=False),
        sa.Column("bin", sa.SmallInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "dim_id", "bin"),
        sqlite_with_rowid=False,
    )


def _prices() -> None:
    op.create_table(
        "rate_card",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("prompt_pico", sa.BigInteger(), nullable=False),
        sa.Column("cached_pico", sa.BigInteger(), nullable=False),
        sa.Column("output_pico", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "version"),
    )
    op.create_table(
        "pool_cost",
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("variant", sa.Text(), nullable=False),
        sa.Column("replica_ms", sa.BigInteger(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("bucket", "pool", "variant"),
        sqlite_with_rowid=False,
    )
