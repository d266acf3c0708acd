"""The public log: outbox, tiles, checkpoints, evidence; keys in a schema of their own."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_ENTRY_ONCE = """
    CREATE FUNCTION sequenced_once() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF OLD.leaf_index IS NOT NULL OR NEW.leaf_index IS NULL OR NEW.entry IS NULL
         OR (NEW.id, NEW.type, NEW.at, NEW.request_id, NEW.job_id, NEW.fields)
            IS DISTINCT FROM (OLD.id, OLD.type, OLD.at, OLD.request_id, OLD.job_id, OLD.fields)
      THEN RAISE EXCEPTION 'audit_entries is append-only'; END IF;
      RETURN NEW;
    END $$
"""
_TILES_GROW = """
    CREATE FUNCTION grows_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NEW.level <> OLD.level OR NEW.index <> OLD.index
         OR substring(NEW.hashes FOR length(OLD.hashes)) IS DISTINCT FROM OLD.hashes
      THEN RAISE EXCEPTION 'log_tiles is append-only'; END IF;
      RETURN NEW;
    END $$
"""
_PUBLISHED_ONCE = """
    CREATE FUNCTION published_once() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF OLD.published IS NOT NULL OR (NEW.id, NEW.size, NEW.root, NEW.note, NEW.signed_at)
            IS DISTINCT FROM (OLD.id, OLD.size, OLD.root, OLD.note, OLD.signed_at)
      THEN RAISE EXCEPTION 'log_checkpoints is append-only'; END IF;
      RETURN NEW;
    END $$
"""
_CHANGES = {"audit_entries": "sequenced_once", "log_tiles": "grows_only", "log_checkpoints": "published_once"}


def upgrade() -> None:
    op.add_column("erasure_requests", sa.Column("ref", sa.Text(), nullable=True))
    op.execute("UPDATE erasure_requests SET ref = replace(gen_random_uuid()::text, '-', '')")
    op.alter_column("erasure_requests", "ref", nullable=False)
    op.create_unique_constraint(op.f("uq_erasure_requests_ref"), "erasure_requests", ["ref"])
    op.add_column("erasure_requests", sa.Column("backups_expire_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("CREATE SCHEMA keystore")
    op.create_table(
        "request_keys",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "purpose", name=op.f("pk_request_keys")),
        schema="keystore",
    )
    op.execute(
        "INSERT INTO keystore.request_keys (request_id, purpose, wrapped)"
        " SELECT request_id, 'working', wrapped FROM public.request_keys"
    )
    op.drop_table("request_keys")
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("fields", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=True),
        sa.Column("leaf_index", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_audit_entries_request_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_audit_entries_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("leaf_index", name=op.f("uq_audit_entries_leaf_index")),
    )
    op.create_index(op.f("ix_audit_entries_request_id"), "audit_entries", ["request_id"])
    op.create_index("ix_audit_entries_pending", "audit_entries", ["id"], postgresql_where=sa.text("leaf_index IS NULL"))
    op.create_table(
        "audit_evidence",
        sa.Column("entry_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_audit_evidence")),
    )
    op.create_table(
        "log_tiles",
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name=op.f("pk_log_tiles")),
    )
    op.create_table(
        "log_checkpoints",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published", sa.LargeBinary(), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_checkpoints")),
    )
    op.create_table(
        "log_keys",
        sa.Column("vkey", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("since_size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vkey", name=op.f("pk_log_keys")),
    )
    op.create_table(
        "timestamps",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        sa.Column("stamped_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_timestamps")),
    )
    op.alter_column("suppressions", "since", server_default=sa.text("date_trunc('day', now())"))
    # What the log finds when it is opened: open requests and live models, so that what follows has a beginning.
    op.execute(
        "INSERT INTO audit_entries (type, at, request_id, fields)"
        " SELECT 'request.received', received_at, id, jsonb_build_object('due', to_char(deadline AT TIME ZONE 'UTC',"
        ' \'YYYY-MM-DD"T"HH24:MI:SS"+00:00"\')) FROM erasure_requests WHERE closed_at IS NULL ORDER BY sequence'
    )
    op.execute(
        "INSERT INTO audit_entries (type, at, fields) SELECT 'model.registered', v.published_at,"
        " jsonb_build_object('model', jsonb_build_object('to', 'sha256:' || v.weights))"
        " FROM models m JOIN model_versions v ON v.id = m.current_version_id"
    )
    for function in (_ENTRY_ONCE, _TILES_GROW, _PUBLISHED_ONCE):
        op.execute(function)
    for table, function in _CHANGES.items():
        op.execute(f"CREATE TRIGGER once BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()")
        op.execute(f"CREATE TRIGGER append_only BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()")
        op.execute(f"CREATE TRIGGER append_only_all BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


def downgrade() -> None:
    op.alter_column("suppressions", "since", server_default=sa.text("now()"))
    for table in ("timestamps", "log_keys", "log_checkpoints", "log_tiles", "audit_evidence", "audit_entries"):
        op.drop_table(table)
    for function in _CHANGES.values():
        op.execute(f"DROP FUNCTION {function}")
    op.create_table(
        "request_keys",
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["erasure_requests.id"], name=op.f("fk_request_keys_request_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_keys")),
    )
    op.execute(
        "INSERT INTO request_keys (request_id, wrapped)"
        " SELECT request_id, wrapped FROM keystore.request_keys WHERE purpose = 'working'"
    )
    op.execute("DROP SCHEMA keystore CASCADE")
    op.drop_column("erasure_requests", "backups_expire_at")
    op.drop_column("erasure_requests", "ref")
