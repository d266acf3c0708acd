"""The audit log: what is published, who vouches for it, its entries, the records behind them, and a check at once."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from expunge_verify import leaf, merkle, notes
from expunge_verify.errors import VerifyError
from fastapi import APIRouter, Form, Path, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from app.api.auth import PAGES as BASE
from app.api.cursors import cursor as make_cursor
from app.api.cursors import place
from app.api.schemas.base import Line
from app.audit import evidence, inspection
from app.audit.inspection import Log
from app.dashboard.log_words import DEEDS, KINDS
from app.dashboard.rendering import words
from app.dashboard.visits import Auditing, Reading, Visit
from app.errors import Invalid, NotFound
from app.storage import audit, people
from app.storage.audit import Shown
from app.storage.tables import InternalEntry

router = APIRouter(prefix=BASE)
_ON_A_PAGE: Final = 50
_MOST_WAITING: Final = 10_001
_Place = Annotated[int, Path(ge=0, le=2**53)]
_Word = Annotated[Line | None, Query(max_length=64)]
_Kind = Annotated[str, Query(alias="type", max_length=40)]
_From = Annotated[str, Query(alias="from", max_length=20)]
_OF_EVERY_LEAF: Final = frozenset({"v", "log", "type", "nonce", "day", "commit", "ref"})


@dataclass(frozen=True)
class Entry:
    """An entry as people read it."""

    index: int
    said: leaf.Leaf | None
    """None: its bytes make no leaf; somebody has altered it."""
    hash: str
    request_id: UUID | None

    @classmethod
    def of(cls, shown: Shown) -> Entry:
        """What stands in the log's bytes, whatever the columns beside them say."""
        try:
            said = leaf.decode(shown.entry)
        except VerifyError:
            said = None
        return cls(shown.index, said, merkle.leaf_hash(shown.entry).hex(), shown.request_id)

    @property
    def kind(self) -> str:
        """Its type in plain words."""
        return KINDS[self.said["type"]] if self.said else "Cannot be read"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What it says beyond what all leaves say."""
        return [fact for name, value in (self.said or {}).items() for fact in _facts(name, value)]


def _facts(name: str, value: object) -> list[tuple[str, str]]:
    if name in _OF_EVERY_LEAF:
        return []
    if isinstance(value, Mapping):
        return [(f"{words(name)} {end}", str(weights)) for end, weights in value.items()]
    return [(words(name), ("yes" if value else "no") if isinstance(value, bool) else str(value))]


@dataclass(frozen=True)
class Deed:
    """An entry of the internal log as people read it."""

    at: datetime
    who: str | None
    """None: nobody who has a name here."""
    otherwise: str
    """Who it was then."""
    what: str
    whom: str | None
    index: int | None
    """Of an entry of the public log."""
    request_id: UUID | None
    details: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, entry: InternalEntry, who: str | None, names: Mapping[UUID, str]) -> Deed:
        """With names instead of ids."""
        about, index = entry.detail.get("person"), entry.detail.get("index")
        otherwise = "somebody" if entry.what == "sign_in.failed" else "the command line"
        whom = names.get(UUID(about), about) if isinstance(about, str) else None
        rest = [(words(name), _told(value)) for name, value in entry.detail.items() if name not in {"person", "index"}]
        what = DEEDS.get(entry.what, words(entry.what).replace(".", ": "))
        return cls(entry.at, who, otherwise, what, whom, index, entry.request_id, rest)


def _told(value: object) -> str:
    """A detail, which is JSON, in a word or some."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | bool) or value is None else str(value)


def _person_of(text: str | None, names: Mapping[UUID, str]) -> UUID | None:
    if not text:
        return None
    try:
        found = UUID(text)
    except ValueError:
        found = None
    if found not in names:
        raise Invalid("person", "choose one of the people in the list")
    return found


class VerifyForm(BaseModel):
    """Which part of the list was looked at, and an older checkpoint that somebody kept."""

    start: Annotated[str, Field(alias="from", max_length=20)] = ""
    kind: Annotated[str, Field(alias="type", max_length=40)] = ""
    old: Annotated[str, Field(max_length=notes.MOST_BYTES)] = ""


@router.get("/log")
def show(visit: Reading, start: _From = "", kind: _Kind = "") -> HTMLResponse:
    """What is published, and a part of the entries, the newest first."""
    return _page(visit, start=start, kind=kind)


@router.post("/log/verify")
def verify(visit: Reading, form: Annotated[VerifyForm, Form()]) -> HTMLResponse:
    """Check checkpoint, witnesses, tree and some hundred entries; a post: it costs, and must not be prefetched."""
    log = Log.of(visit.tx, visit.settings)
    if log is None:
        raise NotFound("the log has published no checkpoint yet, so there is nothing to verify")
    begun = time.perf_counter()
    listed = [shown.index for shown in _listed(visit, log, _place_of(form.start), _kind_of(form.kind))]
    found = inspection.inspect(visit.tx, log, shown=listed, pasted=form.old, seed=secrets.token_hex(8))
    took = time.perf_counter() - begun
    return _page(visit, start=form.start, kind=form.kind, found=found, took=took, old=form.old)


@router.get("/log/internal")
def show_internal(visit: Auditing, cursor: _Word = None, person: _Word = None, what: _Word = None) -> HTMLResponse:
    """What people did at the dashboard that only they should know of, the newest first."""
    names, before = people.names(visit.tx), place("i", cursor or None)
    who = _person_of(person, names)
    found = people.internal_log(visit.tx, before=before, limit=_ON_A_PAGE + 1, person_id=who, what=what or None)
    return visit.page(
        "log_internal.html",
        deeds=[Deed.of(entry, name, names) for entry, name in found[:_ON_A_PAGE]],
        following=make_cursor("i", found[_ON_A_PAGE - 1][0].id) if len(found) > _ON_A_PAGE else None,
        begun=before is None,
        names=names,
        who=who,
        what=what or None,
        kinds={kind: DEEDS.get(kind, words(kind)) for kind in people.kinds(visit.tx)},
    )


@router.get("/log/entries/{index}")
def show_entry(visit: Reading, index: _Place) -> HTMLResponse:
    """One entry, and whether it stands in the signed tree."""
    return _entry_page(visit, index)


@router.post("/log/entries/{index}/record")
def open_record(visit: Auditing, index: _Place) -> HTMLResponse:
    """Open the record behind an entry's commitment, once, for who asked; that is written down."""
    try:
        record = evidence.record_of(visit.tx, index, visit.settings)
    except NotFound as error:
        return _entry_page(visit, index, why_not=str(error), status=error.status)
    except VerifyError as error:
        return _entry_page(visit, index, why_not=f"the entry was altered: {error}", status=409)
    found = audit.entries_at(visit.tx, [index])[index]
    visit.note("log.record_opened", request_id=found.request_id, index=index)
    return _entry_page(visit, index, record=record)


def _entry_page(
    visit: Visit,
    index: int,
    *,
    record: evidence.Json | None = None,
    why_not: str | None = None,
    status: int = 200,
) -> HTMLResponse:
    log = Log.of(visit.tx, visit.settings)
    found = audit.entries_at(visit.tx, [index]).get(index)
    if log is None or found is None or index >= log.row.size:
        raise NotFound("the log has published no entry at this place")
    return visit.page(
        "log_entry.html",
        status=status,
        entry=Entry.of(found),
        text=found.entry.decode("ascii", "backslashreplace"),
        size=log.row.size,
        stands=_stands(visit, log, index),
        record=record,
        record_text=json.dumps(record["record"], indent=2, ensure_ascii=False) if record else "",
        opens=_opens(record),
        why_not=why_not,
    )


def _stands(visit: Visit, log: Log, index: int) -> bool:
    """Whether the entry's audit path leads to the root that was signed."""
    try:
        return not inspection.misfits(visit.tx, log.checkpoint, [index])
    except VerifyError:
        return False


def _opens(record: evidence.Json | None) -> bool:
    """Whether a record is the one that its entry committed to."""
    if record is None:
        return False
    try:
        commitment = leaf.commitment(bytes.fromhex(record["salt"]), record["record"])
    except (VerifyError, ValueError):
        return False
    return bool(commitment == record["leaf"].get("commit"))


def _page(
    visit: Visit,
    *,
    start: str,
    kind: str,
    found: inspection.Findings | None = None,
    took: float = 0.0,
    old: str = "",
) -> HTMLResponse:
    first, chosen = _place_of(start), _kind_of(kind)
    log = Log.of(visit.tx, visit.settings)
    listed = _listed(visit, log, first, chosen) if log else []
    size = log.row.size if log else 0
    waits_since = audit.waiting_since(visit.tx)
    waiting = audit.count_waiting(visit.tx, size=size, most=_MOST_WAITING) if waits_since else 0
    return visit.page(
        "log.html",
        log=log,
        entries=[Entry.of(shown) for shown in listed[:_ON_A_PAGE]],
        following=listed[_ON_A_PAGE].index if len(listed) > _ON_A_PAGE else None,
        start=first,
        kind=chosen,
        kinds=KINDS,
        waits_since=waits_since,
        waiting=waiting,
        many=_MOST_WAITING - 1,
        standstill=inspection.standstill(visit.tx, visit.settings, waits_since=waits_since, now=visit.now),
        stamps=audit.latest_stamps(visit.tx, limit=3) if log else [],
        stamp=audit.timestamp(visit.tx, inspection.digest_of(log.note)) if log else None,
        vouchers=_vouchers(log) if log else None,
        commands=_commands(log) if log else {},
        found=found,
        took=took,
        old=old,
        drawn=inspection.DRAWN,
    )


def _listed(visit: Visit, log: Log, first: int | None, kind: str | None) -> list[Shown]:
    """A part of the published entries, and one more if there are more."""
    before = log.row.size if first is None else min(first + 1, log.row.size)
    return audit.newest(visit.tx, before=before, kind=kind, limit=_ON_A_PAGE + 1)


def _place_of(text: str) -> int | None:
    """The place that somebody typed; none: the end.

    Raises:
        Invalid: It is no place.
    """
    try:
        return notes.decimal(text.strip(), most=2**53) if text.strip() else None
    except VerifyError:
        raise Invalid("from", "the place of an entry is a whole number such as 17") from None


def _kind_of(kind: str) -> str | None:
    if kind and kind not in KINDS:
        raise Invalid("type", "choose one of the types in the list")
    return kind or None


def _vouchers(log: Log) -> dict[str, Any]:  # Any: what the template shows
    """Each witness of the policy, whether it has cosigned this checkpoint and when, and the quorum."""
    try:
        policy, note = inspection.policy_of(log.settings), notes.parse(log.note)
    except VerifyError as error:
        return {"problem": str(error), "witnesses": [], "quorum": None}
    known = policy.witnesses if policy else ()
    seen = [(witness.name, *_cosigned(note, witness.vkey)) for witness in known]
    return {"problem": None, "witnesses": seen, "quorum": policy.quorum if policy else None}


def _cosigned(note: notes.Note, vkey: notes.Vkey) -> tuple[bool, str]:
    try:
        at = note.cosigned_by(vkey)
    except VerifyError as error:
        return False, str(error)
    if at is None:
        return False, "has not cosigned this checkpoint"
    return True, f"saw it at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(min(at, 2**38)))} UTC"


def _commands(log: Log) -> dict[str, str]:
    """What somebody elsewhere runs for a full check."""
    where = f"https://{log.settings.log_origin}"
    keys = [f"--vkey {shlex.quote(key.vkey)}" for key in log.keys]
    trust = "--policy policy.txt" if log.settings.log_policy else " ".join(keys)
    return {
        "log": f"expunge-verify log {where} {trust}",
        "requests": f"expunge-verify requests {where} {trust}",
        "consistency": f"expunge-verify consistency OLD NEW --log {where} {trust}",
    }
