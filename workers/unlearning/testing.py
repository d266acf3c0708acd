"""Small problems with known answers, shipped so that a new backend can be held to the same theorems.

`Ridge` has a closed form for every retained set. `Classification` has users whose labels are their own, so that a
network remembers who was there. All data are drawn from a seed; everything runs in float64 on the CPU.

Shape suffixes: N samples, F features, C classes.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import Inputs, Progress


class Ridge:
    """Linear regression with weight decay: the objective is quadratic and its minimum has a closed form.

    Args:
        samples: rows drawn.
        features: columns drawn.
        seed: of the draw.
        l2_per_sample: weight decay that each sample brings.
        l2_total: weight decay of the whole.
    """

    def __init__(
        self, *, samples: int, features: int, seed: int, l2_per_sample: float = 0.01, l2_total: float = 0.1
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.l2_per_sample = l2_per_sample
        self.l2_total = l2_total
        self.inputs_NF = torch.randn(samples, features, generator=draw, dtype=torch.float64)
        self.targets_N1 = torch.randn(samples, 1, generator=draw, dtype=torch.float64)

    def build(self) -> nn.Module:
        """Return a linear map without bias."""
        return nn.Linear(self.inputs_NF.shape[1], 1, bias=False, dtype=torch.float64)

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        """Return rows by number."""
        return self.inputs_NF[list(sample_ids)], self.targets_N1[list(sample_ids)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the squared error per sample."""
        return 0.5 * (outputs - targets).square().sum(-1)

    def solved(self, sample_ids: Sequence[int]) -> dict[str, Tensor]:
        """Return the minimum over these samples, (XᵀX + l2·I)⁻¹ Xᵀy, from the normal equations."""
        x_NF, y_N1 = self.inputs_NF[list(sample_ids)], self.targets_N1[list(sample_ids)]
        l2 = self.l2_per_sample * len(x_NF) + self.l2_total
        gram = x_NF.T @ x_NF + l2 * torch.eye(x_NF.shape[1], dtype=torch.float64)
        return {"weight": torch.linalg.solve(gram, x_NF.T @ y_N1).T.contiguous()}


class Classification:
    """Users with habits: each user's samples share an offset, and their labels follow a rule of the user's own.

    A network with enough weights learns the people by heart, so a user-level test sees who was a member.

    Args:
        users: how many people.
        each: samples per person.
        hidden: hidden units; 0 makes it logistic regression.
        features: input columns.
        waves: if not 0, fixed random cosines and sines replace the inputs: a convex model that can still remember.
        classes: labels.
        stubbornness: share of samples labelled by a personal choice instead of the common rule.
        seed: of the draw.
        l2_total: weight decay of the whole.
    """

    l2_per_sample = 0.0

    def __init__(  # noqa: PLR0913 - the knobs of a synthetic population
        self,
        *,
        users: int,
        each: int = 8,
        hidden: int = 64,
        features: int = 12,
        waves: int = 0,
        classes: int = 3,
        stubbornness: float = 0.5,
        seed: int = 0,
        l2_total: float = 0.02,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.l2_total = l2_total
        self.each = each
        self._shape = (2 * waves or features, hidden, classes)
        offsets = torch.randn(users, 1, features, generator=draw, dtype=torch.float64)
        x = 1.5 * offsets + 0.5 * torch.randn(users, each, features, generator=draw, dtype=torch.float64)
        rule = torch.randn(features, classes, generator=draw, dtype=torch.float64)
        own = torch.randint(0, classes, (users, 1), generator=draw).expand(users, each)
        personal = torch.rand(users, each, generator=draw) < stubbornness
        directions = torch.randn(features, waves, generator=draw, dtype=torch.float64)
        inputs = torch.cat([(x @ directions).cos(), (x @ directions).sin()], dim=-1) if waves else x
        self.inputs_NF = inputs.reshape(users * each, -1)
        self.targets_N = torch.where(personal, own, (x @ rule).argmax(-1)).reshape(-1)

    def samples_of(self, *users: int) -> list[int]:
        """Return the sample ids of these users, user by user."""
        return [user * self.each + k for user in users for k in range(self.each)]

    def build(self) -> nn.Module:
        """Return the classifier, tanh between its layers."""
        features, hidden, classes = self._shape
        if hidden == 0:
            return nn.Linear(features, classes, dtype=torch.float64)
        first = nn.Linear(features, hidden, dtype=torch.float64)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(hidden, classes, dtype=torch.float64))

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        """Return samples by number."""
        return self.inputs_NF[list(sample_ids)], self.targets_N[list(sample_ids)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy per sample."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def train(self, sample_ids: Sequence[int], *, seed: int, progress: Progress) -> nn.Module:
        """Minimise the objective by L-BFGS from a seeded start."""
        torch.manual_seed(seed)
        module = self.build()
        inputs, targets = self.fetch(sample_ids)
        minimise(module, lambda: self._objective(module, cast("Tensor", inputs), targets), iterations=150)
        progress(1.0)
        return module

    def _objective(self, module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        square = torch.stack([p.square().sum() for p in module.parameters()]).sum()
        return self.loss(module(inputs), targets).sum() + 0.5 * self.l2_total * square


def minimise(module: nn.Module, objective: Callable[[], Tensor], *, iterations: int, tolerance: float = 1e-6) -> int:
    """Run L-BFGS with a strong Wolfe line search in place; return how often the objective was evaluated."""
    optimiser = torch.optim.LBFGS(
        module.parameters(),
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
    )
    evaluations = 0

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        optimiser.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
        return float(loss.detach())

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch publishes no type for it
    return evaluations
