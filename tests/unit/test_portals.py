"""Portals' dialects as pure translation: the specifications' own examples, their defects, and whatever else is sent."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app import portals
from app.domain.lifecycle import RequestStatus
from app.domain.portals import PORTALS, fides, ketch, known, opendsr, reading, transcend
from app.domain.portals.base import Callback, Hears, ModelStory, Portal, Refusal, Retained, Sent, Story
from app.errors import Invalid
from app.settings import Settings

R = RequestStatus
DOMAIN = "dsr.forget.example"
KNOBS = {
    "opendsr": {"domain": DOMAIN, "zone": "Europe/Berlin"},
    "ketch": {"identity": "account_id"},
    "transcend": {
        "identity": "coreIdentifier",
        "url": "https://sombra.example",
        "value": "u-1",
        "job": "j" * 32,
        "api_key": "k",
        "sombra_key": "",
    },
    "fides": {"identity": "external_id", "url": "https://fides.example/api/v1"},
}
TICKET = "a7551968-d5d6-44b2-9831-815ac9017798"
# OpenDSR 2.0 §7.2, with our identity in place of the e-mail address: no regulation, and a comma too many.
SPECIFICATION = b"""{
  "subject_request_id": "a7551968-d5d6-44b2-9831-815ac9017798",
  "subject_request_type": "erasure",
  "submitted_time": "2018-10-02T15:00:00Z",
  "subject_identities": [
    {
      "identity_type": "controller_customer_id",
      "identity_value": "u-48213",
      "identity_format": "raw"
    }
  ],
  "api_version": "1.0",
  "status_callback_urls": [
    "https://examplecontroller.com/OpenCompliance_callbacks"
  ],
  "extensions": {
    "example-processor.com": {
      "foo-processor-custom-id":123456,
      "property_id": "123456",
    },
    "example-other-processor.com": {
      "foo-other-processor-custom-id":654321
    }
  }
}"""
MPARTICLE = {
    "regulation": "gdpr",
    "subject_request_id": TICKET,
    "subject_request_type": "erasure",
    "submitted_time": "2018-10-02T15:00:00.123",
    "skip_waiting_period": True,
    "subject_identities": {"controller_customer_id": {"value": "u-48213", "encoding": "raw"}},
    "group_id": "my-group",
    "api_version": "3.0",
    "status_callback_urls": ["https://exampleurl.com/opendsr/callbacks"],
    "extensions": {DOMAIN: {"models": ["ranker-prod"], "skip_waiting_period": True}},
}
KETCH: dict[str, Any] = {
    "apiVersion": "dsr/v1",
    "kind": "DeleteRequest",
    "metadata": {"uid": "22880925-aac5-42f9-a653-cb6921d361ff", "tenant": "axonic"},
    "request": {
        "controller": "axonic",
        "property": "axonic.io",
        "environment": "production",
        "regulation": "gdpr",
        "jurisdiction": "eugdpr",
        "identities": [
            {"identitySpace": "account_id", "identityFormat": "raw", "identityValue": "123"},
            {"identitySpace": "email", "identityFormat": "raw", "identityValue": "test@subject.com"},
        ],
        "callbacks": [{"url": "https://dsr.ketch.com/callback", "headers": {"Authorization": "$auth"}}],
        "subject": {"email": "test@subject.com", "firstName": "Test"},
        "claims": {"account_id": "123"},
        "submittedTimestamp": 123,
        "dueTimestamp": 123,
    },
}
TRANSCEND = {
    "type": "ERASURE",
    "coreIdentifier": {"value": "u-1"},
    "dataSubject": {"type": "customer"},
    "isTest": False,
    "extras": {
        "profile": {"type": "email", "identifier": "ann@example.org"},
        "request": {"link": "https://app.transcend.io/privacy-requests/incoming-requests/4a2af8c4-3b72/"},
    },
}
FIDES = {
    "privacy_request_id": "pri_029832ba-3b84-40f7-8946-82aec6f95448",
    "privacy_request_status": "in_processing",
    "direction": "two_way",
    "callback_type": "pre",
    "identity": {"email": "customer-1@example.com", "phone_number": None, "external_id": "u-7"},
    "policy_action": "erasure",
}
RESUME = {"reply-to": "/privacy-request/pri_1/resume", "reply-to-token": "eyJ.jwe"}
HEADERS = {"x-transcend-nonce": "nonce", **RESUME}


def sent(portal: Portal, document: Any, headers: dict[str, str] = HEADERS, **knobs: str) -> Sent:
    return Sent(document=document, headers=headers, knobs={**KNOBS[portal.name], **knobs})


def read(portal: Portal, document: Any, headers: dict[str, str] = HEADERS, **knobs: str) -> Any:
    return portal.read(sent(portal, document, headers, **knobs))


def story(state: RequestStatus, **more: Any) -> Story:
    about: dict[str, Any] = {
        "request_id": "0f6f3a7f",
        "controller_id": "acme",
        "external_id": TICKET,
        "group_id": None,
        "state": state,
        "reason": None,
        "received_at": datetime(2027, 2, 3, 9, 12, tzinfo=UTC),
        "deadline": datetime(2027, 3, 3, 23, 59, 59, 999_999, tzinfo=UTC),
        "sequence": 4,
        "models": (),
        "ground": None,
        "retained": (),
    }
    return Story(**about | more)


V1, V2, V3 = opendsr.PORTALS
KETCH_PORTAL, TRANSCEND_PORTAL, FIDES_PORTAL = ketch.PORTALS[0], transcend.PORTALS[0], fides.PORTALS[0]


@pytest.mark.parametrize("portal", opendsr.PORTALS)
def test_the_specifications_own_example_is_read_defects_and_all(portal: Portal) -> None:
    asked = read(portal, reading.document(SPECIFICATION))
    assert (asked.external_id, asked.user_id, asked.reference) == (TICKET, "u-48213", TICKET)
    assert [c.url for c in asked.callbacks] == ["https://examplecontroller.com/OpenCompliance_callbacks"]
    assert asked.callbacks[0].hears is Hears.EVERY_CHANGE
    assert asked.models is None


@pytest.mark.parametrize("portal", opendsr.PORTALS)
def test_mparticles_dialect_is_read_in_every_version(portal: Portal) -> None:
    asked = read(portal, MPARTICLE)
    assert (asked.user_id, asked.group_id, asked.models) == ("u-48213", "my-group", ["ranker-prod"])


def test_a_comma_inside_a_string_is_no_comma_too_many() -> None:
    assert reading.document(b'{"a": ",]", "b": "\\",}", }') == {"a": ",]", "b": '",}'}
    for broken in (b'{"a": 1,, }', b'{"a": "x,}', b"{,}x", b"[1,]", b"null", b'"{}"', b""):
        with pytest.raises(Invalid):
            reading.document(broken)


@pytest.mark.parametrize(
    "hostile", [b'{"a":' + b'\\"' * 32_000, b"[" * 64_000, b",]" * 32_000, b'{"a":' + b", " * 32_000]
)
def test_no_body_keeps_the_reader_busy(hostile: bytes) -> None:
    began = time.process_time()
    with pytest.raises(Invalid):
        reading.document(hostile)
    assert time.process_time() - began < 1


def test_a_name_said_twice_is_refused_even_behind_a_comma_too_many() -> None:
    with pytest.raises(Invalid, match="twice"):
        reading.document(b'{"subject_request_id": "a", "subject_request_id": "b",}')


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("subject_request_id", None, "subject_request_id field is required"),
        ("subject_request_id", "7", "must be a UUID"),
        ("subject_request_id", 7, "subject_request_id must be a string"),
        ("subject_request_type", None, "subject_request_type field is required"),
        ("subject_request_type", "access", "supported here is erasure"),
        ("submitted_time", None, "submitted_time field is required"),
        ("submitted_time", "yesterday", "must be a time"),
        ("regulation", "lgpd", "gdpr or ccpa"),
        ("subject_identities", None, "controller_customer_id in the format raw"),
        ("subject_identities", [], "controller_customer_id in the format raw"),
        ("subject_identities", {"email": {"value": "ann@example.org", "encoding": "raw"}}, "controller_customer_id"),
        ("subject_identities", {"controller_customer_id": {"value": "x", "encoding": "sha256"}}, "format raw"),
        (
            "subject_identities",
            [
                {"identity_type": "controller_customer_id", "identity_value": "a", "identity_format": "raw"},
                {"identity_type": "controller_customer_id", "identity_value": "b", "identity_format": "raw"},
            ],
            "exactly once",
        ),
        ("subject_identities", ["ann"], "each identity is an object"),
        ("subject_identities", "ann", "an array of identities"),
        ("group_id", "line\nfeed", "printable"),
        ("group_id", 7, "must be a string"),
        ("status_callback_urls", [f"https://{i}.example" for i in range(11)], "up to 10"),
        ("status_callback_urls", [7], "URLs"),
        ("extensions", {DOMAIN: {"models": ["No Such Name"]}}, "names of models"),
        ("extensions", [], "must be an object"),
    ],
)
def test_an_error_names_the_field_and_what_we_support_and_never_the_value(field: str, value: Any, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(V3, {**MPARTICLE, field: value})
    assert says in str(refused.value)
    assert refused.value.field == field
    assert "ann@" not in str(refused.value)


def test_a_time_without_a_zone_is_utc() -> None:
    assert reading.moment({"at": "2018-10-02T15:00:00"}, "at") == datetime(2018, 10, 2, 15, tzinfo=UTC)
    assert reading.moment({"at": "2018-10-02T17:00:00+02:00"}, "at") == datetime(2018, 10, 2, 15, tzinfo=UTC)


@pytest.mark.parametrize("said", ["2000-01-01T00:00:00", "2000-01-01T00:00:00+14:00", "2199-12-31T23:59:59-12:00"])
def test_a_time_at_the_edge_of_the_years_that_we_take_is_read_and_can_be_told_in_utc(said: str) -> None:
    assert reading.moment({"at": said}, "at").astimezone(UTC).year in {1999, 2000, 2199, 2200}


@pytest.mark.parametrize(
    "said",
    [
        "1999-12-31T23:59:59Z",
        "2200-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",  # in UTC this is before the first year, and there is no such time
        "9999-12-31T23:59:59-23:59",
        "10000-01-01T00:00:00Z",
        "2027-02-30T00:00:00Z",
    ],
)
def test_a_time_that_no_request_can_have_is_refused_by_name(said: str) -> None:
    with pytest.raises(Invalid) as refused:
        reading.moment({"at": said}, "at")
    assert refused.value.field == "at"
    assert said not in str(refused.value)


WORDS = [
    (R.RECEIVED, "pending", "pending"),
    (R.AWAITING_IDENTITY, "pending", "pending"),
    (R.PENDING, "pending", "pending"),
    (R.ON_HOLD, "pending", "in_progress"),
    (R.APPROVED, "in_progress", "in_progress"),
    (R.QUEUED, "in_progress", "in_progress"),
    (R.IN_PROGRESS, "in_progress", "in_progress"),
    (R.NEEDS_ATTENTION, "in_progress", "in_progress"),
    (R.COMPLETED, "completed", "completed"),
    (R.PARTIALLY_COMPLETED, "completed", "completed"),
    (R.NO_DATA, "completed", "completed"),
    (R.REJECTED, "cancelled", "denied"),
    (R.CANCELLED, "cancelled", "cancelled"),
]


@pytest.mark.parametrize(("state", "word", "ketchs"), WORDS)
def test_every_state_has_its_word_in_every_dialect(state: RequestStatus, word: str, ketchs: str) -> None:
    for dialect in opendsr.DIALECTS:
        told: Any = opendsr.status(dialect, story(state), KNOBS["opendsr"])
        assert told["request_status"] == word
        assert told["extensions"][DOMAIN]["state"] == state.value
        assert state in opendsr.states(word)
    event = json.loads(KETCH_PORTAL.tell(story(state), ketch_callback(), {}).content)["event"]
    assert event["status"] == ketchs


def test_every_state_was_asked_about() -> None:
    assert {state for state, _, _ in WORDS} == set(RequestStatus)


def ketch_callback() -> Callback:
    url, remarks = "https://dsr.ketch.com/callback", {"tenant": "axonic"}
    return Callback(url=url, hears=Hears.UNTIL_THE_END, headers={"X": "y"}, remarks=remarks)


def test_a_status_carries_what_opendsr_has_no_words_for() -> None:
    kept = Retained(ground="art17_3_b_legal_obligation", models=None, data_class="invoices")
    models = (
        ModelStory(model="ranker", state="certified", result="forgotten"),
        ModelStory(model="scorer", state="failed", result=None),
        ModelStory(model="other", state="queued", result=None),
    )
    whole = story(R.PARTIALLY_COMPLETED, models=models, retained=(kept,), group_id="g")
    told: Any = opendsr.status(opendsr.DIALECTS[2], whole, KNOBS["opendsr"])
    extension = told["extensions"][DOMAIN]
    assert told["expected_completion_time"] == "2027-03-03T23:59:59Z"
    assert told["group_id"] == "g"
    assert extension["retained"] == [{"ground": kept.ground, "models": None, "data_class": "invoices"}]
    assert [m["result"] for m in extension["models"]] == ["forgotten", None, None]
    assert [m["status"] for m in extension["distribution_status"]] == ["sent", "failed", "pending"]
    refused: Any = opendsr.status(opendsr.DIALECTS[1], story(R.REJECTED, ground="art12_5_excessive"), KNOBS["opendsr"])
    assert refused["extensions"][DOMAIN]["refused_on"] == "art12_5_excessive"
    assert opendsr.status(opendsr.DIALECTS[1], story(R.NO_DATA), KNOBS["opendsr"])["results_count"] == 0
    assert "results_count" not in opendsr.status(opendsr.DIALECTS[0], story(R.NO_DATA), KNOBS["opendsr"])


@pytest.mark.parametrize(
    ("zone", "last_moment", "day"),
    [
        ("UTC", "2027-03-03T23:59:59.999999", "2027-03-03"),
        ("Europe/Berlin", "2027-03-03T22:59:59.999999", "2027-03-03"),
        ("America/Los_Angeles", "2027-03-04T07:59:59.999999", "2027-03-03"),
        ("Pacific/Auckland", "2027-03-03T10:59:59.999999", "2027-03-03"),
    ],
)
def test_a_deadline_is_the_controllers_day_in_answers_and_in_callbacks(zone: str, last_moment: str, day: str) -> None:
    knobs = {**KNOBS["opendsr"], "zone": zone}
    told = story(R.RECEIVED, deadline=datetime.fromisoformat(last_moment).replace(tzinfo=UTC))
    callback = Callback(url="https://portal.example/", hears=Hears.EVERY_CHANGE)
    for portal, dialect in zip(opendsr.PORTALS, opendsr.DIALECTS, strict=True):
        answered: Any = opendsr.status(dialect, told, knobs)
        heard = json.loads(portal.tell(told, callback, knobs).content)
        assert answered["extensions"][DOMAIN]["deadline"] == heard["extensions"][DOMAIN]["deadline"] == day
        assert heard["expected_completion_time"] == last_moment[:19] + "Z"


def test_errors_have_each_versions_shape() -> None:
    refusal = Refusal(status=422, message="no", fields=[("regulation", "regulation is gdpr or ccpa")])
    detail = {"domain": "Validation", "reason": "regulation", "message": "regulation is gdpr or ccpa"}
    plain = {"code": 400, "message": "no", "errors": [detail]}
    assert V1.refuse is not None
    assert V3.refuse is not None
    assert V1.refuse(refusal) == (400, {"error": plain})
    assert V3.refuse(refusal) == (400, plain)
    assert V3.refuse(Refusal(status=401, message="who?")) == (401, {"code": 401, "message": "who?"})
    assert V1.refuse(Refusal(status=409, message="too late"))[0] == 400
    assert V3.refuse(Refusal(status=429, message="slower"))[0] == 429


def test_both_spellings_of_a_status_are_read_and_one_is_written() -> None:
    assert opendsr.states("in-progress") == opendsr.states("in_progress")
    assert opendsr.states("canceled") == {R.CANCELLED, R.REJECTED}
    with pytest.raises(Invalid, match="pending, in_progress"):
        opendsr.states("done")


def test_ketchs_own_example_is_read() -> None:
    asked = read(KETCH_PORTAL, KETCH)
    assert (asked.external_id, asked.user_id) == (KETCH["metadata"]["uid"], "123")
    [callback] = asked.callbacks
    assert callback.headers == {"Authorization": "$auth"}
    assert callback.hears is Hears.UNTIL_THE_END


def test_nothing_secret_shows_when_somebody_prints_what_was_read() -> None:
    for portal, document in ((KETCH_PORTAL, KETCH), (FIDES_PORTAL, FIDES), (TRANSCEND_PORTAL, TRANSCEND)):
        asked = read(portal, document)
        shown = repr(asked) + repr(sent(portal, document))
        for secret in ("$auth", "dsr.ketch.com", "eyJ.jwe", "nonce", asked.user_id + "'"):
            assert secret not in shown


def test_ketch_is_answered_and_told_in_its_words() -> None:
    answer = KETCH_PORTAL.answer(sent(KETCH_PORTAL, KETCH), story(R.RECEIVED))
    assert answer["kind"] == "DeleteResponse"
    assert answer["metadata"] == {"uid": TICKET, "tenant": "axonic"}
    message = KETCH_PORTAL.tell(story(R.NO_DATA), ketch_callback(), {})
    event = json.loads(message.content)
    assert (event["apiVersion"], event["kind"], event["event"]["reason"]) == ("dsr/v1", "DeleteStatusEvent", "no_match")
    assert event["event"]["expectedCompletionTimestamp"] == 1804118399
    assert message.headers == {"X": "y"}
    refused = json.loads(KETCH_PORTAL.tell(story(R.REJECTED, ground="art12_5_excessive"), ketch_callback(), {}).content)
    assert (refused["event"]["status"], refused["event"]["reason"]) == ("denied", "too_many_requests")


def changed(**more: Any) -> dict[str, Any]:
    return {**KETCH, "request": {**KETCH["request"], **more}}


OURS, ANOTHER = KETCH["request"]["identities"]
HASHED = {"identitySpace": "account_id", "identityFormat": "md5", "identityValue": "9"}
CALLBACK = "https://x.example"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({**KETCH, "kind": "AccessRequest"}, "kind"),
        ({**KETCH, "apiVersion": "dsr/v2"}, "kind"),
        ({**KETCH, "metadata": {"tenant": "axonic"}}, "uid"),
        ({**KETCH, "metadata": {"uid": "1"}}, "tenant"),
        ({**KETCH, "metadata": []}, "metadata"),
        (changed(identities=[]), "identities"),
        (changed(identities=[ANOTHER]), "identities"),
        (changed(identities=[OURS, {**OURS, "identityValue": "9"}]), "identities"),
        (changed(identities=[HASHED]), "identities"),
        (changed(callbacks=[CALLBACK]), "callbacks"),
        (changed(callbacks=[{"url": CALLBACK, "headers": {"Host": "inside"}}]), "headers"),
        (changed(callbacks=[{"url": CALLBACK, "headers": {"X": "a\r\nHost: inside"}}]), "headers"),
        (changed(callbacks=[{"url": CALLBACK, "headers": {"X Y": "a"}}]), "headers"),
        (changed(callbacks=[{"url": CALLBACK}] * 11), "callbacks"),
    ],
)
def test_what_ketch_may_not_ask_is_named(document: Any, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(KETCH_PORTAL, document)
    assert refused.value.field == field


def test_another_identity_space_can_hold_our_user_ids() -> None:
    assert read(KETCH_PORTAL, KETCH, identity="email").user_id == "test@subject.com"


def test_transcends_job_is_read_by_what_its_token_vouches_for() -> None:
    asked = read(TRANSCEND_PORTAL, TRANSCEND)
    assert (asked.user_id, asked.reference, asked.external_id) == ("u-1", "4a2af8c4-3b72", "j" * 32)
    assert read(TRANSCEND_PORTAL, TRANSCEND, identity="profile").user_id == "ann@example.org"
    [callback] = asked.callbacks
    assert callback.url == "https://sombra.example/v1/data-silo"
    for document, field in (
        ({**TRANSCEND, "coreIdentifier": {"value": "u-2"}}, "coreIdentifier"),
        ({**TRANSCEND, "type": "ACCESS"}, "type"),
    ):
        with pytest.raises(Invalid) as refused:
            read(TRANSCEND_PORTAL, document)
        assert refused.value.field == field
    with pytest.raises(Invalid, match="x-transcend-nonce"):
        read(TRANSCEND_PORTAL, TRANSCEND, {})


@pytest.mark.parametrize(
    ("state", "status"),
    [(R.COMPLETED, "READY"), (R.NO_DATA, "READY"), (R.REJECTED, "SKIPPED_DUE_TO_EXCEPTION"), (R.CANCELLED, "SKIPPED")],
)
def test_transcends_job_is_resolved_with_its_nonce_and_no_identifier(state: RequestStatus, status: str) -> None:
    [callback] = read(TRANSCEND_PORTAL, TRANSCEND).callbacks
    message = TRANSCEND_PORTAL.tell(story(state), callback, {**KNOBS["transcend"], "sombra_key": "inside"})
    assert (message.method, json.loads(message.content)) == ("PUT", {"status": status})
    assert message.headers == {
        "x-transcend-nonce": "nonce",
        "authorization": "Bearer k",
        "x-sombra-authorization": "Bearer inside",
    }


def test_fides_waits_where_it_can_and_is_resumed_with_its_token() -> None:
    asked = read(FIDES_PORTAL, FIDES)
    assert (asked.external_id, asked.user_id) == (FIDES["privacy_request_id"], "u-7")
    [callback] = asked.callbacks
    assert callback.url == "https://fides.example/api/v1/privacy-request/pri_1/resume"
    assert callback.headers == {"authorization": "Bearer eyJ.jwe"}
    assert FIDES_PORTAL.answer(sent(FIDES_PORTAL, FIDES), story(R.RECEIVED)) == {"halt": True}
    for change in ({"direction": "one_way"}, {"callback_type": "post"}):
        assert read(FIDES_PORTAL, {**FIDES, **change}, {}).callbacks == []
        assert FIDES_PORTAL.answer(sent(FIDES_PORTAL, {**FIDES, **change}), story(R.RECEIVED)) == {"halt": False}


@pytest.mark.parametrize(
    "reply_to",
    [
        "https://attacker.example/privacy-request/pri_1/resume",
        "https://fides.example.attacker.example/x",
        "https://fides.example@attacker.example/x",
        "//attacker.example/x",
        "/../../admin",
        "@attacker.example/x",
        "/x?token=",
        "",
        "/x y",
    ],
)
def test_fides_token_goes_nowhere_but_to_our_fides(reply_to: str) -> None:
    with pytest.raises(Invalid) as refused:
        read(FIDES_PORTAL, FIDES, {**RESUME, "reply-to": reply_to})
    assert refused.value.field == "reply-to"
    with pytest.raises(Invalid, match="EXPUNGE_FIDES_URL"):
        read(FIDES_PORTAL, FIDES, RESUME, url="")
    with pytest.raises(Invalid, match="reply-to-token"):
        read(FIDES_PORTAL, FIDES, {"reply-to": RESUME["reply-to"]})


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_wherever_fides_says_it_is_resumed_it_is_on_our_fides(reply_to: str) -> None:
    with suppress(Invalid):
        [callback] = read(FIDES_PORTAL, FIDES, {**RESUME, "reply-to": reply_to}).callbacks
        assert urlsplit(callback.url).netloc == "fides.example"


def test_a_whole_url_on_our_fides_is_accepted() -> None:
    path = "/api/v1/privacy-request/pri_1/resume"
    for reply_to in (f"https://fides.example{path}", path):
        [callback] = read(FIDES_PORTAL, FIDES, {**RESUME, "reply-to": reply_to}).callbacks
        assert callback.url == f"https://fides.example{path}"


def test_fides_custom_identities_and_a_missing_one() -> None:
    labelled = {"external_id": {"label": "Customer number", "value": 7}}
    assert read(FIDES_PORTAL, {**FIDES, "identity": labelled}).user_id == "7"
    assert read(FIDES_PORTAL, FIDES, identity="email").user_id == "customer-1@example.com"
    with pytest.raises(Invalid, match="external_id is required"):
        read(FIDES_PORTAL, {**FIDES, "identity": {"email": "ann@example.org"}})


def test_only_an_erasing_policy_is_ours() -> None:
    assert fides.is_ours(FIDES)
    assert not fides.is_ours({**FIDES, "policy_action": "access"})
    with pytest.raises(Invalid, match="policy_action"):
        fides.is_ours({})


def test_the_registry_knows_each_dialect_once() -> None:
    assert len({(p.name, p.version) for p in PORTALS}) == len({p.prefix for p in PORTALS}) == len(PORTALS) == 6
    assert known("opendsr", "2.0") is V2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("portal", "good"),
    [(V1, MPARTICLE), (V3, MPARTICLE), (KETCH_PORTAL, KETCH), (TRANSCEND_PORTAL, TRANSCEND), (FIDES_PORTAL, FIDES)],
)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(
    portal: Portal, good: dict[str, Any], data: st.DataObject
) -> None:
    """Never another error: what isn't Invalid would be a 500."""
    document = json.loads(json.dumps(good))
    place, path = document, data.draw(st.sampled_from(sorted(places(document), key=str)))
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = data.draw(JSON)
    with suppress(Invalid):
        asked = read(portal, document)
        assert asked.external_id.isascii()
        assert isinstance(asked.user_id, str)
        reading.canonical(document)


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ())
    return [(*path, key) for key, _ in items] + [deep for key, one in items for deep in places(one, (*path, key))]


@given(st.binary(max_size=200))
def test_bytes_are_an_object_or_refused(body: bytes) -> None:
    with suppress(Invalid):
        assert isinstance(reading.document(body), dict)


@pytest.mark.parametrize("portal", PORTALS, ids=lambda portal: f"{portal.name} {portal.version}")
def test_a_portals_knobs_are_what_the_operator_set(portal: Portal) -> None:
    chosen = {name: SecretStr("set") if "key" in name else "set" for name in portal.knobs.values()}
    found = portals.knobs(portal, Settings().model_copy(update=chosen))
    assert set(chosen) <= set(Settings.model_fields)
    assert found == dict.fromkeys(portal.knobs, "set")
    assert set(found) == set(KNOBS[portal.name]) - {"value", "job"}
