"""Whether a loss belongs to one sample and to the weights alone: asked of four samples before anything rests on it.

A forward pass that mixes the batch, a mean loss spread over its samples, noise in eval mode: each gives numbers of the
right shape, and a sum over the retained samples that still holds the forgotten ones. So four samples are scored twice,
and each in company of itself alone. That company has the batch's own shape and padding, so that the same kernels run on
the same numbers; only where it disagrees is the sample fetched and scored by itself. Both must tell for a refusal: not
every input has its samples in the first axis, and padding or another kernel may move a loss by more than rounding.

Shape suffix: N samples, at most four.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import RecipeMisbehaves
from .model import Inputs, Model, fetch, split_arguments

_SAMPLES = 4
_MOODY = (
    "the same samples have other losses at every call: `fetch`, the module in eval mode and `loss` must not draw at "
    "random; keep noise and augmentation for training"
)
_COUPLED = (
    "a sample's loss depends on the others in its batch: the module in eval mode and `loss` must treat each sample by "
    'itself (no statistics over the batch, `reduction="none"` instead of a mean)'
)


def check_per_sample(model: Model, sample_ids: Sequence[int]) -> None:
    """Refuse losses that are other ones at every call, or that depend on the company of a sample.

    Raises:
        RecipeMisbehaves: with what to do about it.
    """
    last, count = len(sample_ids) - 1, min(_SAMPLES, len(sample_ids))
    ids = [sample_ids[last * place // max(1, count - 1)] for place in range(count)]
    with torch.no_grad(), torch.random.fork_rng():
        probe = _Probe(model, ids)
        if probe.is_moody():
            raise RecipeMisbehaves(_MOODY)
        if count > 1 and probe.is_coupled():
            raise RecipeMisbehaves(_COUPLED)


class _Probe:
    """A few samples with their losses, and how far rounding may move these."""

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self._model, self._ids = model, ids
        self._moving: Mapping[str, Tensor] = model.unflatten(model.theta_P)
        self._inputs, self._targets = fetch(model.recipe, ids)
        outputs = model.call(self._moving, self._inputs)
        self._losses_N = model.recipe.loss(outputs, self._targets).double()
        eps = max(torch.finfo(t.dtype).eps for t in (outputs, *self._moving.values()) if t.is_floating_point())
        self._rounding = eps**0.5 * float(self._losses_N.abs().max()) + 16 * eps * float(outputs.abs().max())

    def is_moody(self) -> bool:
        """Tell whether a second call gives other losses."""
        return self._apart(self._score(*fetch(self._model.recipe, self._ids)), self._losses_N)

    def is_coupled(self) -> bool:
        """Tell whether some sample has another loss in company of itself, and by itself too."""
        places = range(len(self._ids))
        return any(self._differs_in_company_of_itself(place) and self._differs_alone(place) for place in places)

    def _differs_in_company_of_itself(self, place: int) -> bool:
        rows = [place] * len(self._ids)
        positional, named = split_arguments(self._inputs)
        try:
            same = {name: t[rows] for name, t in named.items()} if named else tuple(t[rows] for t in positional)
            return self._apart(self._score(same, self._targets[rows]), self._losses_N[place])
        except (RuntimeError, IndexError):  # an input without samples in its first axis: this question has no answer
            return True

    def _differs_alone(self, place: int) -> bool:
        try:
            return self._apart(self._score(*fetch(self._model.recipe, [self._ids[place]])), self._losses_N[place])
        except (RuntimeError, IndexError, ValueError):  # a module that cannot run one sample: no answer either
            return False

    def _score(self, inputs: Inputs, targets: Tensor) -> Tensor:
        return self._model.recipe.loss(self._model.call(self._moving, inputs), targets).double()

    def _apart(self, found: Tensor, expected: Tensor) -> bool:
        """Compare; what is not finite is for others to refuse."""
        away = (found - expected).abs()
        return bool((away > self._rounding).any())
