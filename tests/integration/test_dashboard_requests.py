"""The list of requests: what it shows, finds and hands out, and what may be done from it."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, select, text

from app import keymaking
from app.api.auth import Scope
from app.domain.identifiers import subject_key, suppression_key
from app.domain.people import Role
from app.main import create_app
from app.storage import suppressions
from app.storage.request_list import Order, Wanted, page, place
from app.storage.sessions import transaction
from app.storage.tables import Decision, ErasureRequest, InternalEntry, Model
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.house import Installation

pytestmark = pytest.mark.slow
API = "/v1/erasure-requests"
_SEED = """
INSERT INTO erasure_requests (id, ref, status, reference, received_at, deadline, closed_at, origin, models, client_id)
SELECT gen_random_uuid(), md5(random()::text), :status, CAST(:reference AS text) || '-' || n,
  CAST(:at AS timestamptz) + n * interval '1 minute', CAST(:due AS timestamptz) + n * interval '1 minute',
  CASE WHEN :ended THEN now() END, :origin, CAST(:models AS text[]), CAST(:client AS uuid)
FROM generate_series(1, :count) n RETURNING id
"""


@pytest.fixture(scope="module")
def officer(front_door: Installation) -> Guest:
    return enter(front_door, Role.OFFICER)


@pytest.fixture(scope="module")
def models(front_door: Installation) -> None:
    with transaction(front_door.engine) as tx:
        tx.add_all([Model(name=name, recipe="none") for name in ("ranker", "toy")])


def seed(house: Installation, reference: str, **more: object) -> list[str]:
    """Requests as they stand, without what brought them there; beginning on 2026-01-05 and due on 2026-02-05."""
    usual = {"status": "queued", "at": "2026-01-05T10:00Z", "due": "2026-02-05T10:00Z", "origin": "portal"}
    rest = {"models": None, "client": None, "count": 1, "reference": reference}
    said = {**usual, **rest, **more}
    ended = said["status"] in {"completed", "partially_completed", "no_data", "rejected", "cancelled"}
    with transaction(house.engine) as tx:
        return [str(found) for found in tx.scalars(text(_SEED), {**said, "ended": ended})]


def demand(house: Installation, **more: object) -> str:
    with house.client() as client:
        answer = client.post(API, json={"user_id": uuid4().hex, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def pending(house: Installation, count: int) -> list[str]:
    """Demands that one person must agree to."""
    made = [demand(house) for _ in range(count)]
    said = "UPDATE erasure_requests SET status = 'pending', approvals_needed = 1 WHERE id = ANY (CAST(:ids AS uuid[]))"
    with transaction(house.engine) as tx:
        tx.execute(text(said), {"ids": made})
    return made


@contextmanager
def inside(app: FastAPI, guest: Guest) -> Iterator[TestClient]:
    """Somebody at an application in this process."""
    headers = {"Cookie": f"{COOKIE}={guest.cookie}", "Sec-Fetch-Site": "same-origin"}
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as client:
        yield client


def listed(answer: httpx.Response) -> list[str]:
    """The requests of a page, in its order."""
    assert answer.status_code == 200, answer.text
    return re.findall(r'<th scope="row" class="name">\s*<a href="/admin/requests/([0-9a-f-]{36})"', answer.text)


def walked(guest: Guest, path: str, *, meanwhile: object = None) -> list[str]:
    """The requests of all pages; ``meanwhile`` is called before each next one."""
    found: list[str] = []
    while path:
        answer = guest.get(path)
        found += listed(answer)
        onward = re.search(r'<a href="/admin([^"]*)" rel="next">', answer.text)
        path = unescape(onward[1]) if onward else ""
        if callable(meanwhile):
            meanwhile()
    return found


def noted(engine: Engine, guest: Guest, what: str) -> list[InternalEntry]:
    with transaction(engine) as tx:
        mine = (InternalEntry.person_id == guest.person_id) & (InternalEntry.what == what)
        return list(tx.scalars(select(InternalEntry).where(mine).order_by(InternalEntry.id)))


def status_of(house: Installation, request_id: str) -> str:
    return house.show(UUID(request_id))["status"]


def test_references_and_names_are_shown_as_text(front_door: Installation, officer: Guest) -> None:
    hostile = "<script>alert(1)</script>"
    with transaction(front_door.engine) as tx:
        _, key = keymaking.create(tx, name=hostile, scopes=[Scope.REQUESTS_WRITE])
    with front_door.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.post(API, json={"user_id": "u", "reference": hostile}).status_code == 202
    for path in ("/requests", f"/requests?q={hostile}"):
        answer = officer.get(path)
        assert "<script>alert" not in answer.text
        assert answer.text.count(f"<bdi>{'&lt;script&gt;alert(1)&lt;/script&gt;'}</bdi>") >= 2, "reference and client"


def test_somebody_without_the_right_can_do_nothing_by_hand_made_posts(front_door: Installation) -> None:
    [made] = pending(front_door, 1)
    chosen = {"requests": [made]}
    posts = {
        "/requests/look-up": {"user_id": "somebody"},
        "/requests/new": {"user_id": "somebody"},
        "/requests/bulk": {**chosen, "action": "approve"},
        "/requests/bulk/approve": chosen,
        "/requests/bulk/refuse": {**chosen, "ground": "not_controller"},
        "/requests/bulk/retry": chosen,
    }
    with transaction(front_door.engine) as tx:
        before = tx.scalar(text("SELECT count(*) FROM erasure_requests"))
    for role in (Role.VIEWER, Role.AUDITOR, Role.ADMIN):
        guest = enter(front_door, role)
        assert {path: guest.post(path, **form).status_code for path, form in posts.items()} == dict.fromkeys(posts, 403)
        assert guest.get("/requests/new").status_code == 403
        shown = guest.get("/requests").text
        assert "look-up" not in shown
        assert "checkbox" not in shown.partition("<table>")[2]
    engineer = enter(front_door, Role.ENGINEER)
    refused = {path for path, form in posts.items() if engineer.post(path, **form).status_code == 403}
    assert refused == set(posts) - {"/requests/bulk/retry"}
    assert enter(front_door, Role.VIEWER).get("/requests.csv").status_code == 403
    assert status_of(front_door, made) == "pending"
    with transaction(front_door.engine) as tx:
        assert tx.scalar(text("SELECT count(*) FROM erasure_requests")) == before


def test_each_filter_shows_what_fits_and_nothing_else(front_door: Installation, officer: Guest, models: None) -> None:
    mark, now = f"F{uuid4().hex[:12]}", datetime.now(UTC)
    with transaction(front_door.engine) as tx:
        client = tx.scalar(text("INSERT INTO clients (id, name) VALUES (gen_random_uuid(), 'few') RETURNING id"))
    soon, late = {"due": now + timedelta(days=3)}, {"due": now + timedelta(days=20)}
    [queued] = seed(front_door, mark, **soon, client=client)
    [waits] = seed(front_door, mark, **late, status="pending", models=["toy"], at="2026-03-01T22:59Z")
    [held] = seed(front_door, mark, status="on_hold", models=["ranker"], at="2026-03-01T23:59Z")
    [ended] = seed(front_door, mark, status="completed", models=["toy", "ranker"], at="2026-03-03T10:00Z")
    [ours] = seed(front_door, mark, **late, origin="suppression", models=["toy"])
    everything = {queued, waits, held, ended, ours}
    wanted = {
        "": everything,
        "state=open": everything - {ended},
        "state=ended": {ended},
        "state=pending": {waits},
        "state=pending&state=completed": {waits, ended},
        "state=&due=overdue": {held},
        "due=soon": {queued},
        f"client={client}": {queued},
        "model=toy": {queued, waits, ended, ours},
        "model=ranker": {queued, held, ended},
        "origin=suppression": {ours},
        "from=2026-03-01": {waits, held, ended},
        "from=2026-03-02": {held, ended},
        "to=2026-03-01": everything - {ended, held},
        "from=2026-03-01&to=2026-03-01&state=pending": {waits},
    }
    found = {asked: set(listed(officer.get(f"/requests?q={mark}&{asked}"))) for asked in wanted}
    assert found == wanted


def test_a_day_is_one_where_the_controller_is(front_door: Installation, officer: Guest) -> None:
    mark = f"Z{uuid4().hex[:12]}"
    [before] = seed(front_door, mark, at="2026-03-28T22:58Z")
    [early] = seed(front_door, mark, at="2026-03-28T22:59Z")  # midnight in Berlin
    [late] = seed(front_door, mark, at="2026-03-29T21:58Z")  # the clock has changed: this day had 23 hours
    [after] = seed(front_door, mark, at="2026-03-29T21:59Z")
    berlin = front_door.settings.model_copy(update={"time_zone": "Europe/Berlin"})
    with inside(create_app(berlin), officer) as client:
        of_the_day = listed(client.get(f"/admin/requests?q={mark}&from=2026-03-29&to=2026-03-29"))
        of_others = listed(client.get(f"/admin/requests?q={mark}&from=2026-03-28&to=2026-03-28"))
        later = listed(client.get(f"/admin/requests?q={mark}&from=2026-03-30"))
    assert (of_the_day, of_others, later) == ([late, early], [before], [after])


def test_the_three_orders(front_door: Installation, officer: Guest) -> None:
    mark = f"O{uuid4().hex[:12]}"
    [first] = seed(front_door, mark, at="2026-01-01T00:00Z", due="2026-04-01T00:00Z")
    [second] = seed(front_door, mark, at="2026-01-02T00:00Z", due="2026-02-01T00:00Z")
    [third] = seed(front_door, mark, at="2026-01-03T00:00Z", due="2026-03-01T00:00Z")
    found = [listed(officer.get(f"/requests?q={mark}&sort={sort}")) for sort in ("", "oldest", "deadline")]
    assert found == [[third, second, first], [first, second, third], [second, third, first]]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ("state=gone", "state"),
        ("due=never", "due"),
        ("client=nobody", "client"),
        ("client=00000000-0000-4000-8000-000000000000", "client"),
        ("model=unheard-of", "model"),
        ("model=%00", "model"),
        ("origin=x", "origin"),
        ("from=yesterday", "from"),
        ("from=2026-02-30", "from"),
        ("to=9999-99-99", "to"),
        ("from=2026-03-02&to=2026-03-01", "to"),
        ("sort=random", "sort"),
        ("cursor=abc", "cursor"),
        ("cursor=t1s", "cursor"),
        ("cursor=t999999999999999999s1", "cursor"),
        ("q=%00", "q"),
        (f"q={'x' * 201}", "q"),
    ],
)
def test_an_unknown_word_is_refused_by_the_name_of_its_filter(officer: Guest, asked: str, field: str) -> None:
    for path in ("/requests", "/requests.csv"):
        answer = officer.get(f"{path}?{asked}")
        assert answer.status_code == 422
        assert f"<strong>{field}</strong>" in answer.text


def test_a_filter_that_is_on_is_shown_and_can_be_taken_off(front_door: Installation, officer: Guest) -> None:
    answer = officer.get("/requests?q=DSR&state=pending&state=on_hold&due=soon&sort=oldest")
    chips = re.findall(r'<a class="tag info" href="/admin/requests\?([^"]*)">(\w+): <bdi>([^<]*)</bdi>', answer.text)
    assert {(name, value) for _, name, value in chips} == {
        ("search", "DSR"),
        ("state", "pending"),
        ("state", "on hold"),
        ("due", "soon"),
    }
    without = {(name, value): parse_qs(unescape(link)) for link, name, value in chips}
    assert without["state", "pending"] == {"q": ["DSR"], "state": ["on_hold"], "due": ["soon"], "sort": ["oldest"]}
    for link, _, _ in chips:
        assert officer.get(f"/requests?{unescape(link)}").status_code == 200


@pytest.mark.parametrize("sort", ["newest", "oldest", "deadline"])
def test_pages_lose_and_repeat_nothing_while_requests_come_in(
    front_door: Installation, officer: Guest, sort: str
) -> None:
    mark = f"P{uuid4().hex[:12]}"
    made = [one for _ in range(3) for one in seed(front_door, mark, count=40)]  # by threes at the same moments
    more = {"at": "2026-01-05T11:00:30Z", "due": "2026-02-05T11:00:30Z"}
    found = walked(
        officer, f"/requests?q={mark}&sort={sort}", meanwhile=lambda: seed(front_door, mark, count=3, **more)
    )
    assert len(found) == len(set(found))
    assert set(made) <= set(found)
    kept = {one: place for place, one in enumerate(found)}
    with transaction(front_door.engine) as tx:
        in_order = page(tx, Wanted(now=datetime.now(UTC), words=mark, order=Order(sort)), after=None, limit=999)
    assert sorted(made, key=kept.__getitem__) == [str(r.request.id) for r in in_order if str(r.request.id) in made]


def test_a_page_goes_on_with_its_filters(front_door: Installation, officer: Guest) -> None:
    mark = f"K{uuid4().hex[:12]}"
    held = seed(front_door, mark, count=60, status="on_hold")
    seed(front_door, mark, count=60)
    assert set(walked(officer, f"/requests?q={mark}&state=on_hold&sort=oldest")) == set(held)


def test_an_id_leads_to_its_request_and_the_beginning_of_one_finds_it(front_door: Installation, officer: Guest) -> None:
    [made] = seed(front_door, "100%_sure")
    answer = officer.get(f"/requests?q=%20{made.upper()}%20")
    assert (answer.status_code, answer.headers.get("location")) == (303, f"/admin/requests/{made}")
    assert listed(officer.get(f"/requests?q={made[:8]}")) == [made]
    assert listed(officer.get(f"/requests?q={made[:13].upper()}")) == [made]
    assert made not in listed(officer.get(f"/requests?q={made[:7]}")), "seven digits are the beginning of a reference"
    assert "No request fits" in text_of(officer.get(f"/requests?q={uuid4()}"))


def test_a_reference_is_found_by_its_beginning_letter_for_letter(front_door: Installation, officer: Guest) -> None:
    [sure], [other] = seed(front_door, r"50%_\a"), seed(front_door, "50xyza")
    assert listed(officer.get("/requests?q=50%25_%5C")) == [sure]
    assert listed(officer.get("/requests?q=50%25_%5Ca-1")) == [sure]
    assert listed(officer.get("/requests?q=50%25x")) == []
    assert set(listed(officer.get("/requests?q=50"))) == {sure, other}


def test_what_would_happen_is_said_before_it_does(front_door: Installation, officer: Guest) -> None:
    waiting, [done] = pending(front_door, 2), seed(front_door, "done", status="completed")
    asked = officer.post("/requests/bulk?state=open", action="refuse", requests=[*waiting, done])
    said = text_of(asked)
    assert "Refuse: 3 requests" in said
    assert re.search(r"pending 2 are refused", said)
    assert re.search(r"completed 1 stay as they are", said)
    assert "up to 2 people have to be told the reason" in said
    assert 'action="/admin/requests/bulk/refuse?state=open"' in asked.text
    assert {status_of(front_door, one) for one in waiting} == {"pending"}
    assert "None of them is in a state" in text_of(officer.post("/requests/bulk", action="retry", requests=waiting))


def test_each_of_many_says_how_it_went_and_nothing_is_half_done(front_door: Installation, officer: Guest) -> None:
    waiting, [done] = pending(front_door, 2), seed(front_door, "done", status="completed")
    answer = officer.post("/requests/bulk/approve", requests=[waiting[0], done, waiting[1], str(uuid4())])
    said = text_of(answer)
    assert answer.status_code == 200
    assert "Approved: 2 of 4" in said
    assert "only one that is pending can be approved" in said
    assert "There is no erasure request with this id" in said
    assert [status_of(front_door, one) for one in (*waiting, done)] == ["approved", "approved", "completed"]
    with transaction(front_door.engine) as tx:
        decided = tx.scalars(select(Decision).where(Decision.client_id == officer.client_id)).all()
    assert {str(one.request_id) for one in decided} == set(waiting), "in the officer's name, and for these only"


def test_many_are_refused_on_one_ground_with_its_explanation(front_door: Installation, officer: Guest) -> None:
    waiting, path = pending(front_door, 2), "/requests/bulk/refuse"
    without = officer.post(path, requests=waiting)
    assert without.status_code == 422
    assert "Choose the ground" in text_of(without)
    unexplained = officer.post(path, requests=waiting, ground="art12_5_excessive", explanation=" ")
    assert unexplained.status_code == 422
    assert "needs an explanation" in text_of(unexplained)
    assert officer.post(path, requests=waiting, ground="because").status_code == 422
    assert officer.post(path, requests=waiting, ground="not_controller", explanation="\0").status_code == 422
    assert {status_of(front_door, one) for one in waiting} == {"pending"}
    done = officer.post(path, requests=waiting, ground="art12_5_excessive", explanation="each day\r\nanew")
    assert "Refused: 2 of 2" in text_of(done)
    assert {status_of(front_door, one) for one in waiting} == {"rejected"}
    with transaction(front_door.engine) as tx:
        said = tx.scalars(select(Decision.explanation).where(Decision.request_id == UUID(waiting[0]))).all()
    assert said == ["each day\nanew"]


def test_what_needs_attention_is_tried_again_by_an_engineer(front_door: Installation) -> None:
    [made] = seed(front_door, "again", status="needs_attention")
    answer = enter(front_door, Role.ENGINEER).post("/requests/bulk/retry", requests=[made, made])
    assert re.search(r"Queued again: [01] of 1", text_of(answer)), "it was named twice and is one"


def test_a_whole_page_is_chosen_by_one_mark(front_door: Installation, officer: Guest) -> None:
    shown = [str(uuid4()) for _ in range(3)] + pending(front_door, 2)
    said = text_of(officer.post("/requests/bulk", action="approve", shown=shown, whole="true", requests=[]))
    assert "Approve: 2 requests" in said
    nothing = officer.post("/requests/bulk", action="approve", shown=shown)
    assert nothing.status_code == 422
    assert "none was chosen" in text_of(nothing)


def test_at_most_200_are_decided_at_once(front_door: Installation, officer: Guest) -> None:
    many = [str(uuid4()) for _ in range(201)]
    for path in ("/requests/bulk", "/requests/bulk/approve"):
        answer = officer.post(path, action="approve", requests=many)
        assert answer.status_code == 422
        assert "at most 200 are decided at once" in text_of(answer)
    assert officer.post("/requests/bulk/approve", requests=many[:200]).status_code == 200


def test_a_look_up_finds_the_open_requests_and_the_suppression_list(front_door: Installation) -> None:
    officer, person = enter(front_door, Role.OFFICER), f"canary-{uuid4().hex}"
    index_key = front_door.settings.key("index_key")
    with front_door.client() as client:
        made = client.post(API, json={"user_id": person}).json()["id"]
        ended = client.post(API, json={"user_id": person, "reference": "taken-back"}).json()["id"]
        assert client.post(f"{API}/{ended}:cancel").status_code == 200
    with transaction(front_door.engine) as tx:
        suppressions.add(tx, suppression_key(index_key, person), None, refused=["kept"])
    answers = [officer.post("/requests/look-up", user_id=typed) for typed in (person, "nobody-at-all", "\0", "")]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 422]
    assert listed(answers[0]) == [made]
    said = text_of(answers[0])
    assert f"every model, now and later {datetime.now(UTC).date()}" in said
    assert "But not kept" in said
    assert "at its end a request forgets whom it was for" in said
    assert "No open request is for this person" in text_of(answers[1])
    assert "not on the list" in text_of(answers[1])
    noticed = noted(front_door.engine, officer, "request.looked_up")
    assert [entry.detail for entry in noticed] == [{"found": 1}, {"found": 0}, {"found": 0}, {"found": 0}]
    _leaks_nothing(front_door, person, "".join(answer.text for answer in answers))


def _leaks_nothing(house: Installation, person: str, pages: str) -> None:
    """Neither the person's id nor what is computed from it is anywhere where people read."""
    index_key = house.settings.key("index_key")
    with transaction(house.engine) as tx:
        internal = str(tx.execute(text("SELECT * FROM internal_log")).all())
    subject, suppressed = subject_key(index_key, person), suppression_key(index_key, person)
    for place_ in (house.log.read_text(), internal, pages):
        for secret in (person, str(subject), subject.hex, suppressed.hex()):
            assert secret not in place_


def test_a_look_up_of_something_that_is_no_text_is_written_down_as_well(front_door: Installation) -> None:
    officer = enter(front_door, Role.OFFICER)
    answer = officer.http.post("/admin/requests/look-up", files={"user_id": ("name", b"content")})
    assert answer.status_code == 422
    assert officer.get("/requests/look-up").status_code in {404, 405, 422}, "never by an address"
    assert len(noted(front_door.engine, officer, "request.looked_up")) == 1
    kind = "multipart/form-data; boundary=x; charset=undefined"  # a codec of Python's that reads nothing
    part = b'--x\r\nContent-Disposition: form-data; name="user_id"\r\n\r\nu-1\r\n--x--\r\n'
    unreadable = officer.http.post("/admin/requests/look-up", content=part, headers={"Content-Type": kind})
    assert unreadable.status_code == 422
    assert len(noted(front_door.engine, officer, "request.looked_up")) == 2


def test_a_request_made_by_hand_is_one_however_often_the_form_is_sent(
    front_door: Installation, officer: Guest, models: None
) -> None:
    person = f"canary-{uuid4().hex}"
    key = re.search(r'name="key" value="([^"]+)"', officer.get("/requests/new").text)
    assert key
    form = {"user_id": person, "models": ["toy"], "reference": "LETTER 7", "identity_level": "high", "key": key[1]}
    answers = [officer.post("/requests/new", **form) for _ in range(2)]
    places = [urlsplit(answer.headers["location"]) for answer in answers]
    assert [(answer.status_code, at.query) for answer, at in zip(answers, places, strict=True)] == [
        (303, "done=created"),
        (303, "done=known"),
    ]
    assert places[0].path == places[1].path
    with transaction(front_door.engine) as tx:
        made = tx.get_one(ErasureRequest, UUID(places[0].path.rpartition("/")[2]))
    assert (made.client_id, made.models, made.reference, made.identity_level) == (
        officer.client_id,
        ["toy"],
        "LETTER 7",
        "high",
    )
    again = officer.post("/requests/new", **{**form, "user_id": f"{person}-another"})
    assert again.status_code == 422
    assert "this form was sent before" in text_of(again).lower()
    assert person not in again.text + front_door.log.read_text()


def test_a_form_that_is_wrong_says_so_beside_the_field_and_keeps_all_but_the_user_id(
    front_door: Installation, officer: Guest, models: None
) -> None:
    person = f"canary-{uuid4().hex}"
    answer = officer.post("/requests/new", user_id=person, models=["toy"], reference=" é", identity_level="substantial")
    assert answer.status_code == 422
    assert 'id="wrong-reference"' in answer.text
    assert 'value=" é"' in answer.text
    assert '<option value="substantial" selected>' in answer.text
    assert 'value="toy" checked' in answer.text
    assert person not in answer.text
    wrong = {
        "user_id": {"user_id": "\t"},
        "models": {"models": ["unheard-of"]},
        "identity_level": {"identity_level": "very"},
    }
    for field, change in wrong.items():
        refused = officer.post("/requests/new", **{"user_id": person, **change})
        assert refused.status_code == 422
        assert f'id="wrong-{field}"' in refused.text
    assert officer.post("/requests/new", user_id=person, models=["\0"]).status_code == 422


def test_the_file_has_what_the_list_has_and_is_written_down(front_door: Installation) -> None:
    auditor, mark = enter(front_door, Role.AUDITOR), f"X{uuid4().hex[:12]}"
    held = seed(front_door, mark, count=61, status="on_hold")
    seed(front_door, f"{mark}=1+1", count=2, status="on_hold", origin="suppression")
    seed(front_door, mark, count=5)
    asked = f"?q={mark}&state=on_hold&origin=portal&sort=deadline"
    link = re.search(r'href="/admin(/requests\.csv[^"]*)"', auditor.get(f"/requests{asked}").text)
    assert link
    answer = auditor.get(unescape(link[1]))
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["id"] for row in rows] == walked(auditor, f"/requests{asked}")
    assert {row["id"] for row in rows} == set(held)
    [entry] = noted(front_door.engine, auditor, "requests.exported")
    assert entry.detail == {
        "filters": {"state": ["on_hold"], "origin": ["portal"], "sort": ["deadline"]},
        "searched": True,
    }


def test_a_long_file_has_everything_once_in_each_order(front_door: Installation) -> None:
    auditor, mark = enter(front_door, Role.AUDITOR), f"L{uuid4().hex[:12]}"
    made = seed(front_door, mark, count=1100)
    for sort in Order:
        answer = auditor.get(f"/requests.csv?q={mark}&sort={sort}")
        rows = [row["id"] for row in csv.DictReader(io.StringIO(answer.text, newline=""))]
        assert sorted(rows) == sorted(made)
        with transaction(front_door.engine) as tx:
            first = tx.get_one(ErasureRequest, UUID(rows[0]))
            last = tx.get_one(ErasureRequest, UUID(rows[-1]))
        rises = place(first, sort).at < place(last, sort).at
        assert rises is (sort is not Order.NEWEST)


def test_each_page_needs_a_few_statements_however_long_the_list_is(front_door: Installation, officer: Guest) -> None:
    mark = f"S{uuid4().hex[:12]}"
    made = seed(front_door, mark, count=120, status="pending")
    app = create_app(front_door.settings)
    said: list[str] = []

    def count(method: str, path: str, **form: object) -> int:
        said.clear()
        answer = client.request(method, f"/admin{path}", data=form)
        assert answer.status_code == 200, answer.text
        return len([one for one in said if not one.startswith("UPDATE browser_sessions")])

    with inside(app, officer) as client:
        event.listen(
            app.state.context.engine, "before_cursor_execute", lambda *arguments: said.append(str(arguments[2]))
        )
        counted = {
            "list": count("GET", f"/requests?q={mark}&state=open&due=overdue&sort=deadline"),
            "new": count("GET", "/requests/new"),
            "look-up": count("POST", "/requests/look-up", user_id="somebody"),
            "bulk": count("POST", "/requests/bulk", action="approve", requests=made),
        }
    assert counted == {"list": 4, "new": 2, "look-up": 4, "bulk": 2}
