"""The model store: what is under a digest is what was put there, or it is an error."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from app.errors import Invalid, Misconfigured
from workers.registry import Store, check_weights

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return Store(root.as_uri())


def complete_files(root: Path):
    return sorted(root.glob("blobs/sha256/*/*"))


def refusal(call, *arguments):
    with pytest.raises(Invalid) as caught:
        call(*arguments)
    assert caught.value.field == "weights"
    return str(caught.value)


@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_come_back_bit_for_bit(store, shapes):
    generator = torch.Generator().manual_seed(zlib.crc32(repr(shapes).encode()))
    tensors = {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) * 9).to(dtype)
        for name, (shape, dtype) in shapes.items()
    }
    back = store.get(store.put(tensors))
    assert back.keys() == tensors.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in tensors.items())


def test_the_digest_is_the_sha256_of_a_plain_safetensors_file(store, root):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    digest = store.put(tensors)
    (file,) = complete_files(root)
    assert file == root / "blobs" / "sha256" / digest[:2] / f"{digest}.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert torch.equal(load_file(file)["b"], tensors["b"])
    assert not list(root.glob("incoming/*"))


def test_the_same_tensors_have_one_digest_in_any_order_or_layout(store, root):
    matrix = torch.arange(6.0).reshape(2, 3)
    one = store.put({"a": matrix, "b": torch.zeros(4), "c": torch.ones(1, dtype=torch.int64)})
    two = store.put({"c": torch.ones(1, dtype=torch.int64), "b": torch.zeros(9)[:4], "a": matrix.t().contiguous().t()})
    assert one == two
    assert len(complete_files(root)) == 1
    assert store.put({"a": matrix + 1e-7, "b": torch.zeros(4), "c": torch.ones(1, dtype=torch.int64)}) != one


def test_tied_weights_are_stored_under_each_of_their_names(store):
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    back = store.get(store.put(module.state_dict()))
    assert torch.equal(back["0.weight"], back["1.weight"])
    assert torch.equal(back["1.weight"], module[0].weight)


def test_a_given_file_is_adopted_byte_for_byte(store, root, tmp_path):
    given_file = tmp_path / "given.safetensors"
    save_file({"w": torch.arange(400_000.0)}, given_file, metadata={"format": "pt"})
    digest = store.adopt(given_file)
    assert complete_files(root)[0].read_bytes() == given_file.read_bytes()
    assert torch.equal(store.get(digest)["w"], torch.arange(400_000.0))
    assert given_file.exists()
    assert "can't be read" in refusal(store.adopt, tmp_path / "absent")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-4] + bytes(4),
        lambda content: content + b"\0",
        lambda _content: b"",
        lambda _content: pickle.dumps({"w": 1}),
    ],
)
def test_a_swapped_or_truncated_file_is_an_error_and_not_a_model(store, root, damage):
    digest = store.put({"w": torch.ones(8)})
    (file,) = complete_files(root)
    file.write_bytes(damage(file.read_bytes()))
    assert "altered or cut" in refusal(store.get, digest)
    assert store.put({"w": torch.ones(8)}) == digest  # putting it again heals the place
    assert torch.equal(store.get(digest)["w"], torch.ones(8))


def test_a_file_under_anothers_name_is_an_error(store, root):
    one, two = store.put({"w": torch.ones(8)}), store.put({"w": torch.zeros(8)})
    places = {file.stem: file for file in complete_files(root)}
    places[one].write_bytes(places[two].read_bytes())
    assert "altered or cut" in refusal(store.get, one)


def test_what_was_deleted_is_gone_and_may_be_deleted_again(store):
    digest = store.put({"w": torch.ones(1)})
    assert store.exists(digest)
    store.delete(digest)
    store.delete(digest)
    assert not store.exists(digest)
    assert "has nothing under" in refusal(store.get, digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_digests_lead_into_the_store(store, digest):
    for call in (store.get, store.exists, store.delete):
        assert "64 lower-case" in refusal(call, digest)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_no_file_under_a_final_name_that_does_not_hold_it(root):
    script = textwrap.dedent("""
        import sys, torch
        from workers.registry import Store
        store, n = Store(sys.argv[1]), 0
        print("ready", flush=True)
        while True:
            n += 1
            store.put({"w": torch.full((500_000,), float(n))})
    """)
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", script, root.as_uri()], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        before = len(complete_files(root))
        while len(complete_files(root)) < before + 3:
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    files = complete_files(root)
    assert files
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)


def test_a_writer_that_fails_cleans_up_behind_itself(store, root, monkeypatch, tmp_path):
    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.put({"w": torch.ones(8)})
    assert not complete_files(root)
    assert not list(root.glob("incoming/*"))


def test_a_store_works_on_other_filesystems_too():
    store = Store("memory://weights")
    digest = store.put({"w": torch.ones(3)})
    assert torch.equal(store.get(digest)["w"], torch.ones(3))
    store.delete(digest)
    assert not store.exists(digest)


def test_an_unknown_protocol_is_the_operators_to_mend():
    with pytest.raises(Misconfigured, match="EXPUNGE_STORE"):
        Store("nonsense://x")


def test_sound_weights_pass(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"w": torch.randn(3, 3), "steps": torch.tensor(7), "small": torch.ones(2).to(torch.float8_e4m3fn)}
    save_file(tensors, path)
    check_weights(path)


def test_a_sound_file_that_starts_like_a_pickle_passes(tmp_path):
    path = tmp_path / "w.safetensors"
    for padding in range(700):
        save_file({"w": torch.ones(1)}, path, metadata={"x": "y" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    check_weights(path)


def test_pickle_is_refused_in_any_wrapping(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    path = tmp_path / "w.safetensors"
    torch.save({"w": torch.ones(2)}, path)
    assert "pickle" in refusal(check_weights, path)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "pickle" in refusal(check_weights, path)
    path.write_bytes(pickle.dumps(Harmful()))
    assert "pickle" in refusal(check_weights, path)
    assert not (tmp_path / "harm").exists()


def test_damaged_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(100)}, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], whole[:4], b"hello world", bytes(100)):
        path.write_bytes(content)
        assert "not a safetensors file" in refusal(check_weights, path)
    path.write_bytes(b"")
    assert "is empty" in refusal(check_weights, path)
    save_file({}, path)
    assert "no tensors" in refusal(check_weights, path)
    assert "can't be read" in refusal(check_weights, tmp_path / "absent")
    assert "can't be read" in refusal(check_weights, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_tensors_with_nan_or_infinity_are_named(tmp_path, dtype):
    path = tmp_path / "w.safetensors"
    tensors = {
        "good": torch.ones(2, dtype=dtype),
        "nan": torch.tensor([1.0, float("nan")]).to(dtype),
        "infinite": torch.tensor([float("-inf")]).to(dtype),
    }
    save_file(tensors, path)
    assert refusal(check_weights, path).endswith("holds NaN or infinity in infinite, nan")
