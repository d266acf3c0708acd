"""The manifest reader: what it accepts, and that it names lines and rules but never people."""

import csv
import gzip
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.identifiers import subject_key, suppression_key
from app.errors import Invalid
from app.storage.samples import Row
from workers import manifest

pytestmark = pytest.mark.slow  # large files

KEY = bytes(range(32))
HEADER = "sample_id,user_id,split\n"

user_ids = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda text: not text.isspace()
)
lines = st.tuples(st.integers(0, 2**63 - 1), st.none() | user_ids, st.sampled_from(["train", "heldout"]))


def row(sample_id, user_id, split="train"):
    keys = (subject_key(KEY, user_id), suppression_key(KEY, user_id)) if user_id else (None, None)
    return Row(sample_id, *keys, split)


def read(path):
    return list(manifest.read(path, index_key=KEY))


def refusal(path):
    with pytest.raises(Invalid) as caught:
        read(path)
    assert caught.value.field == "manifest"
    return str(caught.value)


def csv_file(tmp_path, text, name="m.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@given(st.lists(lines, max_size=600), st.sampled_from(["csv", "csv.gz", "parquet"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_another_program_wrote_is_what_is_read(tmp_path, written, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "parquet":
        columns = zip(*written, strict=True) if written else ([], [], [])
        arrays = [pa.array(list(c), t) for c, t in zip(columns, [pa.int64(), pa.string(), pa.string()], strict=True)]
        pq.write_table(pa.table(dict(zip(["sample_id", "user_id", "split"], arrays, strict=True))), path)
    else:
        with (gzip.open if kind == "csv.gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sample_id", "user_id", "split"), *written])
    assert read(path) == [row(*line) for line in written]


def test_columns_may_stand_in_any_order_and_the_split_may_be_left_out(tmp_path):
    assert read(csv_file(tmp_path, "user_id,sample_id\nann,7\n,8\n")) == [row(7, "ann"), row(8, None)]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    text = b"\xef\xbb\xbf" + HEADER.encode().replace(b"\n", b"\r\n") + b"7,ann,heldout\r\n"
    assert read(csv_file(tmp_path, text)) == [row(7, "ann", "heldout")]


def test_an_empty_line_is_passed_over_and_still_counted(tmp_path):
    assert read(csv_file(tmp_path, HEADER + "1,a,\n\n2,b,\n\n")) == [row(1, "a"), row(2, "b")]
    assert refusal(csv_file(tmp_path, HEADER + "1,a,\n\nx,b,\n")).startswith("line 4:")


def test_user_ids_are_hashed_exactly_as_written(tmp_path):
    a, b, c = read(csv_file(tmp_path, HEADER + "1,ann,\n2, ann,\n3,Ann,\n"))
    assert len({a.subject_key, b.subject_key, c.subject_key}) == 3


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("x,SECRET,train", "sample_id is not a whole number"),
        ("-1,SECRET,train", "sample_id is not a whole number"),
        ("1_0,SECRET,train", "sample_id is not a whole number"),
        ("١٢,SECRET,train", "sample_id is not a whole number"),
        ("²,SECRET,train", "sample_id is not a whole number"),
        (",SECRET,train", "sample_id is not a whole number"),
        (f"{2**63},SECRET,train", "sample_id is not a whole number"),
        ("9" * 5000 + ",SECRET,train", "sample_id is not a whole number"),
        ("1,SECRET,Train", "neither train nor heldout"),
        ("1,SECRET,SECRET", "neither train nor heldout"),
        ("1,SECRET", "2 cells"),
        ("1,SECRET,train,SECRET", "4 cells"),
        ("1,SECRET\x07,train", "control characters"),
        ('1,"SECRET\nSECRET",train', "control characters"),
        ("1," + "SECRET" * 50 + ",train", "1 to 256 characters"),
        ("1,  ,train", "white space"),
        ('1,"SECRET"x,train', "quotes"),
        ('1,"SECRET,train', "quotes"),
    ],
)
def test_a_bad_line_is_named_by_number_and_rule_and_not_repeated(tmp_path, bad, rule):
    good = "".join(f"{n},user{n},train\n" for n in range(300))
    sentence = refusal(csv_file(tmp_path, HEADER + good + bad + ("\n5,x,train\n" if '1,"SECRET,' not in bad else "")))
    assert sentence.startswith("line 302:")
    assert rule in sentence
    assert "SECRET" not in sentence


def test_the_cause_of_a_refusal_does_not_show_the_line_either(tmp_path):
    for text in (HEADER + "1,SECRET\x07,train\n", (HEADER + "1,SECRET").encode() + b"\xff\n"):
        with pytest.raises(Invalid) as caught:
            read(csv_file(tmp_path, text))
        assert caught.value.__suppress_context__
        assert caught.value.__cause__ is None


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    text = (HEADER + "1,ann,train\n").encode() + "2,Jörg,train\n".encode("latin-1")
    assert refusal(csv_file(tmp_path, text)) == "line 3: it is not UTF-8; convert the file"
    assert "UTF-8" in refusal(csv_file(tmp_path, (HEADER + "1,ann,train\n").encode("utf-16")))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "the file is empty"),
        ("sample_id\n1\n", "user_id is not among the names"),
        ("user_id\nann\n", "sample_id is not among the names"),
        ("17,ann\n18,bob\n", "sample_id and user_id is not among"),
        ("sample_id,user_id,Split\n1,a,train\n", "['Split']"),
        ("sample_id,user_id,user_id\n1,a,b\n", "named twice"),
    ],
)
def test_columns_must_be_exactly_the_known_ones(tmp_path, text, rule):
    assert rule in refusal(csv_file(tmp_path, text))


def test_a_file_without_a_header_is_refused_without_repeating_its_first_person(tmp_path):
    assert "ann" not in refusal(csv_file(tmp_path, "17,ann\n18,bob\n"))


def test_files_that_can_not_be_read_are_refused_in_a_sentence(tmp_path):
    packed = gzip.compress((HEADER + "1,a,train\n" * 1000).encode())
    assert "neither .csv" in refusal(csv_file(tmp_path, HEADER, "m.tsv"))
    assert "No such file" in refusal(tmp_path / "absent.csv")
    assert "gzip" in refusal(csv_file(tmp_path, HEADER, "plain.csv.gz"))
    assert "gzip" in refusal(csv_file(tmp_path, packed[:-20], "cut.csv.gz"))
    assert "gzip" in refusal(csv_file(tmp_path, packed[:40] + b"\xff" * 20 + packed[60:], "damaged.csv.gz"))
    assert "Parquet" in refusal(csv_file(tmp_path, HEADER, "m.parquet"))
    assert "Parquet" in refusal(csv_file(tmp_path, b"", "empty.parquet"))


def parquet(tmp_path, **columns):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_rows_are_named_by_number(tmp_path):
    ids = list(range(20_000))
    ids[17_654] = -1
    path = parquet(tmp_path, sample_id=ids, user_id=["SECRET"] * 20_000)
    assert refusal(path).startswith("row 17655: the sample_id is not")
    assert refusal(parquet(tmp_path, sample_id=[1, None], user_id=["a", "b"])).startswith("row 2:")
    too_large = pa.array([1, 2**63], pa.uint64())
    assert refusal(parquet(tmp_path, sample_id=too_large, user_id=["a", "b"])).startswith("row 2:")


def test_parquet_columns_must_have_the_right_types(tmp_path):
    assert "must hold integers" in refusal(parquet(tmp_path, sample_id=[1.5], user_id=["a"]))
    assert "must hold strings" in refusal(parquet(tmp_path, sample_id=[1], user_id=[42]))
    assert "must hold strings" in refusal(parquet(tmp_path, sample_id=[1], user_id=["a"], split=[True]))
    assert "['extra']" in refusal(parquet(tmp_path, sample_id=[1], user_id=["a"], extra=[1]))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    assert "not UTF-8" in refusal(parquet(tmp_path, sample_id=[1], user_id=broken))


def test_parquet_dictionaries_and_missing_users_are_read(tmp_path):
    users = pa.array(["ann", None, "ann", ""]).dictionary_encode()
    rows = read(parquet(tmp_path, sample_id=pa.array([1, 2, 3, 4], pa.uint32()), user_id=users))
    assert rows == [row(1, "ann"), row(2, None), row(3, "ann"), row(4, None)]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_progress_never_falls_and_ends_at_the_total(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"sample_id": range(30_000), "user_id": [f"u{n}" for n in range(30_000)]}), path)
    else:
        with (gzip.open if kind == "csv.gz" else open)(path, "wt") as file:
            file.write(HEADER + "".join(f"{n},u{n},train\n" for n in range(30_000)))
    seen = []
    for _ in manifest.read(path, index_key=KEY, progress=lambda done, total: seen.append((done, total))):
        pass
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 2
    assert seen[-1][0] == seen[-1][1] == (30_000 if kind == "parquet" else path.stat().st_size)


def test_the_digest_is_the_files_sha256(tmp_path):
    path = csv_file(tmp_path, HEADER)
    assert manifest.digest(path) == hashlib.sha256(HEADER.encode()).hexdigest()
    with pytest.raises(Invalid, match="No such file"):
        manifest.digest(Path(tmp_path / "absent"))
