"""A house with a past: requests in every state, names that are long, right to left, or look like markup."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import update

from app import decisions, keymaking
from app.domain.decisions import ExtensionReason, Ground, HoldGround
from app.storage import requests
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest
from tests.dashboard import enter
from tests.house import Installation

SCRIPT = "<script>document.title='pwned'</script>"
LONG = "Bartholomäus-Maximilian von und zu Hohenwaldau-Berg"
RIGHT_TO_LEFT = "بوابة الخصوصية ٤٧"


@dataclass(frozen=True)
class World:
    """What there is to look at."""

    completed: UUID
    refused: UUID
    held: UUID
    extended: UUID
    awaiting: UUID
    nobody: UUID
    endpoint: UUID


def build(house: Installation, *, people: int = 4) -> World:
    """Make it, by the API and the use cases, and wait until the workers have done their part."""
    now = datetime.now(UTC)
    officer = enter(house, name=LONG, login="officer@example.org").client_id
    endpoint = _endpoint(house)
    done = []
    for person in range(2, 2 + people):  # one after the other: each makes a version
        done.append(house.demand(person, reference=f"DSR-2026-{person:04}"))
        house.wait_until_ended(done[-1])
    nobody = house.demand(99_001)
    house.wait_until_ended(nobody)
    waiting = {name: house.demand(50 + n, identity_level="none") for n, name in enumerate(_WAITING)}
    call_by(house, {nobody: RIGHT_TO_LEFT} | {request_id: name for name, request_id in waiting.items()})
    by = {"by": officer, "now": datetime.now(UTC), "settings": house.settings}
    with transaction(house.engine) as tx:
        refusal = decisions.Refusal(ground=Ground.LEGAL_CLAIMS, explanation=f"{SCRIPT} a claim is pending")
        decisions.refuse(tx, waiting[SCRIPT], refusal, **by)
        until = now + timedelta(days=20)
        decisions.hold(tx, waiting["on hold"], ground=HoldGround.LEGAL_HOLD, until=until, explanation="court", **by)
        extension = decisions.Extension(further_months=2, reason=ExtensionReason.COMPLEXITY, explanation=LONG)
        decisions.extend(tx, waiting["extended"], extension, **by)
        keymaking.create(tx, name=SCRIPT, scopes=["requests:read"])
        keymaking.create(tx, name=RIGHT_TO_LEFT, scopes=["requests:write"], expires_at=now + timedelta(days=3))
    enter(house, name=RIGHT_TO_LEFT, login="rtl@example.org")
    enter(house, name=SCRIPT, login="script@example.org")
    return World(
        completed=done[-1],
        refused=waiting[SCRIPT],
        held=waiting["on hold"],
        extended=waiting["extended"],
        awaiting=waiting[LONG],
        nobody=nobody,
        endpoint=endpoint,
    )


def call_by(house: Installation, references: dict[UUID, str]) -> None:
    """Give requests references that the API would refuse, as another version of it, or a restore, might let in."""
    with transaction(house.engine) as tx:
        for request_id, reference in references.items():
            tx.execute(update(ErasureRequest).where(ErasureRequest.id == request_id).values(reference=reference))


_WAITING = (SCRIPT, "on hold", "extended", LONG)


def _endpoint(house: Installation) -> UUID:
    url = "https://portal.example.org/a/very/long/path/where/a/portal/wants/to/be/told/of/everything"
    with house.client() as client:
        answer = client.post("/v1/webhook-endpoints", json={"url": url, "description": f"{SCRIPT} {LONG}"})
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


def version_of(house: Installation) -> int:
    """The number of the live version."""
    with house.client() as client:
        return int(client.get("/v1/models/toy").json()["current"]["number"])


def status_of(house: Installation, request_id: UUID) -> str:
    with transaction(house.engine) as tx:
        return requests.get(tx, request_id).status
