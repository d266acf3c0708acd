"""What dispatch does for the public log: order and sign, have time stamped, say when keys are gone for good."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from app.audit import timestamps
from app.audit.sequencer import Sequencer
from app.audit.witnesses import Witnesses, policy_of
from app.logs import log
from app.settings import Settings
from app.storage import audit, requests
from app.storage.sessions import transaction
from workers.context import Context

_STAMP_CHECKPOINT_AGAIN = timedelta(hours=24)
_AT_ONCE = 100


class Scribe:
    """The log's errands, in the one process that holds its key.

    Raises:
        Misconfigured: The key or the policy can't be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._sequencer = Sequencer.of(settings, Witnesses(policy_of(settings)).cosign)
        self._looked = False

    def sequence(self, ctx: Context) -> None:
        """Give waiting entries their places and publish a checkpoint; see to it that its files are all there.

        They are looked through once. After that a journal that got shorter is noticed, which takes no reading.
        """
        self._mend(ctx)
        self._sequencer.turn(ctx.engine, now=ctx.now())

    def _mend(self, ctx: Context) -> None:
        if self._looked and not self._sequencer.journal.has_shrunk():
            return
        for sentence in self._sequencer.mend(ctx.engine):
            log.error("what lies beside the public log was not whole", reason=sentence)
        self._looked = True

    def stamp(self, ctx: Context) -> None:
        """Have certificates stamped, each, and a checkpoint once a day."""
        if not ctx.settings.timestamp_url:
            return
        with transaction(ctx.engine) as tx:
            messages = requests.unstamped(tx, limit=_AT_ONCE)
            shown, last = audit.published(tx), audit.latest_stamp(tx)
        if shown and shown.published and (last is None or ctx.now() - last > _STAMP_CHECKPOINT_AGAIN):
            messages = [*messages, bytes(shown.published)]
        for message in messages:
            token = timestamps.fetch(message, ctx.settings)
            with transaction(ctx.engine) as tx:
                audit.keep_timestamp(tx, hashlib.sha256(message).digest(), token, at=ctx.now())

    def expire(self, ctx: Context) -> None:
        """Delete evidence keys past their retention; say in the log which deleted keys are in no backup any more."""
        now = ctx.now()
        with transaction(ctx.engine) as tx:
            audit.shred_again(tx)
            audit.shred_evidence(tx, ended_before=now - timedelta(days=ctx.settings.evidence_days))
            for request_id in audit.expired_backups(tx, now=now, limit=_AT_ONCE):
                audit.enter(tx, "key.backup_expired", at=now, request_id=request_id)
