"""What the models say about samples: outputs, losses, hits, and the confidence that membership tests look at.

Shape suffixes: U users, N samples, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Model, Recipe, Weights
from ..objective import Objective
from .gate import Users


@dataclass(frozen=True)
class Answers:
    """One model's answers to some samples, in their order.

    Attributes:
        outputs: the network's outputs, shape (N, ...).
        targets: what the owner calls right.
        losses: the recipe's loss, shape (N,), float64.
    """

    outputs: Tensor
    targets: Tensor
    losses: Tensor

    @property
    def are_classes(self) -> bool:
        """One row of scores per sample and an integer that names the right one."""
        return not self.targets.is_floating_point() and self.targets.dim() == 1 and self.outputs.dim() == 2

    @property
    def labels(self) -> Tensor:
        """The predicted classes."""
        return self.outputs.argmax(-1)

    @property
    def hits(self) -> Tensor:
        """1 where the predicted class is the right one."""
        return (self.labels == self.targets).double()

    @property
    def spread(self) -> float:
        """Mean over outputs of the standard deviation over samples; all but 0 for a constant model."""
        return float(self.outputs.reshape(len(self.outputs), -1).double().std(dim=0, unbiased=False).mean())

    @property
    def confidence(self) -> Tensor:
        """Return φ = log p_y − log(1 − p_y) for classes (Carlini 2022, eq. 4), minus the loss for everything else."""
        if not self.are_classes:
            return -self.losses
        scores_NC, right_N1 = self.outputs.double(), self.targets[:, None].long()
        others_NC = scores_NC.scatter(1, right_N1, -math.inf)
        return scores_NC.gather(1, right_N1).squeeze(1) - others_NC.logsumexp(-1)


class Scores:
    """Models of one recipe, asked about samples.

    Args:
        recipe: the owner's recipe.
        weights: state dicts by what they are called here ("before", "after", "after an epoch").
        batch_size: samples per forward pass.
    """

    def __init__(self, recipe: Recipe, weights: Mapping[str, Weights], *, batch_size: int) -> None:
        self._recipe = recipe
        self._models = {name: Model(recipe, state) for name, state in weights.items()}
        self._batch_size = batch_size

    @property
    def names(self) -> list[str]:
        """The models that can be asked."""
        return list(self._models)

    def answers(self, name: str, sample_ids: Sequence[int]) -> Answers:
        """Ask one model; one forward pass."""
        model = self._models[name]
        outputs, targets = Objective(model, sample_ids, batch_size=self._batch_size).outputs(model.theta_P)
        return self.judged(outputs, targets)

    def judged(self, outputs: Tensor, targets: Tensor) -> Answers:
        """Score outputs that another model gave to the same samples."""
        return Answers(outputs, targets, self._recipe.loss(outputs, targets).detach().double())


def user_means(values_N: Tensor, users: Users) -> Tensor:
    """Return each user's mean over the user's own samples, shape (U,), float64, on the CPU.

    >>> user_means(torch.tensor([1.0, 3.0, 5.0]), [[7, 8], [9]]).tolist()
    [2.0, 5.0]
    """
    sizes_U = torch.tensor([len(user) for user in users])
    owners_N = torch.arange(len(users)).repeat_interleave(sizes_U)
    return torch.zeros(len(users), dtype=torch.float64).index_add(0, owners_N, values_N.double().cpu()) / sizes_U
