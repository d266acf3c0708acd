"""The sample index: which training samples belong to which person, as posting lists under keyed hashes.

Loading is COPY into an unindexed temporary table, checks in SQL, then two sorts that write the posting lists and the
runs of training ids. All of it happens in the caller's transaction: a manifest is there whole or not at all.

People are walked in the order of their keys. A key is an HMAC of the user id, so the first hundred keys are a random
hundred people, and the same ones every time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, cast
from uuid import UUID

import psycopg
from sqlalchemy import exists, select, text
from sqlalchemy.orm import Session, aliased

from app.errors import Invalid
from app.storage import suppressions
from app.storage.tables import Manifest, ManifestSamples, Posting

Split = Literal["train", "heldout"]
TRAIN: Final = "train"
HELDOUT: Final = "heldout"

RUN: Final = 65_536
"""Sample ids in one row of ``manifest_samples``."""
_REMEMBERED_PEOPLE: Final = 1 << 20  # of whom COPY need not repeat the ledger key: 64 MB at most
_PAGE: Final = 1000


class Row(NamedTuple):
    """One line of a manifest: a sample and one of its users, or a sample that belongs to nobody (both keys None)."""

    sample_id: int
    subject_key: UUID | None
    suppression_key: bytes | None
    split: Split


@dataclass(frozen=True)
class Loaded:
    """What a manifest turned out to hold."""

    manifest_id: UUID
    samples: int
    """Training samples."""
    users: int
    """People behind the training samples."""
    heldout_users: int
    """Strangers: people with held-out samples and no training sample."""
    suppressed_subjects: list[tuple[UUID, bytes]]
    """Erased people who are back in the training samples: (subject_key, suppression_key)."""

    @property
    def suppressed(self) -> int:
        """How many erased people are back."""
        return len(self.suppressed_subjects)


class Samples(NamedTuple):
    """One person's samples in one manifest, ascending."""

    train: list[int]
    heldout: list[int]


def load(
    tx: Session,
    model_id: UUID,
    *,
    digest: str,
    rows: Iterable[Row],
    model_name: str,
    before_ledger: Callable[[], None] = lambda: None,
) -> Loaded:
    """Write a manifest and its index; memory does not grow with the rows, beyond the erased people found.

    Held-out samples serve as those of strangers, so held-out rows without a user are not kept.

    Args:
        tx: the caller's transaction, which must end in a rollback when this raises.
        model_id: the model that was trained on it.
        digest: sha256 of the file, for the record.
        rows: in any order; their own exceptions pass through.
        model_name: under which the suppression ledger knows the model.
        before_ledger: called after the long part and before the ledger is read: the place to take its lock.

    Raises:
        Invalid: A sample is listed twice for one user, with and without a user, or in both splits; the sentence names
            the smallest such sample. Or nothing is there to train on.
    """
    tx.execute(text(_PREPARE))
    _copy(tx, rows)
    tx.execute(text("ANALYZE manifest_rows"))
    _check(tx)
    manifest = Manifest(model_id=model_id, digest=digest, samples=0, users=0)
    tx.add(manifest)
    tx.flush()
    tx.execute(text(_WRITE_RUNS), {"manifest_id": manifest.id, "run": RUN})
    tx.execute(text(_WRITE_POSTINGS), {"manifest_id": manifest.id})
    manifest.samples, manifest.users, heldout_users = tx.execute(text(_COUNT), {"manifest_id": manifest.id}).one()
    if not manifest.samples:
        raise Invalid("manifest", "it lists no training samples")
    tx.flush()
    before_ledger()
    suppressed = [(key, ledger_key) for key, ledger_key in tx.execute(text(_SUPPRESSED), {"model": model_name})]
    tx.execute(text("DROP TABLE manifest_rows, repeats"))  # at COMMIT would be too late for a second load
    return Loaded(manifest.id, manifest.samples, manifest.users, heldout_users, suppressed)


def lookup(tx: Session, manifest_id: UUID, subject_key: UUID) -> Samples:
    """Find one person's samples; both lists are empty for somebody the manifest does not know."""
    found = tx.execute(text(_LOOKUP), {"manifest_id": manifest_id, "subject_key": subject_key})
    lists = {row.split: row.sample_ids for row in found}
    return Samples(lists.get(TRAIN, []), lists.get(HELDOUT, []))


def forget_subjects(tx: Session, subject_keys: Collection[UUID], *, model_id: UUID) -> None:
    """Delete what ties these people to a model's samples, in all its manifests, and stop using their held-out samples.

    A held-out sample that a stranger shares with a forgotten person leaves the stranger's list too. Training samples
    stay in the lists of their other users: the tombstones in ``forgotten_samples`` speak for those.
    """
    gone: defaultdict[UUID, set[int]] = defaultdict(set)
    for manifest_id, split, sample_ids in tx.execute(text(_FORGET), {"keys": list(subject_keys), "model_id": model_id}):
        if split == HELDOUT:
            gone[manifest_id].update(sample_ids)
    for manifest_id, heldout in gone.items():  # rare: reads the whole manifest's postings
        parameters = {"manifest_id": manifest_id, "gone": sorted(heldout)}
        tx.execute(text(_DROP_EMPTIED), parameters)
        tx.execute(text(_DROP_SHARED), parameters)


def sample_ids(tx: Session, manifest_id: UUID) -> list[int]:
    """List every training sample of a manifest, ascending, with or without a user."""
    runs = tx.scalars(
        select(ManifestSamples.sample_ids)
        .where(ManifestSamples.manifest_id == manifest_id, ManifestSamples.split == TRAIN)
        .order_by(ManifestSamples.ordinal)
    )
    return [sample_id for run in runs for sample_id in run]


def strangers(tx: Session, manifest_id: UUID, limit: int | None = None) -> list[list[int]]:
    """List the held-out samples of all (or ``limit``) people of whom the model saw nothing, person by person."""
    trained = aliased(Posting)
    saw_them = exists().where(
        trained.manifest_id == Posting.manifest_id, trained.subject_key == Posting.subject_key, trained.split == TRAIN
    )
    chosen = (
        select(Posting.sample_ids)
        .where(Posting.manifest_id == manifest_id, Posting.split == HELDOUT, ~saw_them)
        .order_by(Posting.subject_key)
        .limit(limit)
    )
    return list(tx.scalars(chosen))


def members(tx: Session, manifest_id: UUID, *, excluding: Collection[int], limit: int | None = None) -> list[list[int]]:
    """List the training samples of all (or ``limit``) people none of whose samples is excluded, person by person."""
    barred = frozenset(excluding)
    return list(islice((ids for ids in _everybody(tx, manifest_id) if barred.isdisjoint(ids)), limit))


def _everybody(tx: Session, manifest_id: UUID) -> Iterator[list[int]]:
    in_key_order = (
        select(Posting.sample_ids)
        .where(Posting.manifest_id == manifest_id, Posting.split == TRAIN)
        .order_by(Posting.subject_key)
        .execution_options(yield_per=_PAGE)  # a cursor: whoever needs twenty people does not fetch a million
    )
    with tx.scalars(in_key_order) as lists:
        yield from lists


def _copy(tx: Session, rows: Iterable[Row]) -> None:
    # Any: psycopg's row type, of which COPY makes no use
    raw = cast("psycopg.Connection[Any]", tx.connection().connection.driver_connection)
    with raw.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.set_types(["int8", "uuid", "bytea", "bool"])
        for record in _records(rows):
            copy.write_row(record)


def _records(rows: Iterable[Row]) -> Iterator[tuple[int, UUID | None, bytes | None, bool]]:
    """Rows as they are sent; a person's ledger key goes with the first training row, not with all of them."""
    sent: set[bytes] = set()
    for sample_id, subject_key, suppression_key, split in rows:
        if split == HELDOUT or suppression_key is None or suppression_key in sent:
            yield sample_id, subject_key, None, split == HELDOUT
            continue
        if len(sent) == _REMEMBERED_PEOPLE:
            sent.clear()  # then some keys go twice; _SUPPRESSED is DISTINCT
        sent.add(suppression_key)
        yield sample_id, subject_key, suppression_key, False


def _check(tx: Session) -> None:
    tx.execute(text(_FIND_REPEATS))
    offence = tx.execute(text(_FIND_OFFENCE)).one_or_none()
    if offence is None:
        return
    if offence.in_both_splits:
        rule = "is listed both for training and held out; the splits must not share samples"
    elif offence.with_and_without:
        rule = "is listed both with and without a user"
    elif offence.without:
        rule = "is listed twice without a user"
    else:
        rule = "is listed twice for the same user"
    raise Invalid("manifest", f"sample {offence.sample_id} {rule}")


# Sorting beats hashing here by half (2 million rows: 0.9 s against 2.3 s), since the hash table would spill to disk.
# These settings and the tables end with the caller's transaction.
_PREPARE = """
SET LOCAL work_mem = '256MB';
SET LOCAL enable_hashagg = off;
SET LOCAL jit = off;
CREATE TEMPORARY TABLE manifest_rows (
  sample_id bigint NOT NULL, subject_key uuid, suppression_key bytea, heldout boolean NOT NULL
) ON COMMIT DROP
"""
_COPY = "COPY manifest_rows FROM STDIN (FORMAT BINARY)"

_FIND_REPEATS = """
CREATE TEMPORARY TABLE repeats ON COMMIT DROP AS
SELECT sample_id FROM manifest_rows GROUP BY sample_id HAVING count(*) > 1
"""
_FIND_OFFENCE = """
SELECT * FROM (
  SELECT sample_id, bool_or(heldout) AND NOT bool_and(wholly_heldout) AS in_both_splits,
         bool_or(subject_key IS NULL) AS without, bool_or(subject_key IS NULL) AND count(*) > 1 AS with_and_without,
         max(times) > 1 AS twice
  FROM (
    SELECT sample_id, subject_key, count(*) AS times, bool_or(heldout) AS heldout, bool_and(heldout) AS wholly_heldout
    FROM manifest_rows JOIN repeats USING (sample_id) GROUP BY sample_id, subject_key
  ) AS pairs GROUP BY sample_id
) AS samples WHERE in_both_splits OR with_and_without OR twice ORDER BY sample_id LIMIT 1
"""

_WRITE_RUNS = """
INSERT INTO manifest_samples (manifest_id, split, ordinal, sample_ids)
SELECT :manifest_id, 'train', ordinal, array_agg(sample_id ORDER BY sample_id)
FROM (
  SELECT sample_id, (row_number() OVER (ORDER BY sample_id) - 1) / :run AS ordinal
  FROM (SELECT DISTINCT sample_id FROM manifest_rows WHERE NOT heldout) AS once
) AS numbered GROUP BY ordinal
"""
_WRITE_POSTINGS = """
INSERT INTO postings (manifest_id, subject_key, split, sample_ids)
SELECT :manifest_id, subject_key, CASE WHEN heldout THEN 'heldout' ELSE 'train' END,
       array_agg(sample_id ORDER BY sample_id)
FROM manifest_rows WHERE subject_key IS NOT NULL GROUP BY subject_key, heldout
"""
_COUNT = """
SELECT (SELECT coalesce(sum(cardinality(sample_ids)), 0)::int FROM manifest_samples WHERE manifest_id = :manifest_id),
       count(*) FILTER (WHERE known), count(*) FILTER (WHERE NOT known)
FROM (
  SELECT bool_or(split = 'train') AS known FROM postings WHERE manifest_id = :manifest_id GROUP BY subject_key
) AS people
"""
_SUPPRESSED = f"""
SELECT DISTINCT subject_key, suppression_key  -- _records sends the ledger key with training rows only
FROM manifest_rows JOIN {suppressions.barred()} USING (suppression_key)
"""  # noqa: S608 - our own words

# As text: through the ORM the same statement takes twice the time (0.45 ms against 0.25 ms).
_LOOKUP = "SELECT split, sample_ids FROM postings WHERE manifest_id = :manifest_id AND subject_key = :subject_key"

_FORGET = """
DELETE FROM postings USING manifests, unnest(CAST(:keys AS uuid[])) AS person (subject_key)
WHERE manifests.model_id = :model_id AND postings.manifest_id = manifests.id
  AND postings.subject_key = person.subject_key
RETURNING postings.manifest_id, split, sample_ids
"""
_DROP_EMPTIED = """
DELETE FROM postings
WHERE manifest_id = :manifest_id AND split = 'heldout' AND sample_ids <@ CAST(:gone AS bigint[])
"""
_DROP_SHARED = """
UPDATE postings SET sample_ids = ARRAY(
  SELECT id FROM unnest(sample_ids) AS id WHERE id <> ALL (CAST(:gone AS bigint[])) ORDER BY id
)
WHERE manifest_id = :manifest_id AND split = 'heldout' AND sample_ids && CAST(:gone AS bigint[])
"""
