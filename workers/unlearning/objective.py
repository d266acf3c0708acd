"""What the owner's model minimises, as a sum over the samples still in it.

The owner writes a `Recipe`. A `Model` is that recipe with concrete weights; an `Objective` binds a model to sample ids:

    J_R(θ) = Σ_{i∈R} ℓ_i(θ) + ½ (l2_per_sample·|R| + l2_total) |θ_moving|²

Sums, never means: a gradient of a sum meets a curvature of a sum, and no step is off by a factor |R|.
The network runs in eval mode throughout (dropout off, batch statistics frozen).

Shape suffixes: N samples of a chunk, P moving parameters, C outputs.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import NonFinite, NotCovered, NothingToForget, RecipeMisbehaves, WeightsDoNotFit

Weights = Mapping[str, Tensor]
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Progress = Callable[[float], None]


class Recipe(Protocol):
    """What an ML engineer writes once per model: how to build it, fetch its samples and score them."""

    @property
    def l2_per_sample(self) -> float:
        """Weight decay that every sample brings along (λ in ℓ_i + λ/2·|θ|²)."""

    @property
    def l2_total(self) -> float:
        """Weight decay of the whole objective, however many samples remain."""

    def build(self) -> nn.Module:
        """Return the module with any weights; the engine loads the registered ones."""

    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Inputs, Tensor]:
        """Return inputs and targets in the order of the ids. A tuple is passed as `*args`, a dict as `**kwargs`."""

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return one loss per sample, shape (N,), convex in the outputs."""


@runtime_checkable
class MovesSome(Protocol):
    """A recipe that lets only some parameters move (adapters, last blocks, a head)."""

    def moves(self, name: str, /) -> bool:
        """Tell whether the parameter of this name may change."""


@runtime_checkable
class Trains(Protocol):
    """A recipe that can train from scratch: it unlocks the retraining rung."""

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Progress) -> nn.Module:
        """Train a fresh model on exactly these samples."""


@dataclass
class Cost:
    """Work done so far, in per-sample forward-backward equivalents.

    A loss evaluation counts 1/3, a gradient 1, a GGN product 2 (one jvp, one vjp), each times the samples it read.
    The count is deterministic; it is compared with passes of training, which cost 1 per sample.
    """

    forward_backwards: float = 0.0

    def add(self, samples: int, each: float) -> None:
        """Charge `each` forward-backward equivalents for every one of `samples`."""
        self.forward_backwards += samples * each


class Model:
    """A recipe with concrete weights: which parameters move, and the module as a function of them.

    Args:
        recipe: the owner's recipe.
        weights: a full state dict, buffers included. Never written to.
        frozen_buffers: buffers that training moves (BatchNorm statistics) and that the caller accepts to leave as
            they are. Any other such buffer is refused by `check_coverage`.

    Raises:
        WeightsDoNotFit: names or shapes differ from the built module's, or tied entries disagree.
        NonFinite: a weight is NaN or infinite.
        NotCovered: no parameter may move.
    """

    def __init__(self, recipe: Recipe, weights: Weights, *, frozen_buffers: Sequence[str] = ()) -> None:
        self.recipe = recipe
        self.frozen_buffers = tuple(frozen_buffers)
        self.module = build(recipe)
        check_fit(self.module, weights)
        self.module.load_state_dict(dict(weights))
        self.module.eval()
        self._aliases = _aliases(self.module)
        self.names = _moving_names(recipe, self.module, self._aliases)
        moving = dict(self.module.named_parameters())
        self._fixed = {n: t.detach() for n, t in _all_tensors(self.module).items() if n not in self.names}
        self._like = {name: moving[name].detach() for name in self.names}
        self._sizes = [tensor.numel() for tensor in self._like.values()]
        self.theta_P = self.flatten(self._like)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay the moving parameters end to end as one float64 vector, tied ones once."""
        return torch.cat([tensors[name].detach().reshape(-1).double() for name in self.names])

    def unflatten(self, vector_P: Tensor) -> dict[str, Tensor]:
        """Cut a vector back into parameters of their own shapes and dtypes."""
        pieces = torch.split(vector_P, self._sizes)
        return {
            n: p.reshape(like.shape).to(like.dtype) for p, (n, like) in zip(pieces, self._like.items(), strict=True)
        }

    def may_move(self, name: str) -> bool:
        """Tell whether this entry of the state dict is a moving parameter (under any of its tied names)."""
        return self._aliases.get(name, name) in self.names

    def call(self, moving: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Run the module with these moving parameters; everything else stays as registered."""
        arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        named = inputs if isinstance(inputs, dict) else None
        outputs = functional_call(self.module, {**self._fixed, **moving}, arguments, named)
        return cast("Tensor", outputs)

    def state(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Return a full state dict with these moving parameters, sharing memory with nothing."""
        moved = self.unflatten(theta_P)
        state = self.module.state_dict()
        return {name: moved.get(self._aliases.get(name, name), state[name]).detach().clone() for name in state}


def build(recipe: Recipe) -> nn.Module:
    """Build the recipe's module without disturbing the caller's random state."""
    with torch.random.fork_rng():
        return recipe.build()


def check_fit(module: nn.Module, weights: Weights) -> None:
    """Refuse weights that are not a finite state of this module, naming what is missing, unexpected or misshapen."""
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    both = sorted(expected.keys() & weights.keys())
    misshapen = [
        f"{n}: {tuple(weights[n].shape)}, {weights[n].dtype} instead of {tuple(expected[n].shape)}, {expected[n].dtype}"
        for n in both
        if weights[n].shape != expected[n].shape or weights[n].dtype != expected[n].dtype
    ]
    if missing or unexpected or misshapen:
        raise WeightsDoNotFit(f"missing {missing}, unexpected {unexpected}, of another shape or dtype {misshapen}")
    bad = [n for n in both if weights[n].is_floating_point() and not bool(weights[n].isfinite().all())]
    if bad:
        raise NonFinite(f"weights hold NaN or infinity in {bad}")
    untied = [n for n, first in _aliases(module).items() if not torch.equal(weights[n], weights[first])]
    if untied:
        raise WeightsDoNotFit(f"the module ties {untied} to other entries, but the weights differ there")


class Objective:
    """The training objective over a fixed set of samples, streamed in chunks.

    Args:
        model: recipe and weights.
        sample_ids: the samples summed over, in this order.
        batch_size: samples per chunk; bounds memory, changes no result beyond rounding.
        cost: where work is counted.
        keep_bytes: fetched chunks are kept in memory up to this many bytes, so that a solve does not fetch anew.
    """

    def __init__(
        self,
        model: Model,
        sample_ids: Sequence[int],
        *,
        batch_size: int = 1024,
        cost: Cost | None = None,
        keep_bytes: int = 1 << 28,
    ) -> None:
        if not sample_ids:
            raise NothingToForget("an objective over no samples has no minimum")
        self.model = model
        self.sample_ids = list(sample_ids)
        self.cost = cost if cost is not None else Cost()
        self._batch_size = batch_size
        self._keep_bytes = keep_bytes
        self._kept: dict[int, tuple[Inputs, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def l2(self) -> float:
        """The factor of ½|θ|² for this many samples."""
        return self.model.recipe.l2_per_sample * len(self) + self.model.recipe.l2_total

    def chunks(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield inputs and targets chunk by chunk, in the order of the ids."""
        for start in range(0, len(self), self._batch_size):
            yield self._kept[start] if start in self._kept else self._fetch(start)

    def value(self, theta_P: Tensor) -> float:
        """Return J_R(θ), summed in float64."""
        return float(self.losses(theta_P).sum()) + 0.5 * self.l2 * float(theta_P @ theta_P)

    def losses(self, theta_P: Tensor) -> Tensor:
        """Return ℓ_i(θ) for every sample in order, shape (N,), float64."""
        moving = self.model.unflatten(theta_P)
        with torch.no_grad():
            parts = [self._loss(self.model.call(moving, inputs), targets) for inputs, targets in self.chunks()]
        self.cost.add(len(self), 1 / 3)
        return torch.cat(parts).double()

    def outputs(self, theta_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's outputs and the targets for every sample in order."""
        moving = self.model.unflatten(theta_P)
        with torch.no_grad():
            pairs = [(self.model.call(moving, inputs), targets) for inputs, targets in self.chunks()]
        self.cost.add(len(self), 1 / 3)
        return torch.cat([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])

    def gradient(self, theta_P: Tensor) -> Tensor:
        """Return ∇J_R(θ), shape (P,), float64.

        Raises:
            NotCovered: a moving parameter has no path to the loss, so no step would take the samples out of it.
        """
        gradient_P = self.l2 * theta_P
        for inputs, targets in self.chunks():
            gradient_P = gradient_P + self._chunk_gradient(theta_P, inputs, targets)
        self.cost.add(len(self), 1)
        return gradient_P

    def _chunk_gradient(self, theta_P: Tensor, inputs: Inputs, targets: Tensor) -> Tensor:
        leaves = {name: t.detach().requires_grad_() for name, t in self.model.unflatten(theta_P).items()}
        with torch.enable_grad():
            loss = self._loss(self.model.call(leaves, inputs), targets).sum()
        if not loss.requires_grad:
            raise NotCovered("the loss depends on no moving parameter")
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        unreached = [name for name, grad in zip(leaves, grads, strict=True) if grad is None]
        if unreached:
            raise NotCovered(f"no gradient path from the loss to {unreached}: freeze them with `moves` or connect them")
        return torch.cat([grad.reshape(-1).double() for grad in grads])

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses_N = self.model.recipe.loss(outputs, targets)
        if losses_N.shape != (len(targets),):
            raise RecipeMisbehaves(f"loss returned shape {tuple(losses_N.shape)} for {len(targets)} samples")
        return losses_N

    def _fetch(self, start: int) -> tuple[Inputs, Tensor]:
        ids = self.sample_ids[start : start + self._batch_size]
        inputs, targets = self.model.recipe.fetch(ids)
        if len(targets) != len(ids):
            raise RecipeMisbehaves(f"fetch returned {len(targets)} targets for {len(ids)} ids")
        size = sum(t.numel() * t.element_size() for t in (*_leaves(inputs), targets))
        if size <= self._keep_bytes:
            self._keep_bytes -= size
            self._kept[start] = (inputs, targets)
        return inputs, targets


def residual(recipe: Recipe, weights: Weights, all_ids: Sequence[int], *, batch_size: int = 1024) -> Tensor:
    """Return r0 = ∇J_D(θ0), the training gradient that the owner's optimiser left, shape (P,), float64.

    Computed once when a model is registered. A network that was stopped early is no minimum; a step that ignored r0
    would mix more training into the forgetting.
    """
    model = Model(recipe, weights)
    return Objective(model, all_ids, batch_size=batch_size).gradient(model.theta_P)


def check_coverage(objective: Objective) -> None:
    """Refuse a model with learned state outside the operator: parameters without a path, buffers that training moves.

    Runs one gradient on the first chunk and one forward pass of a copy in training mode; the model is not touched.

    Raises:
        NotCovered: naming the parameters or buffers.
    """
    model = objective.model
    inputs, targets = next(objective.chunks())
    objective._chunk_gradient(model.theta_P, inputs, targets)  # noqa: SLF001 - same module, one chunk is enough here
    moved = [name for name in _buffers_that_training_moves(model, inputs) if name not in model.frozen_buffers]
    if moved:
        raise NotCovered(
            f"training moves the buffers {moved}: they carry sums over the forgotten samples that no step reaches; "
            "freeze them in the recipe, recompute them on the retained samples, or name them in `frozen_buffers`"
        )


def require_finite(what: str, *tensors: Tensor | float) -> None:
    """Raise NonFinite if any of these numbers is NaN or infinite."""
    for tensor in tensors:
        finite = math.isfinite(tensor) if isinstance(tensor, float) else bool(tensor.isfinite().all())
        if not finite:
            raise NonFinite(f"{what} is not finite")


def _buffers_that_training_moves(model: Model, inputs: Inputs) -> list[str]:
    if not any(True for _ in model.module.buffers()):
        return []
    twin = copy.deepcopy(model.module).train()
    before = {name: tensor.clone() for name, tensor in twin.named_buffers()}
    arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    with torch.no_grad(), torch.random.fork_rng():
        twin(*arguments, **(inputs if isinstance(inputs, dict) else {}))
    moved = [name for name, tensor in twin.named_buffers() if not torch.equal(tensor, before[name])]
    return [name for name in moved if before[name].is_floating_point()]


def _aliases(module: nn.Module) -> dict[str, str]:
    """Map every further name of a tied parameter to its first name."""
    first: dict[int, str] = {}
    every = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in every:
        first.setdefault(id(parameter), name)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _moving_names(recipe: Recipe, module: nn.Module, aliases: Mapping[str, str]) -> list[str]:
    def moves(name: str) -> bool:
        return recipe.moves(name) if isinstance(recipe, MovesSome) else True

    split = [name for name, first in aliases.items() if moves(name) != moves(first)]
    if split:
        raise NotCovered(f"`moves` answers differently for the tied names of {split}")
    names = [name for name, p in module.named_parameters() if p.requires_grad and moves(name)]
    if not names:
        raise NotCovered("no parameter of this model may move")
    return names


def _all_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _leaves(inputs: Inputs) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs
