"""What stands for a person or a caller, against values computed with openssl, bc and gzip."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.identifiers import (
    api_key_digest,
    check_user_id,
    looks_like_api_key,
    new_api_key,
    subject_key,
    suppression_key,
)
from app.errors import Invalid

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "identifiers.json").read_text(encoding="utf-8"))
KEY = bytes.fromhex(GOLDEN["index_key_hex"])
ALLOWED = st.characters(exclude_categories=("Cc", "Cs"))
USER_IDS = st.text(ALLOWED, min_size=1, max_size=256).filter(lambda text: not text.isspace())


@pytest.mark.parametrize(("user_id", "expected"), GOLDEN["subject_keys"].items())
def test_a_subject_key_is_what_openssl_computes(user_id, expected):
    assert subject_key(KEY, user_id) == UUID(hex=expected)


@pytest.mark.parametrize(("user_id", "expected"), GOLDEN["suppression_keys"].items())
def test_a_suppression_key_is_what_openssl_computes(user_id, expected):
    assert suppression_key(KEY, user_id).hex() == expected


@given(USER_IDS)
def test_the_two_keys_of_a_person_share_nothing(user_id):
    assert suppression_key(KEY, user_id)[:16] != subject_key(KEY, user_id).bytes


@pytest.mark.parametrize(("one", "other"), [("ann", "Ann"), ("ann", "ann "), ("\u00e9", "e\u0301"), ("1", "01")])
def test_ids_that_differ_in_any_character_are_different_people(one, other):
    check_user_id(one)
    check_user_id(other)
    assert subject_key(KEY, one) != subject_key(KEY, other)


def test_another_index_key_knows_nobody():
    assert subject_key(KEY[::-1], "u-48213") != subject_key(KEY, "u-48213")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_an_index_key_of_another_length_is_not_used(length):
    with pytest.raises(ValueError, match="32 bytes"):
        subject_key(bytes(length), "u-48213")


@given(USER_IDS)
def test_every_printable_id_passes_and_has_keys(user_id):
    check_user_id(user_id)
    assert len(suppression_key(KEY, user_id)) == 32


@pytest.mark.parametrize("user_id", ["x" * 256, "🙂" * 256, " x ", "a\u00a0b", "\u200fשלום"])
def test_256_characters_of_any_script_pass(user_id):
    check_user_id(user_id)


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "x" * 257,
        " ",
        "\u2003\u00a0",
        "\t",
        "secret\x00",
        "secret\n",
        "\x7fsecret",
        "secret\x85",
        "secret\ud800",
        "\udfff",
    ],
)
def test_an_id_that_breaks_a_rule_is_refused_without_being_repeated(user_id):
    with pytest.raises(Invalid) as caught:
        check_user_id(user_id)
    assert caught.value.field == "user_id"
    assert "secret" not in str(caught.value)
    assert "character" in str(caught.value) or "white space" in str(caught.value)


@pytest.mark.parametrize("keyed_hash", [subject_key, suppression_key])
def test_a_lone_surrogate_does_not_leak_through_the_encoding_error(keyed_hash):
    with pytest.raises(Invalid) as caught:
        keyed_hash(KEY, "secret\ud800")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_api_key_is_what_bc_and_gzip_compute():
    assert new_api_key(bytes.fromhex(GOLDEN["api_key"]["random_hex"])) == GOLDEN["api_key"]["key"]


@given(st.binary(min_size=32, max_size=32))
def test_every_api_key_has_53_characters_and_looks_like_one(random_bytes):
    key = new_api_key(random_bytes)
    assert len(key) == 53
    assert looks_like_api_key(key)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_api_keys_keep_all_256_bits(one, other):
    assert (new_api_key(one) == new_api_key(other)) == (one == other)


@given(st.integers(4, 52), st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
def test_one_mistyped_character_is_noticed(position, character):
    key = GOLDEN["api_key"]["key"]
    typed = key[:position] + character + key[position + 1 :]
    assert looks_like_api_key(typed) == (typed == key)


@pytest.mark.parametrize(
    "change", [str.upper, lambda k: k + "\n", lambda k: k[:-1], lambda k: " " + k, lambda k: "x" + k[1:]]
)
def test_what_has_another_form_does_not_look_like_an_api_key(change):
    assert not looks_like_api_key(change(GOLDEN["api_key"]["key"]))


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_an_api_key_with_less_entropy_is_not_made(length):
    with pytest.raises(ValueError, match="32 random bytes"):
        new_api_key(bytes(length))


def test_the_digest_of_an_api_key_is_plain_sha256():
    assert api_key_digest("abc") == bytes.fromhex(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180


def test_whatever_a_header_holds_has_a_digest():
    assert api_key_digest("\ud800") != hashlib.sha256(b"").digest()
