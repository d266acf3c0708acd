"""What people decide about a request: who the person is, on which ground it is refused, why it takes longer.

Grounds and notices: GDPR Art. 11(2), 12(3)-(6), 17(1) and 17(3). A ground is a word of the law, never free text; the
words of the controller stand beside it and become part of the notice to the person (Art. 12(4)).
"""

from __future__ import annotations

from enum import StrEnum


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
