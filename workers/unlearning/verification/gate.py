"""What every gate takes and gives: the sides of the test, its levels and margins, an outcome with its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import NothingToForget
from ..evidence import Outcome
from ..report import Json

Users = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Thresholds:
    """What the gates ask for; named error rates rather than magic numbers.

    Attributes:
        alpha_utility: chance of accepting a model that is worse by the margin.
        loss_margin: tolerated rise of the mean loss, as a share of the mean of |loss| on strangers before the update.
        accuracy_margin: tolerated fall of accuracy.
        segment_margin: tolerated fall of accuracy within one class or declared group.
        segment_loss_margin: tolerated rise of a group's mean loss, as `loss_margin`; for outputs that are no classes.
        alpha_each: level of each tail of the user test, where there are enough strangers for it.
        alpha_job: chance of failing a job of fully forgotten users, per tail, however many they are; of several users,
            `alpha_each` of it goes to the test of all of them together. Also the chance of a doubt about such a job.
        few_strangers: with fewer, no sensible level exists and G3 is inconclusive.
        few_members: with fewer, G3 is inconclusive: 14, all recognised, are the fewest that show the power asked.
        visible_below: a user with a pre-deletion p above this was not visible to the test.
        power_asked: share of retained members that the test recognises, with 95 % confidence (Clopper & Pearson), where
            its silence means something.
        share_asked: part of the way to the strangers' median that a user must have come who still stands high.
        worst_residual: largest relative residual of a solve.
        least_ratio: of actual to predicted decrease, for a step whose solve was cut short on purpose.
        largest_function_step: the trust region, q = ½ΔᵀGΔ per retained sample, for the same.
        least_spread: outputs whose spread falls below this share of what it was are degenerate.
        batch_size: samples per forward pass.
    """

    alpha_utility: float = 0.05
    loss_margin: float = 0.05
    accuracy_margin: float = 0.02
    segment_margin: float = 0.05
    segment_loss_margin: float = 0.125
    alpha_each: float = 0.01
    alpha_job: float = 0.05
    few_strangers: int = 19
    few_members: int = 14
    visible_below: float = 0.2
    power_asked: float = 0.8
    share_asked: float = 0.5
    worst_residual: float = 1e-2
    least_ratio: float = 0.25
    largest_function_step: float = 0.5
    least_spread: float = 0.01
    batch_size: int = 1024


USUAL = Thresholds()


@dataclass(frozen=True)
class Gate:
    """One gate's outcome, its sentence and the numbers behind it."""

    name: str
    outcome: Outcome
    sentence: str
    numbers: Json


@dataclass(frozen=True)
class Sides:
    """Whom the test compares: each entry holds one user's sample ids.

    Attributes:
        users: the forgotten.
        members: retained users, the positive control.
        retained_ids: retained samples for the utility gate.
        strangers: users that were never trained on.
    """

    users: Users
    members: Users
    retained_ids: Sequence[int]
    strangers: Users

    def require_samples(self) -> None:
        """Refuse a test of nobody: no evidence is never a pass. Strangers and members may be none, but not nobodies.

        Raises:
            NothingToForget: no forgotten user, no retained sample, somebody without samples on any side, or a retained
                sample listed twice.
        """
        needed = {"users": self.users, "retained_ids": [self.retained_ids]}
        sides = {**needed, "retained_users": self.members, "strangers": self.strangers}
        for name, group in sides.items():
            if (name in needed and not len(group)) or any(len(person) == 0 for person in group):
                raise NothingToForget(f"{name} is empty or holds an entry without samples: nothing can be concluded")
        if doubles := len(self.retained_ids) - len({int(i) for i in self.retained_ids}):
            raise NothingToForget(f"{doubles} of {len(self.retained_ids)} retained_ids are doubles: each counts once")


def passed(name: str, sentence: str, numbers: Json) -> Gate:
    """Let the candidate through."""
    return Gate(name, "passed", sentence, numbers)


def failed(name: str, sentence: str, numbers: Json) -> Gate:
    """Stop the candidate."""
    return Gate(name, "failed", sentence, numbers)


def samples_of(users: Users) -> list[int]:
    """Lay the users' sample ids end to end."""
    return [i for user in users for i in user]
