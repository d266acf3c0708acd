"""What the owner's model minimises, as a sum over the samples still in it.

The owner writes a `Recipe`. A `Model` is that recipe with concrete weights; an `Objective` binds a model to sample ids:

    J_R(θ) = Σ_{i∈R} ℓ_i(θ) + ½ (l2_per_sample·|R| + l2_total) |θ_moving|²

Sums, never means: a gradient of a sum meets a curvature of a sum, and no step is off by a factor |R|. Being sums, they
shard over processes: see `sharding`.

Shape suffixes: N samples, P moving parameters.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .bounds import plain_ids
from .errors import BadSetting, NonFinite, NotCovered, NothingToForget, RecipeMisbehaves
from .model import Inputs, Model, Recipe, Weights, fetch, split_arguments
from .persample import check_per_sample
from .sharding import ALONE, Shards


@dataclass
class Cost:
    """Work done so far, in per-sample forward-backward equivalents.

    A loss evaluation counts 1/3, a gradient 1, a GGN product 2 (one jvp, one vjp), each times the samples it read. A
    product from a tape counts 2 all the same: the count depends on the work asked for, never on how much memory there
    was to save some of it (a taped product took half the time on small MLPs, the same time on a small CNN).
    The count is deterministic; it is compared with passes of training, which cost 1 per sample. Work that is sharded
    counts in full on every rank, and work that every rank repeats counts once: the count is that of a single process.
    """

    forward_backwards: float = 0.0

    def add(self, samples: int, each: float) -> None:
        """Charge `each` forward-backward equivalents for every one of `samples`."""
        self.forward_backwards += samples * each


class Objective:
    """The training objective over a fixed set of samples, streamed in chunks.

    Args:
        model: recipe and weights.
        sample_ids: the samples summed over, in this order; all of them, on every rank.
        batch_size: samples per chunk; bounds memory, changes no result beyond rounding.
        cost: where work is counted.
        keep_bytes: fetched chunks are kept in memory up to this many bytes, so that a solve does not fetch anew;
            repeated GGN products at one θ may keep as much again in tapes.
        shards: the processes that share the sums. `losses`, `value`, `gradient` and GGN products are then collectives
            of one all-reduce each; `chunks` and `outputs` run over everything on every rank.
    """

    def __init__(
        self,
        model: Model,
        sample_ids: Sequence[int],
        *,
        batch_size: int = 1024,
        cost: Cost | None = None,
        keep_bytes: int = 1 << 28,
        shards: Shards = ALONE,
    ) -> None:
        if not sample_ids:
            raise NothingToForget("an objective over no samples has no minimum")
        if batch_size < 1:
            raise BadSetting(f"batch_size is {batch_size}: a chunk has one sample or more")
        self.model = model
        self.sample_ids = list(sample_ids)
        self.cost = cost if cost is not None else Cost()
        self.shards = shards
        self.keep_bytes = keep_bytes
        self._places = shards.mine(range(len(self.sample_ids)))
        mine = [self.sample_ids[place] for place in self._places]
        self._mine = _Chunks(model.recipe, mine, batch_size, keep_bytes)
        shared = shards.world > 1
        self._all = _Chunks(model.recipe, self.sample_ids, batch_size, 0) if shared else self._mine

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def l2(self) -> float:
        """The factor of ½|θ|² for this many samples."""
        return self.model.recipe.l2_per_sample * len(self) + self.model.recipe.l2_total

    def chunks(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield inputs and targets of all samples chunk by chunk, in the order of the ids."""
        yield from self._all

    def own_chunks(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield this rank's share of the chunks: sum over them, then over `shards`."""
        yield from self._mine

    def value(self, theta_P: Tensor) -> float:
        """Return J_R(θ), summed in float64."""
        return float(self.losses(theta_P).sum()) + 0.5 * self.l2 * float(theta_P @ theta_P)

    def losses(self, theta_P: Tensor) -> Tensor:
        """Return ℓ_i(θ) for every sample in order, shape (N,), float64."""
        moving = self.model.unflatten(theta_P)
        losses_N = torch.zeros(len(self), dtype=torch.float64, device=theta_P.device)
        with torch.no_grad():
            parts = [self._loss(self.model.call(moving, inputs), targets) for inputs, targets in self._mine]
        if parts:
            losses_N[self._places] = torch.cat(parts).double()
        self.cost.add(len(self), 1 / 3)
        return self.shards.sum(losses_N)

    def outputs(self, theta_P: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's outputs and the targets for every sample in order; each rank computes all of them."""
        moving = self.model.unflatten(theta_P)
        with torch.no_grad():
            pairs = [(self.model.call(moving, inputs), targets) for inputs, targets in self._all]
        self.cost.add(len(self), 1 / 3)
        return torch.cat([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])

    def gradient(self, theta_P: Tensor) -> Tensor:
        """Return ∇J_R(θ), shape (P,), float64; zero where the model is held still.

        Raises:
            NotCovered: a moving parameter has no path to the loss, so no step would take the samples out of it.
        """
        return self.model.free(self.data_gradient(theta_P) + self.l2 * theta_P)

    def data_gradient(self, theta_P: Tensor) -> Tensor:
        """Return Σ ∇ℓ_i(θ) without weight decay, shape (P,), float64, also where the model is held still.

        Raises:
            NotCovered: as `gradient`.
        """
        total_P = torch.zeros_like(theta_P)
        for inputs, targets in self._mine:
            total_P += self._chunk_gradient(theta_P, inputs, targets)
        self.cost.add(len(self), 1)
        return self.shards.sum(total_P)

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


class _Chunks:
    """Inputs and targets of some samples, fetched chunk by chunk and kept up to a number of bytes."""

    def __init__(self, recipe: Recipe, sample_ids: Sequence[int], batch_size: int, keep_bytes: int) -> None:
        self._recipe = recipe
        self._ids = sample_ids
        self._batch_size = batch_size
        self._keep_bytes = keep_bytes
        self._kept: dict[int, tuple[Inputs, Tensor]] = {}

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        for start in range(0, len(self._ids), self._batch_size):
            yield self._kept[start] if start in self._kept else self._fetch(start)

    def _fetch(self, start: int) -> tuple[Inputs, Tensor]:
        inputs, targets = fetch(self._recipe, self._ids[start : start + self._batch_size])
        positional, named = split_arguments(inputs)
        size = sum(t.numel() * t.element_size() for t in (*positional, *named.values(), targets))
        if size <= self._keep_bytes:
            self._keep_bytes -= size
            self._kept[start] = (inputs, targets)
        return inputs, targets


def residual(recipe: Recipe, weights: Weights, all_ids: Sequence[int], *, batch_size: int = 1024) -> Tensor:
    """Return r0 = ∇J_D(θ0), the training gradient that the owner's optimiser left, shape (P,), float64.

    Computed when a model is registered and after each retraining. A network that was stopped early is no minimum; a
    step that ignored r0 would mix more training into the forgetting.
    """
    model = Model(recipe, weights)
    return Objective(model, plain_ids(all_ids), batch_size=batch_size).gradient(model.theta_P)


def check_sets(forget_ids: Sequence[int], retain_ids: Sequence[int]) -> None:
    """Refuse sets that are empty, hold a sample twice, or overlap."""
    if not forget_ids or not retain_ids:
        raise NothingToForget(f"{len(forget_ids)} samples to forget, {len(retain_ids)} to retain: both must be > 0")
    doubles = len(forget_ids) + len(retain_ids) - len(set(forget_ids) | set(retain_ids))
    if doubles:
        raise NothingToForget(f"{doubles} sample ids appear twice in or across the forget and retained sets")


def check_coverage(objective: Objective) -> None:
    """Refuse a model with learned state outside the operator: parameters without a path, buffers that training moves.

    Batch statistics pass: they are recomputed on retained samples after the step. Runs one gradient on the first chunk,
    one forward pass of a copy in training mode, and four samples alone and together; the model is not touched.

    Raises:
        NotCovered: naming the parameters, buffers or modules.
        RecipeMisbehaves: the losses are not per sample, or other ones at every call.
    """
    model = objective.model
    inputs, targets = next(objective.chunks())
    objective._chunk_gradient(model.theta_P, inputs, targets)  # noqa: SLF001 - same module, one chunk is enough here
    left = {*model.frozen_buffers, *model.recomputed_buffers}
    moved = [name for name in _buffers_that_training_moves(model, inputs) if name not in left]
    if moved:
        raise NotCovered(
            f"training moves the buffers {moved}: they carry sums over the forgotten samples that no step reaches; "
            "freeze them in the recipe, recompute them on the retained samples, or name them in `frozen_buffers`"
        )
    mixing = _mixes_samples(model.module)
    if mixing:
        raise NotCovered(f"{mixing} normalise by the batch at hand in eval mode too: no loss belongs to one sample")
    check_per_sample(model, objective.sample_ids)


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
    positional, named = split_arguments(inputs)
    with torch.no_grad(), torch.random.fork_rng():
        twin(*positional, **named)
    moved = [name for name, tensor in twin.named_buffers() if not torch.equal(tensor, before[name])]
    return [name for name in moved if name not in _batch_counts(twin)]


def _batch_counts(module: nn.Module) -> set[str]:
    """Name the counters of batches: they tell how often statistics were gathered, and nothing about anybody."""
    norms = [prefix for prefix, part in module.named_modules() if isinstance(part, _NormBase)]
    return {f"{prefix}.num_batches_tracked".lstrip(".") for prefix in norms}


def _mixes_samples(module: nn.Module) -> list[str]:
    """Name the BatchNorm modules that keep no statistics and so use the batch's, whatever the mode."""
    return [name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part.running_mean is None]
