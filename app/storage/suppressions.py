"""The suppression list: who must not be trained on again, under a keyed hash of the user id."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.domain.decisions import Kind
from app.domain.lifecycle import RequestStatus
from app.storage import totals
from app.storage.tables import Suppression

EVERY_MODEL: Final = "*"
_PAGE: Final = 2000

_UNHEARD = f"'{RequestStatus.AWAITING_IDENTITY}', '{RequestStatus.ON_HOLD}'"


def _listed(where: str) -> str:
    """SQL: the rows for the model ``:model``, of those ``where`` is true for."""
    return f"""
  SELECT suppression_key FROM suppressions AS listed WHERE model = :model AND {where}
  UNION ALL
  SELECT suppression_key FROM suppressions AS listed WHERE model = '{EVERY_MODEL}' AND {where} AND NOT EXISTS (
    SELECT FROM suppressions AS spared
    WHERE spared.suppression_key = listed.suppression_key AND spared.model = '!' || :model)"""  # noqa: S608 - our words


def barred(where: str = "true") -> str:
    """SQL: everybody whom the model ``:model`` must not be trained on, some twice; the one definition of it.

    A request is on the list from the first step of its work on; until then it counts by itself, once the portal vouches
    for the person, while nobody holds it and unless it is refused for this model. What has ended has no key any more.
    """
    return f"""({_listed(where)}
  UNION ALL
  SELECT suppression_key FROM erasure_requests
  WHERE closed_at IS NULL AND suppression_key IS NOT NULL AND {where} AND status NOT IN ({_UNHEARD})
    AND (models IS NULL OR :model = ANY (models))
    AND NOT EXISTS (
      SELECT FROM decisions
      WHERE request_id = erasure_requests.id AND kind = '{Kind.REFUSED}' AND :model = ANY (decisions.models))
) AS barred"""  # noqa: S608 - our own words


# The keys twice: a join alone sorts the whole list (a million rows, 100 000 open requests: 1.7 s instead of 0.7).
_AMONG = f"""
SELECT DISTINCT place FROM unnest(CAST(:keys AS bytea[])) WITH ORDINALITY AS asked (suppression_key, place)
JOIN {barred("suppression_key = ANY (CAST(:keys AS bytea[]))")} USING (suppression_key) ORDER BY place
"""  # noqa: S608 - our own words
# In an order that is another for every reader: two readers must not find the same person on the same line.
_PEOPLE = f"""
SELECT suppression_key FROM ({_listed("since < :before")}
) AS listed GROUP BY suppression_key ORDER BY sha256(:salt || suppression_key)
"""  # noqa: S608 - our own words
_STATE = f"""
SELECT count(*), max(since) FROM suppressions
WHERE model IN (:model, '{EVERY_MODEL}', '!' || :model) AND since < :before
"""  # noqa: S608 - our own words


@dataclass(frozen=True)
class State:
    """How many rows the list had when a day began, and the last day on which it had grown."""

    rows: int
    changed: datetime | None


def add(tx: Session, key: bytes, models: Sequence[str] | None, *, refused: Collection[str] = ()) -> None:
    """Write down that a person must not come back to these models, or to any; doing so twice is doing it once.

    Whoever is to be forgotten by every model but some is on the list as ``*`` with an exception for each: ``!name``.
    An exception counts for nothing beside a row of that model's own, which an earlier or a later demand may leave.
    """
    if models is not None:
        _list(tx, key, [name for name in models if name not in refused])
        return
    spared = tx.scalars(select(Suppression.model).where(Suppression.suppression_key == key, _IS_EXCEPTION)).all()
    _list(tx, key, [name.removeprefix("!") for name in spared if name.removeprefix("!") not in refused])
    if _list(tx, key, [EVERY_MODEL]):  # else an earlier demand has named every model, and nobody refused that
        _list(tx, key, [f"!{name}" for name in refused])


def put_back(tx: Session, key: bytes, row: str) -> None:
    """Write a row again that a restored backup lacks: a model's name, ``*`` or an exception."""
    _list(tx, key, [row])


def among(tx: Session, keys: Sequence[bytes], *, model: str) -> list[int]:
    """Places in ``keys``, from 0, of people whom the model must not be trained on."""
    return [place - 1 for place in tx.scalars(text(_AMONG), {"keys": list(keys), "model": model})]


def rows_of(tx: Session, key: bytes) -> dict[str, datetime]:
    """Since which day a person is on the list, by the row's word: a model's name, ``*`` or an exception, ``!name``."""
    theirs = select(Suppression.model, Suppression.since).where(Suppression.suppression_key == key)
    return {row.model: row.since for row in tx.execute(theirs.order_by(Suppression.model))}


def state(tx: Session, *, model: str, before: datetime) -> State:
    """What changes exactly when :func:`people` does."""
    return State(*tx.execute(text(_STATE), {"model": model, "before": before}).one())


def people(tx: Session, *, model: str, before: datetime, salt: bytes) -> Iterator[bytes]:
    """Everybody who was listed for the model before a day, in an order that ``salt`` decides; read page by page."""
    parameters = {"model": model, "before": before, "salt": salt}
    with tx.scalars(text(_PEOPLE), parameters, execution_options={"yield_per": _PAGE}) as keys:
        for key in keys:
            yield bytes(key)


def _list(tx: Session, key: bytes, names: Sequence[str]) -> int:
    """Add rows; returns how many were not there."""
    if not names:
        return 0
    rows = [{"suppression_key": key, "model": name} for name in sorted(names)]
    new = tx.scalars(insert(Suppression).values(rows).on_conflict_do_nothing().returning(Suppression.model)).all()
    for _ in new:
        totals.count(tx, "suppressed")
    return len(new)


_IS_EXCEPTION = Suppression.model.startswith("!")
