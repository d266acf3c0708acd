"""Clients apart from their keys, all states of a request, and what people decide about it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ENDED = "'cancelled', 'completed', 'no_data'"
_ENDED_NOW = "'cancelled', 'completed', 'no_data', 'partially_completed', 'rejected'"
_STATUSES = f"{_ENDED}, 'in_progress', 'needs_attention', 'queued', 'received'"
_STATUSES_NOW = (
    "'approved', 'awaiting_identity', 'cancelled', 'completed', 'in_progress', 'needs_attention', 'no_data', 'on_hold',"
    " 'partially_completed', 'pending', 'queued', 'received', 'rejected'"
)
_PERSONLESS = (
    "(closed_at IS NOT NULL AND subject_key IS NULL AND suppression_key IS NULL"
    " AND sealed_user_id IS NULL AND dedupe_key IS NULL)"
)
_OWNED = ("erasure_requests", "idempotency_keys")


def upgrade() -> None:
    op.create_table(
        "clients",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("oidc_subject", sa.Text(), nullable=True),
        sa.Column("daily_erasures", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
        sa.UniqueConstraint("oidc_subject", name=op.f("uq_clients_oidc_subject")),
    )
    # Until now a key was a client: each key's client bears the key's id, so that nothing else has to change.
    op.execute("INSERT INTO clients (id, name, created_at) SELECT id, name, created_at FROM api_keys")
    op.add_column("api_keys", sa.Column("client_id", sa.Uuid(), nullable=True))
    op.execute("UPDATE api_keys SET client_id = id")
    op.alter_column("api_keys", "client_id", nullable=False)
    op.create_foreign_key(op.f("fk_api_keys_client_id"), "api_keys", "clients", ["client_id"], ["id"])
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    for table in _OWNED:
        op.drop_constraint(f"fk_{table}_client_id", table)
        op.create_foreign_key(op.f(f"fk_{table}_client_id"), table, "clients", ["client_id"], ["id"])
    op.add_column("webhook_endpoints", sa.Column("client_id", sa.Uuid(), nullable=True))
    # Nobody knows who registered an old endpoint; it goes on hearing of everything.
    op.add_column("webhook_endpoints", sa.Column("every_client", sa.Boolean(), server_default="true", nullable=False))
    op.execute("UPDATE webhook_endpoints SET client_id = (SELECT id FROM clients ORDER BY created_at LIMIT 1)")
    op.alter_column("webhook_endpoints", "every_client", server_default="false")
    op.alter_column("webhook_endpoints", "client_id", nullable=False)
    op.create_foreign_key(op.f("fk_webhook_endpoints_client_id"), "webhook_endpoints", "clients", ["client_id"], ["id"])
    _add_to_requests()
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("data_class", sa.Text(), nullable=True),
        sa.Column("ground", sa.Text(), nullable=True),
        sa.Column("explanation", sa.Text(), nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("notified_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_decisions_request_id")),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_decisions_client_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index(op.f("ix_decisions_request_id"), "decisions", ["request_id"])


def _add_to_requests() -> None:
    op.add_column("erasure_requests", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.add_column("erasure_requests", sa.Column("clock_from", sa.DateTime(timezone=True), nullable=True))
    op.add_column("erasure_requests", sa.Column("identity_level", sa.Text(), server_default="low", nullable=False))
    op.add_column("erasure_requests", sa.Column("approvals_needed", sa.Integer(), server_default="0", nullable=False))
    op.add_column("erasure_requests", sa.Column("duplicate_of", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_erasure_requests_duplicate_of"),
        "erasure_requests",
        "erasure_requests",
        ["duplicate_of"],
        ["id"],
    )
    _constrain(_STATUSES_NOW, _ENDED_NOW)
    op.create_check_constraint(
        op.f("ck_erasure_requests_identity_level"),
        "erasure_requests",
        "identity_level IN ('high', 'low', 'none', 'substantial')",
    )
    op.drop_index("ix_erasure_requests_received", "erasure_requests")
    op.create_index(
        "ix_erasure_requests_plannable",
        "erasure_requests",
        ["sequence"],
        postgresql_where=sa.text("status IN ('approved', 'received')"),
    )
    op.create_index(
        "ix_erasure_requests_subject_key",
        "erasure_requests",
        ["subject_key"],
        postgresql_where=sa.text("subject_key IS NOT NULL"),
    )


def _constrain(statuses: str, ended: str) -> None:
    for name in ("status", "ended_means_forgotten"):
        op.drop_constraint(op.f(f"ck_erasure_requests_{name}"), "erasure_requests")
    op.create_check_constraint(op.f("ck_erasure_requests_status"), "erasure_requests", f"status IN ({statuses})")
    op.create_check_constraint(
        op.f("ck_erasure_requests_ended_means_forgotten"),
        "erasure_requests",
        f"NOT (status IN ({ended})) OR {_PERSONLESS}",
    )


def downgrade() -> None:
    op.drop_table("decisions")
    op.drop_index("ix_erasure_requests_subject_key", "erasure_requests")
    op.drop_index("ix_erasure_requests_plannable", "erasure_requests")
    op.create_index(
        "ix_erasure_requests_received",
        "erasure_requests",
        ["sequence"],
        postgresql_where=sa.text("status = 'received'"),
    )
    op.drop_constraint(op.f("ck_erasure_requests_identity_level"), "erasure_requests")
    _constrain(_STATUSES, _ENDED)
    for column in ("duplicate_of", "approvals_needed", "identity_level", "clock_from", "batch_id"):
        op.drop_column("erasure_requests", column)
    op.drop_column("webhook_endpoints", "every_client")
    op.drop_column("webhook_endpoints", "client_id")
    for table in _OWNED:
        op.drop_constraint(op.f(f"fk_{table}_client_id"), table)
        op.create_foreign_key(f"fk_{table}_client_id", table, "api_keys", ["client_id"], ["id"])
    op.drop_column("api_keys", "expires_at")
    op.drop_column("api_keys", "client_id")
    op.drop_table("clients")
