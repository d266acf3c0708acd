"""Webhooks: secrets that overlap, subscriptions, attempts, leases, and turns among receivers."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_WAITING = "next_attempt_at IS NOT NULL"


def upgrade() -> None:
    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("public", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scheme IN ('v1', 'v1a')", name=op.f("ck_webhook_secrets_scheme")),
        sa.ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_webhook_secrets_endpoint_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_secrets")),
    )
    op.create_index(op.f("ix_webhook_secrets_endpoint_id"), "webhook_secrets", ["endpoint_id"])
    # Sealed as before, bound to the endpoint, so that nothing has to be opened here.
    op.execute(
        "INSERT INTO webhook_secrets (id, endpoint_id, scheme, sealed, created_at)"
        " SELECT gen_random_uuid(), id, 'v1', sealed_secret, created_at FROM webhook_endpoints"
    )
    op.drop_column("webhook_endpoints", "sealed_secret")
    _add_to_endpoints()
    _add_to_deliveries()
    op.create_table(
        "webhook_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("delivery_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["webhook_deliveries.id"],
            name=op.f("fk_webhook_attempts_delivery_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
    )
    op.create_index(op.f("ix_webhook_attempts_delivery_id"), "webhook_attempts", ["delivery_id"])


def _add_to_endpoints() -> None:
    op.add_column("webhook_endpoints", sa.Column("description", sa.Text(), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("events", sa.ARRAY(sa.Text()), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("failures", sa.Integer(), server_default="0", nullable=False))
    for column in ("ended_at", "failing_since", "failed_at", "throttled_until"):
        op.add_column("webhook_endpoints", sa.Column(column, sa.DateTime(timezone=True), nullable=True))
    # Until now an owner's end was one reason among others to be disabled.
    op.execute(
        "UPDATE webhook_endpoints SET ended_at = disabled_at, disabled_at = NULL, disabled_because = NULL"
        " WHERE disabled_because = 'ended by its owner'"
    )
    op.execute(
        "DELETE FROM webhook_secrets s USING webhook_endpoints e WHERE e.id = s.endpoint_id AND e.ended_at IS NOT NULL"
    )


def _add_to_deliveries() -> None:
    op.add_column("webhook_deliveries", sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False))
    op.create_unique_constraint(op.f("uq_webhook_deliveries_number"), "webhook_deliveries", ["number"])
    op.add_column("webhook_deliveries", sa.Column("receiver", sa.Uuid(), nullable=True))
    op.add_column("webhook_deliveries", sa.Column("event", sa.Text(), server_default="portal_callback", nullable=False))
    op.execute(
        "UPDATE webhook_deliveries SET receiver = endpoint_id, event = convert_from(body, 'UTF8')::jsonb ->> 'type'"
    )
    op.alter_column("webhook_deliveries", "receiver", nullable=False)
    op.alter_column("webhook_deliveries", "request_id", nullable=True)
    op.add_column("webhook_deliveries", sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("webhook_deliveries", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("webhook_deliveries", sa.Column("fence", sa.Integer(), server_default="0", nullable=False))
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_waiting",
        "webhook_deliveries",
        ["receiver", "next_attempt_at", "number"],
        postgresql_where=sa.text(_WAITING),
    )
    op.create_index(
        "ix_webhook_deliveries_under_way",
        "webhook_deliveries",
        ["receiver"],
        postgresql_where=sa.text("rung_at IS NOT NULL OR lease_until IS NOT NULL"),
    )
    op.create_index("ix_webhook_deliveries_log", "webhook_deliveries", ["receiver", "number"])
    op.create_index(
        "ix_webhook_deliveries_settled",
        "webhook_deliveries",
        ["created_at"],
        postgresql_where=sa.text("next_attempt_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("webhook_attempts")
    op.execute("DELETE FROM webhook_deliveries WHERE request_id IS NULL")
    for index in ("settled", "log", "under_way", "waiting"):
        op.drop_index(f"ix_webhook_deliveries_{index}", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due", "webhook_deliveries", ["next_attempt_at"], postgresql_where=sa.text(_WAITING)
    )
    for column in ("fence", "lease_until", "rung_at", "event", "receiver", "number"):
        op.drop_column("webhook_deliveries", column)
    op.alter_column("webhook_deliveries", "request_id", nullable=False)
    op.add_column("webhook_endpoints", sa.Column("sealed_secret", sa.LargeBinary(), nullable=True))
    op.execute(
        "UPDATE webhook_endpoints e SET sealed_secret = coalesce((SELECT sealed FROM webhook_secrets s"
        " WHERE s.endpoint_id = e.id AND scheme = 'v1' ORDER BY created_at DESC LIMIT 1), '')"
    )
    # Without a shared secret there is nothing left that could sign.
    op.execute(
        "UPDATE webhook_endpoints SET disabled_at = coalesce(disabled_at, ended_at, now()), disabled_because ="
        " CASE WHEN ended_at IS NULL THEN coalesce(disabled_because, 'no shared secret') ELSE 'ended by its owner' END"
        " WHERE ended_at IS NOT NULL OR sealed_secret = ''"
    )
    op.alter_column("webhook_endpoints", "sealed_secret", nullable=False)
    for column in ("throttled_until", "failed_at", "failing_since", "ended_at", "failures", "events", "description"):
        op.drop_column("webhook_endpoints", column)
    op.drop_table("webhook_secrets")
