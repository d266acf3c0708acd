"""Losses that are no sample's own: refused with what to do, and rounding, padding and odd layouts are let pass."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.unlearning.problems import PROBLEMS, Toy
from workers.unlearning import RecipeMisbehaves
from workers.unlearning.model import Inputs, Model
from workers.unlearning.objective import Objective, check_coverage
from workers.unlearning.persample import check_per_sample

DRAW = torch.Generator().manual_seed(5)
X, Y = torch.randn(20, 4, generator=DRAW).double(), torch.randint(0, 3, (20,), generator=DRAW)


def checked(toy: Toy, samples: int = 20) -> None:
    check_coverage(Objective(Model(toy, toy.weights), range(samples)))


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(0)


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z + 0.5 * torch.randn_like(z)


class MeanSpread(Toy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).mean().expand(len(targets))


class Broadcast(Toy):
    """Targets (N,) against outputs (N, 1) make a table of N × N, whose sum has the right shape."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1)


class Augmented(Toy):
    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        inputs, targets = super().fetch(sample_ids)
        return inputs + 0.1 * torch.randn(len(targets), 4).double(), targets


@pytest.mark.parametrize(
    ("toy", "sentence"),
    [
        (Toy(lambda: Centred(4, 3), X, Y), "depends on the others in its batch"),
        (MeanSpread(lambda: nn.Linear(4, 3), X, Y), "depends on the others in its batch"),
        (Broadcast(lambda: nn.Linear(4, 1), X, X[:, 0]), "depends on the others in its batch"),
        (Toy(lambda: Noisy(4, 3), X, Y), "other losses at every call"),
        (Augmented(lambda: nn.Linear(4, 3), X, Y), "other losses at every call"),
    ],
)
def test_a_loss_that_is_not_its_samples_own_is_refused(toy: Toy, sentence: str) -> None:
    with pytest.raises(RecipeMisbehaves, match=sentence):
        checked(toy)


def test_the_callers_random_state_is_left_alone() -> None:
    toy = Augmented(lambda: nn.Linear(4, 3), X, Y)
    model, before = Model(toy, toy.weights), torch.get_rng_state()
    with pytest.raises(RecipeMisbehaves):
        check_per_sample(model, range(20))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("samples", [1, 2, 8])
def test_what_is_per_sample_passes(problem: str, samples: int) -> None:
    checked(PROBLEMS[problem](), samples)


class Half(Toy):
    """The same in half the digits of a float, where a batch of one rounds otherwise than a batch of four."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self._make().bfloat16()

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        inputs, targets = super().fetch(sample_ids)
        return inputs.bfloat16(), targets


def _deep() -> nn.Module:
    blocks = [part for _ in range(6) for part in (nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())]
    return nn.Sequential(nn.Linear(4, 64), *blocks, nn.Linear(64, 3))


def test_rounding_of_half_precision_passes() -> None:
    for scale in (1.0, 30.0):
        checked(Half(_deep, scale * X, Y))
    with pytest.raises(RecipeMisbehaves, match="depends on the others"):
        checked(Half(lambda: Centred(4, 3), 3 * X, Y))


class Words(nn.Module):
    """Means of word vectors over what is not padding, or over padding too."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.words, self.head, self.masked = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3), masked

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        seen = mask if self.masked else torch.ones_like(mask)
        return self.head((self.words(ids) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))


class Sentences(Toy):
    """Sentences of 1 to 5 words, padded to the longest of each batch."""

    lengths: Sequence[int] = [1 + i % 5 for i in range(20)]

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        widest = max(self.lengths[i] for i in sample_ids)
        rows = [torch.arange(1, self.lengths[i] + 1) for i in sample_ids]
        ids = torch.stack([functional.pad(row, (0, widest - len(row))) for row in rows])
        return {"ids": ids, "mask": (ids > 0).double()}, Y[list(sample_ids)]


@pytest.mark.parametrize("masked", [True, False])
def test_padding_to_the_longest_of_a_batch_passes(masked: bool) -> None:
    checked(Sentences(lambda: Words(masked=masked), X, Y))


class TimeFirst(Toy):
    """Inputs (steps, samples, features), as torch's recurrent layers like them."""

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        return torch.randn(self.steps, 20, 2, generator=torch.Generator().manual_seed(0)).double()[
            :, list(sample_ids)
        ], Y[list(sample_ids)]

    steps = 4


class LastStep(nn.RNN):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the toy needs one output
        return super().forward(x)[0][-1]


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_samples_in_the_second_axis_pass(steps: int) -> None:
    toy = TimeFirst(lambda: LastStep(2, 3), X, Y)
    toy.steps = steps
    checked(toy)


class Squeezing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Flat(Toy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square()


def test_a_module_that_cannot_run_one_sample_passes() -> None:
    checked(Flat(lambda: Squeezing(4, 1), X, X[:, 0]))
