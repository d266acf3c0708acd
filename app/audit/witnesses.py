"""Asking witnesses to cosign a checkpoint: C2SP tlog-witness, POST add-checkpoint.

A witness remembers the last checkpoint it saw of a log and cosigns the next only with a proof that nothing was
rewritten. Two readers who both ask for its cosignature can't be shown different logs.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import httpx
from expunge_verify import notes
from expunge_verify.errors import Bad, VerifyError
from expunge_verify.policy import Policy, Witness
from sqlalchemy.orm import Session

from app.audit.inquiry import Answer, ask
from app.audit.tree import consistency_proof
from app.errors import LogStopped, Misconfigured, Unavailable
from app.logs import log
from app.settings import Settings
from app.storage.tables import LogCheckpoint

_TIMEOUT_SECONDS: Final = 5.0
_REST_SECONDS: Final = 5.0
"""A witness that did not cosign is not asked for so long: dispatch has other work, and the witness perhaps, too."""
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
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, int] = field(default_factory=dict)
    _rests_until: dict[str, float] = field(default_factory=dict)

    def cosign(self, tx: Session, checkpoint: LogCheckpoint) -> bytes:
        """The checkpoint's note with the cosignatures that could be had.

        Raises:
            Unavailable: The policy's quorum is not met; the checkpoint must not be published yet.
            LogStopped: A witness says that it has seen another history.
            Misconfigured: The policy does not name this log.
        """
        if self.policy is None:
            return bytes(checkpoint.note)
        _need_line(self.policy, checkpoint)
        lines = asyncio.run(self._ask_all(tx, checkpoint, self.policy.witnesses))
        note = bytes(checkpoint.note) + "".join(lines).encode()
        try:
            self.policy.check(notes.parse(note))
        except VerifyError as error:
            raise Unavailable(f"the log's witnesses are not enough: {error}") from None
        return note

    async def _ask_all(self, tx: Session, checkpoint: LogCheckpoint, witnesses: tuple[Witness, ...]) -> list[str]:
        """All at once: the transaction that waits for the slowest holds the sequencer's lock."""
        now = self.clock()
        asked = [w for w in witnesses if w.url and self._rests_until.get(w.name, now) <= now]
        answers = await asyncio.gather(*(self._ask(tx, witness, checkpoint) for witness in asked))
        return [line for line in answers if line]

    async def _ask(self, tx: Session, witness: Witness, checkpoint: LogCheckpoint) -> str | None:
        """The witness' valid signature line; none when it gives none."""
        try:
            answer = await self._post(tx, witness, checkpoint, old=self._seen.get(witness.name, 0))
            if answer.status == _CONFLICT:
                old = notes.decimal(answer.body.decode().removesuffix("\n"))
                answer = await self._post(tx, witness, checkpoint, old=old)
                if answer.status == _CONFLICT and old == checkpoint.size:
                    raise LogStopped(f"witness {witness.name} has seen another root of this log's {old} entries")
            line = _line_of(witness, checkpoint, answer)
        except (Unavailable, VerifyError, UnicodeDecodeError) as error:
            log.warning("witness did not cosign", witness=witness.name, kind=type(error).__name__)
            self._rests_until[witness.name] = self.clock() + _REST_SECONDS
            return None
        self._seen[witness.name] = checkpoint.size
        return line

    async def _post(self, tx: Session, witness: Witness, checkpoint: LogCheckpoint, *, old: int) -> Answer:
        if old > checkpoint.size:
            raise LogStopped(f"witness {witness.name} has seen {old} entries of this log, which has {checkpoint.size}")
        proof = consistency_proof(tx, old, checkpoint.size)
        lines = [f"old {old}", *(base64.b64encode(part).decode() for part in proof), "", ""]
        body = "\n".join(lines).encode() + bytes(checkpoint.note)
        url = f"{(witness.url or '').rstrip('/')}/add-checkpoint"
        answer = await ask(url, body, kind="text/plain; charset=utf-8", seconds=_TIMEOUT_SECONDS)
        if answer.status == httpx.codes.UNPROCESSABLE_ENTITY:
            raise LogStopped(f"witness {witness.name} has seen another history of this log")
        return answer


def _need_line(policy: Policy, checkpoint: LogCheckpoint) -> None:
    """Nobody could check this log with a policy that does not name it."""
    try:
        notes.open_checkpoint(bytes(checkpoint.note), policy.logs)
    except VerifyError:
        raise Misconfigured(
            "EXPUNGE_LOG_POLICY names no key of this log: it needs a line `log KEY`; `expunge log keys` prints the key"
        ) from None


def _line_of(witness: Witness, checkpoint: LogCheckpoint, answer: Answer) -> str:
    """The one valid line by this witness in what it answered; everything else in it is dropped."""
    if answer.status != httpx.codes.OK:
        raise Bad(f"it answered {answer.status}")
    asked = bytes(checkpoint.note)
    note = notes.parse(asked + answer.body)
    # A blank line in the answer makes what was signed another text.
    if note.text != notes.parse(asked).text or note.cosigned_by(witness.vkey) is None:
        raise Bad("its answer has no cosignature by its key over this checkpoint")
    return next(s.line for s in note.signatures if (s.name, s.key_id) == (witness.vkey.name, witness.vkey.key_id))
