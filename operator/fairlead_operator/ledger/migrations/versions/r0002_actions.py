"""Actions that stay in force, pacing, and what the ledger did."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables; what is stored stays as it is."""
    op.add_column("account", sa.Column("acted", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("account", sa.Column("pace_from", sa.BigInteger(), nullable=True))
    op.add_column("account", sa.Column("pace_base", sa.BigInteger(), nullable=True))
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_at", "audit", ["at_ms"], unique=False)
