"""What an older release registered goes on working: its secrets move to a table of their own without being opened."""

from __future__ import annotations

from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from app import keyring
from app.storage import migrate

pytestmark = pytest.mark.slow
KEY = keyring.new_key()
BODY = b'{"data":{},"timestamp":"2027-02-03T00:00:00Z","type":"erasure_request.no_data"}'


def test_secrets_survive_the_way_there_and_back(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    config = migrate.config(url)
    command.downgrade(config, "0004")
    endpoint, ended, client, request = (uuid4() for _ in range(4))
    sealed = keyring.seal(KEY, b"whsec_old", context=endpoint.bytes)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO clients (id, name) VALUES (:id, 'portal')"), {"id": client})
        add = text(
            "INSERT INTO webhook_endpoints (id, client_id, url, sealed_secret, disabled_at, disabled_because)"
            " VALUES (:id, :client, 'https://portal.example/', :sealed, :at, :because)"
        )
        connection.execute(add, {"id": endpoint, "client": client, "sealed": sealed, "at": None, "because": None})
        over = {"id": ended, "client": client, "sealed": b"x", "at": "2027-01-01", "because": "ended by its owner"}
        connection.execute(add, over)
        connection.execute(
            text("INSERT INTO erasure_requests (id, ref, received_at, deadline) VALUES (:id, 'r', now(), now())"),
            {"id": request},
        )
        connection.execute(
            text("INSERT INTO webhook_deliveries (id, endpoint_id, request_id, body) VALUES (:i, :e, :r, :b)"),
            {"i": uuid4(), "e": endpoint, "r": request, "b": BODY},
        )
    command.upgrade(config, "0005")
    with engine.connect() as connection:
        [row] = connection.execute(text("SELECT endpoint_id, scheme, sealed, expires_at FROM webhook_secrets")).all()
        assert (row.endpoint_id, row.scheme, row.expires_at) == (endpoint, "v1", None)
        assert keyring.unseal(KEY, bytes(row.sealed), context=endpoint.bytes) == b"whsec_old"
        states = connection.execute(text("SELECT id, ended_at IS NOT NULL, disabled_at FROM webhook_endpoints")).all()
        assert {tuple(state) for state in states} == {(endpoint, False, None), (ended, True, None)}
        [told] = connection.execute(text("SELECT event, receiver FROM webhook_deliveries")).all()
        assert tuple(told) == ("erasure_request.no_data", endpoint)
    command.downgrade(config, "0004")
    with engine.connect() as connection:
        query = text("SELECT sealed_secret, disabled_because FROM webhook_endpoints WHERE id = :id")
        back, because = connection.execute(query, {"id": endpoint}).one()
        assert (bytes(back), because) == (sealed, None)
        assert connection.execute(query, {"id": ended}).one().disabled_because == "ended by its owner"
    engine.dispose()
    migrate.upgrade(url)
