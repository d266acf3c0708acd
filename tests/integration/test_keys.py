"""Keys and clients as an operator makes them: expiry, a second key, rotation with an overlap, subjects of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app import keymaking
from app.api.auth import Scope
from app.domain import periods
from app.domain.identifiers import api_key_digest
from app.errors import Conflict, Invalid, NotFound
from app.storage import keys
from app.storage.keys import Claim, Holder
from app.storage.sessions import connect, transaction
from app.storage.tables import ApiKey, Client
from tests.house import Installation

pytestmark = pytest.mark.slow
NOW = datetime.now(UTC)
WEEK = timedelta(days=7)


@pytest.fixture
def tx(database_url: str) -> Iterator[Session]:
    engine = connect(database_url.replace("postgresql://", "postgresql+psycopg://", 1), pool_size=1)
    with transaction(engine) as session:
        yield session
    engine.dispose()


def holder(tx: Session, secret: str) -> Holder | None:
    return keys.callers(tx, [Claim(key_digest=api_key_digest(secret))])[0]


def test_a_rotated_key_and_its_successor_are_both_good_until_the_overlap_ends(tx: Session) -> None:
    row, old = keymaking.create(tx, name="portal", scopes=[Scope.REQUESTS_READ])
    successor, new = keymaking.rotate(tx, row.id, overlap=WEEK, now=NOW)
    tx.flush()
    assert holder(tx, old) == holder(tx, new) == Holder(row.client_id, frozenset({Scope.REQUESTS_READ}))
    assert row.expires_at == NOW + WEEK
    assert successor.expires_at is None
    row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    tx.flush()
    assert holder(tx, old) is None
    assert holder(tx, new) is not None


def test_rotation_prolongs_nothing_and_gives_as_long_again(tx: Session) -> None:
    row, _ = keymaking.create(tx, name="portal", scopes=[Scope.REQUESTS_READ], expires_at=NOW + timedelta(days=2))
    successor, _ = keymaking.rotate(tx, row.id, overlap=WEEK, now=NOW)
    assert row.expires_at == NOW + timedelta(days=2)
    assert successor.expires_at is not None
    assert timedelta(days=1.9) < successor.expires_at - NOW < timedelta(days=2.1)


def test_a_key_that_has_ended_has_no_successor(tx: Session) -> None:
    revoked, _ = keymaking.create(tx, name="a", scopes=[Scope.REQUESTS_READ])
    keys.revoke(tx, revoked.id)
    expired, _ = keymaking.create(tx, name="b", scopes=[Scope.REQUESTS_READ], expires_at=NOW - WEEK)
    tx.refresh(revoked)
    for row in (revoked, expired):
        with pytest.raises(Conflict):
            keymaking.rotate(tx, row.id, overlap=WEEK, now=NOW)
    with pytest.raises(NotFound):
        keymaking.rotate(tx, uuid4(), overlap=WEEK, now=NOW)


def test_what_the_database_holds_of_a_key_opens_nothing(tx: Session) -> None:
    _, secret = keymaking.create(tx, name="portal", scopes=list(Scope))
    rows = tx.scalars(text("SELECT t::text FROM api_keys t")).all()
    assert rows
    assert not any(secret in row or secret[10:30] in row for row in rows)
    for stored in (api_key_digest(secret).hex(), secret[:10]):
        assert holder(tx, stored) is None


def test_a_use_is_noted_once_a_minute(tx: Session) -> None:
    row, secret = keymaking.create(tx, name="portal", scopes=[Scope.REQUESTS_READ])
    holder(tx, secret)
    tx.refresh(row)
    assert row.last_used_at is not None


def test_tokens_get_what_they_ask_for_as_far_as_their_client_may(tx: Session) -> None:
    client = keymaking.describe_client(
        tx, "portal", oidc_subject="sub-1", token_scopes=[Scope.REQUESTS_READ, Scope.MODELS_READ]
    )
    tx.flush()
    asked = frozenset({Scope.REQUESTS_READ, Scope.REQUESTS_DECIDE})
    known, stranger = keys.callers(tx, [Claim(subject="sub-1", scopes=asked), Claim(subject="sub-2", scopes=asked)])
    assert known == Holder(client.id, frozenset({Scope.REQUESTS_READ}))
    assert stranger == Holder(None, frozenset())
    keymaking.describe_client(tx, "portal", oidc_subject="")
    tx.flush()
    assert keys.callers(tx, [Claim(subject="sub-1", scopes=asked)]) == [Holder(None, frozenset())]


def test_one_subject_is_one_client(tx: Session) -> None:
    keymaking.describe_client(tx, "portal", oidc_subject="sub-1")
    tx.flush()
    with pytest.raises(Conflict):
        keymaking.describe_client(tx, "another", oidc_subject="sub-1")
    for odd in ("a\0b", "x" * 256, "line\nfeed"):
        with pytest.raises(Invalid):
            keymaking.describe_client(tx, "third", oidc_subject=odd)


def test_keys_and_tokens_are_looked_up_together(tx: Session) -> None:
    row, secret = keymaking.create(tx, name="a", scopes=[Scope.REQUESTS_READ])
    client = keymaking.describe_client(tx, "b", oidc_subject="b", token_scopes=[Scope.MODELS_READ])
    tx.flush()
    claims = [
        Claim(subject="b", scopes=frozenset({Scope.MODELS_READ})),
        Claim(key_digest=api_key_digest(secret)),
        Claim(key_digest=api_key_digest("exk_nothing")),
    ]
    found = keys.callers(tx, claims)
    assert [one and one.client_id for one in found] == [client.id, row.client_id, None]


def test_the_command_line_makes_rotates_lists_and_ends_keys(front_door: Installation) -> None:
    name = f"portal-{uuid4().hex[:6]}"
    made = front_door.cli("keys", "create", name, "--scope", "models:read", "--expires", "90d")
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"exk_[0-9A-Za-z]{49}", made.stdout.strip())
    assert "good until" in made.stderr
    twice = front_door.cli("keys", "create", name, "--scope", "models:read")
    assert (twice.returncode, "--client" in twice.stderr) == (1, True)
    second = front_door.cli("keys", "create", f"{name}-2", "--scope", "requests:read", "--client", name)
    assert second.returncode == 0, second.stderr
    with transaction(front_door.engine) as tx:
        first_row, second_row = (
            tx.scalars(select(ApiKey).where(ApiKey.digest == api_key_digest(done.stdout.strip()))).one()
            for done in (made, second)
        )
        assert first_row.client_id == second_row.client_id
        assert first_row.expires_at is not None
        assert abs(first_row.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    rotated = front_door.cli("keys", "rotate", str(first_row.id), "--overlap", "12h")
    assert rotated.returncode == 0, rotated.stderr
    listed = front_door.cli("keys", "list")
    assert listed.returncode == 0, listed.stderr
    assert str(first_row.id) in listed.stdout


def test_the_command_line_registers_subjects(front_door: Installation) -> None:
    name, subject = f"officer-{uuid4().hex[:6]}", uuid4().hex
    asked = ("--oidc-subject", subject, "--scope", "requests:decide", "--daily-erasures", "7")
    done = front_door.cli("keys", "client", name, *asked)
    assert done.returncode == 0, done.stderr
    with transaction(front_door.engine) as tx:
        client = tx.scalars(select(Client).where(Client.oidc_subject == subject)).one()
        assert (client.name, client.token_scopes, client.daily_erasures) == (name, ["requests:decide"], 7)
        assert isinstance(client.id, UUID)


@pytest.mark.parametrize(
    "written", ["", "90", "d", "-1d", "1y", "2020-01-01", "2027-02-30", "tomorrow", "0d", "999999d"]
)
def test_a_time_that_is_none_or_past_is_refused(written: str) -> None:
    with pytest.raises(Invalid) as caught:
        periods.moment(written, NOW, field="--expires")
    assert caught.value.field == "--expires"
