"""Signatures against the norm's vector, OpenSSL and the official receiver; the schedule against the norm's table."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.domain import webhook
from app.domain.addresses import ForbiddenAddress
from app.domain.webhook import Outcome, SignatureRefused

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "webhook_signature.json").read_text(encoding="utf-8"))[
    "cases"
]
SECRET, OLD_SECRET = webhook.new_secret(bytes(range(32))), webhook.new_secret(bytes(range(100, 140)))
BODY = webhook.body("erasure.completed", datetime(2027, 2, 3, tzinfo=UTC), {"id": "7", "note": "Zoë"})
NOW = 1_801_645_920
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=9)


@pytest.mark.parametrize("case", GOLDEN)
def test_a_signature_is_the_published_one(case):
    signed = webhook.sign(case["secrets"], case["id"], timestamp_seconds=case["timestamp"], body=case["body"].encode())
    assert signed == case["signature"]


def test_the_body_is_the_golden_one():
    data = {"status": "completed", "sequence": 4, "id": "0190b4c2-8d5e-7c1a-b1d4-3f2a9c6e7d80"}
    written = webhook.body("erasure.completed", datetime(2027, 2, 3, 9, 12, 0, 250_000, tzinfo=UTC), data)
    assert written.decode() == GOLDEN[1]["body"]


def test_the_golden_secret_is_what_we_write():
    assert GOLDEN[1]["secrets"] == [SECRET]


@pytest.mark.parametrize("secrets", [[SECRET], [SECRET, OLD_SECRET], [OLD_SECRET, SECRET]])
def test_the_official_receiver_accepts_ours(secrets):
    headers = webhook.headers(secrets, "msg_1", timestamp_seconds=int(time.time()), body=BODY)
    assert Webhook(SECRET).verify(BODY, headers)["data"] == {"id": "7", "note": "Zoë"}


@pytest.mark.parametrize(
    ("age_seconds", "alter"),
    [
        (0, lambda body, headers: (body.replace(b"7", b"8"), headers)),
        (0, lambda body, headers: (json.dumps(json.loads(body)).encode(), headers)),
        (0, lambda body, headers: (body, headers | {"webhook-id": "msg_2"})),
        (0, lambda body, headers: (body, headers | {"webhook-timestamp": str(int(time.time()) + 60)})),
        (0, lambda body, headers: (body, headers | {"webhook-signature": webhook_with_another_secret(body)})),
        (360, lambda body, headers: (body, headers)),
        (-360, lambda body, headers: (body, headers)),
    ],
)
def test_the_official_receiver_and_ours_refuse_altered_and_stale_messages(age_seconds, alter):
    now = int(time.time())
    body, headers = alter(BODY, webhook.headers([SECRET], "msg_1", timestamp_seconds=now - age_seconds, body=BODY))
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)
    with pytest.raises(SignatureRefused):
        webhook.verify([SECRET], headers, body=body, now_seconds=now)


def test_we_accept_what_the_official_sender_signs():
    signature = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(NOW, UTC), BODY.decode())
    headers = {"Webhook-Id": "msg_1", "WEBHOOK-TIMESTAMP": str(NOW), "webhook-signature": f"v1a,AAAA {signature}"}
    webhook.verify([OLD_SECRET, SECRET], headers, body=BODY, now_seconds=NOW + 299.9)


@given(st.binary(max_size=200), st.binary(min_size=24, max_size=64), st.integers(0, 2**33))
def test_every_message_signed_is_accepted_with_its_secret_and_refused_with_another(body, key, timestamp):
    secret = webhook.new_secret(key)
    headers = webhook.headers([secret], "msg_1", timestamp_seconds=timestamp, body=body)
    webhook.verify([secret], headers, body=body, now_seconds=timestamp)
    with pytest.raises(SignatureRefused):
        webhook.verify(
            [webhook.new_secret(key[::-1] + b"!" * (len(key) < 64) or bytes(64))],
            headers,
            body=body,
            now_seconds=timestamp,
        )


@pytest.mark.parametrize("offset", [-300, 300])
def test_five_minutes_are_still_fresh(offset):
    headers = webhook.headers([SECRET], "msg_1", timestamp_seconds=NOW, body=BODY)
    webhook.verify([SECRET], headers, body=BODY, now_seconds=NOW + offset)
    with pytest.raises(SignatureRefused, match="300 s"):
        webhook.verify([SECRET], headers, body=BODY, now_seconds=NOW + offset * 1.01)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize(
    "value",
    [None, "", "garbage,", "v1", "v1,", "v1,%%%", "v1a,AAAA", "ünsinn", "\ud800", "-1", "1e3", "٣", "v1,é \udfff"],
)
def test_a_malformed_header_is_refused_as_such(name, value):
    headers = webhook.headers([SECRET], "msg_1", timestamp_seconds=NOW, body=BODY)
    headers = {key: text for key, text in (headers | {name: value}).items() if text is not None}
    with pytest.raises(SignatureRefused):
        webhook.verify([SECRET], headers, body=BODY, now_seconds=NOW)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_AAAA", "whsec_%%", SECRET.removeprefix("whsec_"), SECRET + "é", "whsec_" + "A" * 92]
)
def test_a_malformed_secret_is_not_used_and_not_repeated(secret):
    with pytest.raises(ValueError, match="whsec_ and 24 to 64 bytes") as caught:
        webhook.sign([secret], "msg_1", timestamp_seconds=NOW, body=BODY)
    assert len(secret) < 8 or secret not in str(caught.value)


def test_one_secret_given_as_text_is_not_read_as_many():
    with pytest.raises(ValueError, match="whsec_"):
        webhook.sign(SECRET, "msg_1", timestamp_seconds=NOW, body=BODY)


def test_nothing_is_sent_unsigned():
    with pytest.raises(ValueError, match="at least one secret"):
        webhook.sign([], "msg_1", timestamp_seconds=NOW, body=BODY)


@pytest.mark.parametrize("message_id", ["", "msg.1", "msg 1", "msg\n1", "é", "x" * 65])
def test_a_message_id_cannot_move_the_border_of_the_signed_parts(message_id):
    with pytest.raises(ValueError, match="message id"):
        webhook.sign([SECRET], message_id, timestamp_seconds=NOW, body=BODY)


@pytest.mark.parametrize("length", [0, 23, 65])
def test_a_secret_has_the_length_of_the_norm(length):
    with pytest.raises(ValueError, match="24 to 64"):
        webhook.new_secret(bytes(length))


def test_a_secret_is_base64_of_all_its_bytes():
    assert base64.b64decode(SECRET.removeprefix("whsec_")) == bytes(range(32))


def test_the_time_in_a_body_is_utc():
    moment = datetime(2027, 2, 3, 11, 12, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(webhook.body("test", moment, {}))["timestamp"] == "2027-02-03T09:12:00Z"


@given(st.dictionaries(TEXT, st.integers() | TEXT | st.none(), max_size=5))
def test_a_body_says_what_it_was_given_in_one_way(data):
    moment = datetime(2027, 2, 3, tzinfo=UTC)
    written = webhook.body("erasure.completed", moment, data)
    assert json.loads(written)["data"] == data
    assert webhook.body("erasure.completed", moment, dict(reversed(data.items()))) == written


@pytest.mark.parametrize(
    ("event_type", "occurred_at", "data"),
    [
        ("erasure completed", datetime(2027, 2, 3, tzinfo=UTC), {}),
        ("", datetime(2027, 2, 3, tzinfo=UTC), {}),
        ("erasure..completed", datetime(2027, 2, 3, tzinfo=UTC), {}),
        ("erasure.completed", datetime(2027, 2, 3), {}),  # noqa: DTZ001 - what is refused
        ("erasure.completed", datetime(2027, 2, 3, tzinfo=UTC), {"x": "y" * 20_000}),
        ("erasure.completed", datetime(2027, 2, 3, tzinfo=UTC), {"x": float("nan")}),
    ],
)
def test_a_body_outside_the_norm_is_not_written(event_type, occurred_at, data):
    with pytest.raises(ValueError, match=r"event type|time zone|bytes|JSON"):
        webhook.body(event_type, occurred_at, data)


def test_ten_attempts_take_three_days_and_end():
    pauses = [webhook.delay_before(attempt, 0.5) for attempt in range(1, 12)]
    assert pauses.pop() is None
    assert [pause.total_seconds() for pause in pauses] == [0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]
    assert sum(pauses, timedelta()).total_seconds() / 3600 == pytest.approx(75.585, abs=0.001)


@given(st.integers(2, 10), st.floats(0, 1))
def test_jitter_moves_a_pause_by_a_fifth_at_most(attempt, jitter):
    ratio = webhook.delay_before(attempt, jitter) / webhook.delay_before(attempt, 0.5)
    assert ratio == pytest.approx(0.8 + 0.4 * jitter, abs=1e-6)


def test_even_the_most_jittered_pauses_keep_growing():
    assert all(webhook.delay_before(a, 1) < webhook.delay_before(b, 0) for a, b in pairwise(range(1, 8)))


@pytest.mark.parametrize(
    ("asked_seconds", "expected_seconds"), [(-5, 300), (1, 300), (300, 300), (450, 450), (600, 600), (10**9, 600)]
)
def test_a_receiver_may_stretch_a_pause_twofold_and_not_shorten_it(asked_seconds, expected_seconds):
    found = webhook.delay_before(3, 0.1, asked=timedelta(seconds=asked_seconds))
    assert found == timedelta(seconds=expected_seconds)


def test_a_receiver_cannot_ask_for_more_attempts():
    assert webhook.delay_before(11, 0.5, asked=timedelta(seconds=1)) is None


@pytest.mark.parametrize(("attempt", "jitter"), [(0, 0.5), (-1, 0.5), (1, -0.1), (1, 1.1), (1, float("nan"))])
def test_a_schedule_has_no_attempt_before_the_first_and_no_other_jitter(attempt, jitter):
    with pytest.raises(ValueError, match="count from 1"):
        webhook.delay_before(attempt, jitter)


@pytest.mark.parametrize(
    ("retry_after", "date", "expected_seconds"),
    [
        (None, None, None),
        ("0", None, 0),
        ("120", None, 120),
        ("999999999999", None, 10**9),
        ("Wed, 03 Feb 2027 09:14:00 GMT", "Wed, 03 Feb 2027 09:12:00 GMT", 120),
        ("Wed, 03 Feb 2027 09:12:00 GMT", "Wed, 03 Feb 2027 09:14:00 GMT", -120),
        ("Wed, 03 Feb 2027 09:14:00 GMT", None, None),
        ("Wed, 03 Feb 2027 09:14:00 GMT", "Wed, 03 Feb 2027 09:14:00 -0000", None),
        ("soon", "Wed, 03 Feb 2027 09:12:00 GMT", None),
        ("-5", None, None),
        ("1.5", None, None),
        ("٣", None, None),
        ("9" * 5000, None, None),
    ],
)
def test_retry_after_is_read_in_both_forms_or_not_at_all(retry_after, date, expected_seconds):
    expected = None if expected_seconds is None else timedelta(seconds=expected_seconds)
    assert webhook.asked_wait(retry_after, date) == expected


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_no_header_breaks_the_reading_of_retry_after(retry_after, date):
    assert isinstance(webhook.asked_wait(retry_after, date), timedelta | None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (200, Outcome.DELIVERED),
        (299, Outcome.DELIVERED),
        (301, Outcome.RETRY),
        (307, Outcome.RETRY),
        (400, Outcome.RETRY),
        (404, Outcome.RETRY),
        (410, Outcome.GONE),
        (429, Outcome.RETRY),
        (500, Outcome.RETRY),
        (503, Outcome.RETRY),
        (ConnectionRefusedError(), Outcome.RETRY),
        (ForbiddenAddress("not public"), Outcome.REFUSED),
    ],
)
def test_an_answer_decides_what_becomes_of_the_message(answer, expected):
    assert webhook.outcome(answer) is expected


def webhook_with_another_secret(body):
    return webhook.sign([OLD_SECRET], "msg_1", timestamp_seconds=int(time.time()), body=body)
