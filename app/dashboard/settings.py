"""Settings: the value of each, what it means as app/settings.py says it, and the variable that sets it; read only."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import SecretStr

from app.api.auth import PAGES as BASE
from app.dashboard.visits import Reading
from app.domain.addresses import Network
from app.domain.decisions import IdentityLevel
from app.settings import Settings

router = APIRouter(prefix=BASE)
_LOCAL: Final = ("localhost", ".localhost")
_LOOPBACK: Final[tuple[Network, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1"))
_LONG_SESSION_HOURS: Final = 7 * 24
_NOT_SHOWN: Final = "set; not shown, as it may hold a password"
_MAY_HOLD_A_PASSWORD: Final = re.compile(r"://.*[@?#]", re.DOTALL)
_SECRET: Final = frozenset({"database_url"})
"""Beside those whose type says so."""


@dataclass(frozen=True)
class Knob:
    """One setting as the source has it."""

    name: str
    variable: str
    meaning: Sequence[tuple[str, bool]]
    """Its docstring, in parts; True: it is code."""


@dataclass(frozen=True)
class Caution:
    """A value that is unsafe, or that people would not expect."""

    variable: str
    sentence: str


@router.get("/settings")
def show(visit: Reading) -> HTMLResponse:
    """Every setting."""
    settings = visit.settings
    groups = [(title, [(knob, *_shown(settings, knob.name)) for knob in knobs]) for title, knobs in described().items()]
    return visit.page("settings.html", groups=groups, cautions=cautions(settings))


@cache
def described() -> dict[str, list[Knob]]:
    """The fields of :class:`Settings` under the headings that stand above them in the source, in its order."""
    source = inspect.getsource(Settings)
    headings = _headings(source.splitlines())
    [found] = ast.parse(source).body
    assert isinstance(found, ast.ClassDef)
    groups: dict[str, list[Knob]] = {title: [] for title in headings.values()}
    for field, said in pairwise(found.body):
        match field, said:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                above = max(line for line in headings if line < field.lineno)
                groups[headings[above]].append(Knob(name, _variable(name), _parts(inspect.cleandoc(meaning))))
    return groups


def _headings(lines: Sequence[str]) -> dict[int, str]:
    """Comments of one line below an empty one, by the numbers of their lines."""
    return {
        number: line.removeprefix("    # ")
        for number, (before, line) in enumerate(pairwise(lines), 2)
        if not before.strip() and line.startswith("    # ")
    }


def _variable(name: str) -> str:
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"EXPUNGE_{name.upper()}"


def _parts(meaning: str) -> list[tuple[str, bool]]:
    r"""A docstring, cut at its backticks.

    >>> _parts("Bytes of ``iss``; see `this`.")
    [('Bytes of ', False), ('iss', True), ('; see ', False), ('this', True), ('.', False)]
    """
    cut = re.split(r"`+", " ".join(meaning.split()))
    return [(part, bool(place % 2)) for place, part in enumerate(cut) if part]


def _shown(settings: Settings, name: str) -> tuple[str, bool]:
    """A value as people may see it, and whether it is another than the one that we ship."""
    value: object = getattr(settings, name)
    default: object = Settings.model_fields[name].get_default(call_default_factory=True)
    return _written(name, value), value != default and not _is_secret(name, value)


def _written(name: str, value: object) -> str:
    """A value as text; of secrets, and of addresses that may hold one, only whether there is one.

    >>> _written("store", "s3://key:secret@bucket/models"), _written("signing_key", SecretStr(""))
    ('set; not shown, as it may hold a password', 'not set')
    """
    if _is_secret(name, value):
        return "set" if value and str(value) else "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = "" if value is None else str(value)
    return _NOT_SHOWN if _MAY_HOLD_A_PASSWORD.search(text) else text


def _is_secret(name: str, value: object) -> bool:
    return isinstance(value, SecretStr) or name in _SECRET


def cautions(settings: Settings) -> list[Caution]:
    """Values that are unsafe, or that people would not expect, with what follows from them."""
    found = [*_about_sign_in(settings), *_about_the_log(settings), *_about_requests(settings), *_about_reach(settings)]
    return [Caution(_variable(name), sentence) for name, holds, sentence in found if holds]


_Found = tuple[str, bool, str]


def _about_sign_in(settings: Settings) -> list[_Found]:
    provider, url = bool(settings.oidc_sign_in_client), settings.dashboard_url
    return [
        ("second_factor", settings.second_factor == "optional", "People with a password may sign in by it alone."),
        ("dashboard_url", provider and not url, "The identity provider can't send people back here without it."),
        ("dashboard_url", url.startswith("http://"), "Browsers keep the session's cookie only by https."),
        (
            "session_hours",
            settings.session_hours > _LONG_SESSION_HOURS,
            "A stolen browser is signed in for over a week.",
        ),
    ]


def _about_the_log(settings: Settings) -> list[_Found]:
    host = settings.log_origin.partition("/")[0].partition(":")[0]
    return [
        ("log_origin", host.endswith(_LOCAL), "This name stays in every certificate for ever; give the log its own."),
        (
            "log_policy",
            settings.log_policy is None,
            "No witness is asked: nobody else can say that the log has one past.",
        ),
    ]


def _about_requests(settings: Settings) -> list[_Found]:
    unnamed = settings.controller == Settings.model_fields["controller"].default
    anybody, assumed = settings.identity_needed is IdentityLevel.NONE, settings.identity_assumed
    return [
        ("controller", unnamed, "Certificates do not say who answers for the data."),
        ("contact", not settings.contact, "Certificates do not say how to reach the data protection officer."),
        ("authority", not settings.authority, "Notices do not say to whom people can complain, as Art. 12(4) asks."),
        ("identity_needed", anybody, "Requests are carried out without anybody being sure who asks."),
        (
            "identity_assumed",
            assumed.reaches(IdentityLevel.SUBSTANTIAL),
            f"A request that says nothing of how sure the portal is counts as {assumed}.",
        ),
        ("hold_share", settings.hold_share >= 1, "A burst of requests, however large, waits for nobody's approval."),
    ]


def _about_reach(settings: Settings) -> list[_Found]:
    """Loopback is where our own services listen."""
    return [
        ("webhook_allow", _opens_loopback(settings.webhook_allow), "Webhooks may reach this machine's own services."),
        ("trusted_proxies", any(_is_all(one) for one in settings.trusted_proxies), "Anybody may say whence they call."),
        ("log_level", settings.log_level.upper() == "DEBUG", "Logs are long; nothing personal is in them, still."),
    ]


def _opens_loopback(networks: Sequence[Network]) -> bool:
    return any(one.overlaps(loopback) for one in networks for loopback in _LOOPBACK)


def _is_all(network: Network) -> bool:
    return network.prefixlen == 0
