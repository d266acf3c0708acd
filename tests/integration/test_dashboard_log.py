"""The audit log's pages: what is published, what it says, who opened what, and a check that finds what was altered."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from expunge_verify import leaf, merkle, notes, proof
from expunge_verify.notes import COSIGNATURE, Checkpoint, Signer, vkey_of
from expunge_verify.policy import Policy
from expunge_verify.tiles import Tile, grown
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

from app.audit import inspection
from app.audit.inspection import Log
from app.audit.sequencer import Sequencer, as_signed
from app.dashboard.log import DEEDS, KINDS
from app.domain.people import Role
from app.main import create_app
from app.settings import Settings
from app.storage import audit, people
from app.storage.sessions import connect, transaction
from app.storage.tables import LogCheckpoint
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.house import Installation, installation

pytestmark = pytest.mark.slow
ON_A_PAGE = 50
LONG = 300_000


@dataclass(frozen=True)
class Office:
    """A house with a log of some 130 entries, two requests among them."""

    house: Installation
    sequencer: Sequencer
    requests: Sequence[UUID]

    @property
    def engine(self) -> Engine:
        return self.house.engine

    @property
    def settings(self) -> Settings:
        return self.house.settings

    def turn(self) -> None:
        self.sequencer.turn(self.engine, now=datetime.now(UTC))

    def grow(self, count: int) -> None:
        with transaction(self.engine) as tx:
            for n in range(count):
                model = {"to": f"sha256:{n:064x}"}
                audit.enter(tx, "model.registered", {"model": model}, at=datetime.now(UTC))
        self.turn()

    @property
    def shown(self) -> LogCheckpoint:
        with transaction(self.engine) as tx:
            found = audit.published(tx)
        assert found is not None
        return found

    @property
    def note(self) -> str:
        return bytes(self.shown.published or b"").decode()

    @property
    def signer(self) -> Signer:
        return Signer(self.settings.log_origin, self.settings.log_keys()[0])

    def place_of(self, request_id: UUID) -> int:
        with transaction(self.engine) as tx:
            found = tx.execute(
                text("SELECT min(leaf_index) AS place FROM audit_entries WHERE request_id = :id"), {"id": request_id}
            )
            return int(found.one().place)

    @contextmanager
    def altered(self, statement: str, **values: object) -> Iterator[None]:
        """As the owner of the database, who can switch off what keeps everybody else from it; taken back at the end."""
        tables = ("audit_entries", "log_tiles", "log_checkpoints")
        with self.engine.begin() as connection:
            for table in tables:
                connection.execute(text(f"CREATE TABLE kept_{table} AS TABLE {table}"))
            as_owner(connection, statement, values)
        try:
            yield
        finally:
            with self.engine.begin() as connection:
                for table, key, column in (
                    ("audit_entries", "id", "entry"),
                    ("log_tiles", "(level, index)", "hashes"),
                    ("log_checkpoints", "id", "published"),
                ):
                    same = "t.level = k.level AND t.index = k.index" if "level" in key else "t.id = k.id"
                    back = f"UPDATE {table} t SET {column} = k.{column} FROM kept_{table} k WHERE {same}"
                    as_owner(connection, back, {})
                    connection.execute(text(f"DROP TABLE kept_{table}"))


def as_owner(connection: Connection, statement: str, values: Mapping[str, object]) -> None:
    for table in ("audit_entries", "log_tiles", "log_checkpoints"):
        connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
    connection.execute(text(statement), values)
    for table in ("audit_entries", "log_tiles", "log_checkpoints"):
        connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


@pytest.fixture(scope="module")
def office(front_door: Installation) -> Office:
    made = Office(
        front_door,
        Sequencer.of(front_door.settings, as_signed),
        [front_door.demand(1, reference="DSR-1"), front_door.demand(2)],
    )
    made.turn()
    made.grow(128)
    return made


@pytest.fixture
def viewer(front_door: Installation) -> Guest:
    return enter(front_door, Role.VIEWER)


@pytest.fixture
def auditor(front_door: Installation) -> Guest:
    return enter(front_door, Role.AUDITOR, name="Aud Itor")


def verdicts(page: httpx.Response) -> dict[str, str]:
    """What each line of the check says, by what was asked."""
    assert page.status_code == 200, text_of(page)
    lines = re.findall(r'<tr><td>([^<]+)</td><td><span class="tag \w+">([^<]+)</span></td><td>', page.text)
    assert len(lines) == 6
    return {asked.split()[0] + " " + asked.split()[1]: said for asked, said in lines}


ALL_WELL = {
    "The checkpoint": "passed",
    "The witnesses": "not checked",
    "PostgreSQL&#39;s tree": "passed",
    "The entries": "passed",
    "It is": "passed",
    "It has": "not checked",
}


def test_the_page_shows_the_checkpoint_its_keys_and_what_waits(office: Office, viewer: Guest) -> None:
    page = viewer.get("/log")
    shown = office.shown
    assert shown.root.hex() in page.text
    assert office.note.splitlines()[-1] in page.text.replace("&#43;", "+")
    assert str(office.signer.vkey) in page.text.replace("&#43;", "+")
    assert "nothing waits" in text_of(page)
    with transaction(office.engine) as tx:
        audit.enter(tx, "config.changed", at=datetime.now(UTC))
    assert "1 entry, the oldest since" in text_of(viewer.get("/log"))
    office.turn()
    assert f"Entries {shown.size + 1}" in text_of(viewer.get("/log"))


def test_every_type_of_leaf_has_plain_words() -> None:
    assert KINDS.keys() == leaf.SCHEMA.keys()


def test_all_entries_come_once_the_newest_first(office: Office, viewer: Guest) -> None:
    seen, path = list[int](), "/log"
    while path:
        page = viewer.get(path)
        found = [int(n) for n in re.findall(r'href="/admin/log/entries/(\d+)"', page.text)]
        assert len(found) <= ON_A_PAGE
        seen += found
        following = re.search(r'href="/admin(/log\?[^"]+)" rel="next"', page.text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert seen == list(range(office.shown.size))[::-1]


def test_entries_are_filtered_by_type_and_jumped_to_by_their_place(office: Office, viewer: Guest) -> None:
    page = viewer.get("/log?type=request.received")
    assert re.findall(r'href="/admin/log/entries/(\d+)"', page.text) == [
        str(place) for place in sorted(map(office.place_of, office.requests), reverse=True)
    ]
    assert re.findall(r'href="/admin/log/entries/(\d+)"', viewer.get("/log?from=7").text) == [*"76543210"]
    assert "No entry of this type" in text_of(viewer.get("/log?type=retention.pruned"))


@pytest.mark.parametrize("query", ["from=-1", "from=x", "from=1e3", "from=99999999999999999", "type=x", "type=%00"])
def test_a_place_or_type_that_is_none_is_refused_in_words(office: Office, viewer: Guest, query: str) -> None:
    assert office.shown.size
    page = viewer.get(f"/log?{query}")
    assert page.status_code == 422
    assert "Something in the form is wrong" in text_of(page)


def test_an_entry_leads_to_its_request_which_the_public_log_does_not_know(office: Office, viewer: Guest) -> None:
    request_id = office.requests[0]
    place = office.place_of(request_id)
    for page in (viewer.get("/log?type=request.received"), viewer.get(f"/log/entries/{place}")):
        assert f'href="/admin/requests/{request_id}"' in page.text
        assert "DSR-1" not in page.text
    with office.house.client() as client:
        assert str(request_id) not in client.get(f"/log/entry/{place}.tlog-proof").text


def test_an_entrys_page_has_its_hash_its_neighbours_and_a_proof_that_checks(office: Office, viewer: Guest) -> None:
    place = office.place_of(office.requests[1])
    page = viewer.get(f"/log/entries/{place}")
    with transaction(office.engine) as tx:
        (entry,) = audit.entries(tx, place, place + 1)
    assert merkle.leaf_hash(entry).hex() in page.text
    assert leaf.decode(entry)["ref"] in page.text
    assert "passed its audit path" in text_of(page)
    assert f"/admin/log/entries/{place - 1}" in page.text
    assert f"/admin/log/entries/{place + 1}" in page.text
    link = re.search(r'href="(/log/entry/[^"]+)"', page.text)
    assert link
    with office.house.client() as client:
        told = proof.parse(client.get(link[1]).content)
    policy = Policy.of([office.signer.vkey])
    assert proof.check(entry, told, policy)


@pytest.mark.parametrize(("place", "status"), [("99999999", 404), ("-1", 422), ("x", 422), (str(2**70), 422)])
def test_no_entry_is_a_page_that_says_so(office: Office, viewer: Guest, place: str, status: int) -> None:
    assert office.shown.size
    assert viewer.get(f"/log/entries/{place}").status_code == status
    assert enter(office.house, Role.AUDITOR).post(f"/log/entries/{place}/record").status_code == status


def deeds(office: Office) -> list[tuple[str, UUID | None, UUID | None, dict[str, Any]]]:
    with transaction(office.engine) as tx:
        found = people.internal_log(tx, before=None, limit=1000)
    return [(entry.what, entry.person_id, entry.request_id, entry.detail) for entry, _ in found]


def test_an_auditor_opens_a_record_and_each_opening_is_written_down(office: Office, auditor: Guest) -> None:
    request_id = office.requests[0]
    place = office.place_of(request_id)
    before = deeds(office)
    assert str(request_id) not in text_of(auditor.get(f"/log/entries/{place}"))
    assert deeds(office) == before
    for times in (1, 2):
        page = auditor.post(f"/log/entries/{place}/record")
        assert page.status_code == 200
        assert f'"request": "{request_id}"' in text_of(page)
        assert "the record that the entry committed to" in text_of(page)
        opened = ("log.record_opened", auditor.person_id, request_id, {"index": place})
        assert deeds(office)[:times] == [opened] * times
    told = auditor.get("/log/internal?what=log.record_opened")
    assert "Aud Itor opened a record behind the public log" in text_of(told)
    assert f"entry {place}" in text_of(told)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OFFICER, Role.ENGINEER, Role.ADMIN])
def test_nobody_else_opens_a_record_or_reads_the_internal_log(office: Office, role: Role) -> None:
    guest, place = enter(office.house, role), office.place_of(office.requests[0])
    before = len(deeds(office))
    assert guest.post(f"/log/entries/{place}/record").status_code == 403
    assert guest.get("/log/internal").status_code == 403
    assert len(deeds(office)) == before
    assert "Open the record" not in guest.get(f"/log/entries/{place}").text


def test_after_retention_the_page_says_why_the_record_can_not_be_opened(office: Office, auditor: Guest) -> None:
    request_id = office.house.demand(77)
    office.turn()
    place = office.place_of(request_id)
    assert auditor.post(f"/log/entries/{place}/record").status_code == 200
    with transaction(office.engine) as tx:
        tx.execute(
            text("DELETE FROM keystore.request_keys WHERE request_id = :id AND purpose = 'evidence'"),
            {"id": request_id},
        )
    before = len(deeds(office))
    page = auditor.post(f"/log/entries/{place}/record")
    assert page.status_code == 404
    assert "its retention is over" in text_of(page)
    assert len(deeds(office)) == before


def test_an_untouched_log_passes_and_the_page_says_what_that_does_not_show(office: Office, viewer: Guest) -> None:
    page = viewer.post("/log/verify")
    assert verdicts(page) == ALL_WELL
    seed = re.search(r"random\.Random\(&#34;([0-9a-f]{16})&#34;\)|random\.Random\(\"([0-9a-f]{16})\"\)", page.text)
    assert seed
    assert seed[0] not in viewer.post("/log/verify").text
    told = text_of(page)
    assert f"expunge-verify log https://{office.settings.log_origin} --vkey" in told
    assert f"expunge-verify requests https://{office.settings.log_origin} --vkey" in told
    assert "asks the same PostgreSQL that it checks" in told


def test_a_check_is_a_post_and_never_a_link(office: Office, viewer: Guest) -> None:
    assert office.shown.size
    assert viewer.get("/log/verify").status_code == 405
    assert viewer.http.post("/admin/log/verify", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


EDIT = "UPDATE audit_entries SET entry = :entry WHERE leaf_index = :place"


def test_an_altered_entry_is_found_and_named(office: Office, viewer: Guest) -> None:
    place = office.shown.size - 3
    with transaction(office.engine) as tx:
        (entry,) = audit.entries(tx, place, place + 1)
    forged = leaf.encode({**leaf.decode(entry), "model": {"to": f"sha256:{bytes(32).hex()}"}})
    with office.altered(EDIT, entry=forged, place=place):
        page = viewer.post("/log/verify")
        assert verdicts(page) == ALL_WELL | {"The entries": "failed", "It is": "failed"}
        assert f"entries are not what was signed: {place}" in text_of(page)
        assert "something is wrong" in text_of(page)
        assert text_of(page).count("A model was registered not what was signed") == 1
        assert "failed what PostgreSQL holds here is not what was signed" in text_of(
            viewer.get(f"/log/entries/{place}")
        )
    assert verdicts(viewer.post("/log/verify")) == ALL_WELL


def test_bytes_that_are_no_leaf_are_shown_as_such(office: Office, auditor: Guest) -> None:
    place = office.place_of(office.requests[0])
    with office.altered(EDIT, entry=b"<script>alert(1)</script>\xff", place=place):
        for page in (auditor.get(f"/log?from={place}"), auditor.get(f"/log/entries/{place}")):
            assert page.status_code == 200
            assert "Cannot be read" in text_of(page)
            assert "<script>alert" not in page.text
        assert verdicts(auditor.post("/log/verify"))["The entries"] == "failed"
        assert auditor.post(f"/log/entries/{place}/record").status_code == 409


FORGE = """
UPDATE log_checkpoints SET published = overlay(published placing '9' from position('\\x0a' in published) + 1)
"""


@pytest.mark.parametrize(
    ("statement", "failed"),
    [
        (
            "UPDATE log_tiles SET hashes = overlay(hashes placing sha256('x') from 1) WHERE level = 0",
            {"PostgreSQL&#39;s tree", "The entries", "It is"},
        ),
        (
            FORGE,
            {"The checkpoint", "PostgreSQL&#39;s tree", "The entries"},
        ),
    ],
)
def test_a_tile_or_a_checkpoint_that_was_altered_is_found(
    office: Office, viewer: Guest, statement: str, failed: set[str]
) -> None:
    with office.altered(statement):
        found = verdicts(viewer.post("/log/verify"))
    assert {asked for asked, said in found.items() if said == "failed"} == failed


def test_the_log_must_have_grown_out_of_a_pasted_checkpoint(office: Office, viewer: Guest) -> None:
    kept = office.note
    office.grow(3)
    for pasted in (kept, kept.replace("\n", "\r\n"), f"\n{kept.rstrip()}  ", office.note):
        page = viewer.post("/log/verify", old=pasted)
        assert verdicts(page)["It has"] == "passed", text_of(page)
    assert kept.splitlines()[2] in viewer.post("/log/verify", old=kept).text.replace("&#43;", "+")


def signed(office: Office, size: int, root: bytes, *, origin: str | None = None) -> str:
    checkpoint = Checkpoint(origin or office.settings.log_origin, size, root)
    return notes.sealed(checkpoint.text, [office.signer.sign(checkpoint.text)]).decode()


def test_another_history_and_one_that_was_longer_fail_though_signed_by_the_logs_own_key(
    office: Office, viewer: Guest
) -> None:
    size, root = office.shown.size, office.shown.root
    for other in (
        signed(office, size, b"r" * 32),
        signed(office, 5, b"r" * 32),
        signed(office, size + 1, root),
        signed(office, size, root, origin="another.example/log"),
        office.note.rpartition("\n\n")[0] + "\n",
        office.note.replace(f"\n{size}\n", f"\n{size - 1}\n"),
    ):
        assert verdicts(viewer.post("/log/verify", old=other))["It has"] == "failed"


@pytest.mark.parametrize(
    "nonsense",
    [
        "x",
        "<script>alert(1)</script>",
        "\x00\x01",
        "\ud800".encode("utf-8", "surrogatepass"),
        b"\xff\xfe",
        "a\n" * 10_000,
        "log\n999999999999999999999\nAAAA\n\n— a b\n",
        "— " * 500,
        "log\n1\n" + "A" * 44 + "\n\n" + "— log AAAA\n" * 200,
    ],
)
def test_nonsense_in_the_textarea_is_a_failed_line_and_text(office: Office, viewer: Guest, nonsense: Any) -> None:
    assert office.shown.size
    page = viewer.post("/log/verify", old=nonsense)
    assert page.status_code in {200, 400, 422}, text_of(page)
    assert "<script>alert" not in page.text
    if page.status_code == 200:
        assert verdicts(page)["It has"] == "failed"


def test_too_long_a_paste_is_refused(office: Office, viewer: Guest) -> None:
    assert office.shown.size
    assert viewer.post("/log/verify", old="a" * (notes.MOST_BYTES + 1)).status_code in {413, 422}


def test_a_log_that_does_not_move_says_why(office: Office, viewer: Guest) -> None:
    with transaction(office.engine) as tx:
        audit.enter(tx, "config.changed", at=datetime.now(UTC) - timedelta(minutes=5))
    told = text_of(viewer.get("/log"))
    assert "The log does not move: its oldest entry has waited for 5 minutes" in told
    assert "start `expunge dispatch`" in told
    with office.altered(EDIT, entry=b"{}", place=office.shown.size - 1):
        assert "nothing is signed until a person has looked" in text_of(viewer.get("/log")).lower()
    office.turn()
    assert "does not move" not in text_of(viewer.get("/log"))


def test_the_internal_log_says_who_did_what_to_whom_and_is_filtered(office: Office, auditor: Guest) -> None:
    admin = enter(office.house, Role.ADMIN, name="<script>alert(1)</script>")
    other = enter(office.house, Role.VIEWER, name="Vic Tim")
    admin.post(f"/people/{other.person_id}/roles", roles=["officer"])
    page = auditor.get("/log/internal")
    assert "<script>alert" not in page.text
    told = text_of(page)
    assert "<script>alert(1)</script> changed somebody's roles Vic Tim roles officer ; before viewer" in told
    mine = auditor.get(f"/log/internal?person={auditor.person_id}")
    assert "Aud Itor signed in" in text_of(mine)
    assert "changed somebody's roles Vic" not in text_of(mine)
    kind = auditor.get("/log/internal?what=person.roles_changed")
    assert "Vic Tim" in text_of(kind)
    assert "Aud Itor signed in" not in text_of(kind)
    assert "Nothing of this kind" in text_of(auditor.get("/log/internal?what=no.such"))


@pytest.mark.parametrize(
    "query", ["person=x", f"person={UUID(int=7)}", "cursor=x", "cursor=l5", "cursor=i-5", "what=%00"]
)
def test_the_internal_log_refuses_nonsense(auditor: Guest, query: str) -> None:
    assert auditor.get(f"/log/internal?{query}").status_code == 422


def test_the_internal_log_is_paged_the_newest_first(office: Office, auditor: Guest) -> None:
    with transaction(office.engine) as tx:
        for n in range(120):
            people.enter(tx, "test.counted", at=datetime.now(UTC), person_id=auditor.person_id, detail={"n": n})
    seen, path = list[int](), "/log/internal?what=test.counted"
    while path:
        page = auditor.get(path)
        seen += [int(n) for n in re.findall(r'<span class="faint">n</span> <bdi>(\d+)</bdi>', page.text)]
        following = re.search(r'href="/admin(/log/internal\?[^"]+)" rel="next"', page.text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert seen == list(range(120))[::-1]


@pytest.mark.parametrize(
    "change", ["UPDATE internal_log SET what = 'x'", "DELETE FROM internal_log", "TRUNCATE internal_log"]
)
def test_the_internal_log_is_only_added_to(office: Office, auditor: Guest, change: str) -> None:
    assert auditor.person_id
    with pytest.raises(DBAPIError, match="append-only"), office.engine.begin() as connection:
        connection.execute(text(change))


def test_the_internal_log_never_holds_a_login_that_failed(office: Office, auditor: Guest) -> None:
    typed = "my-password-in-the-wrong-field"
    with httpx.Client(base_url=f"http://127.0.0.1:{office.house.port}", verify=False) as client:
        form = {"login": typed, "password": "another secret"}
        answer = client.post("/admin/sign-in", data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 401
    assert deeds(office)[0][:2] == ("sign_in.failed", None)
    with transaction(office.engine) as tx:
        rows = tx.execute(text("SELECT l::text AS row FROM internal_log l")).all()
    assert not [row for row in rows if typed in row.row or "another secret" in row.row]
    assert "somebody failed to sign in" in text_of(auditor.get("/log/internal"))


def test_every_kind_that_people_make_has_words() -> None:
    made = re.findall(
        r'people\.enter\(\s*tx, "([^"]+)"', Path(people.__file__).parents[1].joinpath("people.py").read_text()
    )
    assert set(made) <= DEEDS.keys()


@dataclass
class Inside:
    """An application of this process, whose statements are counted."""

    client: TestClient
    cookie: str
    statements: list[str] = field(default_factory=list)

    def get(self, path: str) -> httpx.Response:
        self.statements.clear()
        return self.client.get(f"/admin{path}", headers={"Cookie": f"{COOKIE}={self.cookie}"})  # type: ignore[return-value] # starlette's own class

    def post(self, path: str, **form: str) -> httpx.Response:
        self.statements.clear()
        headers = {"Cookie": f"{COOKIE}={self.cookie}", "Sec-Fetch-Site": "same-origin"}
        return self.client.post(f"/admin{path}", data=form, headers=headers)  # type: ignore[return-value] # as above


@contextmanager
def inside(house: Installation, **changes: Any) -> Iterator[Inside]:
    settings = house.settings.model_copy(update=changes)
    with TestClient(create_app(settings), base_url="https://testserver") as client:
        made = Inside(client, enter(house, *Role).cookie)
        engine = client.app.state.context.engine  # type: ignore[attr-defined] # Starlette types no state
        event.listen(engine, "before_cursor_execute", lambda *about: made.statements.append(about[2]))
        yield made


def test_a_log_that_published_nothing_yet_says_so(database_url: str, tmp_path: Path) -> None:
    with installation(tmp_path, database_url, "", model=False) as house, inside(house) as app:
        assert "The log has published nothing yet" in text_of(app.get("/log"))
        assert app.get("/log/entries/0").status_code == 404
        assert app.post("/log/verify").status_code == 404
        assert app.post("/log/entries/0/record").status_code == 404


def test_witnesses_are_shown_with_when_they_saw_the_checkpoint(database_url: str, tmp_path: Path) -> None:
    seeds = {"north.example": b"n" * 32, "south.example": b"s" * 32}
    with installation(tmp_path, database_url, "", model=False) as house:
        log = Signer(house.settings.log_origin, house.settings.log_keys()[0])
        vkeys = {name: vkey_of(name, Signer(name, seed).vkey.public, COSIGNATURE) for name, seed in seeds.items()}
        lines = [f"witness {name} {vkey}\n" for name, vkey in vkeys.items()]
        policy = tmp_path / "policy"
        policy.write_text("".join([f"log {log.vkey}\n", *lines, "quorum north.example\n"]))

        def cosign(_: object, row: LogCheckpoint) -> bytes:
            note = notes.parse(bytes(row.note))
            return bytes(row.note) + notes.cosign(b"n" * 32, "north.example", note.text, 1_800_000_000).encode()

        Sequencer.of(house.settings, cosign).turn(house.engine, now=datetime.now(UTC))
        with inside(house, log_policy=policy) as app:
            told = text_of(app.get("/log"))
            assert "north.example saw it at 2027-01-15 08:00:00 UTC" in told
            assert "south.example has not cosigned this checkpoint" in told
            assert "Quorum of the policy: north.example" in told
            assert verdicts(app.post("/log/verify"))["The witnesses"] == "passed"
            policy.write_text(policy.read_text().replace("quorum north", "quorum south"))
            assert verdicts(app.post("/log/verify"))["The witnesses"] == "failed"
            policy.write_text("nonsense")
            assert app.get("/log").status_code == 200
            assert verdicts(app.post("/log/verify"))["The witnesses"] == "not checked"


_ENTRIES = r"""
INSERT INTO audit_entries (type, at, fields, leaf_index, entry)
SELECT 'model.registered', now(), '{}', n, convert_to(
  format('{"commit":"%s","day":"2026-01-01","log":"%s","model":{"to":"sha256:%s"},"nonce":"%s","type":"model.registered","v"\:1}',
    repeat('0', 64), CAST(:origin AS text), encode(sha256(n::text::bytea), 'hex'), md5(n::text)), 'UTF8')
FROM generate_series(0, CAST(:size AS int) - 1) n
"""
_HASHES = r"SELECT sha256('\x00'::bytea || entry) AS hash FROM audit_entries ORDER BY leaf_index"


def fill(house: Installation, size: int) -> None:
    """A log of so many entries, as a sequencer would have made it."""
    settings = house.settings
    signer = Signer(settings.log_origin, settings.log_keys()[0])
    with transaction(house.engine) as tx:
        tx.execute(text(_ENTRIES), {"origin": settings.log_origin, "size": size})
        leaves = [bytes(row.hash) for row in tx.execute(text(_HASHES))]
        tiles: dict[Tile, bytes] = grown(lambda _: b"", 0, leaves)
        rows = [{"level": tile.level, "index": tile.index, "hashes": hashes} for tile, hashes in tiles.items()]
        tx.execute(text("INSERT INTO log_tiles (level, index, hashes) VALUES (:level, :index, :hashes)"), rows)
        checkpoint = Checkpoint(settings.log_origin, size, merkle.root_of(leaves))
        note = notes.sealed(checkpoint.text, [signer.sign(checkpoint.text)])
        now = datetime.now(UTC)
        audit.publish(tx, audit.sign(tx, size=size, root=checkpoint.root, note=note, at=now), note=note, at=now)
        audit.add_key(tx, str(signer.vkey), since=now, since_size=0)
    with house.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def test_a_long_log_costs_no_more_than_a_short_one(database_url: str, tmp_path: Path) -> None:
    """Pages by index, whatever is asked; a check in bounded time and statements, which finds what a seed draws."""
    with installation(tmp_path, database_url, "", model=False) as house:
        fill(house, LONG)
        with inside(house) as app:
            for path in ("/log", "/log?from=150000", "/log?type=request.closed", f"/log/entries/{LONG // 2}"):
                assert app.get(path).status_code == 200
                assert len(app.statements) <= 14, path
            with transaction(house.engine) as tx:
                log = Log.of(tx, house.settings)
                assert log is not None
                old = signed_prefix(house, tx, 123_456)
            began = time.process_time()  # ours: what neighbours do on this machine is no promise of the page
            page = app.post("/log/verify", old=old)
            assert time.process_time() - began < 2
            assert verdicts(page) == ALL_WELL | {"It is": "not checked", "It has": "passed"}
            assert len(app.statements) <= 40
        assert not plans(house.engine) & {"Seq Scan", "Sort"}
        victim = sorted(inspection.drawn("a seed", LONG))[100]
        with house.engine.begin() as connection:
            as_owner(connection, EDIT, {"entry": b"{}", "place": victim})
        with transaction(house.engine) as tx:
            found = inspection.inspect(tx, log, shown=[], pasted="", seed="a seed")
            assert found.bad == {victim}
            blind = inspection.inspect(tx, log, shown=[], pasted="", seed="another seed")
            assert victim in inspection.inspect(tx, log, shown=[victim], pasted="", seed="another seed").bad
        assert blind.bad == (frozenset({victim}) if victim in inspection.drawn("another seed", LONG) else frozenset())


def signed_prefix(house: Installation, tx: Any, size: int) -> str:
    """What an auditor kept when the log had so many entries; the root is computed from the entries themselves."""
    signer = Signer(house.settings.log_origin, house.settings.log_keys()[0])
    root = merkle.root_of([bytes(row.hash) for row in tx.execute(text(f"{_HASHES} LIMIT {size}"))])
    checkpoint = Checkpoint(house.settings.log_origin, size, root)
    return notes.sealed(checkpoint.text, [signer.sign(checkpoint.text)]).decode()


def plans(engine: Engine) -> set[str]:
    """What PostgreSQL does for a page of the list, of all entries and of a type that is rare."""
    seen: list[tuple[str, Any]] = []
    note = lambda *about: seen.append((about[2], about[3]))  # noqa: E731
    event.listen(engine, "before_cursor_execute", note)
    with transaction(engine) as tx:
        audit.newest(tx, before=LONG // 2, kind=None, limit=51)
        audit.newest(tx, before=LONG // 2, kind="request.closed", limit=51)
        audit.entries_at(tx, range(256))
        audit.count_waiting(tx, size=LONG, most=10_001)
    event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        told = [
            row[0]
            for statement, values in seen
            for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values).all()
        ]
    assert len(seen) == 4
    return {word for word in ("Seq Scan", "Sort") for line in told if word in line}


def test_stamps_are_found_among_those_of_certificates(database_url: str, tmp_path: Path) -> None:
    with installation(tmp_path, database_url, "", model=False) as house:
        Sequencer.of(house.settings, as_signed).turn(house.engine, now=datetime.now(UTC))
        engine = connect(house.settings.sqlalchemy_url(), pool_size=1)
        with transaction(engine) as tx:
            shown = audit.published(tx)
            assert shown is not None
            digest = inspection.digest_of(bytes(shown.published or b""))
            audit.keep_timestamp(tx, b"c" * 32, b"of a certificate", at=datetime.now(UTC))
            assert audit.latest_stamps(tx, limit=3) == []
            audit.keep_timestamp(tx, digest, b"token", at=datetime(2026, 5, 6, 7, 8, tzinfo=UTC))
            assert audit.latest_stamps(tx, limit=3) == [(datetime(2026, 5, 6, 7, 8, tzinfo=UTC), 1)]
        engine.dispose()
        with inside(house) as app:
            assert "this checkpoint, 2026-05-06" in text_of(app.get("/log"))
