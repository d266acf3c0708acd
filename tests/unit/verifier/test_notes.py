"""Notes as Go's reader takes and refuses them; checkpoints and cosignatures there and back."""

from __future__ import annotations

import re

import pytest
from expunge_verify import notes
from expunge_verify.errors import Bad, Unchecked, VerifyError
from expunge_verify.merkle import EMPTY_ROOT
from expunge_verify.notes import COSIGNATURE, ML_DSA, Checkpoint, Note, Signature, Signer, Vkey
from hypothesis import given
from hypothesis import strategies as st

# golang.org/x/mod, sumdb/note/note_test.go
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SIG = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
ENOCH_SIG = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
# C2SP signed-note.md and tlog-cosignature.md
QUASIMODO = """Ognuno sta solo sul cuor della terra
trafitto da un raggio di sole:

ed è subito sera.

— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=
"""  # noqa: E501 - one signature is one line
BEHIND_THE_SOFA = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""  # noqa: E501 - one signature is one line
# transparency-dev/formats, note/note_cosigv1_test.go
REMORA = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"

# FiloSottile/torchwood, cmd/litewitness/testdata/multi-cosigs-ed25519.txt
SIGSUM = "sigsum.org/v1/tree/985ea163f5af026723561354f51f2ebcdcf2af809ce254ccfb64aa9aadd80f90"
SIGSUM_KEY = "52c05edad1bf5feffa81354faae59a655d9a9a1a793ed2f62c39c26c0be2aecd"
SIGSUM_SIG = "7BKT0gOfNZ1J0So9unY3BZtm2YkPIoNYM/dce0Z2avJDs8dxN6ts9bOSwwrVrbjm6P9K3ZxpK6jJngOG6YvGGzV/lwo="

SEED, OTHER_SEED = bytes(range(32)), bytes(range(1, 33))
LOG = Signer("log.example/erasures", SEED)
ROOT = bytes(range(100, 132))
CHECKPOINT = Checkpoint(LOG.name, 42, ROOT)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"), exclude_characters="+"), min_size=1)
SEEDS = st.binary(min_size=32, max_size=32)


def test_a_note_of_two_signers_is_believed_by_either_key():
    note = notes.parse((TEXT + "\n" + PETER_SIG + ENOCH_SIG).encode())
    assert note.text == TEXT
    assert note.signed_by(Vkey.parse(PETER))
    assert note.signed_by(Vkey.parse(ENOCH))
    assert note.raw == (TEXT + "\n" + PETER_SIG + ENOCH_SIG).encode()


def test_a_note_that_a_key_did_not_sign_is_not_believed_and_not_refused_either():
    assert not notes.parse((TEXT + "\n" + PETER_SIG).encode()).signed_by(Vkey.parse(ENOCH))


def test_the_private_key_of_gos_example_makes_the_published_signature():
    seed = notes.unbase64("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    assert str(Signer("PeterNeumann", seed).vkey) == PETER
    assert Signer("PeterNeumann", seed).sign(TEXT) == PETER_SIG


def test_the_specifications_example_is_text_with_an_empty_line_and_one_signature():
    note = notes.parse(QUASIMODO.encode())
    assert note.text.endswith("sole:\n\ned è subito sera.\n")
    assert [(s.name, s.key_id.hex(), len(s.raw)) for s in note.signatures] == [
        ("quasimodo.example/salvatore", "367ba04b", 64)
    ]


def test_the_specifications_cosigned_checkpoint_is_read():
    note = notes.parse(BEHIND_THE_SOFA.encode())
    assert Checkpoint.parse(note.text).size == 20852163
    assert [(s.name, s.key_id.hex(), len(s.raw)) for s in note.signatures] == [
        ("example.com/behind-the-sofa", "033de0ae", 64),
        ("witness.example.com/w1", "8d66cf3f", 72),
    ]
    assert int.from_bytes(note.signatures[1].raw[:8], "big") == 1679315147


def test_a_checkpoint_that_another_log_software_signed_is_believed():
    raw = f"{SIGSUM}\n1\nKgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— {SIGSUM} {SIGSUM_SIG}\n".encode()
    key = notes.vkey_of(SIGSUM, bytes.fromhex(SIGSUM_KEY))
    assert notes.open_checkpoint(raw, [key])[0] == Checkpoint(SIGSUM, 1, b"*" + bytes(31))


@pytest.mark.parametrize("text", [PETER, ENOCH, REMORA])
def test_published_keys_are_read_and_written_the_same(text):
    assert str(Vkey.parse(text)) == text


def test_no_part_and_no_change_of_a_key_is_a_key():
    parts = [PETER[at:end] for at in range(len(PETER)) for end in range(at + 1, len(PETER) + 1)]
    changed = [PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :] for at in range(len(PETER))]
    for text in {*parts, *changed, ""} - {PETER}:
        with pytest.raises(Bad):
            Vkey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # of a wrong length
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # of an unknown kind
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq_LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "rekor.sigstore.dev+12345678+AwEB",
        "bananas.sigstore.dev+12344556",
        "PeterNeumann+c74f20a3+",
        "a" * 5000 + "+c74f20a3+AAAA",
    ],
)
def test_other_spellings_are_no_keys(text):
    with pytest.raises(Bad):
        Vkey.parse(text)


@given(NAMES, SEEDS)
def test_every_key_is_read_as_it_was_written(name, seed):
    for vkey in (
        Signer(name, seed).vkey,
        notes.vkey_of(name, seed, COSIGNATURE),
        notes.vkey_of(name, seed * 41, ML_DSA),
    ):
        if len(str(vkey)) <= notes.MOST_KEY_CHARACTERS:
            assert Vkey.parse(str(vkey)) == vkey


@pytest.mark.parametrize(
    "raw",
    [
        TEXT,
        TEXT + "\n",
        TEXT + PETER_SIG,
        TEXT + "\n" + PETER_SIG[:-1],
        "\x01" + TEXT + "\n" + PETER_SIG,
        TEXT.replace("\n", "\r\n") + "\r\n" + PETER_SIG,
        TEXT + "\n" + PETER_SIG.replace("\n", "\r\n"),
        TEXT + "\t\n" + PETER_SIG,
        TEXT + "\n" + "— Bad Name x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg\n",
        TEXT + "\n" + "— Bad+Name x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg\n",
        TEXT + "\n" + "— Bad\u2003Name x08go/ZJkuBS9UG/\n",
        TEXT + "\n" + PETER_SIG + "Unexpected line.\n",
        TEXT + "\n" + PETER_SIG + "\n",
        TEXT + "\n" + PETER_SIG.replace("— ", "- "),
        TEXT + "\n" + PETER_SIG.replace("— ", "—  "),
        TEXT + "\n" + PETER_SIG.replace("\n", " \n"),
        TEXT + "\n" + PETER_SIG.replace("=", ""),
        TEXT + "\n" + PETER_SIG.replace("AM=", "AN="),  # other bits after the end
        TEXT + "\n" + "— PeterNeumann x08gow==\n",  # the key's id and nothing signed
        TEXT + "\n" + "— PeterNeumann \n",
        TEXT + "\n" + PETER_SIG * 101,
        "",
        "\n",
        "\n\n",
        "\ufeff" + TEXT,
    ],
)
def test_a_note_out_of_form_is_refused(raw):
    with pytest.raises(Bad):
        notes.parse(raw.encode())


def test_a_note_that_is_not_utf8_is_refused():
    for start in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80"):
        with pytest.raises(Bad):
            notes.parse(start + (TEXT + "\n" + PETER_SIG).encode())


def test_a_giant_note_is_refused_by_its_length():
    with pytest.raises(Bad, match=str(notes.MOST_BYTES)):
        notes.parse(b"a" * notes.MOST_BYTES + ("\n\n" + PETER_SIG).encode())


def test_sixteen_signatures_of_post_quantum_length_are_read():
    lines = [Signature(f"w{at}", bytes(4), bytes(5000)).line for at in range(16)]
    assert len(notes.parse(notes.sealed(TEXT, lines)).signatures) == 16


def test_a_wrong_signature_by_a_known_key_spoils_a_note_that_also_has_a_right_one():
    wrong = PETER_SIG[:60] + "ABCD" + PETER_SIG[64:]
    for lines in (wrong, PETER_SIG + wrong, wrong + PETER_SIG):
        with pytest.raises(Bad):
            notes.parse((TEXT + "\n" + lines).encode()).signed_by(Vkey.parse(PETER))


def test_signatures_of_unknown_keys_are_kept_even_if_name_or_id_is_a_known_one():
    misnamed, other_id = PETER_SIG.replace("PeterNeumann", "CarmenSandiego"), PETER_SIG.replace("x08g", "xxxx")
    note = notes.parse((TEXT + "\n" + misnamed + other_id).encode())
    assert len(note.signatures) == 2
    assert not note.signed_by(Vkey.parse(PETER))


def test_the_same_signature_twice_counts_once_and_does_no_harm():
    assert notes.parse((TEXT + "\n" + PETER_SIG * 2).encode()).signed_by(Vkey.parse(PETER)) is True


@given(st.binary(max_size=400))
def test_any_bytes_are_read_in_one_way_or_refused(raw):
    try:
        note = notes.parse(raw)
    except VerifyError:
        return
    assert note.raw == raw


TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).map(lambda text: text + "\n")


@given(TEXTS, NAMES, SEEDS)
def test_every_note_is_read_as_it_was_written(text, name, seed):
    signer = Signer(name, seed)
    note = notes.parse(notes.sealed(text, [signer.sign(text)]))
    assert note.text == text
    assert note.signed_by(signer.vkey)


@given(st.integers(0, 4000))
def test_any_changed_bit_of_a_signed_checkpoint_is_refused(at):
    raw = notes.sealed(CHECKPOINT.text, [LOG.sign(CHECKPOINT.text)])
    at %= len(raw) * 8
    changed = raw[: at // 8] + bytes([raw[at // 8] ^ 1 << at % 8]) + raw[at // 8 + 1 :]
    with pytest.raises(Bad):
        notes.open_checkpoint(changed, [LOG.vkey])


@given(NAMES.filter(lambda name: "\n" not in name), st.integers(0, (1 << 63) - 1), SEEDS)
def test_every_checkpoint_is_read_as_it_was_written(origin, size, root):
    root = root if size else EMPTY_ROOT
    checkpoint = Checkpoint(origin, size, root)
    assert Checkpoint.parse(checkpoint.text) == checkpoint


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("\n42\n", "\n042\n"),
        ("\n42\n", "\n+42\n"),
        ("\n42\n", "\n4_2\n"),
        ("\n42\n", "\n 42\n"),
        ("\n42\n", "\n٤٢\n"),
        ("\n42\n", "\n-1\n"),
        ("\n42\n", "\n42.0\n"),
        ("\n42\n", "\n9223372036854775808\n"),
        ("\n42\n", "\n" + "9" * 5000 + "\n"),
        ("=\n", "=\nan extension line\n"),
        ("=\n", "=\n\n"),
        ("=\n", "="),
        ("=\n", "\n"),
        ("log.example", "\nlog.example"),
        ("log.example/erasures", ""),
        ("ZGVm", "ZGVmZGVm"),
        ("ZGVm", ""),
    ],
)
def test_a_checkpoint_of_another_form_is_refused(was, becomes):
    assert was in CHECKPOINT.text
    with pytest.raises(Bad):
        Checkpoint.parse(CHECKPOINT.text.replace(was, becomes, 1))


def test_a_checkpoint_needs_the_signature_of_the_log_it_names():
    other = Signer(LOG.name, OTHER_SEED)
    raw = notes.sealed(CHECKPOINT.text, [LOG.sign(CHECKPOINT.text)])
    assert notes.open_checkpoint(raw, [other.vkey, LOG.vkey])[0] == CHECKPOINT
    with pytest.raises(Bad, match="no signature"):
        notes.open_checkpoint(raw, [other.vkey])
    with pytest.raises(Bad, match="the keys are of"):
        notes.open_checkpoint(raw, [Signer("another.example", SEED).vkey])
    with pytest.raises(Unchecked):
        notes.open_checkpoint(raw, [])


def test_a_key_that_signs_for_another_log_does_not_vouch_for_this_one():
    """One key may stand for two names; the id covers the name, so a signature cannot be carried over."""
    stranger = Signer("another.example", SEED)
    raw = notes.sealed(CHECKPOINT.text, [stranger.sign(CHECKPOINT.text)])
    with pytest.raises(Bad):
        notes.open_checkpoint(raw, [stranger.vkey, LOG.vkey])


def test_a_rotated_key_and_its_successor_both_verify():
    successor = Signer(LOG.name, OTHER_SEED)
    raw = notes.sealed(CHECKPOINT.text, [LOG.sign(CHECKPOINT.text), successor.sign(CHECKPOINT.text)])
    for keys in ([LOG.vkey], [successor.vkey], [LOG.vkey, successor.vkey]):
        assert notes.open_checkpoint(raw, keys)[0] == CHECKPOINT


@given(st.integers(0, (1 << 63) - 1))
def test_a_cosignature_carries_its_time(time):
    line = notes.cosign(OTHER_SEED, "witness.example", CHECKPOINT.text, time)
    note = notes.parse(notes.sealed(CHECKPOINT.text, [LOG.sign(CHECKPOINT.text), line]))
    assert note.cosigned_by(_witness()) == time


def test_of_two_cosignatures_of_one_witness_the_later_counts():
    lines = [notes.cosign(OTHER_SEED, "witness.example", CHECKPOINT.text, time) for time in (7, 9, 8)]
    assert notes.parse(notes.sealed(CHECKPOINT.text, lines)).cosigned_by(_witness()) == 9


def test_a_cosignature_with_another_time_is_refused():
    [signature] = _cosigned(1_679_315_147).signatures
    later = Signature(signature.name, signature.key_id, (1_679_315_148).to_bytes(8, "big") + signature.raw[8:])
    too_late = Signature(signature.name, signature.key_id, b"\xff" * 8 + signature.raw[8:])
    for forged in (later, too_late, Signature(signature.name, signature.key_id, b"\0")):
        with pytest.raises(Bad):
            Note(CHECKPOINT.text, (forged,)).cosigned_by(_witness())


def test_an_absent_witness_saw_nothing():
    assert _cosigned(5).cosigned_by(notes.vkey_of("other.example", _public(OTHER_SEED), COSIGNATURE)) is None


def test_a_cosignature_is_no_signature_and_the_other_way_round():
    """One seed, one name, two kinds: the key id and the signed text differ."""
    log = Signer("witness.example", OTHER_SEED)
    assert not _cosigned(5).signed_by(log.vkey)
    with pytest.raises(Bad):
        _cosigned(5).signed_by(_witness())
    with pytest.raises(Bad):
        _cosigned(5).cosigned_by(log.vkey)


@pytest.mark.parametrize("time", [-1, 1 << 63])
def test_a_time_that_the_format_cannot_hold_is_not_signed(time):
    with pytest.raises(Bad):
        notes.cosign(OTHER_SEED, "witness.example", CHECKPOINT.text, time)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\x00b", "a\u2003b", "\ud800"])
def test_a_name_that_cannot_stand_in_a_note_names_no_key(name):
    with pytest.raises(Bad):
        _ = Signer(name, SEED).vkey


def test_a_signer_does_not_print_its_seed():
    assert not re.search(r"seed|\\x01|0001", repr(LOG))


@given(st.text(max_size=30))
def test_decimal_and_base64_have_one_spelling_each(text):
    for read, written in ((notes.decimal, str), (notes.unbase64, notes._b64)):
        try:
            assert written(read(text)) == text
        except VerifyError:
            continue


def _public(seed):
    return Signer("any", seed).vkey.public


def _witness():
    return notes.vkey_of("witness.example", _public(OTHER_SEED), COSIGNATURE)


def _cosigned(time):
    line = notes.cosign(OTHER_SEED, "witness.example", CHECKPOINT.text, time)
    return notes.parse(notes.sealed(CHECKPOINT.text, [line]))


def test_an_empty_log_has_the_root_of_the_empty_tree():
    assert Checkpoint.parse(Checkpoint(LOG.name, 0, EMPTY_ROOT).text).size == 0
    with pytest.raises(Bad, match="empty tree"):
        Checkpoint.parse(Checkpoint(LOG.name, 0, ROOT).text)
