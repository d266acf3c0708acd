"""What many requests at once need: counts of a client's day, and keys that a bulk call was answered under."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "intake_counts",
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_intake_counts_client_id")),
        sa.PrimaryKeyConstraint("client_id", "day", "slot", name=op.f("pk_intake_counts")),
    )
    op.alter_column("idempotency_keys", "request_id", nullable=True)
    op.add_column("idempotency_keys", sa.Column("answer", postgresql.JSONB(), nullable=True))

    _index_events(" IS NOT NULL")


def _index_events(where: str | None) -> None:
    """Most events are about a request alone: an index of NULLs costs every create a page write and finds nothing."""
    for column in ("job_id", "model_id"):
        op.drop_index(op.f(f"ix_events_{column}"), "events")
        partial = sa.text(f"{column}{where}") if where else None
        op.create_index(op.f(f"ix_events_{column}"), "events", [column], postgresql_where=partial)


def downgrade() -> None:
    _index_events(None)
    op.execute("DELETE FROM idempotency_keys WHERE request_id IS NULL")
    op.drop_column("idempotency_keys", "answer")
    op.alter_column("idempotency_keys", "request_id", nullable=False)
    op.drop_table("intake_counts")
