"""A model that knows every member by heart and can be solved on paper: one weight per person, ridge regression.

Person ``p`` has four samples, 4p … 4p+3, whose inputs are the p-th unit vector and whose targets scatter a little
around the person's own value. A member's loss is near zero, a stranger's is the square of their value, and forgetting
a person is setting one weight to zero: retraining, unlearning and the truth can be compared to the last digit.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MEMBERS = 400
STRANGERS = 120
EACH = 4


def _values() -> Tensor:
    """The person's own value, and the scatter of their samples."""
    generator = torch.Generator().manual_seed(7)
    own = torch.randn(MEMBERS + STRANGERS, 1, generator=generator, dtype=torch.float64).abs() + 0.5
    scatter = 0.01 * torch.randn(MEMBERS + STRANGERS, EACH, generator=generator, dtype=torch.float64)
    return own + scatter


class Untrainable:
    """The recipe of an owner who gave us no training."""

    l2_per_sample = 0.0
    l2_total = 1e-3

    def build(self) -> nn.Module:
        return nn.Linear(MEMBERS + STRANGERS, 1, bias=False, dtype=torch.float64)

    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Tensor, Tensor]:
        ids = torch.as_tensor(list(sample_ids), dtype=torch.int64)
        inputs = nn.functional.one_hot(ids // EACH, MEMBERS + STRANGERS).double()
        return inputs, _values().reshape(-1)[ids]

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        return 0.5 * (outputs[:, 0] - targets) ** 2


class Toy(Untrainable):
    """The recipe."""

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        module = self.build()
        with torch.no_grad():
            module.weight.copy_(solved(sample_ids))
        progress(1.0)
        return module


def solved(sample_ids: Iterable[int]) -> Tensor:
    """The minimum of the objective over these samples, on paper: Σy / (n + λ) per person."""
    total = torch.zeros(MEMBERS + STRANGERS, dtype=torch.float64)
    count = torch.zeros_like(total)
    values = _values().reshape(-1)
    for sample_id in sample_ids:
        total[sample_id // EACH] += values[sample_id]
        count[sample_id // EACH] += 1
    return (total / (count + Toy.l2_total))[None, :]


class Normalised(Toy):
    """The same with statistics that training gathers, which the influence engine refuses to leave as they are."""

    def build(self) -> nn.Module:
        module = super().build()
        return _WithStatistics(module)

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        return _WithStatistics(super().train(sample_ids, seed=seed, progress=progress))


class _WithStatistics(nn.Linear):
    """The linear layer behind a batch normalisation of one constant input, which changes nothing."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__(MEMBERS + STRANGERS, 1, bias=False, dtype=torch.float64)
        self.load_state_dict({"weight": linear.weight.detach()}, strict=False)
        self.norm = nn.BatchNorm1d(1, affine=False, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 0 * self.norm(inputs.sum(1, keepdim=True))


recipe = Toy()
REFERENCE = "tests.toy:recipe"


def samples_of(person: int) -> list[int]:
    return list(range(person * EACH, person * EACH + EACH))


def user_id(person: int) -> str:
    """What the portal calls the person: a canary that must show up nowhere."""
    return f"canary-{person:04d}@people.example"


def write_model(
    directory: Path,
    *,
    without: Iterable[int] = (),
    strangers: int = STRANGERS,
    shared: dict[int, int] | None = None,
    recipe_of: Untrainable | None = None,
) -> tuple[Path, Path]:
    """Write trained weights and the manifest; returns (weights, manifest).

    ``shared`` maps sample ids to a second person whose data they hold, too.
    """
    members = [p for p in range(MEMBERS) if p not in set(without)]
    weights, manifest = directory / "toy.safetensors", directory / "toy.csv"
    state = (recipe_of or recipe).build().state_dict() | {"weight": solved(i for p in members for i in samples_of(p))}
    save_file(state, weights)
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "user_id", "split"])
        for person in [*members, *range(MEMBERS, MEMBERS + strangers)]:
            split = "train" if person < MEMBERS else "heldout"
            writer.writerows([i, user_id(person), split] for i in samples_of(person))
        writer.writerows([i, user_id(person), "train"] for i, person in (shared or {}).items())
    return weights, manifest
