"""What the public and the internal log say, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KINDS: Final[Mapping[str, str]] = {
    "log.opened": "The log was opened",
    "log.key_rotated": "The log's key was changed",
    "request.received": "A request was received, with its deadline",
    "request.identity_confirmed": "The identity was confirmed",
    "request.extended": "The deadline was extended",
    "request.refused": "The request was refused, wholly or in part",
    "request.withdrawn": "The request was taken back",
    "request.reopened": "The request was opened again after a rollback",
    "erasure.started": "The erasure began",
    "erasure.done": "The erasure from a model was done",
    "model.registered": "A model was registered",
    "unlearn.done": "New weights were computed",
    "verify.passed": "The new weights passed verification",
    "verify.failed": "The new weights did not pass verification",
    "model.promoted": "The new weights went live",
    "model.retired": "The old weights were retired",
    "model.rolled_back": "The model was rolled back",
    "key.shredded": "The key of the user id was deleted",
    "key.backup_expired": "The last backup that may hold the deleted key expired",
    "certificate.issued": "A certificate was issued",
    "recipients.notified": "Recipients were told",
    "request.closed": "The request was closed",
    "config.changed": "A setting was changed",
    "retention.pruned": "Old entries were pruned",
}
"""The types of leaves in plain words; a test compares them with the verifier's schema."""


DEEDS: Final[Mapping[str, str]] = {
    "person.added": "let somebody in",
    "person.roles_changed": "changed somebody's roles",
    "person.disabled": "kept somebody out",
    "person.enabled": "let somebody in again",
    "person.invited_again": "made somebody a new code; password and second factor went",
    "person.sessions_ended": "ended somebody's sessions",
    "other_sessions.ended": "ended their sessions in other browsers",
    "password.set": "set a password with a code",
    "password.changed": "changed their password",
    "password.refused": "gave a wrong old password",
    "second_factor.set_up": "set up a second factor",
    "signed_in": "signed in",
    "signed_out": "signed out",
    "sign_in.failed": "failed to sign in",
    "provider_account.bound": "came by the identity provider for the first time; that account is theirs now",
    "log.record_opened": "opened a record behind the public log",
    "request.looked_up": "looked somebody up by their user id",
    "requests.exported": "exported requests",
    "receipt.taken": "took a person's receipt",
    "model.rolled_back": "rolled a model back",
    "key.made": "gave out an API key",
    "key.rotated": "gave out an API key in another's place",
    "key.revoked": "revoked an API key",
    "client.changed": "changed what a client may do",
    "webhook.added": "added a webhook endpoint",
    "webhook.deleted": "deleted a webhook endpoint",
    "webhook.enabled": "switched a webhook endpoint on",
    "webhook.disabled": "switched a webhook endpoint off",
    "webhook.pinged": "sent a ping to a webhook endpoint",
    "webhook.replayed": "had webhooks sent again",
    "webhook.secret_rotated": "made a webhook endpoint a new secret",
}
"""Kinds of the internal log in plain words; of others their own words are shown."""
