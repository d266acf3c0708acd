"""What people see from outside: the trace of a request, and totals that outlive processes and rows."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_SEEDS = """
INSERT INTO totals (name, label, bucket, times, value)
SELECT 'requests_ended', status, 0, count(*), count(*) FROM erasure_requests WHERE closed_at IS NOT NULL GROUP BY status
UNION ALL
SELECT 'suppressed', '', 0, count(*), count(*) FROM suppressions
"""


def upgrade() -> None:
    op.add_column("erasure_requests", sa.Column("traceparent", sa.Text(), nullable=True))
    op.create_table(
        "measurements",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.Float(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurements")),
    )
    op.create_table(
        "totals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "bucket", name=op.f("pk_totals")),
    )
    op.execute(_SEEDS)


def downgrade() -> None:
    op.drop_table("totals")
    op.drop_table("measurements")
    op.drop_column("erasure_requests", "traceparent")
