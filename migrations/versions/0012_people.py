"""People who sign in at the dashboard, their browsers, and what they did that only they should know of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("login", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("roles", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("totp", sa.LargeBinary(), nullable=True),
        sa.Column("totp_step", sa.BigInteger(), nullable=True),
        sa.Column("oidc_subject", sa.Text(), nullable=True),
        sa.Column("by_provider", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("setup_digest", sa.LargeBinary(), nullable=True),
        sa.Column("setup_expires_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_people_client_id_clients")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
        sa.UniqueConstraint("client_id", name=op.f("uq_people_client_id")),
        sa.UniqueConstraint("login", name=op.f("uq_people_login")),
        sa.UniqueConstraint("oidc_subject", name=op.f("uq_people_oidc_subject")),
    )
    op.create_table(
        "browser_sessions",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_browser_sessions_person_id_people")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_browser_sessions")),
    )
    op.create_index(op.f("ix_browser_sessions_person_id"), "browser_sessions", ["person_id"])
    op.create_table(
        "sign_in_failures",
        sa.Column("login_digest", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("login_digest", name=op.f("pk_sign_in_failures")),
    )
    op.create_index(op.f("ix_sign_in_failures_failed_at"), "sign_in_failures", ["failed_at"])
    op.create_table(
        "internal_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_internal_log_person_id_people")),
        sa.ForeignKeyConstraint(
            ["request_id"], ["erasure_requests.id"], name=op.f("fk_internal_log_request_id_erasure_requests")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_internal_log")),
    )
    op.create_index(op.f("ix_internal_log_request_id"), "internal_log", ["request_id"])
    op.create_index("ix_internal_log_person_id", "internal_log", ["person_id", "id"])
    op.create_index("ix_internal_log_what", "internal_log", ["what", "id"])
    placed = sa.text("leaf_index IS NOT NULL")
    op.create_index("ix_audit_entries_type", "audit_entries", ["type", "leaf_index"], postgresql_where=placed)
    of_job = sa.text("job_id IS NOT NULL")
    op.create_index("ix_audit_entries_job_id", "audit_entries", ["job_id"], postgresql_where=of_job)
    op.create_index("ix_log_checkpoints_digest", "log_checkpoints", [sa.text("sha256(published)")])
    refuse = "EXECUTE FUNCTION refuse_change()"
    op.execute(f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON internal_log FOR EACH ROW {refuse}")
    op.execute(f"CREATE TRIGGER append_only_all BEFORE TRUNCATE ON internal_log {refuse}")
    still_open, named = sa.text("closed_at IS NULL"), sa.text("reference IS NOT NULL")
    pattern = {"reference": "text_pattern_ops"}
    listed = "erasure_requests"
    op.create_index("ix_erasure_requests_received_at", listed, ["received_at", "sequence"])
    op.create_index("ix_erasure_requests_status", listed, ["status", "received_at", "sequence"])
    op.create_index("ix_erasure_requests_deadline", listed, ["deadline", "sequence"])
    op.create_index("ix_erasure_requests_due", listed, ["deadline", "sequence"], postgresql_where=still_open)
    op.create_index(
        "ix_erasure_requests_reference", listed, ["reference"], postgresql_where=named, postgresql_ops=pattern
    )
    failed = sa.text("next_attempt_at IS NULL AND delivered_at IS NULL")
    op.create_index(
        "ix_webhook_deliveries_failed", "webhook_deliveries", ["receiver", "number"], postgresql_where=failed
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_failed", "webhook_deliveries")
    for name in ("reference", "due", "deadline", "status", "received_at"):
        op.drop_index(f"ix_erasure_requests_{name}", "erasure_requests")
    op.drop_index("ix_log_checkpoints_digest", "log_checkpoints")
    op.drop_index("ix_audit_entries_job_id", "audit_entries")
    op.drop_index("ix_audit_entries_type", "audit_entries")
    for table in ("internal_log", "sign_in_failures", "browser_sessions", "people"):
        op.drop_table(table)
