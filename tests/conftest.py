"""Fixtures that every test may use; the servers live in tests/services.py."""

from tests.services import database_url, postgres_server, template_database, valkey_server

__all__ = ["database_url", "postgres_server", "template_database", "valkey_server"]
