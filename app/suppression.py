"""What a training pipeline can make happen: ask who must not be trained on, and take a list along that names nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Final
from uuid import UUID

from rbloom import Bloom
from sqlalchemy.orm import Session

from app import keyring
from app.domain import identifiers
from app.errors import Invalid
from app.settings import Settings
from app.storage import suppressions

_IN_MEMORY: Final = 1 << 20
_PORTION: Final = 1 << 16
_ROUND: Final = 1024  # a filter's size tells how many people it holds only by thousands


@dataclass(frozen=True)
class Snapshot:
    """The list of one model for one reader as it was when a day began."""

    model: str
    before: datetime
    reader: UUID
    state: suppressions.State

    def tag(self, form: str) -> str:
        """A name for these bytes: it changes when the list has grown, and never more than once a day."""
        parts = (form, self.model, str(self.reader), str(self.state.rows), str(self.state.changed))
        return sha256("\n".join(parts).encode()).hexdigest()[:32]


def barred(tx: Session, user_ids: Sequence[str], *, model: str, settings: Settings) -> list[int]:
    """Places, from 0, of those people whom the model must not be trained on; known people or not cost the same.

    Raises:
        Invalid: One of the ids breaks a rule; says which by its place.
    """
    return suppressions.among(tx, list(_keys(user_ids, settings)), model=model)


def tokens(user_ids: Sequence[str], *, reader: UUID, settings: Settings) -> list[str]:
    """What stands for each of these people in this reader's lists, in hex.

    Raises:
        Invalid: One of the ids breaks a rule; says which by its place.
    """
    key = _reader_key(reader, settings)
    return [identifiers.suppression_token(key, found).hex() for found in _keys(user_ids, settings)]


def snapshot(tx: Session, *, model: str, reader: UUID, now: datetime) -> Snapshot:
    """The list as it was when the present day began, so that its growing tells a day and not a moment."""
    before = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Snapshot(model, before, reader, suppressions.state(tx, model=model, before=before))


def lines(tx: Session, chosen: Snapshot, settings: Settings) -> IO[bytes]:
    """The list as one JSON object per line; a file, so that a slow reader holds no connection."""
    file: IO[bytes] = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - whoever reads it to the end closes it
    for token in _tokens(tx, chosen, settings):
        file.write(b'{"token":"%b"}\n' % token.hex().encode())
    file.seek(0)
    return file


def bloom(tx: Session, chosen: Snapshot, settings: Settings, *, false_positive_rate: float) -> bytes:
    """The list as a Bloom filter of rbloom; a token, read as a signed big-endian number, is its own hash."""
    room = -(-max(chosen.state.rows, 1) // _ROUND) * _ROUND
    found: Bloom = Bloom(room, false_positive_rate, _as_number)
    found.update(_tokens(tx, chosen, settings))
    return found.save_bytes()


def portions(file: IO[bytes]) -> Iterator[bytes]:
    """A file piece by piece; closed at the end, or when nobody reads on."""
    with file:
        while piece := file.read(_PORTION):
            yield piece


def _keys(user_ids: Sequence[str], settings: Settings) -> Iterator[bytes]:
    index_key = settings.key("index_key")
    for place, user_id in enumerate(user_ids):
        try:
            identifiers.check_user_id(user_id)
        except Invalid as error:
            raise Invalid(f"user_ids.{place}", str(error)) from None
        yield identifiers.suppression_key(index_key, user_id)


def _tokens(tx: Session, chosen: Snapshot, settings: Settings) -> Iterator[bytes]:
    key = _reader_key(chosen.reader, settings)
    order = keyring.fingerprint(key, b"order")
    for found in suppressions.people(tx, model=chosen.model, before=chosen.before, salt=order):
        yield identifiers.suppression_token(key, found)


def _reader_key(reader: UUID, settings: Settings) -> bytes:
    """The key of one reader's tokens; leaves the house as little as the key that it is derived from."""
    return keyring.fingerprint(settings.key("index_key"), b"suppression list of a reader", reader.bytes)


def _as_number(token: bytes) -> int:
    return int.from_bytes(token, "big", signed=True)
