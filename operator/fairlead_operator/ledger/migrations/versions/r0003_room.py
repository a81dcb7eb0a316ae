"""Room beside the rows that every message changes."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CHANGED = ("account", "holding", "usage", "cost_hist", "session", "meta")


def upgrade() -> None:
    """PostgreSQL keeps a row's next version on the same page, and leaves the indexes alone, if there is room for it."""
    if op.get_context().dialect.name == "postgresql":
        for table in CHANGED:
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")
