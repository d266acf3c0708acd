"""Asking witnesses to cosign a checkpoint: C2SP tlog-witness, POST add-checkpoint.

A witness remembers the last checkpoint it saw of a log and cosigns the next only with a proof that nothing was
rewritten. Two readers who both ask for its cosignature can't be shown different logs.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

import httpx
from expunge_verify import notes
from expunge_verify.errors import Bad, VerifyError
from expunge_verify.policy import Policy, Witness
from sqlalchemy.orm import Session

from app.audit.sequencer import consistency_proof
from app.errors import LogStopped, Misconfigured, Unavailable
from app.logs import log
from app.settings import Settings
from app.storage.tables import LogCheckpoint

_TIMEOUT_SECONDS: Final = 5.0
_MOST_BYTES: Final = 64 << 10
_CONFLICT: Final = 409
"""The witness has seen another size last; its answer says which."""


def policy_of(settings: Settings) -> Policy | None:
    """The policy that the settings name.

    Raises:
        Misconfigured: The file can't be read or breaks the format.
    """
    if settings.log_policy is None:
        return None
    try:
        return Policy.parse(settings.log_policy.read_bytes())
    except (OSError, VerifyError) as error:
        raise Misconfigured(f"EXPUNGE_LOG_POLICY: {error}") from None


@dataclass
class Witnesses:
    """The witnesses of a policy; remembers what each has seen last, and learns it where it does not know."""

    policy: Policy | None
    _seen: dict[str, int] = field(default_factory=dict)

    def cosign(self, tx: Session, checkpoint: LogCheckpoint) -> bytes:
        """The checkpoint's note with the cosignatures that could be had.

        Raises:
            Unavailable: The policy's quorum is not met; the checkpoint must not be published yet.
            LogStopped: A witness says that it has seen another history.
        """
        if self.policy is None:
            return bytes(checkpoint.note)
        asked = [witness for witness in self.policy.witnesses if witness.url]
        lines = [line for witness in asked for line in self._ask(tx, witness, checkpoint)]
        note = bytes(checkpoint.note) + "".join(lines).encode()
        try:
            self.policy.check(notes.parse(note))
        except VerifyError as error:
            raise Unavailable(f"the log's witnesses are not enough: {error}") from None
        return note

    def _ask(self, tx: Session, witness: Witness, checkpoint: LogCheckpoint) -> list[str]:
        """The witness' valid signature lines; none when it does not answer."""
        try:
            answer = self._post(tx, witness, checkpoint, old=self._seen.get(witness.name, 0))
            if answer.status_code == _CONFLICT:
                answer = self._post(tx, witness, checkpoint, old=notes.decimal(answer.text.strip("\n")))
            if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                raise LogStopped(f"witness {witness.name} has seen another history of this log")
            if answer.status_code != httpx.codes.OK:
                raise Bad(f"answered {answer.status_code}")
            line = _line_of(witness, checkpoint, answer.text)
        except (httpx.HTTPError, VerifyError) as error:
            log.warning("witness did not cosign", witness=witness.name, kind=type(error).__name__)
            return []
        self._seen[witness.name] = checkpoint.size
        return [line]

    def _post(self, tx: Session, witness: Witness, checkpoint: LogCheckpoint, *, old: int) -> httpx.Response:
        if old > checkpoint.size:
            raise LogStopped(f"witness {witness.name} has seen {old} entries of this log, which has {checkpoint.size}")
        proof = consistency_proof(tx, old, checkpoint.size)
        lines = [f"old {old}", *(base64.b64encode(part).decode() for part in proof), "", ""]
        body = "\n".join(lines).encode() + bytes(checkpoint.note)
        url = f"{(witness.url or '').rstrip('/')}/add-checkpoint"
        with (
            httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client,
            client.stream("POST", url, content=body) as answer,
        ):
            read = b""
            for part in answer.iter_bytes():
                read += part
                if len(read) > _MOST_BYTES:
                    raise Bad("its answer is too long")
            return httpx.Response(answer.status_code, content=read)


def _line_of(witness: Witness, checkpoint: LogCheckpoint, answer: str) -> str:
    """The one valid line by this witness in what it answered; everything else in it is dropped."""
    note = notes.parse(bytes(checkpoint.note) + answer.encode())
    if note.cosigned_by(witness.vkey) is None:
        raise Bad("its answer has no cosignature by its key")
    return next(s.line for s in note.signatures if (s.name, s.key_id) == (witness.vkey.name, witness.vkey.key_id))
