"""What another request for the same person has done while one waits."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("erasure_requests", sa.Column("gone_from", sa.ARRAY(sa.Uuid()), nullable=True))
    # Whoever leaves looks for those that it served; without this, through everybody's requests.
    op.create_index(
        "ix_erasure_requests_duplicate_of",
        "erasure_requests",
        ["duplicate_of"],
        postgresql_where=sa.text("duplicate_of IS NOT NULL"),
    )
    op.add_column("decisions", sa.Column("passed_from", sa.BigInteger(), nullable=True))
    op.create_foreign_key(op.f("fk_decisions_passed_from_decisions"), "decisions", "decisions", ["passed_from"], ["id"])
    op.create_index(
        "ix_decisions_passed_from",
        "decisions",
        ["passed_from"],
        postgresql_where=sa.text("passed_from IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_column("decisions", "passed_from")
    op.drop_index("ix_erasure_requests_duplicate_of", table_name="erasure_requests")
    op.drop_column("erasure_requests", "gone_from")
