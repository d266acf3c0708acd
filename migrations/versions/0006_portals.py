"""Requests in other portals' dialects, and the callbacks that came with them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "portal_requests",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("portal", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("body_digest", sa.LargeBinary(), nullable=True),
        sa.Column("told", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_portal_requests_request_id")),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_portal_requests_client_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_portal_requests")),
        sa.UniqueConstraint(
            "client_id", "portal", "external_id", name=op.f("uq_portal_requests_client_id_portal_external_id")
        ),
    )
    op.create_index(
        "ix_portal_requests_group_id",
        "portal_requests",
        ["client_id", "group_id"],
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )
    op.create_index(
        "ix_portal_requests_body_digest",
        "portal_requests",
        ["request_id"],
        postgresql_where=sa.text("body_digest IS NOT NULL"),
    )
    op.create_table(
        "portal_callbacks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("hears", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_portal_callbacks_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_portal_callbacks")),
    )
    op.create_index(op.f("ix_portal_callbacks_request_id"), "portal_callbacks", ["request_id"])
    op.create_index(
        "ix_portal_callbacks_sealed",
        "portal_callbacks",
        ["request_id"],
        postgresql_where=sa.text("sealed IS NOT NULL"),
    )
    op.alter_column("webhook_deliveries", "endpoint_id", nullable=True)
    op.add_column("webhook_deliveries", sa.Column("callback_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_webhook_deliveries_callback_id"), "webhook_deliveries", "portal_callbacks", ["callback_id"], ["id"]
    )
    op.create_index(op.f("ix_webhook_deliveries_callback_id"), "webhook_deliveries", ["callback_id"])
    op.create_check_constraint(
        op.f("ck_webhook_deliveries_one_receiver"),
        "webhook_deliveries",
        "num_nonnulls(endpoint_id, callback_id) = 1",
    )


def downgrade() -> None:
    op.execute("DELETE FROM webhook_deliveries WHERE callback_id IS NOT NULL")
    op.drop_constraint(op.f("ck_webhook_deliveries_one_receiver"), "webhook_deliveries")
    op.drop_column("webhook_deliveries", "callback_id")
    op.alter_column("webhook_deliveries", "endpoint_id", nullable=False)
    op.drop_table("portal_callbacks")
    op.drop_table("portal_requests")
