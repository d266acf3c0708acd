"""The command: one line per fact, and an exit status that a script can act on.

    0  everything that was asked is good        1  something is bad        2  something could not be checked

What comes from outside is printed in ASCII without control characters, so a file cannot write to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Final, Self

from expunge_verify import __version__, dsse, merkle, notes, proof, receipt, tiles
from expunge_verify import certificate as certificates
from expunge_verify import log as logs
from expunge_verify import policy as policies
from expunge_verify import requests as stories
from expunge_verify.errors import Bad, Unchecked, shown
from expunge_verify.source import Budgeted, open_source

GOOD, BAD, UNCHECKED = 0, 1, 2
_MARKS: Final = {GOOD: "ok", BAD: "bad", UNCHECKED: "??"}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def main(argv: list[str] | None = None) -> int:
    """Run one check and return its exit status."""
    asked = _parser().parse_args(argv)
    told = _Teller(as_json=asked.json)
    if sys.stdout is None:  # closed by whoever started it, so nobody can be told anything
        return UNCHECKED
    try:
        _run(asked, told)
        sys.stdout.flush()
    except OSError:  # the reader had enough, or the disk is full; Python would complain about it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNCHECKED
    return told.status


class _Teller:
    """Prints facts, and remembers the worst."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._seen: set[int] = set()

    def good(self, fact: str) -> None:
        self._say(GOOD, fact)

    def bad(self, fact: str) -> None:
        self._say(BAD, fact)

    def unchecked(self, fact: str) -> None:
        self._say(UNCHECKED, fact)

    def open_point(self, fact: str) -> None:
        """Something unchecked that nobody asked for, so that the status stays."""
        self._print(UNCHECKED, fact)

    @property
    def status(self) -> int:
        """Bad evidence weighs more than missing evidence, and saying nothing is not good."""
        return next((status for status in (BAD, UNCHECKED, GOOD) if status in self._seen), UNCHECKED)

    def _say(self, status: int, fact: str) -> None:
        self._seen.add(status)
        self._print(status, fact)

    def _print(self, status: int, fact: str) -> None:
        clean = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], fact)
        if self._as_json:
            print(json.dumps({"verdict": _MARKS[status], "fact": clean}))
        else:
            print(f"{_MARKS[status]:<4} {clean}")


def _run(asked: argparse.Namespace, told: _Teller) -> None:
    try:
        asked.check(asked, told)
    except Bad as error:
        told.bad(str(error))
    except Unchecked as error:
        told.unchecked(str(error))
    except OSError:  # files and servers that cannot be read are Unchecked: this is about what is printed
        raise
    except Exception as error:  # noqa: BLE001 # a traceback ends with status 1, which would say that the evidence is bad
        told.unchecked(f"the check itself failed ({type(error).__name__}); please report this")


def _checkpoint(asked: argparse.Namespace, told: _Teller) -> None:
    checkpoint, facts = _policy(asked).open(_read(asked.file, notes.MOST_BYTES))
    _tell(told, facts)
    told.good(_described(checkpoint))


def _log(asked: argparse.Namespace, told: _Teller) -> None:
    found = _whole_log(asked, raw=asked.raw)
    _tell(told, found.facts)
    told.good(_described(found.checkpoint))


def _consistency(asked: argparse.Namespace, told: _Teller) -> None:
    policy = _policy(asked)
    opened = [policy.open(_read(file, notes.MOST_BYTES)) for file in (asked.old, asked.new)]
    (old, _), (new, _) = opened
    for name, (checkpoint, facts) in zip(("the old", "the new"), opened, strict=True):
        _tell(told, [f"{name}: {fact}" for fact in facts])
        told.good(f"{name}: {_described(checkpoint)}")
    if old.origin != new.origin:
        raise Bad(f"the checkpoints are of two logs, {shown(old.origin)} and {shown(new.origin)}")
    if old.size > new.size:
        raise Bad(f"the log shrank from {old.size} to {new.size} entries")
    merkle.check_consistency(old.size, old.root, new.size, new.root, _consistency_proof(asked, old, new))
    told.good(f"the {new.size} entries of the new begin with the {old.size} of the old")


def _certificate(asked: argparse.Namespace, told: _Teller) -> None:
    found = certificates.open_certificate(_read(asked.file, dsse.MOST_BYTES), _key(asked.key))
    _tell(told, found.facts)
    if asked.proof:
        _tell(told, certificates.check_logged(found, _read(asked.proof, proof.MOST_BYTES), _policy(asked)))
        told.open_point(f"not checked: {certificates.ISSUERS_WORD}")
    elif asked.signature_only:
        told.open_point(f"not checked: {certificates.NO_PROOF}")
    else:
        told.unchecked(f"not checked: {certificates.NO_PROOF}")


def _receipt(asked: argparse.Namespace, told: _Teller) -> None:
    _tell(told, receipt.check_receipt(_read(asked.file, receipt.MOST_BYTES), _policy(asked)))


def _requests(asked: argparse.Namespace, told: _Teller) -> None:
    reading = stories.Reading()
    found = _whole_log(asked, each=reading.read)
    _tell(told, found.facts)
    told.good(_described(found.checkpoint))
    read = reading.judged(asked.today or datetime.now(UTC).date())
    _tell(told, read.facts)
    for violation in read.violations:
        told.bad(str(violation))


def _tell(told: _Teller, facts: list[str] | tuple[str, ...]) -> None:
    for fact in facts:
        told.good(fact)


def _described(checkpoint: notes.Checkpoint) -> str:
    return f"log {shown(checkpoint.origin)} has {checkpoint.size} entries, root {checkpoint.root.hex()}"


def _whole_log(asked: argparse.Namespace, *, raw: bool = False, each: logs.Each | None = None) -> logs.Facts:
    with _Progress() as progress:
        source = Budgeted(open_source(asked.where))
        return logs.check_log(source, _policy(asked), raw=raw, keep=False, each=each, progress=progress)


def _consistency_proof(asked: argparse.Namespace, old: notes.Checkpoint, new: notes.Checkpoint) -> list[bytes]:
    if old.size in (0, new.size):
        return []
    if asked.log is None:
        raise Unchecked(f"--log is needed to connect {old.size} entries with {new.size}")
    read = tiles.hashes(logs.tile_reader(Budgeted(open_source(asked.log))), new.size)
    return merkle.consistency_proof(read, old.size, new.size)


def _policy(asked: argparse.Namespace) -> policies.Policy:
    """Whom to believe; the auditor's own words, so a mistake in them is no evidence against the log."""
    try:
        if asked.policy:
            return policies.Policy.parse(_read(asked.policy, policies.MOST_BYTES))
        keys = [notes.Vkey.parse(text) for text in asked.vkey or ()]
    except Bad as error:
        raise Unchecked(f"nobody to believe: {error}") from None
    if not keys:
        raise Unchecked("no key of the log was given: use --vkey or --policy")
    return policies.Policy.of(keys)


def _key(text: str | None) -> bytes:
    if text is None:
        raise Unchecked("no key of the issuer was given: use --key")
    try:
        key = notes.unbase64(text)
    except Bad:
        key = b""
    if len(key) != merkle.HASH_BYTES:
        raise Unchecked(f"{shown(text)} is not an Ed25519 key: 32 bytes in base64")
    return key


def _read(path: str, max_bytes: int) -> bytes:
    """A regular file; not blocking, because opening a pipe would wait for its writer for ever."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise Unchecked(f"{shown(path)} is not a regular file")
            content = opened.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise Unchecked(f"{shown(path)} could not be read ({type(error).__name__})") from None
    if len(content) > max_bytes:
        raise Unchecked(f"{shown(path)} is longer than {max_bytes} bytes")
    return content


class _Progress:
    """Says on a terminal how far a long check has come; it begins after a second, and wipes its line at the end."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = False

    def __call__(self, read: int, total: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._started > 1:
            print(f"\r{read} of {total} entries", end="", file=sys.stderr, flush=True)
            self._shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="expunge-verify",
        description="Check an erasure log, its certificates and receipts, without asking the service that wrote them.",
        epilog="Exit status: 0 good, 1 bad, 2 could not check.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checkpoint = _command(commands, "checkpoint", check=_checkpoint, about="who signed a checkpoint")
    checkpoint.add_argument("file", metavar="FILE")
    log = _command(commands, "log", check=_log, about="every tile and entry of a log against its signed root")
    log.add_argument("where", metavar="DIR|URL")
    log.add_argument("--raw", action="store_true", help="any entries, not only those of an erasure log")
    consistency = _command(
        commands, "consistency", check=_consistency, about="that an old checkpoint is the beginning of a new one"
    )
    consistency.add_argument("old", metavar="OLD")
    consistency.add_argument("new", metavar="NEW")
    consistency.add_argument("--log", metavar="DIR|URL", help="where the tiles are that connect the two")
    certificate = _command(
        commands, "certificate", check=_certificate, about="who signed a certificate, and that a log holds it"
    )
    certificate.add_argument("file", metavar="CERT")
    certificate.add_argument("--key", metavar="BASE64", help="the issuer's Ed25519 key; never from where CERT is from")
    certificate.add_argument("--proof", metavar="FILE", help="the .tlog-proof beside it")
    certificate.add_argument("--signature-only", action="store_true", help="do not ask for a proof")
    opened = _command(commands, "receipt", check=_receipt, about="that the log committed to the records of a receipt")
    opened.add_argument("file", metavar="FILE")
    requests = _command(
        commands, "requests", check=_requests, about="a whole log, and that every request in it went its way"
    )
    requests.add_argument("where", metavar="DIR|URL")
    requests.add_argument(
        "--today", type=_day, metavar="YYYY-MM-DD", help="judge open requests by this day, not by UTC's"
    )
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    *,
    check: Callable[[argparse.Namespace, _Teller], None],
    about: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=f"Checks {about}.")
    command.set_defaults(check=check)
    trust = command.add_mutually_exclusive_group()
    trust.add_argument("--vkey", action="append", metavar="KEY", help="a key of the log, NAME+ID+BASE64; repeatable")
    trust.add_argument("--policy", metavar="FILE", help="logs, witnesses and quorum, as a C2SP tlog-policy")
    command.add_argument("--json", action="store_true", help="the same lines as JSON")
    return command


def _day(text: str) -> date:
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise argparse.ArgumentTypeError("a day is written YYYY-MM-DD")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("the calendar has no such day") from None


if __name__ == "__main__":
    sys.exit(main())
