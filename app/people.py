"""What an admin makes happen with people, and how they sign in; one function is one transaction."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from app import keyring, passwords
from app.domain.people import Role, check_name, check_password, normal_login
from app.errors import Conflict, ExpungeError, Forbidden, Invalid, NotFound, TooMany, Unauthenticated
from app.settings import Settings
from app.storage import keys, people
from app.storage.tables import Person

_SETUP_LASTS: Final = timedelta(hours=72)
_FREE_GUESSES: Final = 3
_LONGEST_WAIT: Final = timedelta(seconds=60)
"""Of a lockout; for ever would let anybody lock an officer out."""
_COMING: Final = threading.BoundedSemaphore(10)
"""Who may try to come in at the same time, of the 40 threads that a process has for everything."""
_HEARD: Final = threading.BoundedSemaphore(2)
"""Of those, whose guess is worked on, which takes a core, 19 MiB and a connection; requests need the others."""
_WRONG: Final = "login, password or code is wrong"
"""One sentence for all: which of them it is would tell a thief half of what is missing."""


@dataclass(frozen=True)
class SignedIn:
    """Somebody, and the secret that their browser shows from now on; it is stored nowhere."""

    person: Person
    cookie: str


def add(
    tx: Session,
    *,
    login: str,
    name: str,
    roles: Collection[Role],
    now: datetime,
    by: UUID | None,
    by_provider: bool = False,
) -> tuple[Person, str | None]:
    """Let somebody in.

    Args:
        tx: The transaction.
        login: What they sign in with; where the identity provider vouches for them, the e-mail address it knows.
        name: As it stands beside what they decide.
        roles: At least one.
        now: The clock.
        by: Who lets them in; none: the command line.
        by_provider: They sign in by the identity provider alone.

    Returns:
        The person, and the code with which they set a password, which is stored nowhere.

    Raises:
        Invalid: Login or name breaks a rule, or there is no role.
        Conflict: Somebody has this login.
    """
    login, name = normal_login(login), check_name(name)
    people.reserve(tx, login)
    if people.by_login(tx, login) is not None:
        raise Conflict("somebody has this login already")
    if not roles:
        raise Invalid("roles", f"choose at least one of {', '.join(Role)}")
    client = keys.add_client(tx, name=name)
    chosen = [role for role in Role if role in roles]
    person = people.add(
        tx, Person(client_id=client.id, login=login, name=name, roles=list(chosen), by_provider=by_provider)
    )
    people.enter(tx, "person.added", at=now, person_id=by, detail={"person": str(person.id), "roles": list(chosen)})
    return person, None if by_provider else _new_code(person, now=now)


def named(tx: Session, login: str) -> Person:
    """The person of a login.

    Raises:
        NotFound: There is none.
    """
    found = people.by_login(tx, normal_login(login))
    if found is None:
        raise NotFound("nobody has this login; `expunge people list` shows who does")
    return found


def invite_again(tx: Session, person_id: UUID, *, now: datetime, by: UUID | None) -> str:
    """Make a new code for somebody who lost password or second factor; both are gone, and all sessions end.

    Raises:
        NotFound: There is no such person.
        Conflict: They sign in by the identity provider.
        Forbidden: It is oneself; whoever sits at a browser left open would get a password of their own so.
    """
    _need_another(person_id, by)
    person = people.locked(tx, person_id)
    if person.by_provider:
        raise Conflict("this person signs in by the identity provider and has no password here")
    person.password = person.totp = person.totp_step = None
    people.close_sessions(tx, person.id)
    people.enter(tx, "person.invited_again", at=now, person_id=by, detail={"person": str(person.id)})
    return _new_code(person, now=now)


def set_up(tx: Session, *, login: str, code: str, password: str, now: datetime, settings: Settings) -> str | None:
    """Set a password with the code of an invitation, which is then used up.

    Returns:
        None, or why not: a wrong code is counted, so this can't be an error that takes everything back.

    Raises:
        Invalid: The password breaks a rule.
        TooMany: This login failed too often just now.
    """
    login = normal_login(login)
    check_password(password, login=login)
    with _heard():
        about = _begin(tx, login, now=now, settings=settings)
    person = people.by_login(tx, login)
    expected = (person.setup_digest if person else None) or b""
    right = hmac.compare_digest(hashlib.sha256(code.strip().encode()).digest(), expected)
    if person is None or not right or not _is_open(person, now):
        people.note_failure(tx, about, now=now)
        return "login or code is wrong, or the code is older than three days; an admin makes a new one"
    person.password, person.setup_digest, person.setup_expires_at = passwords.hashed(password), None, None
    people.forget_failures(tx, about)
    people.enter(tx, "password.set", at=now, person_id=person.id)
    return None


def sign_in(
    tx: Session, *, login: str, password: str, code: str, now: datetime, settings: Settings
) -> SignedIn | ExpungeError:
    """Let somebody in who knows login, password and, where one is set up, the code of the second factor.

    Returns:
        A new session, or why there is none: failures are counted, so this can't be an error that takes them back.

    Raises:
        TooMany: This login failed too often just now, whether it is anybody's or not; or many come at once.
    """
    try:
        login = normal_login(login)
    except Invalid:
        return Unauthenticated(_WRONG)
    with _heard():
        about = _begin(tx, login, now=now, settings=settings)
        person = people.by_login(tx, login)
        known = passwords.fits(person.password if person else None, password[:1024])
    if person is None or person.disabled_at is not None or not known or not _shows(person, code, now, settings):
        people.note_failure(tx, about, now=now)
        people.enter(tx, "sign_in.failed", at=now, person_id=person.id if person else None)
        return Unauthenticated(_WRONG)
    people.forget_failures(tx, about)
    return SignedIn(person, begin_session(tx, person, now=now, settings=settings))


def sign_in_by_provider(
    tx: Session, *, subject: str, email: str | None, now: datetime, settings: Settings
) -> SignedIn | ExpungeError:
    """Let somebody in whom the identity provider vouches for, if an admin said that they come by it.

    Args:
        tx: The transaction.
        subject: As the provider knows them, for ever.
        email: An address of theirs that the provider has checked; who comes for the first time is found by it.
        now: The clock.
        settings: How long sessions last.

    Returns:
        A new session, or why there is none: failures are written down, so this can't be an error that takes them back.
    """
    person = people.by_subject(tx, subject) or _expected(tx, email)
    if person is None or not _comes_as(person, subject):
        said = {"by": "identity provider"}
        people.enter(tx, "sign_in.failed", at=now, person_id=person.id if person else None, detail=said)
        return Forbidden("the identity provider knows you, but nobody here has let you in; an admin does that")
    if person.oidc_subject is None:
        person.oidc_subject = subject
        people.enter(tx, "provider_account.bound", at=now, person_id=person.id)
    return SignedIn(person, begin_session(tx, person, now=now, settings=settings))


def begin_session(tx: Session, person: Person, *, now: datetime, settings: Settings) -> str:
    """A new session, whatever the browser showed before; returns what it shows from now on."""
    cookie = secrets.token_urlsafe(32)
    people.expire_sessions(tx, seen_since=now - settings.session_idle, begun_since=now - settings.session_life)
    people.open_session(tx, digest=digest_of(cookie), person_id=person.id, now=now)
    people.enter(tx, "signed_in", at=now, person_id=person.id)
    return cookie


def visitor(tx: Session, cookie: str, *, now: datetime, settings: Settings) -> Person | None:
    """Whose browser this is; none: nobody's, or not any more."""
    since = {"seen_since": now - settings.session_idle, "begun_since": now - settings.session_life}
    return people.visitor(tx, digest_of(cookie), **since)


def note_presence(tx: Session, cookie: str, *, now: datetime) -> None:
    """Write down that the person is there; a page that asks by itself is no sign of that."""
    people.note_seen(tx, digest_of(cookie), now=now)


def end_session(tx: Session, cookie: str) -> None:
    """Forget a session that another one takes the place of."""
    people.close_session(tx, digest_of(cookie))


def sign_out(tx: Session, cookie: str, *, person: Person, now: datetime) -> None:
    """End one browser's session."""
    people.close_session(tx, digest_of(cookie))
    people.enter(tx, "signed_out", at=now, person_id=person.id)


def enrol(tx: Session, person_id: UUID, *, secret: str, code: str, now: datetime, settings: Settings) -> None:
    """Set up the second factor, once the person has shown a code of it.

    Raises:
        Conflict: There is one already; an admin can take it away.
        Invalid: The code is not one of this secret, or not of now.
    """
    person = people.locked(tx, person_id)
    if person.totp is not None:
        raise Conflict("the second factor is set up already; an admin can take it away")
    step = passwords.step_of(secret, code, now=now, after=None)
    if step is None:
        raise Invalid("code", "this is not the code of this moment; compare the clock of your device")
    person.totp = keyring.seal(settings.key("wrapping_key"), secret.encode(), context=_context(person))
    person.totp_step = step
    people.enter(tx, "second_factor.set_up", at=now, person_id=person.id)


def give_roles(tx: Session, person_id: UUID, *, roles: Collection[Role], now: datetime, by: UUID | None) -> Person:
    """Change what somebody may do; it holds from their next click on.

    Raises:
        NotFound: There is no such person.
        Invalid: There is no role.
        Conflict: Nobody would be left who can let people in.
        Forbidden: It is oneself; who gives themselves a role is nobody's check.
    """
    if not roles:
        raise Invalid("roles", "choose at least one role; to keep somebody out, disable them")
    if Role.ADMIN not in roles:
        _need_another_admin(tx, person_id)
    _need_another(person_id, by)
    person = people.locked(tx, person_id)
    before, person.roles = person.roles, [role for role in Role if role in roles]
    said = {"person": str(person.id), "before": list(before), "roles": list(person.roles)}
    people.enter(tx, "person.roles_changed", at=now, person_id=by, detail=said)
    return person


def disable(tx: Session, person_id: UUID, *, now: datetime, by: UUID | None) -> Person:
    """Keep somebody out from now on; their sessions end, what they decided keeps their name.

    Raises:
        NotFound: There is no such person.
        Conflict: Nobody would be left who can let people in.
        Forbidden: It is oneself.
    """
    _need_another_admin(tx, person_id)
    _need_another(person_id, by)
    person = people.locked(tx, person_id)
    person.disabled_at = person.disabled_at or now
    people.close_sessions(tx, person.id)
    people.enter(tx, "person.disabled", at=now, person_id=by, detail={"person": str(person.id)})
    return person


def enable(tx: Session, person_id: UUID, *, now: datetime, by: UUID | None) -> Person:
    """Let somebody in again who was kept out.

    Raises:
        NotFound: There is no such person.
    """
    person = people.locked(tx, person_id)
    person.disabled_at = None
    people.enter(tx, "person.enabled", at=now, person_id=by, detail={"person": str(person.id)})
    return person


def end_sessions(tx: Session, person_id: UUID, *, now: datetime, by: UUID | None) -> int:
    """End every session of somebody, who may sign in again; returns how many there were.

    Raises:
        NotFound: There is no such person.
    """
    person = people.locked(tx, person_id)
    ended = people.close_sessions(tx, person.id)
    said = {"person": str(person.id), "sessions": ended}
    people.enter(tx, "person.sessions_ended", at=now, person_id=by, detail=said)
    return ended


def end_other_sessions(tx: Session, cookie: str, *, person: Person, now: datetime) -> int:
    """End one's own sessions in all other browsers; returns how many there were."""
    ended = people.close_other_sessions(tx, person.id, but=digest_of(cookie))
    people.enter(tx, "other_sessions.ended", at=now, person_id=person.id, detail={"sessions": ended})
    return ended


def change_password(
    tx: Session, person: Person, *, old: str, new: str, cookie: str, now: datetime, settings: Settings
) -> ExpungeError | None:
    """Set another password, and end the sessions in all other browsers.

    Returns:
        None, or why not: a wrong guess is counted as at the sign-in, so this can't be an error that takes it back.

    Raises:
        Invalid: The new password breaks a rule.
        Conflict: They sign in by the identity provider.
        TooMany: This login failed too often just now.
    """
    if person.by_provider:
        raise Conflict("you sign in by the identity provider and have no password here")
    check_password(new, login=person.login)
    with _heard():
        about = _begin(tx, person.login, now=now, settings=settings)
        person = people.locked(tx, person.id)
        known = passwords.fits(person.password, old[:1024])
    if not known:
        people.note_failure(tx, about, now=now)
        people.enter(tx, "password.refused", at=now, person_id=person.id)
        return Invalid("old", "the old password is wrong")
    people.forget_failures(tx, about)
    person.password = passwords.hashed(new)
    people.close_other_sessions(tx, person.id, but=digest_of(cookie))
    people.enter(tx, "password.changed", at=now, person_id=person.id)
    return None


def digest_of(cookie: str) -> bytes:
    """Under which a session is stored: 256 random bits need no slow hash."""
    return hashlib.sha256(cookie.encode()).digest()


def needs_second_factor(person: Person, settings: Settings) -> bool:
    """Whether somebody may do nothing yet but set up their second factor."""
    return settings.second_factor == "required" and person.totp is None and not person.by_provider


def _need_another_admin(tx: Session, person_id: UUID) -> None:
    admins = people.with_role(tx, Role.ADMIN)
    if list(admins) == [person_id]:
        raise Conflict("this is the last admin: nobody would be left who can let people in")


def _need_another(person_id: UUID, by: UUID | None) -> None:
    if person_id == by:
        raise Forbidden(
            "nobody changes their own standing: another admin does it for you, and both names are written down"
        )


@contextmanager
def _heard() -> Iterator[None]:
    """Be one of the few whose guess is worked on: passwords are made to cost, and requests must come in meanwhile.

    Raises:
        TooMany: As many wait already as there is room for.
    """
    if not _COMING.acquire(blocking=False):
        raise TooMany("many people sign in at this moment; try again in a few seconds", retry_after_seconds=3)
    try:
        with _HEARD:
            yield
    finally:
        _COMING.release()


def _begin(tx: Session, login: str, *, now: datetime, settings: Settings) -> bytes:
    """Under which failures of a login are counted, once it need not wait."""
    about = keyring.fingerprint(settings.key("index_key"), b"expunge/sign-in/v1", login.encode())
    series = people.failures(tx, about)
    if series is not None:
        wait = _wait(*series) - now
        if wait > timedelta(0):
            raise TooMany("too many wrong guesses at this login; wait", retry_after_seconds=wait.total_seconds())
    return about


def _wait(failures: int, failed_at: datetime) -> datetime:
    """Until when nobody is heard: 2, 4, 8 … seconds after the last failure, beginning with the third."""
    beyond = failures - _FREE_GUESSES + 1
    return failed_at + (min(timedelta(seconds=2 ** min(beyond, 10)), _LONGEST_WAIT) if beyond > 0 else timedelta(0))


def _expected(tx: Session, email: str | None) -> Person | None:
    """Whose login an address is. Case is folded in ASCII alone: beyond it two people's addresses may fold into one."""
    if email is None:
        return None
    try:
        return people.by_login(tx, normal_login(email) if email.isascii() else email)
    except Invalid:
        return None


def _comes_as(person: Person, subject: str) -> bool:
    """Never who has a password: an account at the provider that has their address could take their place."""
    return person.by_provider and person.disabled_at is None and person.oidc_subject in {None, subject}


def _shows(person: Person, code: str, now: datetime, settings: Settings) -> bool:
    """Whether the second factor is shown, where there is one; its code is then used up."""
    if person.totp is None:
        return True
    secret = keyring.unseal(settings.key("wrapping_key"), person.totp, context=_context(person)).decode()
    step = passwords.step_of(secret, code, now=now, after=person.totp_step)
    if step is None:
        return False
    person.totp_step = step
    return True


def _context(person: Person) -> bytes:
    return b"expunge/totp/v1/" + person.id.bytes


def _is_open(person: Person, now: datetime) -> bool:
    return person.disabled_at is None and person.setup_expires_at is not None and now < person.setup_expires_at


def _new_code(person: Person, *, now: datetime) -> str:
    code = secrets.token_urlsafe(16)
    person.setup_digest, person.setup_expires_at = hashlib.sha256(code.encode()).digest(), now + _SETUP_LASTS
    return code
