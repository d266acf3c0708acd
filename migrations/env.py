"""How Alembic reaches the database; the URL is handed over by app.storage.migrate."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from app.storage.tables import Table

url = context.config.attributes["url"]

with create_engine(url, poolclass=pool.NullPool).connect() as connection:
    # Two processes may start at once: the second waits here and finds nothing left to do.
    connection.execute(text("SELECT pg_advisory_lock(7215001)"))
    connection.commit()
    context.configure(
        connection=connection, target_metadata=Table.metadata, compare_server_default=False, include_schemas=True
    )
    with context.begin_transaction():
        context.run_migrations()
