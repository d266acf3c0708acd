"""How the portals answer to which callbacks lead."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "callback_receivers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("throttled_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_callback_receivers_client_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_receivers")),
    )
    op.create_index(op.f("ix_callback_receivers_client_id"), "callback_receivers", ["client_id"])
    # None: a callback from before this table, or of an older process; its messages wait for the client's turn.
    op.add_column("portal_callbacks", sa.Column("receiver_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    # What went by its portal goes by its client again.
    op.execute(
        "UPDATE webhook_deliveries d SET receiver = r.client_id FROM callback_receivers r WHERE r.id = d.receiver"
    )
    op.drop_column("portal_callbacks", "receiver_id")
    op.drop_table("callback_receivers")
