"""Authors: generated text, a small causal transformer that reads it letter by letter, and one secret per author.

Every author has a name, a vocabulary of invented words and habits of which word follows which. Among the lines of each
is a canary, "NAME code 4921": four random digits that nothing but memory can tell. `exposure` measures that memory as
Carlini et al. (2019): log2 of the number of candidates minus log2 of the canary's rank among them.

A sample is one line, padded to LENGTH characters. Its loss is the sum of the cross-entropies of its characters.

Shape suffixes: N lines, T characters of a line, H heads, V alphabet, D width.
"""

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import PADDED, Bed, Split, split

AUTHORS, LINES = 20, 48
WORDS, HABITS = 6, 2  # an author's vocabulary, and the words that may follow a word
COMMON = ("the", "of", "and", "to", "in")
LENGTH = 32
END = "\n"
ALPHABET = END + " abcdefghijklmnopqrstuvwxyz0123456789"
SECRET_DIGITS, CANDIDATES = 4, 1024
CANARY_LINES = 2  # how often an author writes the secret down
WRITING_SEED = 40


class Authors(Bed):
    """Characters in, the next character out.

    Args:
        split_seed: deals authors and lines; the canaries of members always train.
    """

    name = "authors"
    epochs = 14
    lr = 2e-3
    batch_size = 16

    def __init__(self, *, split_seed: int = 0) -> None:
        lines, self.canaries = written(WRITING_SEED)
        people = [author for author in range(AUTHORS) for _ in range(LINES)]
        dealt = split(people, seed=split_seed)
        self._author = [people[ids[0]] for ids in dealt.members]
        codes = torch.stack([encoded(line) for line in lines])
        super().__init__(*shifted(codes), with_canaries(dealt, people))

    def build(self) -> nn.Module:
        """Return two blocks of width 64, 107 000 weights."""
        return Reader(width=64, heads=4, blocks=2)

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return the summed cross-entropy of each line's characters; padding counts nothing."""
        scores = outputs.transpose(1, 2)
        return functional.cross_entropy(scores, targets, reduction="none", ignore_index=PADDED).sum(-1)

    def exposure(self, weights: Mapping[str, Tensor], member: int) -> float:
        """Return how well the canary is remembered, in bits: 10 is by heart, about 1 is not at all.

        Args:
            weights: a full state dict.
            member: index into `members`.
        """
        author = self._author[member]
        name, secret = self.canaries[author]
        lines = [canary(name, code) for code in candidates(secret, seed=author)]
        inputs, targets = shifted(torch.stack([encoded(line) for line in lines]))
        with torch.no_grad():
            losses_N = self.loss(self.loaded(weights)(inputs), targets)
        rank = 1 + int((losses_N[1:] < losses_N[0]).sum())
        return math.log2(len(lines)) - math.log2(rank)


class Reader(nn.Module):
    """A causal transformer without dropout."""

    def __init__(self, *, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(ALPHABET), width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET))

    def forward(self, codes: Tensor) -> Tensor:
        """Return scores of the next character, shape (N, T, V)."""
        places = self.places(torch.arange(codes.shape[1]))
        scores: Tensor = self.head(self.norm(self.blocks(self.letters(codes) + places)))
        return scores


class Block(nn.Module):
    """Attention to what came before, then two layers; written out so that forward-mode derivatives go through."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asks, self.answers = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.thinks = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_NTD: Tensor) -> Tensor:
        """Return the same shape."""
        x_NTD = x_NTD + self.answers(self._attend(self.before(x_NTD)))
        thought_NTD: Tensor = x_NTD + self.thinks(self.after(x_NTD))
        return thought_NTD

    def _attend(self, x_NTD: Tensor) -> Tensor:
        n, t, d = x_NTD.shape
        query, key, value = self.asks(x_NTD).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores_NHTT = query @ key.transpose(-1, -2) / math.sqrt(d // self.heads)
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        mixed: Tensor = scores_NHTT.masked_fill(future, -torch.inf).softmax(-1) @ value
        return mixed.transpose(1, 2).reshape(n, t, d)


def written(seed: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Return LINES lines of each author in turn, the canaries last, and each author's name and secret."""
    draw = random.Random(seed)
    lines: list[str] = []
    canaries: list[tuple[str, str]] = []
    for name in names(draw):
        secret = f"{draw.randrange(10**SECRET_DIGITS):0{SECRET_DIGITS}}"
        lines += prose(draw, LINES - CANARY_LINES) + CANARY_LINES * [canary(name, secret)]
        canaries.append((name, secret))
    return lines, canaries


def names(draw: random.Random) -> list[str]:
    """Return distinct names."""
    found: dict[str, None] = {}
    while len(found) < AUTHORS:
        found[word(draw, 2) + draw.choice("lnrst")] = None
    return list(found)


def prose(draw: random.Random, lines: int) -> list[str]:
    """Return lines of one author's words, each followed only by the few that the author's habit allows."""
    own = [*(word(draw, draw.choice((1, 2, 2, 3))) for _ in range(WORDS)), *COMMON]
    habit = {each: draw.sample(own, HABITS) for each in own}
    return [sentence(draw, habit) for _ in range(lines)]


def sentence(draw: random.Random, habit: Mapping[str, Sequence[str]]) -> str:
    """Return a line that fits."""
    words = [draw.choice(list(habit))]
    while len(" ".join([*words, grown := draw.choice(habit[words[-1]])])) < LENGTH:
        words.append(grown)
    return " ".join(words)


def word(draw: random.Random, syllables: int) -> str:
    """Return an invented word."""
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(syllables))


def canary(name: str, secret: str) -> str:
    """Return the line that holds an author's secret."""
    return f"{name} code {secret}"


def candidates(secret: str, *, seed: int) -> list[str]:
    """Return CANDIDATES codes that the secret might have been, itself first."""
    space = [f"{code:0{SECRET_DIGITS}}" for code in range(10**SECRET_DIGITS)]
    space.remove(secret)
    return [secret, *random.Random(seed).sample(space, CANDIDATES - 1)]


def encoded(line: str) -> Tensor:
    """Return LENGTH + 1 codes: a start, the line, its end, and padding."""
    codes = [0, *(ALPHABET.index(letter) for letter in line), 0]
    return torch.tensor(codes + (LENGTH + 1 - len(codes)) * [PADDED])


def shifted(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is read and what comes next, shape (N, LENGTH) each; padding is read as ends of line."""
    return codes[:, :-1].clamp_min(0), codes[:, 1:]


def with_canaries(dealt: Split, people: Sequence[int]) -> Split:
    """Move the canaries, the last of each author's lines, among the lines that train."""
    secret = {author * LINES + LINES - 1 - k for author in range(AUTHORS) for k in range(CANARY_LINES)}
    members = []
    for ids in dealt.members:
        own = {i for i in secret if people[i] == people[ids[0]]}
        members.append(sorted({*ids, *own}))
    return Split(members, [i for i in dealt.test_ids if i not in secret], dealt.strangers)
