"""Policies: which logs, which witnesses, how many of them; the example of the specification in every combination."""

from __future__ import annotations

from itertools import product

import pytest
from expunge_verify import notes
from expunge_verify.errors import Bad, Unchecked, VerifyError
from expunge_verify.notes import COSIGNATURE, ML_DSA, Checkpoint, Signature, Signer
from expunge_verify.policy import Group, Policy, Witness
from hypothesis import given
from hypothesis import strategies as st

LOG = Signer("log.example/erasures", bytes(range(32)))
WITNESSES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
TEXT = Checkpoint(LOG.name, 7, bytes(32)).text
TIME = 1_679_315_147


def _seed(name):
    return name.encode().ljust(32, b".")


def _vkey(name, kind=COSIGNATURE):
    return notes.vkey_of(f"witness.example/{name}", Signer("any", _seed(name)).vkey.public, kind)


def _line(name):
    return notes.cosign(_seed(name), f"witness.example/{name}", TEXT, TIME)


def _note(*names, signer=LOG):
    return notes.parse(notes.sealed(TEXT, [signer.sign(TEXT), *map(_line, names)]))


EXAMPLE = "\n".join(
    [
        "# the two-level example of tlog-policy.md",
        f"log {LOG.vkey} https://log.example/erasures/",
        "",
        *(f"  witness\t{name} {_vkey(name)}" for name in WITNESSES[:3]),
        "group X-witnesses 2 X1 X2 X3",
        *(f"witness {name} {_vkey(name)} https://{name}.example/ " for name in WITNESSES[3:]),
        "group Y-witnesses any Y1 Y2 Y3",
        "\t # Zażółć",
        "group X-and-Y all X-witnesses Y-witnesses",
        "quorum X-and-Y",
        "",
    ]
)
ONE = f"log {LOG.vkey}\nwitness w {_vkey('X1')}\nquorum w\n"


def test_the_example_holds_what_it_says():
    policy = Policy.parse(EXAMPLE)
    assert policy.logs == (LOG.vkey,)
    assert policy.log_urls == ("https://log.example/erasures/",)
    assert policy.witnesses[0] == Witness("X1", _vkey("X1"))
    assert policy.witnesses[3].url == "https://Y1.example/"
    assert policy.groups[0] == Group("X-witnesses", 2, ("X1", "X2", "X3"))
    assert policy.groups[2] == Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses"))
    assert policy.quorum == "X-and-Y"
    assert Policy.parse(EXAMPLE.encode()) == policy


def test_the_quorum_of_the_example_is_met_by_two_x_and_one_y():
    policy = Policy.parse(EXAMPLE)
    for chosen in product((False, True), repeat=6):
        names = [name for name, here in zip(WITNESSES, chosen, strict=True) if here]
        if sum(chosen[:3]) >= 2 and any(chosen[3:]):
            assert len(policy.check(_note(*names))) == len(names) + 2
        else:
            with pytest.raises(Bad, match="quorum"):
                policy.check(_note(*names))


def test_the_facts_name_log_witness_time_and_quorum():
    assert Policy.parse(ONE).check(_note("X1")) == [
        f"signed by log 'log.example/erasures' with key {LOG.vkey.key_id.hex()}",
        "cosigned by witness 'w' at 2023-03-20T12:25:47Z",
        "quorum 'w' met by 1 of 1 witnesses",
    ]


def test_a_policy_of_keys_alone_asks_for_no_witness():
    assert Policy.of([LOG.vkey]).check(_note()) == Policy.parse(f"log {LOG.vkey}\nquorum none").check(_note())


def test_a_policy_opens_a_checkpoint():
    checkpoint, facts = Policy.of([LOG.vkey]).open(_note().raw)
    assert checkpoint == Checkpoint.parse(TEXT)
    assert len(facts) == 1


def test_witnesses_do_not_replace_the_log():
    stranger = Signer(LOG.name, bytes(32))
    with pytest.raises(Bad, match="no signature"):
        Policy.parse(ONE).check(_note("X1", signer=stranger))
    with pytest.raises(Unchecked):
        Policy.parse(ONE.partition("\n")[2]).check(_note("X1"))


def test_a_wrong_cosignature_is_refused_where_others_would_be_enough():
    text = ONE.replace("quorum", f"witness other {_vkey('X2')}\nquorum")
    stolen = Signature(f"witness.example/{'X2'}", _vkey("X2").key_id, _note("X1").by(_vkey("X1"))[0])
    note = notes.Note(TEXT, (*_note("X1").signatures, stolen))
    with pytest.raises(Bad, match="is wrong"):
        Policy.parse(text).check(note)


def test_the_signature_of_an_unknown_witness_counts_for_nothing():
    with pytest.raises(Bad, match="quorum"):
        Policy.parse(ONE).check(_note("X2"))
    assert len(Policy.parse(ONE).check(_note("X1", "X2"))) == 3


def test_a_quorum_that_hangs_on_a_post_quantum_signature_is_unchecked_not_bad():
    modern = notes.vkey_of("modern.example", bytes(1312), ML_DSA)
    policy = Policy.parse(f"log {LOG.vkey}\nwitness m {modern}\nquorum m")
    with pytest.raises(Bad):
        policy.check(_note())
    signature = Signature(modern.name, modern.key_id, bytes(2428))
    with pytest.raises(Unchecked):
        policy.check(notes.Note(TEXT, (*_note().signatures, signature)))


LOG_LINE, W = f"log {LOG.vkey}\n", f"witness w {_vkey('X1')}\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        LOG_LINE,
        "quorum",
        "quorum none more",
        "quorum none\nquorum none",
        "quorum w\n" + W,
        "quorum absent",
        "quorum none\r",
        "quorum none\x00",
        "Quorum none",
        "quorums none",
        "log\nquorum none",
        "log not-a-key\nquorum none",
        f"log {LOG.vkey} url more\nquorum none",
        LOG_LINE * 2 + "quorum none",
        f"log {_vkey('X1')}\nquorum none",
        f"{W}{W}quorum none",
        f"{W}witness v {_vkey('X1')}\nquorum none",
        f"{W}witness v {notes.vkey_of('renamed.example', _vkey('X1').public, COSIGNATURE)}\nquorum none",
        f"{W}witness w {_vkey('X2')}\nquorum none",
        f"witness none {_vkey('X2')}\nquorum none",
        f"witness w {LOG.vkey}\nquorum none",
        f"{W}group g any\nquorum none",
        f"{W}group g 0 w\nquorum none",
        f"{W}group g 2 w\nquorum none",
        f"{W}group g 01 w\nquorum none",
        f"{W}group g +1 w\nquorum none",
        f"{W}group g some w\nquorum none",
        f"{W}group g any none\nquorum none",
        f"{W}group g any g\nquorum none",
        f"{W}group g any w w\nquorum none",
        f"{W}group g any w\ngroup h any w\nquorum none",
        f"{W}group w any w\nquorum none",
        f"{W}group none any w\nquorum none",
        f"group g any w\n{W}quorum none",
        "#\n" * 2000 + "quorum none",
        "#" * notes.MOST_BYTES + "\nquorum none",
    ],
)
def test_other_policies_are_refused(text):
    with pytest.raises(Bad):
        Policy.parse(text)


def test_a_policy_that_is_not_utf8_is_refused():
    with pytest.raises(Bad):
        Policy.parse(b"# \xff\nquorum none\n")


NAMES = st.lists(st.from_regex(r"[a-zé-]{1,8}", fullmatch=True).filter(lambda n: n != "none"), unique=True, max_size=8)


@given(NAMES, st.data())
def test_every_policy_is_read_as_it_was_written(names, data):
    witnesses = tuple(
        Witness(name, _vkey(f"{at}"), data.draw(st.sampled_from([None, "https://w.example/"])))
        for at, name in enumerate(names)
    )
    groups = (Group("A group".replace(" ", "_"), data.draw(st.integers(1, len(names))), tuple(names)),) if names else ()
    quorum = data.draw(st.sampled_from(["none", *names, *(group.name for group in groups)]))
    policy = Policy((LOG.vkey,), witnesses, groups, quorum, (None,))
    assert Policy.parse(str(policy)) == policy


@given(st.lists(st.sampled_from([*EXAMPLE.split(), "\n", "none", "2"]), max_size=30).map(" ".join))
def test_any_text_is_a_policy_or_refused(text):
    try:
        policy = Policy.parse(text)
        assert Policy.parse(str(policy)) == policy
        policy.check(_note(*WITNESSES))
    except VerifyError:
        return
