"""A recipe with concrete weights: what the owner writes, which parameters move, and the network as a function of them.

The owner writes a `Recipe`; optional protocols beside it say what may move, what is left as it is, which rows belong to
whom, and how to train. The network runs in eval mode throughout (dropout off, batch statistics fixed).

Shape suffix: P moving parameters.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import NonFinite, NotCovered, RecipeMisbehaves, WeightsDoNotFit

Weights = Mapping[str, Tensor]
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Progress = Callable[[float], None]
STATISTICS = "running_mean", "running_var", "num_batches_tracked"


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
class FreezesBuffers(Protocol):
    """A recipe whose owner accepts that some buffers which training moves stay as they are."""

    @property
    def frozen_buffers(self) -> Sequence[str]:
        """Names in the state dict."""


@runtime_checkable
class OwnsRows(Protocol):
    """A recipe with rows that exist only because of some samples, such as a user's row of an embedding table."""

    def owned_rows(self, sample_ids: Sequence[int], /) -> Mapping[str, Sequence[int]]:
        """Return parameter name → indices of its first dimension that no other sample reaches."""


@runtime_checkable
class Paced(Protocol):
    """A recipe that tells how its mini-batch training goes: it unlocks renewal and the resurrection test."""

    @property
    def lr(self) -> float:
        """Learning rate of Adam at the end of training."""

    @property
    def batch_size(self) -> int:
        """Samples per mini-batch."""

    @property
    def epochs(self) -> float:
        """Passes of a whole training: the unit in which cheaper rungs are measured."""


@runtime_checkable
class Trains(Protocol):
    """A recipe that can train from scratch: it unlocks the retraining rung."""

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Progress) -> nn.Module:
        """Train a fresh model on exactly these samples."""


class Model:
    """A recipe with concrete weights: which parameters move, and the module as a function of them.

    Args:
        recipe: the owner's recipe.
        weights: a full state dict, buffers included. Never written to.
        frozen_buffers: buffers that training moves and that the caller accepts to leave as they are, beside those
            that the recipe names. Buffers of a BatchNorm with none frozen are `recomputed_buffers`, to be estimated
            anew on retained samples; any other buffer that training moves is refused by `check_coverage`.
        still_P: True where a moving parameter is held still: every derivative and step is exactly zero there.

    Raises:
        WeightsDoNotFit: names or shapes differ from the built module's, or tied entries disagree.
        NonFinite: a weight is NaN or infinite.
        NotCovered: no parameter may move, one that moves is complex, or the module keeps state that is no tensor.
    """

    def __init__(
        self, recipe: Recipe, weights: Weights, *, frozen_buffers: Sequence[str] = (), still_P: Tensor | None = None
    ) -> None:
        self.recipe = recipe
        own = recipe.frozen_buffers if isinstance(recipe, FreezesBuffers) else ()
        self.frozen_buffers = tuple(dict.fromkeys([*own, *frozen_buffers]))
        self.still_P = still_P
        self.module = build(recipe)
        check_fit(self.module, weights)
        self.module.load_state_dict(dict(weights))
        self.module.eval()
        self._aliases = _aliases(self.module)
        self.recomputed_buffers = _batch_statistics(self.module, self.frozen_buffers)
        self.names = _moving_names(recipe, self.module, self._aliases)
        moving = dict(self.module.named_parameters())
        _check_real({name: moving[name] for name in self.names})
        self._fixed = {n: t.detach() for n, t in _all_tensors(self.module).items() if n not in self.names}
        self._like = {name: moving[name].detach() for name in self.names}
        self._sizes = [tensor.numel() for tensor in self._like.values()]
        self.theta_P = self.flatten(self._like)

    def bound_to(self, recipe: Recipe) -> "Model":
        """Return the same module and weights under a recipe with another loss and targets."""
        twin = copy.copy(self)
        twin.recipe = recipe
        return twin

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay the moving parameters end to end as one float64 vector, tied ones once."""
        return torch.cat([tensors[name].detach().reshape(-1).double() for name in self.names])

    def unflatten(self, vector_P: Tensor) -> dict[str, Tensor]:
        """Cut a vector back into parameters of their own shapes and dtypes."""
        pieces = torch.split(vector_P, self._sizes)
        return {
            n: p.reshape(like.shape).to(like.dtype) for p, (n, like) in zip(pieces, self._like.items(), strict=True)
        }

    def free(self, vector_P: Tensor) -> Tensor:
        """Return the vector with exact zeros where the model is held still."""
        return vector_P if self.still_P is None else vector_P.masked_fill(self.still_P, 0.0)

    def may_move(self, name: str) -> bool:
        """Tell whether this entry of the state dict is a moving parameter (under any of its tied names)."""
        return self.first_name(name) in self.names

    def first_name(self, name: str) -> str:
        """Return the first of a tied parameter's names; any other name is its own."""
        return self._aliases.get(name, name)

    def call(self, moving: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        """Run the module with these moving parameters; everything else stays as registered.

        Raises:
            RecipeMisbehaves: the module returned something else than one tensor.
        """
        arguments, named = split_arguments(inputs)
        return one_tensor(functional_call(self.module, {**self._fixed, **moving}, arguments, named))

    def drawn(self, seed: int) -> Tensor:
        """Return the moving parameters as `recipe.build()` draws them from this seed, shape (P,)."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = dict(self.recipe.build().named_parameters())
        return self.flatten({name: fresh[name] for name in self.names}).to(self.theta_P)

    def state(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Return a full state dict with these moving parameters, sharing memory with nothing."""
        moved = self.unflatten(theta_P)
        state = self.module.state_dict()
        return {name: moved.get(self.first_name(name), state[name]).detach().clone() for name in state}


def build(recipe: Recipe) -> nn.Module:
    """Build the recipe's module without disturbing the caller's random state."""
    with torch.random.fork_rng():
        return recipe.build()


def fetch(recipe: Recipe, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
    """Fetch samples and refuse an answer that lost some.

    Raises:
        RecipeMisbehaves: another number of targets than ids, or something else than tensors.
    """
    inputs, targets = recipe.fetch(sample_ids)
    positional, named = split_arguments(inputs)
    odd = {type(part).__name__ for part in (*positional, *named.values(), targets) if not isinstance(part, Tensor)}
    if odd:
        raise RecipeMisbehaves(f"fetch returned {sorted(odd)}: inputs are a tensor, or a tuple or dict of tensors")
    if targets.ndim == 0 or len(targets) != len(sample_ids):
        count = len(targets) if targets.ndim else "no row of"
        raise RecipeMisbehaves(f"fetch returned {count} targets for {len(sample_ids)} ids")
    return inputs, targets


def one_tensor(outputs: object) -> Tensor:
    """Refuse what a module returned if it is not the one tensor that the loss is a function of."""
    if not isinstance(outputs, Tensor):
        raise RecipeMisbehaves(
            f"the module returned a {type(outputs).__name__}: return one tensor with a row per sample, "
            "or let `build` wrap the module in one that does"
        )
    return outputs


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's state dict, which a file of tensors must be able to hold.

    Raises:
        NotCovered: naming entries that are no tensors.
    """
    state = dict(module.state_dict())
    odd = sorted(name for name, entry in state.items() if not isinstance(entry, Tensor))
    if odd:
        raise NotCovered(f"the module keeps {odd}, which are no tensors (get_extra_state): make them buffers")
    return state


def check_fit(module: nn.Module, weights: Weights) -> None:
    """Refuse weights that are not a finite state of this module, naming what is missing, unexpected or misshapen."""
    expected = tensors_of(module)
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


def split_arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return what a recipe fetched as positional and named arguments of the module."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})


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


def _check_real(moving: Mapping[str, Tensor]) -> None:
    """Refuse complex parameters: vectors of moving parameters are real, and half of each number would be lost."""
    odd = [name for name, parameter in moving.items() if not parameter.is_floating_point()]
    if odd:
        raise NotCovered(f"{odd} are no real numbers: keep real and imaginary parts apart, or freeze them with `moves`")


def _batch_statistics(module: nn.Module, frozen: Sequence[str]) -> tuple[str, ...]:
    """Name the buffers of every BatchNorm none of whose buffers is frozen."""
    names: list[str] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            own = [f"{prefix}.{name}" if prefix else name for name in STATISTICS]
            names += own if not {*own} & {*frozen} else []
    return tuple(names)


def _all_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
