"""Who is trained on and who is scored in each fold of each repeat: a function of the people and the seed alone."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .bounds import plain_ids
from .calibration import number
from .errors import NotDealable

Person = tuple[int, ...]  # the sample ids of one person, ascending


@dataclass(frozen=True)
class Deal:
    """Members and strangers, dealt into K folds anew in every repeat.

    Attributes:
        members: people who may be trained on.
        strangers: people who must never be; dealt likewise, so that a member's and a stranger's turn is alike.
        folds: K, at least 2 and at most the members.
        repeats: deals.
        seed: of the deals and of the trainings.
        about: whatever names the recipe; part of the digest.
        recipe: a digest of its code and data (see `fingerprint`); "" where nothing waits on disk.
    """

    members: tuple[Person, ...]
    strangers: tuple[Person, ...]
    folds: int
    repeats: int
    seed: int
    about: str
    recipe: str = ""

    @property
    def digest(self) -> str:
        """Bind a directory to everything that decides the deal."""
        settings = [self.members, self.strangers, self.folds, self.repeats, self.seed, self.about, self.recipe]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def check(self) -> None:
        """Refuse what cannot be dealt.

        Raises:
            NotDealable: a person without samples or with another's, or too few people for the folds.
        """
        people = (*self.members, *self.strangers)
        empty = sum(not ids for ids in people)
        if empty:
            raise NotDealable(f"{empty} of {len(people)} people have no samples")
        if not 2 <= self.folds <= len(self.members) or self.repeats < 1:
            raise NotDealable(f"{len(self.members)} members, {self.folds} folds (2 or more), {self.repeats} repeats")
        doubles = sum(len(ids) for ids in people) - len(set(itertools.chain(*people)))
        if doubles:
            raise NotDealable(f"{doubles} sample ids appear twice, on one person or on two")

    def retained(self, repeat: int, fold: int) -> list[int]:
        """Return the samples of the members outside this fold, ascending."""
        dealt = self._dealt(self.members, repeat)
        return _samples(person for k, people in enumerate(dealt) if k != fold for person in people)

    def scored(self, repeat: int, fold: int) -> list[int]:
        """Return the samples of the members and strangers inside this fold, ascending."""
        return _samples(self._dealt(self.members, repeat)[fold] + self._dealt(self.strangers, repeat)[fold])

    def train_seed(self, repeat: int, fold: int) -> int:
        """Return a seed for this training alone, below 2³¹."""
        return number(f"{self.seed}/{repeat}/train/{fold}") >> 33

    @property
    def everybody(self) -> list[int]:
        """All samples of members and strangers, ascending."""
        return _samples((*self.members, *self.strangers))

    def _dealt(self, people: Sequence[Person], repeat: int) -> list[list[Person]]:
        """Shuffle by a hash of each person's first sample and deal round robin: fold sizes differ by one at most."""
        shuffled = sorted(people, key=lambda ids: number(f"{self.seed}/{repeat}/deal/{ids[0]}"))
        return [shuffled[fold :: self.folds] for fold in range(self.folds)]


def in_order(people: Sequence[Sequence[int]]) -> tuple[Person, ...]:
    """Return the people by their lowest sample, each with ascending samples: the order they came in must not matter."""
    return tuple(sorted(tuple(sorted(plain_ids(ids))) for ids in people))


def _samples(people: Iterable[Person]) -> list[int]:
    return sorted(itertools.chain.from_iterable(people))
