"""What the manuals tell operators and callers to write exists: settings, metrics, routes, and the fields of bodies."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from app import metrics
from app.domain.people import RIGHTS, Right, Role
from app.domain.portals import PORTALS
from app.domain.portals.base import Sent
from app.queue import QUEUES
from app.settings import Settings
from app.storage.facts import DAYS, Facts, OpenRequests
from app.storage.totals import Sum
from tests.architecture.source import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "docker-compose.yml"]
MANUALS = [ROOT / "docs" / f"{name}.md" for name in ("portals", "webhooks", "access", "decisions", "suppression")]
NO_SETTINGS = {"EXPUNGE_API_KEY": "app/cli.py", "EXPUNGE_PORT": "docker-compose.yml"}
"""Variables that something else than the settings reads, and where."""
OPENAPI: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())
METHODS = "GET|POST|PUT|PATCH|DELETE"
THEIRS = ("/hooks/", "<sombra>/")
"""Where paths begin that are not ours, but our callers'."""


# --- settings -------------------------------------------------------------------------------------------------------


def variables() -> dict[str, Any]:
    """Every variable that the settings read, with its default."""
    return {f"EXPUNGE_{name.upper()}": field.default for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_exists(page: Any) -> None:
    named = set(re.findall(r"\bEXPUNGE_[A-Z][A-Z_]*[A-Z]\b", page.read_text()))
    assert not named - set(variables()) - set(NO_SETTINGS)


@pytest.mark.parametrize(("name", "reader"), NO_SETTINGS.items())
def test_what_is_no_setting_is_read_by_whom_we_say(name: str, reader: str) -> None:
    assert name not in variables()
    assert name in (ROOT / reader).read_text()


@pytest.mark.parametrize("manual", ["access", "dashboard", "decisions"])
def test_a_table_of_settings_says_their_names_and_defaults(manual: str) -> None:
    rows = settings_in((ROOT / "docs" / f"{manual}.md").read_text())
    assert len(rows) > 3
    for name, default in rows.items():
        assert name in variables()
        known = variables()[name]
        said = "" if known is None else f"{known:g}" if isinstance(known, float) else str(known)
        assert default == (said.lower() if isinstance(known, bool) else said), name


def settings_in(page: str) -> dict[str, str]:
    """Variable -> default, of the table whose first column is settings."""
    heads = r"^\| (?:setting|`EXPUNGE_…`) \| default \|.*\n\|[-|]+\n((?:\|.*\n)+)"
    [table] = re.findall(heads, page, re.MULTILINE)
    cells = [[cell.strip().strip("`") for cell in row.split("|")[1:3]] for row in table.splitlines()]
    return {f"EXPUNGE_{name.removeprefix('EXPUNGE_')}": default for name, default in cells}


ROWS = [
    {Right.READ},
    {Right.DECIDE},
    {Right.LOOK_UP},
    {Right.RETRY},
    {Right.EXPORT},
    {Right.ROLL_BACK},
    {Right.WEBHOOKS},
    {Right.KEYS, Right.PEOPLE},
    {Right.AUDIT},
]
"""The rights behind the rows of the dashboard's table of roles."""


def test_the_table_of_roles_is_the_one_that_the_server_asks() -> None:
    page = (ROOT / "docs" / "dashboard.md").read_text()
    [head, rows] = re.findall(r"^(\| \| viewer .*)\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)[0]
    roles = [Role(cell.strip()) for cell in head.split("|")[2:-1]]
    told = [[cell.strip() == "✓" for cell in row.split("|")[2:-1]] for row in rows.splitlines()]
    assert {right for row in ROWS for right in row} == set(Right)
    assert told == [[row <= RIGHTS[role] for role in roles] for row in ROWS]


# --- metrics --------------------------------------------------------------------------------------------------------


def exported() -> dict[str, dict[str, set[str]]]:
    """Metric -> label -> the words that it has here, as a scrape names them."""
    now, one = datetime.now(UTC), Sum({0: 1}, 1.0)
    measures = ("requests_ended", "webhook", "step")
    counted = {(name, "word"): one for name in measures}
    open_ones = [OpenRequests("received", 1, 0, tuple(0 for _ in DAYS), now)]
    queues = {"planning": 0.0, **dict.fromkeys(QUEUES, 0.0)}
    facts = Facts(open_ones, {"queued": 1}, queues, dict.fromkeys(QUEUES, 0.0), 0.0, 0, counted)
    metrics.http.labels("GET", "/livez", "200").observe(0)
    found: dict[str, dict[str, set[str]]] = {}
    for family in (*metrics._families(facts, now), *metrics._process.collect()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = found.setdefault(name, {})
        for sample in family.samples:
            for label, word in sample.labels.items():
                if label != "le":
                    labels.setdefault(label, set()).add(word)
    return found


OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text()


def test_every_metric_is_in_the_table_with_its_labels_and_nothing_else_is() -> None:
    rows = "\n".join(line for line in OBSERVABILITY.splitlines() if line.startswith("| `expunge_"))
    told = re.findall(r"`(expunge_\w+)(?:\{([\w,]+)\})?`", rows)
    assert {name: set(filter(None, labels.split(","))) for name, labels in told} == {
        name: set(labels) for name, labels in exported().items()
    }


def test_every_alert_asks_for_a_metric_a_label_and_a_word_that_there_are() -> None:
    rules = re.findall(r"^ +expr: (.+)$", OBSERVABILITY, re.MULTILINE)
    assert len(rules) == 3
    known = exported()
    for rule in rules:
        asked = re.findall(r"(expunge_\w+)(?:\{(\w+)!?=\"(\w+)\"\})?", rule)
        assert asked, rule
        for name, label, word in asked:
            assert name in known, rule
            assert not label or word in known[name][label], rule


# --- calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call as a manual writes it: where the path begins with …, only its end is said."""

    method: str
    path: str
    query: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def fits(self, method: str, path: str) -> bool:
        """Whether a route answers it."""
        parts = re.split(r"\{[^}]*\}", path.removeprefix("/"))
        route = "[^/:]+".join(re.escape(part) for part in parts)
        said = re.sub(r"\{[^}]*\}", "0", self.path).removeprefix("/")
        if said.startswith("…"):
            return method == self.method and bool(re.search(f"{_ends(path)}$", f"/{said[1:].lstrip('/')}"))
        return method == self.method and bool(re.fullmatch(route, said))


def _ends(path: str) -> str:
    """The last part of a route: what a manual writes behind …, from its last place for an id on."""
    tail = path[path.find("}") + 1 :] if "}" in path else path
    return "[^/:]+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", tail))


def calls(page: str) -> Iterator[Call]:
    """Every call in backticks or curl, with the names in its query and in its body."""
    for method, target, body in re.findall(rf'`({METHODS}) ([^`\s]+)(?:`? (?:with )?`?(\{{"[^`]*\}}))?', page):
        if not target.startswith(THEIRS):
            path, _, query = target.partition("?")
            names = tuple(re.findall(r"(\w+)=", query))
            yield Call(method, path, names, tuple(re.findall(r'"(\w+)":', body)))
    for method, path in re.findall(r'http\.(get|post)\("(/[^"]+)"', page):
        yield Call(method.upper(), path)
    for path, body in curls(page):
        yield Call("POST" if body else "GET", path, (), tuple(json.loads(body)) if body else ())


def curls(page: str) -> Iterator[tuple[str, str]]:
    """Path and body of each curl in a page's blocks."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for command in re.split(r"^(?=\w)", block, flags=re.MULTILINE):
            if not command.startswith("curl "):
                continue
            words = shlex.split(command, comments=True)
            [url] = [word for word in words if re.match(r"https?://|localhost", word)]
            path = "/" + re.sub(r"^https?://", "", url).partition("/")[2]
            yield path, words[words.index("-d") + 1] if "-d" in words else ""


def routes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in OPENAPI["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def known_to(operation: dict[str, Any]) -> tuple[set[str], set[str] | None]:
    """Names of the query's parameters, and of the fields at the top of the body; none: the document does not say."""
    query = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
    if "requestBody" not in operation:
        return query, set()
    return query, fields_of(operation["requestBody"]["content"]["application/json"]["schema"]) or None


def takes_any(said: tuple[str, ...], names: set[str] | None) -> bool:
    return names is None or set(said) <= names


def fields_of(schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return fields_of(OPENAPI["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    nested = [fields_of(one) for kind in ("anyOf", "oneOf", "allOf") for one in schema.get(kind, ())]
    return set(schema.get("properties", {})).union(*nested)


@pytest.mark.parametrize("manual", MANUALS, ids=lambda manual: manual.stem)
def test_every_call_that_a_manual_writes_is_a_route_with_these_fields(manual: Any) -> None:
    written = list(calls(manual.read_text()))
    assert written or manual.stem == "access"
    unknown = []
    for call in written:
        relative = not call.path.startswith(("/", "…"))  # OpenDSR's table: below each version's base
        places = [f"/opendsr/v{n}/{call.path}" for n in (1, 2, 3)] if relative else [call.path]
        meant = [Call(call.method, place, call.query, call.fields) for place in places]
        fitting = [known_to(operation) for m, p, operation in routes() if any(one.fits(m, p) for one in meant)]
        takes = [set(call.query) <= query and takes_any(call.fields, names) for query, names in fitting]
        if not any(takes):
            unknown.append(call)
    assert not unknown


def test_a_portals_example_is_a_demand_that_its_dialect_reads() -> None:
    written = [(path, json.loads(body)) for path, body in curls((ROOT / "docs" / "portals.md").read_text()) if body]
    assert len(written) == 2
    for path, body in written:
        [portal] = [portal for portal in PORTALS if path.startswith(f"{portal.prefix}/") or path == portal.prefix]
        knobs = {name: str(variables()[f"EXPUNGE_{field.upper()}"]) for name, field in portal.knobs.items()}
        asked = portal.read(Sent(document=body, headers={}, knobs={**knobs, "domain": "dsr.example"}))
        assert asked.user_id == "u-48213"


def test_the_parsers_find_what_is_wrong() -> None:
    page = '`GET /v1/models/{id}?page=2` `POST …/{id}:ping` `PATCH … {"active": true}` `POST /a` with `{"b": […]}`\n'
    page += "```\ncurl -d '{\"a\": 1}' https://x.y/z\n```\n"
    assert list(calls(page)) == [
        Call("GET", "/v1/models/{id}", ("page",)),
        Call("POST", "…/{id}:ping"),
        Call("PATCH", "…", (), ("active",)),
        Call("POST", "/a", (), ("b",)),
        Call("POST", "/z", (), ("a",)),
    ]
    assert takes_any(("a",), {"a", "b"})
    assert takes_any(("a",), None)
    assert not takes_any(("a",), {"b"})
    assert not Call("GET", "/v1/modells/{id}").fits("GET", "/v1/models/{name}")
    assert not Call("GET", "/v1/models/{id}:ping").fits("GET", "/v1/models/{name}")
