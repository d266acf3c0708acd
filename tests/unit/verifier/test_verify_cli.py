"""The command: its exit status says good, bad or unchecked, whatever it is given, and its lines are safe to print."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from expunge_verify import cli, notes, receipt, source
from expunge_verify.cli import main
from expunge_verify.leaf import commitment

from tests.unit.verifier.building import (
    CERTIFICATE_SEED,
    DUE,
    ORIGIN,
    SIGNER,
    VKEY,
    Issued,
    Teller,
    Tree,
    encoded,
    good_log,
    key_of,
    opening,
    ref,
    statement,
)

pytestmark = pytest.mark.slow  # a hundred runs of the command

KEY = base64.b64encode(key_of(CERTIFICATE_SEED)).decode()
ANOTHER = notes.Signer(ORIGIN, bytes(range(1, 33)))
COMMANDS = ("checkpoint", "log", "consistency", "certificate", "receipt", "requests")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that can be checked: a log, two checkpoints, a certificate, a receipt, a policy."""
    top = tmp_path_factory.mktemp("given")
    tree = Tree(encoded(good_log()))
    tree.export(top / "log")
    issued = Issued()
    forked = Tree(encoded(reversed(good_log())))
    for name, content in {
        "old": tree.checkpoint(7),
        "new": tree.checkpoint(),
        "forked": forked.checkpoint(7),
        "forked-new": forked.checkpoint(),
        "elsewhere": Tree(tree.entries, notes.Signer("other.example/log", bytes(32))).checkpoint(),
        "certificate": issued.envelope,
        "proof": issued.proof,
        "bare-proof": issued.tree.proof(issued.index),
        "wrong-proof": issued.proof_of(0),
        "receipt": a_receipt(),
        "wrong-receipt": a_receipt().replace(b"T-4711", b"T-4712"),
        "policy": f"log {VKEY}\nquorum none\n".encode(),
        "lonely": f"log {VKEY}\nwitness w {notes.vkey_of('w', bytes(32), 4)}\nquorum w\n".encode(),
        "nonsense": b"believe everybody\n",
    }.items():
        (top / name).write_bytes(content)
    return top


def a_receipt() -> bytes:
    record = {"type": "request.received", "ticket": "T-4711"}
    story = [Teller()("request.received", ref=ref("a"), due=DUE, commit=commitment(bytes(32), record))]
    return receipt.format(ORIGIN, [receipt.Opened(story[0], Tree(encoded(story)).proof(0), bytes(32), record)])


def with_log(given: Path, name: str, change: Callable[[Path], object]) -> Path:
    """A second log that somebody has tampered with."""
    where = Tree(encoded(good_log())).export(given / name)
    change(where)
    return where


def story_log(given: Path, name: str, *left_out: str) -> Path:
    return Tree(encoded(leaf for leaf in good_log() if leaf["type"] not in left_out)).export(given / name)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


OK, BAD, UNKNOWN = 0, 1, 2
TRUST = ["--vkey", VKEY]
CASES: list[tuple[int, list[str], str]] = [
    (OK, ["checkpoint", "{}/new", *TRUST], "signed by log"),
    (OK, ["checkpoint", "{}/new", "--policy", "{}/policy"], "signed by log"),
    (OK, ["checkpoint", "{}/new", *TRUST, "--vkey", str(ANOTHER.vkey)], "has 47 entries"),
    (BAD, ["checkpoint", "{}/new", "--vkey", str(ANOTHER.vkey)], "no signature by"),
    (BAD, ["checkpoint", "{}/elsewhere", *TRUST], "is of log"),
    (BAD, ["checkpoint", "{}/new", "--policy", "{}/lonely"], "quorum"),
    (BAD, ["checkpoint", "{}/certificate", *TRUST], "no signature lines"),
    (UNKNOWN, ["checkpoint", "{}/missing", *TRUST], "could not be read (FileNotFoundError)"),
    (UNKNOWN, ["checkpoint", "{}/new"], "no key of the log"),
    (UNKNOWN, ["checkpoint", "{}/new", "--vkey", "nonsense"], "nobody to believe"),
    (UNKNOWN, ["checkpoint", "{}/new", "--policy", "{}/nonsense"], "nobody to believe"),
    (UNKNOWN, ["checkpoint", "{}/new", "--policy", "{}/missing"], "could not be read"),
    (OK, ["log", "{}/log", *TRUST], "47 entries hash to the signed root"),
    (OK, ["log", "{}/log", "--raw", *TRUST], "47 entries hash to the signed root"),
    (BAD, ["log", "{}/log", "--vkey", str(ANOTHER.vkey)], "no signature by"),
    (UNKNOWN, ["log", "{}/missing", *TRUST], "there is no directory"),
    (UNKNOWN, ["log", "{}", *TRUST], "checkpoint could not be read"),
    (UNKNOWN, ["log", "http://127.0.0.1:9/log", *TRUST], "could not be fetched"),
    (UNKNOWN, ["log", "ftp://127.0.0.1/log", *TRUST], "is not an http or https address"),
    (UNKNOWN, ["log", "{}/log"], "no key of the log"),
    (OK, ["consistency", "{}/old", "{}/new", "--log", "{}/log", *TRUST], "begin with the 7 of the old"),
    (OK, ["consistency", "{}/new", "{}/new", *TRUST], "begin with the 47"),
    (BAD, ["consistency", "{}/forked", "{}/new", "--log", "{}/log", *TRUST], "does not begin with"),
    (BAD, ["consistency", "{}/forked-new", "{}/new", *TRUST], "does not begin with"),
    (BAD, ["consistency", "{}/new", "{}/old", "--log", "{}/log", *TRUST], "the log shrank from 47 to 7"),
    (BAD, ["consistency", "{}/elsewhere", "{}/new", *TRUST], "is of log"),
    (UNKNOWN, ["consistency", "{}/old", "{}/new", *TRUST], "--log is needed"),
    (UNKNOWN, ["consistency", "{}/old", "{}/new", "--log", "{}/missing", *TRUST], "there is no directory"),
    (UNKNOWN, ["consistency", "{}/old", "{}/new", "--log", "{}", *TRUST], "could not be read"),
    (OK, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/proof", *TRUST], "issued this certificate"),
    (OK, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/proof", *TRUST], "??   not checked: what the"),
    (OK, ["certificate", "{}/certificate", "--key", KEY, "--signature-only"], "not checked: that the log holds"),
    (BAD, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/wrong-proof", *TRUST], "has type"),
    (BAD, ["certificate", "{}/certificate", "--key", base64.b64encode(bytes(32)).decode()], "none of the envelope's"),
    (BAD, ["certificate", "{}/receipt", "--key", KEY], "no DSSE envelope"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", KEY], "not checked: that the log holds"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/proof"], "no key of the log"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/bare-proof", *TRUST], "does not carry"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", KEY, "--proof", "{}/missing", *TRUST], "could not be read"),
    (UNKNOWN, ["certificate", "{}/certificate"], "no key of the issuer"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", "c2hvcnQ="], "is not an Ed25519 key"),
    (UNKNOWN, ["certificate", "{}/certificate", "--key", "\x1b[2J"], "is not an Ed25519 key"),
    (OK, ["receipt", "{}/receipt", *TRUST], "opens to its record"),
    (BAD, ["receipt", "{}/wrong-receipt", *TRUST], "not the one that the leaf commits to"),
    (BAD, ["receipt", "{}/certificate", *TRUST], "this is no receipt"),
    (UNKNOWN, ["receipt", "{}/receipt"], "no key of the log"),
    (OK, ["requests", "{}/log", *TRUST, "--today", "2027-02-28"], "47 leaves tell of 5 requests"),
    (OK, ["requests", "{}/log", *TRUST], "47 leaves tell of 5 requests"),
    (BAD, ["requests", "{}/log", "--vkey", str(ANOTHER.vkey)], "no signature by"),
    (UNKNOWN, ["requests", "{}/log"], "no key of the log"),
    (UNKNOWN, ["requests", "{}/missing", *TRUST], "there is no directory"),
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Status and lines of a command, which are printable whatever they are about."""
    status = main(list(words))
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert all(line.isascii() and line.isprintable() and line[:5] in {"ok   ", "bad  ", "??   "} for line in lines)
    assert lines, "a check that says nothing proves nothing"
    return status, out


@pytest.mark.parametrize(("status", "words", "line"), CASES)
def test_the_exit_status_says_good_bad_or_unchecked(given, capsys, status, words, line):
    found, out = run(capsys, *(word.format(given) if word.startswith("{") else word for word in words))
    assert (found, line in out) == (status, True), out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_case_of_every_status(command):
    statuses = {status for status, words, _ in CASES if words[0] == command}
    assert statuses == {OK, BAD, UNKNOWN}


@pytest.mark.parametrize("file", ["tile/entries/000.p/47", "tile/0/000.p/47", "checkpoint"])
def test_a_tampered_file_of_a_log_is_bad_and_a_missing_one_unchecked(given, tmp_path, capsys, file):
    flipped = with_log(tmp_path, "flipped", lambda where: flip(where / file))
    lacking = with_log(tmp_path, "lacking", lambda where: (where / file).unlink())
    for command in ("log", "requests"):
        assert run(capsys, command, str(flipped), *TRUST)[0] == BAD
        assert run(capsys, command, str(lacking), *TRUST)[0] == UNKNOWN


def test_a_rewritten_history_is_good_in_itself_and_shown_by_an_older_checkpoint(given, tmp_path, capsys):
    rewritten = story_log(tmp_path, "rewritten", "verify.failed", "config.changed", "request.identity_confirmed")
    assert run(capsys, "log", str(rewritten), *TRUST)[0] == OK
    status, out = run(
        capsys, "consistency", str(given / "old"), str(rewritten / "checkpoint"), "--log", str(rewritten), *TRUST
    )
    assert (status, "does not begin with" in out) == (BAD, True)


@pytest.mark.parametrize("kind", ["verify.passed", "key.shredded", "certificate.issued", "request.received"])
def test_a_whole_signed_log_with_a_gap_in_a_story_is_bad(tmp_path, capsys, kind):
    where = story_log(tmp_path, "gap", kind)
    assert run(capsys, "log", str(where), *TRUST)[0] == OK
    status, out = run(capsys, "requests", str(where), *TRUST)
    assert (status, "bad  entry" in out) == (BAD, True)


def test_an_open_request_is_judged_by_the_day_that_is_given(tmp_path, capsys):
    tell = Teller()
    story = [*opening(tell), tell("request.received", ref=ref("a"), due=DUE)]
    where = Tree(encoded(story)).export(tmp_path / "open")
    assert run(capsys, "requests", str(where), *TRUST, "--today", "2027-02-28")[0] == OK
    status, out = run(capsys, "requests", str(where), *TRUST, "--today", "2027-03-01")
    assert (status, "[overdue]" in out) == (BAD, True)


def test_entries_of_another_kind_are_bad_unless_taken_raw(tmp_path, capsys):
    where = Tree([b"\x1b[2Jany", b"", b"\xff" * 9]).export(tmp_path / "any")
    assert run(capsys, "log", str(where), *TRUST)[0] == BAD
    assert run(capsys, "requests", str(where), *TRUST)[0] == BAD
    assert run(capsys, "log", str(where), *TRUST, "--raw")[0] == OK


@pytest.mark.parametrize("words", [["log", "{}/log", *TRUST], ["checkpoint", "{}/missing", *TRUST]])
def test_json_says_the_same_lines(given, capsys, words):
    words = [word.format(given) if word.startswith("{") else word for word in words]
    status, plain = run(capsys, *words)
    assert main([*words, "--json"]) == status
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f"{line['verdict']:<4} {line['fact']}" for line in said] == plain.splitlines()


def hostile_files(top: Path) -> dict[str, Path]:
    """Things that are no evidence of anything."""
    contents = {
        "empty": b"",
        "binary": bytes(range(256)) * 64,
        "deep": b"[" * 500_000,
        "deep objects": b'{"a":' * 150_000,
        "long number": b"1" * 100_000,
        "newlines": b"\n" * 100_000,
        "crlf checkpoint": Tree(encoded(good_log())).checkpoint().replace(b"\n", b"\r\n"),
        "crlf proof": Issued().proof.replace(b"\n", b"\r\n"),
        "escapes": b"\x1b[2J\x1b]0;owned\x07\x9b" * 99,
        "utf-16": "checkpoint".encode("utf-16"),
        "huge number": b'{"v": 1e999999}',
        "a big size": b"log.example\n" + b"9" * 5000 + b"\n" + base64.b64encode(bytes(32)) + b"\n\n",
        "surrogate": b'{"v": "\\ud800", "payload": "\\ud800"}',
    }
    for name, content in contents.items():
        (top / name).write_bytes(content)
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(100_000_000)
    (top / "directory").mkdir()
    (top / "loop").symlink_to(top / "loop")
    (top / "dangling").symlink_to(top / "nowhere")
    os.mkfifo(top / "pipe")
    names = [*contents, "sparse", "directory", "loop", "dangling", "pipe"]
    return {name: top / name for name in names} | {
        "device": Path("/dev/zero"),
        "zero byte": Path("a\0b"),
        "\x1b[2J": Path("\x1b[2J"),
    }


def test_hostile_files_are_bad_or_unchecked_wherever_they_are_given(given, tmp_path, capsys):
    (good, tried) = (str(given / "new"), 0)
    started = time.monotonic()
    for file in hostile_files(tmp_path).values():
        for words in (
            ["checkpoint", str(file), *TRUST],
            ["checkpoint", good, "--policy", str(file)],
            ["log", str(file), *TRUST],
            ["requests", str(file), *TRUST],
            ["consistency", str(file), good, "--log", str(given / "log"), *TRUST],
            ["consistency", good, str(file), "--log", str(given / "log"), *TRUST],
            ["consistency", str(given / "old"), good, "--log", str(file), *TRUST],
            ["certificate", str(file), "--key", KEY],
            ["certificate", str(given / "certificate"), "--key", KEY, "--proof", str(file), *TRUST],
            ["receipt", str(file), *TRUST],
        ):
            status, out = run(capsys, *words)
            assert status in {BAD, UNKNOWN}, out
            assert "the check itself failed" not in out
            tried += 1
    assert tried == 210
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("file", ["checkpoint", "tile/entries/000.p/47", "tile/0/000.p/47"])
def test_hostile_files_inside_of_a_log_are_bad_or_unchecked(tmp_path, capsys, file):
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    where = Tree(encoded(good_log())).export(tmp_path / "log")
    for other in hostile_files(hostile).values():
        if "\0" in str(other) or not other.is_absolute():
            continue
        (where / file).unlink()
        (where / file).symlink_to(other)  # leads out of the log, which is refused by itself
        assert run(capsys, "log", str(where), *TRUST)[0] in {BAD, UNKNOWN}
        if other.is_file() and not other.is_symlink():
            (where / file).unlink()
            os.link(other, where / file)
            assert run(capsys, "log", str(where), *TRUST)[0] in {BAD, UNKNOWN}
            (where / file).unlink()
            (where / file).touch()


ESCAPES = "\x1b[2J\x1b]8;;http://a\x07\u202egood \r\n\x9b"


def test_what_a_certificate_says_cannot_write_to_the_terminal(tmp_path, capsys):
    said = statement() | {"subject": [{"name": f"{ESCAPES}\nok   all is well", "digest": {"sha256": "ab" * 32}}]}
    (tmp_path / "certificate").write_bytes(Issued(said).envelope)
    status, out = run(capsys, "certificate", str(tmp_path / "certificate"), "--key", KEY)
    assert status == UNKNOWN
    assert "\nok   all is well" not in out


@pytest.mark.parametrize("place", ["origin", "ref"])
def test_what_a_certificate_names_cannot_write_to_the_terminal(tmp_path, capsys, place):
    issued = Issued(statement(**{place: ESCAPES}))
    (tmp_path / "certificate").write_bytes(issued.envelope)
    (tmp_path / "proof").write_bytes(issued.proof)
    words = ["certificate", str(tmp_path / "certificate"), "--key", KEY, "--proof", str(tmp_path / "proof"), *TRUST]
    assert run(capsys, *words)[0] == BAD


def test_the_name_of_a_log_or_file_cannot_write_to_the_terminal(tmp_path, capsys):
    signer = notes.Signer("a\u202e\u0085b".replace("\u0085", "\x9b"), bytes(32))
    (tmp_path / "new\x1b[2J\n").write_bytes(Tree([b"a"], signer).checkpoint())
    status, out = run(capsys, "checkpoint", str(tmp_path / "new\x1b[2J\n"), "--vkey", str(signer.vkey))
    assert (status, "\\u202e" in out) == (OK, True)
    assert run(capsys, "checkpoint", f"{tmp_path}/\x1b[2J", *TRUST)[0] == UNKNOWN


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["checkpoint"],
        ["checkpoint", "a", "--vkey", VKEY, "--policy", "b"],
        ["requests", "a", "--today", "2027-02-30"],
        ["requests", "a", "--today", "20270228"],
        ["requests", "a", "--today", "２０２７-02-28"],
    ],
)
def test_a_mistaken_command_line_ends_with_two(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == UNKNOWN
    assert "usage: expunge-verify" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_end_with_zero(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == OK


class Broken:
    """A check with a bug in it."""

    def __call__(self, *_: object) -> None:
        raise MemoryError


def test_a_failing_check_is_no_evidence_against_a_log(given, capsys, monkeypatch):
    monkeypatch.setattr(cli.notes, "parse", Broken())
    monkeypatch.setattr("expunge_verify.policy.open_checkpoint", Broken())
    status, out = run(capsys, "checkpoint", str(given / "new"), *TRUST)
    assert (status, out) == (UNKNOWN, "??   the check itself failed (MemoryError); please report this\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "after", "said"), [(Terminal, 2.0, True), (Terminal, 0.0, False), (io.StringIO, 2.0, False)]
)
def test_progress_is_told_to_a_terminal_after_a_second(given, monkeypatch, stream, after, said):
    now = iter([100.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(now, 100.0 + after))
    monkeypatch.setattr(sys, "stderr", stream())
    assert main(["log", str(given / "log"), *TRUST]) == OK
    assert ("47 of 47 entries" in sys.stderr.getvalue()) is said
    assert sys.stderr.getvalue().endswith("\r\x1b[K") is said


PACKAGE = Path(cli.__file__).parents[1]


def started(*words: str, **how: object) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(PACKAGE), "PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "expunge_verify.cli", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


@pytest.mark.parametrize(("signer", "status"), [(SIGNER, OK), (ANOTHER, BAD)])
def test_it_runs_as_a_process_in_the_poorest_locale(given, signer, status):
    process = started("log", str(given / "log"), "--vkey", str(signer.vkey))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, b"")
    assert out


def test_a_reader_who_goes_away_gets_no_traceback(given):
    process = started("log", str(given / "log"), *TRUST)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == UNKNOWN
    process.stderr.close()


@pytest.mark.parametrize("words", [["log", "{}/log"], ["log", "{}/missing"], ["checkpoint", "{}/new"]])
@pytest.mark.parametrize("out", [">&-", ">/dev/full"])
def test_what_cannot_be_printed_is_unchecked(given, words, out):
    said = " ".join(f"'{word.format(given)}'" for word in [*words, *TRUST])
    command = f"{sys.executable} -m expunge_verify.cli {said} {out}"
    ended = subprocess.run(
        ["/bin/sh", "-c", command], env={"PYTHONPATH": str(PACKAGE)}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (UNKNOWN, b"")


def test_a_log_larger_than_what_is_read_of_one_is_unchecked(given, capsys, monkeypatch):
    monkeypatch.setattr(cli, "Budgeted", lambda at: source.Budgeted(at, bytes_left=1000))
    for words in (["log", "{}/log"], ["requests", "{}/log"], ["consistency", "{}/old", "{}/new", "--log", "{}/log"]):
        asked = [word.format(given) for word in words]
        assert run(capsys, *asked, *TRUST)[0] == UNKNOWN


def test_nothing_of_the_service_is_loaded():
    code = "import sys, expunge_verify.cli; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE)}, capture_output=True, check=True
    )
    loaded = set(eval(out.stdout))
    foreign = {name for name in loaded - sys.stdlib_module_names if not name.startswith("_")}
    assert foreign <= {
        "cryptography",
        "rfc8785",
        "expunge_verify",
        "cffi",
        "google",
        "sitecustomize",
        "typing_extensions",
    }
