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


def downgrade() -> None:
    op.drop_index("ix_erasure_requests_duplicate_of", table_name="erasure_requests")
    op.drop_column("erasure_requests", "gone_from")
