"""Where a job may begin on the ladder: what a line of versions has lost since it was trained, and how its gates went.

An approximate update is good for a few deletions. Curvature fitted to everybody is renewed after 5 % of the people are
gone; after 20 %, or when the gates said no twice in a row, the only honest step is a training.
"""

from __future__ import annotations

from dataclasses import dataclass

RETRAIN_BEYOND = 0.20
"""Share of the people trained on, gone since: beyond it no update is tried."""
REFRESH_BEYOND = 0.05
"""Share of the people that the factors were fitted on, gone since."""
FAILURES_IN_A_ROW = 2


@dataclass(frozen=True)
class Ledger:
    """What happened to one line of versions; people whom the job at hand is to forget count as gone.

    Attributes:
        trained_on: people at the last retraining or registration.
        forgotten_since: people gone since then.
        fitted_on: people at the last fit of the curvature factors; None where the version is not calibrated.
        forgotten_since_fit: people gone since that fit.
        failures: latest versions in a row whose first rung the gates did not let through.
    """

    trained_on: int
    forgotten_since: int
    fitted_on: int | None = None
    forgotten_since_fit: int = 0
    failures: int = 0

    @property
    def left(self) -> int:
        """People still in the model once the job at hand is done."""
        return self.trained_on - self.forgotten_since


@dataclass(frozen=True)
class Start:
    """Where to begin, whether to fit the factors anew before, and why it is not the usual way."""

    rung: str
    refresh_factors: bool
    reason: str | None


def decide(ledger: Ledger) -> Start:
    """Choose the first rung of a job.

    >>> decide(Ledger(trained_on=100, forgotten_since=20))
    Start(rung='influence', refresh_factors=False, reason=None)
    >>> decide(Ledger(trained_on=100, forgotten_since=21)).reason
    '21 % of the people are gone since the last training: retraining'
    """
    if ledger.forgotten_since > RETRAIN_BEYOND * ledger.trained_on:
        share = _percent(ledger.forgotten_since, ledger.trained_on)
        return Start("retrain", False, f"{share} of the people are gone since the last training: retraining")
    if ledger.failures >= FAILURES_IN_A_ROW:
        return Start("retrain", False, f"the gates did not let the last {ledger.failures} updates through: retraining")
    if ledger.fitted_on is not None and ledger.forgotten_since_fit > REFRESH_BEYOND * ledger.fitted_on:
        share = _percent(ledger.forgotten_since_fit, ledger.fitted_on)
        return Start("influence", True, f"{share} of the people are gone since the curvature was fitted: fitting anew")
    return Start("influence", False, None)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "all"
