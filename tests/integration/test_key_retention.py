"""Keys are deleted when they are due, the log says so once, and what they sealed can't be opened any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap
from expunge_verify import cli as verifier
from expunge_verify import leaf
from expunge_verify.notes import Vkey
from expunge_verify.policy import Policy
from expunge_verify.receipt import check_receipt
from sqlalchemy import insert, select, text

from app import certificates, decisions, keymaking, keyring
from app.audit import evidence
from app.audit.leaves import opened
from app.errors import NotFound
from app.storage import audit, requests
from app.storage.sessions import transaction
from app.storage.tables import AuditEntry, ErasureRequest, Evidence, RequestKey
from tests import toy
from tests.faults import wait_until
from tests.house import installation
from tests.pipeline import Bench, in_this_process, register
from workers import erase
from workers.context import Context
from workers.scribe import Scribe

pytestmark = pytest.mark.slow

Row = dict[str, Any]  # Any: columns


@dataclass(frozen=True)
class Later(Context):
    """A context whose clock is days ahead."""

    days: float = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)


@pytest.fixture
def bench(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """An installation that keeps evidence for 30 days, and backups of keys for 7."""
    monkeypatch.setattr(erase, "run_step", in_this_process)
    days = {"evidence_days": 30, "key_backup_days": 7}
    with installation(tmp_path, database_url, "", model=False, **days) as house:
        made = Bench(house)
        register(made)
        yield made


def run_all(bench: Bench) -> None:
    with bench.sequencing():
        bench.run_all()
        wait_until(bench.is_published, 20, "the log is published")


def pass_days(bench: Bench, days: float) -> None:
    """What dispatch does on that day."""
    ctx = Later(bench.ctx.settings, bench.ctx.engine, days)
    scribe = Scribe(ctx.settings)
    scribe.expire(ctx)
    scribe.sequence(ctx)


def rows(bench: Bench, table: Any) -> list[Row]:  # Any: a mapped class
    with transaction(bench.ctx.engine) as tx:
        return [dict(row._mapping) for row in tx.execute(select(table.__table__))]


def keys_of(bench: Bench, request_id: UUID) -> set[str]:
    return {row["purpose"] for row in rows(bench, RequestKey) if row["request_id"] == request_id}


def story(bench: Bench, request_id: UUID) -> list[str]:
    ref = bench.request(request_id).ref
    with transaction(bench.ctx.engine) as tx:
        shown = audit.published(tx)
        assert shown is not None
        told = [leaf.decode(entry) for entry in audit.entries(tx, 0, shown.size)]
    return [said["type"] for said in told if said.get("ref") == ref]


def receipt(bench: Bench, request_id: UUID) -> bytes:
    with transaction(bench.ctx.engine) as tx:
        return evidence.receipt_of(tx, requests.get(tx, request_id), bench.ctx.settings)


def test_a_receipt_opens_until_its_retention_ends_and_says_so_afterwards(bench: Bench) -> None:
    old = bench.demand(3)
    run_all(bench)
    still_open = bench.demand(4)
    Scribe(bench.ctx.settings).sequence(bench.ctx)
    pass_days(bench, 29)
    with transaction(bench.ctx.engine) as tx:
        policy = Policy.of([Vkey.parse(audit.known_keys(tx)[0].vkey)])
    assert check_receipt(receipt(bench, old), policy)
    pass_days(bench, 31)
    assert keys_of(bench, old) == set()
    with pytest.raises(NotFound, match="past retention"):
        receipt(bench, old)
    assert keys_of(bench, still_open) == {"working", "evidence"}, "retention begins with the end"
    assert check_receipt(receipt(bench, still_open), policy)
    assert bench.certificate(old)
    with transaction(bench.ctx.engine) as tx:
        assert evidence.certificate_proof(tx, evidence.certificate_of(tx, old))


def test_nothing_that_is_left_opens_what_a_deleted_evidence_key_sealed(bench: Bench) -> None:
    old, other = bench.demand(3), bench.demand(5)
    run_all(bench)
    of_old = {row["id"] for row in rows(bench, AuditEntry) if row["request_id"] == old}
    sealed = [row["sealed"] for row in rows(bench, Evidence) if row["entry_id"] in of_old]
    assert sealed
    with transaction(bench.ctx.engine) as tx:
        tx.execute(
            text("UPDATE erasure_requests SET closed_at = closed_at + interval '60 days' WHERE id = :id"),
            {"id": other},
        )
    pass_days(bench, 31)
    wrapping = bench.ctx.settings.key("wrapping_key")
    left = [row["wrapped"] for row in rows(bench, RequestKey)]
    assert len(left) == 1
    for wrapped in (*left, None):
        for one in sealed:
            with pytest.raises(InvalidTag):
                opened(wrapping, wrapped, one)


def test_the_log_says_once_that_no_backup_has_the_deleted_key(bench: Bench, tmp_path: Path) -> None:
    request_id, withdrawn, waiting = bench.demand(3), bench.demand(4), bench.demand(6)
    with transaction(bench.ctx.engine) as tx:
        decisions.cancel(tx, withdrawn, by=keymaking.operator(tx), now=bench.now(), settings=bench.ctx.settings)
        tx.execute(text("UPDATE erasure_requests SET status = 'needs_attention' WHERE id = :id"), {"id": waiting})
    run_all(bench)
    assert "key.shredded" in story(bench, request_id)
    pass_days(bench, 6.9)
    assert "key.backup_expired" not in story(bench, request_id)
    for days in (7.1, 7.2, 40):
        pass_days(bench, days)
    for ended in (request_id, withdrawn):
        assert story(bench, ended).count("key.backup_expired") == 1
        assert story(bench, ended)[-1] == "key.backup_expired"
    assert "key.backup_expired" not in story(bench, waiting)
    with transaction(bench.ctx.engine) as tx:
        vkey = audit.known_keys(tx)[0].vkey
    assert verifier.main(["requests", str(bench.ctx.settings.log_path / "public"), "--vkey", vkey]) == 0


def test_the_certificate_names_the_day_that_the_log_confirms(bench: Bench) -> None:
    request_id = bench.demand(3)
    run_all(bench)
    promised = certificates.payload(bench.certificate(request_id))["predicate"]["keys"]["last_backup_expires"]
    expires = bench.request(request_id).backups_expire_at
    assert expires is not None
    assert promised == expires.astimezone(bench.ctx.settings.zone).date().isoformat()
    pass_days(bench, 7.1)
    assert bench.request(request_id).backups_expire_at is None


def test_the_working_key_goes_with_the_end_and_no_copy_of_the_data_opens_without_it(bench: Bench) -> None:
    request_id, other = bench.demand(3), bench.demand(6)
    (before,) = (row for row in rows(bench, ErasureRequest) if row["id"] == request_id)
    keystore = [row for row in rows(bench, RequestKey) if row["request_id"] == request_id]
    wrapping, sealed = bench.ctx.settings.key("wrapping_key"), before["sealed_user_id"]
    key = keyring.unwrap(wrapping, keystore[0]["wrapped"])
    assert toy.user_id(3).encode() in keyring.unseal(key, sealed, context=request_id.bytes), "the copy was worth having"
    run_all(bench)
    assert keys_of(bench, request_id) == {"evidence"}
    # A dump of the data, without the keystore's: nothing that is left opens the user id.
    for row in rows(bench, RequestKey):
        with pytest.raises(InvalidTag):
            keyring.unseal(keyring.unwrap(wrapping, row["wrapped"]), sealed, context=request_id.bytes)
    with pytest.raises(InvalidTag):
        keyring.unseal(wrapping, sealed, context=request_id.bytes)
    # A dump of the keystore, without the data's: there is nothing to open, and without the wrapping key no key.
    after = bench.request(request_id)
    assert (after.sealed_user_id, after.subject_key, after.suppression_key, after.dedupe_key) == (None,) * 4
    with pytest.raises(InvalidUnwrap):
        keyring.unwrap(bytes(32), keystore[0]["wrapped"])
    assert bench.request(other).status == "completed"


def test_evidence_keys_that_a_restored_keystore_brings_back_go_again(bench: Bench) -> None:
    request_id = bench.demand(3)
    run_all(bench)
    copy = [row for row in rows(bench, RequestKey) if row["request_id"] == request_id]
    pass_days(bench, 31)
    with transaction(bench.ctx.engine) as tx:
        tx.execute(insert(RequestKey), copy)
    assert receipt(bench, request_id)
    pass_days(bench, 32)
    assert keys_of(bench, request_id) == set()


def test_working_keys_that_a_restored_keystore_brings_back_go_again(bench: Bench) -> None:
    request_id = bench.demand(3)
    copy = [row for row in rows(bench, RequestKey) if row["request_id"] == request_id]
    run_all(bench)
    with transaction(bench.ctx.engine) as tx:
        tx.execute(insert(RequestKey), copy)
    pass_days(bench, 1)
    assert keys_of(bench, request_id) == {"evidence"}
