"""What people decide about a request: who the person is, on which ground it is refused, why it takes longer.

Grounds and notices: GDPR Art. 11(2), 12(3)-(6), 17(1) and 17(3). A ground is a word of the law, never free text; the
words of the controller stand beside it and become part of the notice to the person (Art. 12(4)).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from app.errors import Invalid


class IdentityLevel(StrEnum):
    """How sure the portal is that the person is who they say: the words of eIDAS, Regulation (EU) 910/2014 Art. 8."""

    NONE = "none"
    LOW = "low"
    SUBSTANTIAL = "substantial"
    HIGH = "high"

    def reaches(self, other: IdentityLevel) -> bool:
        """Whether this level is at least the other.

        >>> IdentityLevel.LOW.reaches(IdentityLevel.NONE), IdentityLevel.LOW.reaches(IdentityLevel.HIGH)
        (True, False)
        """
        order = list(IdentityLevel)
        return order.index(self) >= order.index(other)


class Kind(StrEnum):
    """What was decided."""

    IDENTITY_CONFIRMED = "identity_confirmed"
    APPROVED = "approved"
    HELD = "held"
    RELEASED = "released"
    EXTENDED = "extended"
    REFUSED = "refused"
    RETRIED = "retried"
    CANCELLED = "cancelled"
    BURST = "burst"
    """The service asked people, since too many would leave a model within a day; the requester is none of them."""


class Ground(StrEnum):
    """Why an erasure is refused, wholly or for some data."""

    EXPRESSION = "art17_3_a_expression"
    LEGAL_OBLIGATION = "art17_3_b_legal_obligation"
    PUBLIC_HEALTH = "art17_3_c_public_health"
    ARCHIVING_RESEARCH = "art17_3_d_archiving_research_statistics"
    LEGAL_CLAIMS = "art17_3_e_legal_claims"
    NO_GROUND = "art17_1_no_ground"
    UNFOUNDED = "art12_5_unfounded"
    EXCESSIVE = "art12_5_excessive"
    NOT_IDENTIFIABLE = "art11_2_not_identifiable"
    NOT_CONTROLLER = "not_controller"


class ExtensionReason(StrEnum):
    """Why one month is not enough (Art. 12(3)); there is no third reason."""

    COMPLEXITY = "complexity"
    NUMBER = "number"


class HoldGround(StrEnum):
    """Why a request waits although it could be worked on."""

    LEGAL_HOLD = "legal_hold"
    RESTRICTION = "art18_restriction"
    CLARIFICATION = "clarification"


HOLDS_OF_DATA: Final = frozenset({HoldGround.LEGAL_HOLD, HoldGround.RESTRICTION})
"""Holds that say that the person's data must stay for now, whoever asks for their erasure; the rest is about one
request."""


class Notice(StrEnum):
    """What a person is told about their request; the portal tells it, we write it."""

    RECEIPT = "receipt"
    IDENTITY = "identity"
    EXTENSION = "extension"
    REFUSAL = "refusal"
    COMPLETION = "completion"
    PARTIAL = "partial"
    NO_DATA = "no_data"


EXPLAINED: Final = frozenset({Ground.ARCHIVING_RESEARCH, Ground.UNFOUNDED, Ground.EXCESSIVE})
"""Grounds that say nothing by themselves: erasure must "seriously impair" the research (Art. 17(3)(d)), and who calls a
demand unfounded or excessive has to show it (Art. 12(5))."""


def check_refusal(ground: Ground, explanation: str | None) -> None:
    """Refuse a ground that needs an explanation and has none.

    >>> check_refusal(Ground.ARCHIVING_RESEARCH, None)
    Traceback (most recent call last):
    app.errors.Invalid: art17_3_d_archiving_research_statistics needs an explanation, which becomes part of the notice
    """
    if ground in EXPLAINED and not (explanation or "").strip():
        raise Invalid("explanation", f"{ground} needs an explanation, which becomes part of the notice")
