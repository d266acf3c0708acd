"""The house: requests, jobs, models, samples, events, webhooks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_table(
        "key_checks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_key_checks")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("current_version_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["current_version_id"], ["model_versions.id"], name=op.f("fk_models_current_version_id"), use_alter=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "pulses",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("queue", name=op.f("pk_pulses")),
    )
    op.create_table(
        "suppressions",
        sa.Column("suppression_key", sa.LargeBinary(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("suppression_key", "model", name=op.f("pk_suppressions")),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_because", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_table(
        "erasure_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("status", sa.Text(), server_default="received", nullable=False),
        sa.Column("origin", sa.Text(), server_default="portal", nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("subject_key", sa.Uuid(), nullable=True),
        sa.Column("suppression_key", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_user_id", sa.LargeBinary(), nullable=True),
        sa.Column("dedupe_key", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "NOT (status IN ('cancelled', 'completed', 'no_data')) OR (closed_at IS NOT NULL AND subject_key IS NULL AND suppression_key IS NULL AND sealed_user_id IS NULL AND dedupe_key IS NULL)",
            name=op.f("ck_erasure_requests_ended_means_forgotten"),
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'completed', 'in_progress', 'needs_attention', 'no_data', 'queued', 'received')",
            name=op.f("ck_erasure_requests_status"),
        ),
        sa.ForeignKeyConstraint(["client_id"], ["api_keys.id"], name=op.f("fk_erasure_requests_client_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure_requests")),
        sa.UniqueConstraint("sequence", name=op.f("uq_erasure_requests_sequence")),
    )
    op.create_index(
        "ix_erasure_requests_dedupe_key",
        "erasure_requests",
        ["dedupe_key"],
        unique=True,
        postgresql_where=sa.text("dedupe_key IS NOT NULL"),
    )
    op.create_index(
        "ix_erasure_requests_open",
        "erasure_requests",
        ["received_at"],
        unique=False,
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_index(
        "ix_erasure_requests_received",
        "erasure_requests",
        ["sequence"],
        unique=False,
        postgresql_where=sa.text("status = 'received'"),
    )
    op.create_table(
        "manifests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_manifests_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifests")),
    )
    op.create_table(
        "certificates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("envelope", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_certificates_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
    )
    op.create_index(op.f("ix_certificates_request_id"), "certificates", ["request_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("key_digest", sa.LargeBinary(), nullable=False),
        sa.Column("body_digest", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["api_keys.id"], name=op.f("fk_idempotency_keys_client_id")),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_idempotency_keys_request_id")),
        sa.PrimaryKeyConstraint("client_id", "key_digest", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "manifest_samples",
        sa.Column("manifest_id", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("sample_ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.ForeignKeyConstraint(["manifest_id"], ["manifests.id"], name=op.f("fk_manifest_samples_manifest_id")),
        sa.PrimaryKeyConstraint("manifest_id", "split", "ordinal", name=op.f("pk_manifest_samples")),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("residual", sa.Text(), nullable=True),
        sa.Column("manifest_id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_model_versions_job_id"), use_alter=True),
        sa.ForeignKeyConstraint(["manifest_id"], ["manifests.id"], name=op.f("fk_model_versions_manifest_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_versions_model_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["model_versions.id"], name=op.f("fk_model_versions_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_model_versions_model_id_number")),
    )
    op.create_table(
        "postings",
        sa.Column("manifest_id", sa.Uuid(), nullable=False),
        sa.Column("subject_key", sa.Uuid(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("sample_ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.ForeignKeyConstraint(["manifest_id"], ["manifests.id"], name=op.f("fk_postings_manifest_id")),
        sa.PrimaryKeyConstraint("manifest_id", "subject_key", "split", name=op.f("pk_postings")),
    )
    op.create_table(
        "request_keys",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_request_keys_request_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_keys")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_outcome", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_webhook_deliveries_endpoint_id")
        ),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_webhook_deliveries_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_webhook_deliveries_request_id"), "webhook_deliveries", ["request_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rings", sa.Integer(), server_default="0", nullable=False),
        sa.Column("base_version_id", sa.Uuid(), nullable=True),
        sa.Column("rung", sa.Integer(), server_default="0", nullable=False),
        sa.Column("candidate", sa.Text(), nullable=True),
        sa.Column("report", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("progress", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('certified', 'empty', 'failed', 'located', 'published', 'queued', 'unlearned', 'verified')",
            name=op.f("ck_jobs_status"),
        ),
        sa.ForeignKeyConstraint(["base_version_id"], ["model_versions.id"], name=op.f("fk_jobs_base_version_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_jobs_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "ix_jobs_one_collecting_per_model",
        "jobs",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("status = 'queued' AND fence = 0"),
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("status IN ('located', 'published', 'queued', 'unlearned', 'verified')"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("model_id", sa.Uuid(), nullable=True),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_events_model_id")),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_events_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_job_id"), "events", ["job_id"], unique=False)
    op.create_index(op.f("ix_events_model_id"), "events", ["model_id"], unique=False)
    op.create_index(op.f("ix_events_request_id"), "events", ["request_id"], unique=False)
    op.create_table(
        "forgotten_samples",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("manifest_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("sample_ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_forgotten_samples_job_id")),
        sa.ForeignKeyConstraint(["manifest_id"], ["manifests.id"], name=op.f("fk_forgotten_samples_manifest_id")),
        sa.PrimaryKeyConstraint("job_id", "manifest_id", "ordinal", name=op.f("pk_forgotten_samples")),
    )
    op.create_index(op.f("ix_forgotten_samples_manifest_id"), "forgotten_samples", ["manifest_id"], unique=False)
    op.create_table(
        "targets",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("sample_ids", sa.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_targets_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_targets_model_id")),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_targets_request_id")),
        sa.PrimaryKeyConstraint("request_id", "model_id", name=op.f("pk_targets")),
    )
    op.create_index(op.f("ix_targets_job_id"), "targets", ["job_id"], unique=False)
    # The two circles: a model points at its live version, a version at the job that made it.
    op.create_foreign_key("fk_models_current_version_id", "models", "model_versions", ["current_version_id"], ["id"])
    op.create_foreign_key("fk_model_versions_job_id", "model_versions", "jobs", ["job_id"], ["id"])
    # The planner keeps samples of columns, and would keep keys of people who were forgotten.
    for table, columns in {
        "postings": ("subject_key", "sample_ids"),
        "erasure_requests": ("subject_key", "suppression_key", "sealed_user_id", "dedupe_key"),
        "targets": ("sample_ids",),
    }.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
    # History and the suppression ledger can be added to, never changed.
    op.execute("""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
    """)
    for table in ("events", "suppressions"):
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(f"CREATE TRIGGER append_only_all BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


def downgrade() -> None:
    op.drop_constraint("fk_model_versions_job_id", "model_versions")
    op.drop_constraint("fk_models_current_version_id", "models")
    op.drop_index(op.f("ix_targets_job_id"), table_name="targets")
    op.drop_table("targets")
    op.drop_index(op.f("ix_forgotten_samples_manifest_id"), table_name="forgotten_samples")
    op.drop_table("forgotten_samples")
    op.drop_index(op.f("ix_events_request_id"), table_name="events")
    op.drop_index(op.f("ix_events_model_id"), table_name="events")
    op.drop_index(op.f("ix_events_job_id"), table_name="events")
    op.drop_table("events")
    op.drop_index(
        "ix_jobs_open",
        table_name="jobs",
        postgresql_where=sa.text("status IN ('located', 'published', 'queued', 'unlearned', 'verified')"),
    )
    op.drop_index(
        "ix_jobs_one_collecting_per_model",
        table_name="jobs",
        postgresql_where=sa.text("status = 'queued' AND fence = 0"),
    )
    op.drop_table("jobs")
    op.drop_index(op.f("ix_webhook_deliveries_request_id"), table_name="webhook_deliveries")
    op.drop_index(
        "ix_webhook_deliveries_due",
        table_name="webhook_deliveries",
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.drop_table("webhook_deliveries")
    op.drop_table("request_keys")
    op.drop_table("postings")
    op.drop_table("model_versions")
    op.drop_table("manifest_samples")
    op.drop_table("idempotency_keys")
    op.drop_index(op.f("ix_certificates_request_id"), table_name="certificates")
    op.drop_table("certificates")
    op.drop_table("manifests")
    op.drop_index(
        "ix_erasure_requests_received", table_name="erasure_requests", postgresql_where=sa.text("status = 'received'")
    )
    op.drop_index(
        "ix_erasure_requests_open", table_name="erasure_requests", postgresql_where=sa.text("closed_at IS NULL")
    )
    op.drop_index(
        "ix_erasure_requests_dedupe_key",
        table_name="erasure_requests",
        postgresql_where=sa.text("dedupe_key IS NOT NULL"),
    )
    op.drop_table("erasure_requests")
    op.drop_table("webhook_endpoints")
    op.drop_table("suppressions")
    op.drop_table("pulses")
    op.drop_table("models")
    op.drop_table("key_checks")
    op.drop_table("api_keys")
    op.execute("DROP FUNCTION refuse_change")
