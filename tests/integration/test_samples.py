"""The sample index in a real PostgreSQL, against a dict built in Python."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import defaultdict
from hashlib import sha256
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.domain.identifiers import subject_key
from app.errors import Invalid
from app.storage import samples
from app.storage.samples import Row
from app.storage.sessions import connect, transaction
from app.storage.tables import Manifest, ManifestSamples, Model, Posting, Suppression
from workers import manifest

pytestmark = pytest.mark.slow
NOBODY = None


@pytest.fixture
def engine(database_url):
    engine = connect(database_url)
    yield engine
    engine.dispose()


def key(user):
    return UUID(bytes=sha256(user.encode()).digest()[:16])


def ledger_key(user):
    return sha256(b"ledger" + user.encode()).digest()


def row(sample_id, user, split="train"):
    return Row(sample_id, key(user), ledger_key(user), split) if user else Row(sample_id, None, None, split)


def register(tx, name=None):
    model = Model(name=name or uuid4().hex, recipe="tests:recipe")
    tx.add(model)
    tx.flush()
    return model


def load(tx, rows, *, model=None):
    model = model or register(tx)
    return samples.load(tx, model.id, digest="d" * 64, rows=rows, model_name=model.name)


def refusal(engine, rows):
    with pytest.raises(Invalid) as caught, transaction(engine) as tx:
        load(tx, rows)
    assert caught.value.field == "manifest"
    assert everything(engine) == (0, 0, 0)
    return str(caught.value)


def everything(engine):
    with transaction(engine) as tx:
        return tuple(
            tx.scalar(select(func.count()).select_from(table)) for table in (Manifest, ManifestSamples, Posting)
        )


users = st.sets(st.sampled_from([f"user{n}" for n in range(8)]), max_size=3)
manifests = st.dictionaries(
    st.integers(0, 40) | st.integers(2**63 - 5, 2**63 - 1),
    st.tuples(users, st.sampled_from(["train", "train", "heldout"])),
    max_size=40,
)


def rows_of(listed, shuffled):
    rows = [row(i, user, split) for i, (people, split) in listed.items() for user in people or {NOBODY}]
    shuffled.shuffle(rows)
    return rows


@given(listed=manifests, shuffled=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lookup_equals_a_dict_built_in_python(engine, listed, shuffled):
    listed[1000] = ({"user0"}, "train")  # something to train on
    by_user = defaultdict(lambda: ([], []))
    for sample_id, (people, split) in sorted(listed.items()):
        for user in people:
            by_user[user][split == "heldout"].append(sample_id)
    with transaction(engine) as tx:
        loaded = load(tx, rows_of(listed, shuffled))
        for user in [f"user{n}" for n in range(9)]:
            assert samples.lookup(tx, loaded.manifest_id, key(user)) == by_user[user]
        ids = sorted(sample_id for sample_id, (_, split) in listed.items() if split == "train")
        unseen = {user: heldout for user, (train, heldout) in by_user.items() if heldout and not train}
        assert samples.sample_ids(tx, loaded.manifest_id) == ids
        assert sorted(samples.strangers(tx, loaded.manifest_id, 100)) == sorted(unseen.values())
        assert (loaded.samples, loaded.heldout_users) == (len(ids), len(unseen))
        assert loaded.users == sum(1 for train, _ in by_user.values() if train)
        tx.rollback()


@given(listed=manifests, shuffled=st.randoms(use_true_random=False), gone=st.sets(st.integers(0, 8), max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_forgotten_and_their_held_out_samples_leave_and_nobody_else_does(engine, listed, shuffled, gone):
    listed[1000] = ({"user0"}, "train")
    forgotten = {f"user{n}" for n in gone}
    tainted = {i for i, (people, split) in listed.items() if split == "heldout" and people & forgotten}
    with transaction(engine) as tx:
        model = register(tx)
        both = [load(tx, rows_of(listed, shuffled), model=model).manifest_id for _ in range(2)]
        before = {(m, u): samples.lookup(tx, m, key(u)) for m in both for u in (f"user{n}" for n in range(8))}
        ids = samples.sample_ids(tx, both[0])
        for manifest_id in both:
            model_id = tx.get_one(Manifest, manifest_id).model_id
            samples.forget_subjects(tx, [key(user) for user in forgotten], model_id=model_id)
        for (manifest_id, user), (train, heldout) in before.items():
            after = samples.lookup(tx, manifest_id, key(user))
            left = ([], []) if user in forgotten else (train, [i for i in heldout if i not in tainted])
            assert after == left
        assert samples.sample_ids(tx, both[0]) == ids
        used = {i for stranger in samples.strangers(tx, both[1], 100) for i in stranger}
        assert not used & tainted
        assert not tx.scalar(select(func.count()).where(Posting.sample_ids == []))
        tx.rollback()


def test_a_manifest_knows_nothing_of_another_ones_people(engine):
    with transaction(engine) as tx:
        one, two = load(tx, [row(1, "ann")]), load(tx, [row(2, "bob")])
        assert samples.lookup(tx, one.manifest_id, key("bob")) == ([], [])
        assert samples.lookup(tx, two.manifest_id, key("bob")) == ([2], [])


def test_a_strangers_other_held_out_samples_stay_in_order(engine):
    with transaction(engine) as tx:
        model = register(tx)
        rows = [row(n, "bob", "heldout") for n in (9, 3, 7, 5)]
        loaded = load(tx, [row(1, NOBODY), *rows, row(5, "ann", "heldout")], model=model)
        samples.forget_subjects(tx, [key("ann")], model_id=model.id)
        assert samples.strangers(tx, loaded.manifest_id, 9) == [[3, 7, 9]]


def test_who_is_forgotten_in_one_model_is_still_known_to_the_others(engine):
    with transaction(engine) as tx:
        model, other = register(tx), register(tx)
        here = load(tx, [row(1, "ann"), row(2, "bob", "heldout")], model=model).manifest_id
        there = load(tx, [row(1, "ann"), row(2, "bob", "heldout")], model=other).manifest_id
        samples.forget_subjects(tx, [key("ann"), key("bob")], model_id=model.id)
        assert [samples.lookup(tx, here, key(user)) for user in ("ann", "bob")] == [([], []), ([], [])]
        assert [samples.lookup(tx, there, key(user)) for user in ("ann", "bob")] == [([1], []), ([], [2])]


def test_two_lists_of_rows_make_two_manifests_and_the_digest_is_kept(engine):
    with transaction(engine) as tx:
        loaded = load(tx, [row(1, "ann"), row(2, NOBODY)])
        kept = tx.get_one(Manifest, loaded.manifest_id)
        assert (kept.digest, kept.samples, kept.users) == ("d" * 64, 2, 1)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(7, "ann"), row(7, "bob"), row(7, "ann")], "sample 7 is listed twice for the same user"),
        ([row(7, NOBODY), row(7, NOBODY)], "sample 7 is listed twice without a user"),
        ([row(7, NOBODY), row(7, "ann")], "sample 7 is listed both with and without a user"),
        ([row(7, "ann"), row(7, "ann", "heldout")], "sample 7 is listed both for training and held out"),
        ([row(7, "ann"), row(7, "bob", "heldout")], "sample 7 is listed both for training and held out"),
        ([row(7, NOBODY), row(7, NOBODY, "heldout")], "sample 7 is listed both for training and held out"),
        ([row(9, NOBODY), row(9, NOBODY), row(8, "a"), row(8, "a")], "sample 8 "),
    ],
)
def test_a_contradiction_is_refused_by_its_sample_and_leaves_nothing(engine, rows, told):
    sound = [row(n, f"user{n % 7}") for n in range(100, 2000)]
    assert told in refusal(engine, [*sound, *rows])


@pytest.mark.parametrize("rows", [[], [row(1, "ann", "heldout")]])
def test_a_manifest_without_training_samples_is_refused(engine, rows):
    assert refusal(engine, rows) == "it lists no training samples"


def test_a_refusal_names_no_user(engine):
    sentence = refusal(engine, [row(7, "ann"), row(7, "ann")])
    assert not any(trace in sentence for trace in ("ann", str(key("ann")), key("ann").hex, ledger_key("ann").hex()))


def test_a_source_that_breaks_in_the_middle_leaves_nothing(engine):
    def rows():
        yield from (row(n, "ann") for n in range(100_000))
        raise Invalid("manifest", "line 100001: broken")

    assert refusal(engine, rows()) == "line 100001: broken"


def test_a_killed_import_leaves_nothing(engine, database_url):
    script = textwrap.dedent("""
        import sys, uuid
        from app.storage import samples
        from app.storage.sessions import connect, transaction
        from app.storage.tables import Model
        with transaction(connect(sys.argv[1])) as tx:
            model = Model(name="m", recipe="r")
            tx.add(model)
            tx.flush()
            rows = (samples.Row(n, uuid.uuid4(), bytes(32), "train") for n in range(20_000))
            samples.load(tx, model.id, digest="d", rows=rows, model_name="m")
            print("loaded", flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", script, database_url]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"loaded\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert everything(engine) == (0, 0, 0)


def test_only_erased_people_who_are_back_in_training_are_reported_once_each(engine):
    with transaction(engine) as tx:
        for user, model in [("ann", "wages"), ("bob", "*"), ("eve", "other"), ("dan", "wages"), ("ann", "*")]:
            tx.add(Suppression(suppression_key=ledger_key(user), model=model))
        rows = [row(n, user) for n, user in enumerate(["ann", "bob", "eve", "fay", "ann", "bob", "ann"])]
        loaded = load(tx, [row(99, "dan", "heldout"), row(98, "ann", "heldout"), *rows], model=register(tx, "wages"))
        expected = [(key(user), ledger_key(user)) for user in ("ann", "bob")]
        assert sorted(loaded.suppressed_subjects) == sorted(expected)
        assert loaded.suppressed == 2


def test_erased_people_are_found_beyond_those_whom_the_copy_remembers(engine, monkeypatch):
    monkeypatch.setattr(samples, "_REMEMBERED_PEOPLE", 3)
    with transaction(engine) as tx:
        tx.add(Suppression(suppression_key=ledger_key("user5"), model="*"))
        loaded = load(tx, [row(n, f"user{n % 7}") for n in range(70)])
        assert loaded.suppressed_subjects == [(key("user5"), ledger_key("user5"))]


def test_samples_are_kept_in_runs_of_at_most_65536_in_order(engine):
    ids = random.Random(1).sample(range(10**9), 2 * samples.RUN + 1)
    with transaction(engine) as tx:
        loaded = load(tx, (row(n, NOBODY) for n in ids))
        runs = tx.scalars(select(ManifestSamples).order_by(ManifestSamples.ordinal)).all()
        assert [(run.ordinal, len(run.sample_ids)) for run in runs] == [(0, samples.RUN), (1, samples.RUN), (2, 1)]
        assert samples.sample_ids(tx, loaded.manifest_id) == sorted(ids)


def test_members_are_people_none_of_whose_samples_is_excluded(engine):
    rows = [row(n, f"user{n % 500}") for n in range(5000)]
    with transaction(engine) as tx:
        loaded = load(tx, [*rows, row(9000, "user3"), row(9000, "user4"), row(9001, "stranger", "heldout")])
        barred = set(range(450)) | {9000}
        everybody = samples.members(tx, loaded.manifest_id, excluding=barred, limit=10**6)
        assert sorted(everybody) == [list(range(n, 5000, 500)) for n in range(450, 500)]
        few = samples.members(tx, loaded.manifest_id, excluding=barred, limit=20)
        assert few == everybody[:20]
        assert few == samples.members(tx, loaded.manifest_id, excluding=barred, limit=20)


def test_the_choice_of_members_has_nothing_to_do_with_their_ids_or_the_size_of_their_history(engine):
    index_key = bytes(range(32))
    with transaction(engine) as tx:
        rows = []
        for person in range(2000):  # the later, the longer the history
            rows += [
                Row(person * 10 + n, subject_key(index_key, f"u{person:05}"), bytes(32), "train")
                for n in range(1 + person // 200)
            ]
        loaded = load(tx, rows)
        chosen = samples.members(tx, loaded.manifest_id, excluding=set(), limit=400)
    quarters = [sum(1 for ids in chosen if low <= ids[0] // 10 < low + 500) for low in range(0, 2000, 500)]
    assert all(60 <= count <= 140 for count in quarters)  # 100 expected, standard deviation 7.7: 5 of them


def test_strangers_are_people_of_whom_nothing_was_trained_on(engine):
    rows = [row(n, f"user{n}") for n in range(50)]
    rows += [row(100 + n, f"user{n}", "heldout") for n in range(60)]
    with transaction(engine) as tx:
        loaded = load(tx, rows)
        assert loaded.heldout_users == 10
        assert sorted(samples.strangers(tx, loaded.manifest_id, 100)) == [[n] for n in range(150, 160)]
        assert len(samples.strangers(tx, loaded.manifest_id, 3)) == 3


@pytest.mark.slow
def test_one_bad_line_in_a_million_is_named_and_nothing_is_imported(engine, tmp_path):
    path = tmp_path / "m.csv"
    with path.open("w") as file:
        file.write("sample_id,user_id,split\n")
        for n in range(1_000_000):
            file.write(f"{n},user-{n % 99_991},{'test' if n == 765_432 else 'train'}\n")
    rows = manifest.read(path, index_key=bytes(range(32)))
    assert refusal(engine, rows) == "line 765434: the split is neither train nor heldout"
