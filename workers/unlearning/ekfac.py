"""EK-FAC of an objective's GGN, fitted in two passes over the samples: the projection's metric, and a preconditioner.

Each layer's curvature is approximated by A ⊗ B, input moments times output-gradient moments (Martens & Grosse 2015).
The first pass sums A and B; the second sums, in their eigenbasis, the squares of each sample's own gradient, which are
the best eigenvalues for that basis (George et al. 2018). Gradients are pulled back from random cotangents with
covariance Λ (see `cotangents`): it is the GGN that is approximated, not the empirical Fisher. Parameters outside such
layers get the GGN's diagonal (see `survey`).

Not always a gain, since coupling between layers is left out: on a small tanh net with badly scaled inputs 708 products
became 222, but on a trained interpolating ReLU net (987 weights, λ = 0.5) 50 became 99, where even the exact diagonal
blocks saved only 3. Compare with the unpreconditioned solve and with `sketch` before relying on it.

Shape suffixes: N samples of a chunk, P moving parameters.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import fingerprint
from .cotangents import cotangents, each_input, pulled_back, rough_root, square_root
from .errors import BadSetting, FactorsDoNotFit, NotCovered
from .factors import Block, Ekfac
from .layers import LARGEST_PIECE, Layer, Run, add_covariances, add_moments, recorded
from .model import Inputs, Progress
from .objective import Objective
from .survey import leaves, pulled, survey
from .tensor_files import digest_of, read_tensors, write_tensors

__all__ = ["Block", "Ekfac", "fit"]

SAVE_EVERY = 8  # chunks
PIECES = 64  # of a chunk, where per-sample gradients are not formed

Part = Callable[[Inputs, Tensor, int], None]


def fit(
    objective: Objective,
    theta_P: Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> Ekfac:
    """Return the EK-FAC of the objective's data term at these weights, summed over its samples.

    Args:
        objective: whose samples are streamed, twice. Where it is sharded, each rank sums its share.
        theta_P: where the network is linearised.
        draws: cotangents per sample. A power of two not below the outputs of a sample removes their noise.
        seed: of the cotangents.
        progress: called with a share in [0, 1].
        resume: a file that holds the sums every few chunks. A second call with the same file and arguments continues
            there, to the same bits on the same machine. It holds statistics of the samples: the caller deletes it.

    Raises:
        BadSetting: no draws.
        NotCovered: a moving parameter has no path to the outputs.
        FactorsDoNotFit: the file to resume from belongs to another fit: other weights, samples, code or settings.
        DamagedFile: the file to resume from was cut or altered.
    """
    if draws < 1:
        raise BadSetting(f"draws is {draws}: without a cotangent there is no curvature")
    run = _Fit(objective, theta_P, draws, seed)
    keep = _Keeper(resume, _fingerprint(objective, theta_P, draws, seed) if resume else "", run)
    told = progress or (lambda _: None)
    for part in (run.add_covariances, run.add_moments):
        run.begin(part)
        for number, (inputs, targets) in enumerate(objective.own_chunks()):
            if keep.next_is_due():
                part(inputs, targets, number)
                keep.count(len(targets))
                told(keep.samples / (2 * run.samples))
    told(1.0)
    return run.finished()


class _Fit:
    """The sums of one fit, and how a chunk adds to them."""

    def __init__(self, objective: Objective, theta_P: Tensor, draws: int, seed: int) -> None:
        self.objective, self.theta_P, self.draws, self.seed = objective, theta_P, draws, seed
        self.model = objective.model
        self.leaves = leaves(self.model, theta_P)
        self.plan = survey(objective, theta_P)
        self.samples = max(1, len(objective.shards.mine(objective.sample_ids)))
        size = sum(self.leaves[name].numel() for name in self.plan.diagonal)
        shapes = {**self.plan.sums, "diagonal": (size,)}
        self.sums = {name: theta_P.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self.bases: dict[str, dict[str, Tensor]] = {}

    def begin(self, part: Part) -> None:
        """Before the second pass: rotate into the eigenvectors of what the first one summed, on all ranks."""
        if part == self.add_moments:
            total = {name: self.objective.shards.sum(sums) for name, sums in self._named("left", "right").items()}
            vectors = {name: torch.linalg.eigh(covariance)[1] for name, covariance in total.items()}
            for layer in self.plan.layers:
                sides = {side: vectors.get(f"{side}:{layer.weight}") for side in ("left", "right")}
                self.bases[layer.weight] = {side: basis for side, basis in sides.items() if basis is not None}

    def add_covariances(self, inputs: Inputs, targets: Tensor, number: int) -> None:
        """First pass: inputs' and output gradients' second moments."""
        if not self.plan.layers:
            return
        for _, runs in self._draw(inputs, targets, number):
            for layer in self.plan.layers:
                sides = {s: self.sums[f"{s}:{layer.weight}"] for s in ("left", "right") if self._has(s, layer)}
                add_covariances(layer, sides, *runs[layer.weight], samples=len(targets))
        self._charge(targets, 1 / 3 + 2 / 3 * self.draws)

    def add_moments(self, inputs: Inputs, targets: Tensor, number: int) -> None:
        """Second pass: squares of each sample's gradient in the eigenbases."""
        for cotangents_N, runs in self._draw(inputs, targets, number):
            for layer in self.plan.layers:
                moments = self.sums[f"eigenvalues:{layer.weight}"]
                add_moments(layer, moments, self.bases[layer.weight], *runs[layer.weight], samples=len(targets))
            if self.plan.diagonal:
                squares = self._batched_squares if self.plan.batched else self._pieced_squares
                self.sums["diagonal"] += squares(inputs, cotangents_N)
        again = self.draws if self.plan.diagonal else 0
        self._charge(targets, 1 / 3 + (2 / 3 * self.draws if self.plan.layers else 0) + again)

    def finished(self) -> Ekfac:
        """Divide by the draws and hand the blocks over."""
        every = {**self._named("eigenvalues"), "diagonal": self.sums["diagonal"]}
        total = {name: self.objective.shards.sum(sums) / self.draws for name, sums in every.items()}
        blocks = [
            Block(
                "kronecker" if "left" in self.bases[layer.weight] else "embedding",
                layer.names,
                total[f"eigenvalues:{layer.weight}"],
                **self.bases[layer.weight],
            )
            for layer in self.plan.layers
        ]
        pieces = torch.split(total["diagonal"], [self.leaves[name].numel() for name in self.plan.diagonal])
        for name, piece in zip(self.plan.diagonal, pieces, strict=True):
            blocks.append(Block("diagonal", (name,), piece[None, :]))
        return Ekfac(blocks, {name: leaf.shape for name, leaf in self.leaves.items()}, len(self.objective))

    def _draw(self, inputs: Inputs, targets: Tensor, number: int) -> Iterator[tuple[Tensor, dict[str, Run]]]:
        """Yield each draw's cotangents with the input and the output gradient of every layer."""
        with recorded(self.plan.layers) as calls, torch.enable_grad():
            outputs = self.model.call(self.leaves, inputs)
        runs = {weight: _once(weight, times) for weight, times in calls.items()}
        flat = outputs.detach()
        root = square_root(self.objective, flat, targets) or rough_root(self.objective, flat, targets)
        generator = torch.Generator().manual_seed((self.seed << 32) + number)
        for v in cotangents(root, flat, draws=self.draws, generator=generator):
            yield v, pulled(outputs, v, runs)

    def _batched_squares(self, inputs: Inputs, cotangents_N: Tensor) -> Tensor:
        """Return the diagonal's share of a chunk from per-sample gradients."""
        total, step = torch.zeros_like(self.sums["diagonal"]), max(1, LARGEST_PIECE // len(self.sums["diagonal"]))
        for part in _parts(len(cotangents_N), step):
            alone = each_input(inputs, lambda tensor, part=part: tensor[part, None])  # type: ignore[misc]  # a default binds the loop's slice
            rows = pulled_back(self.objective, self.theta_P, alone, cotangents_N[part, None], self.plan.diagonal)
            total += rows.square().sum(0)
        return total

    def _pieced_squares(self, inputs: Inputs, cotangents_N: Tensor) -> Tensor:
        """Return it without per-sample gradients: the square of a sum with random signs has the right expectation."""
        total, step = torch.zeros_like(self.sums["diagonal"]), -(-len(cotangents_N) // PIECES)
        moved = [self.leaves[name] for name in self.plan.diagonal]
        for part in _parts(len(cotangents_N), step):
            piece = each_input(inputs, lambda tensor, part=part: tensor[part])  # type: ignore[misc]  # as above
            with torch.enable_grad():
                outputs = self.model.call(self.leaves, piece)
            grads = torch.autograd.grad(outputs, moved, cotangents_N[part], materialize_grads=True, allow_unused=True)
            total += torch.cat([grad.reshape(-1).double() for grad in grads]).square()
        return total

    def _has(self, side: str, layer: Layer) -> bool:
        return f"{side}:{layer.weight}" in self.sums

    def _named(self, *parts: str) -> dict[str, Tensor]:
        return {name: sums for name, sums in self.sums.items() if name.partition(":")[0] in parts and ":" in name}

    def _charge(self, targets: Tensor, each: float) -> None:
        """Count a chunk's work as if one process did all of it."""
        self.objective.cost.add(len(targets), each * len(self.objective) / self.samples)


class _Keeper:
    """Where a fit stands, kept in a file every few chunks."""

    def __init__(self, path: Path | None, fingerprint: str, run: _Fit) -> None:
        self.samples = 0
        self._path, self._fingerprint, self._sums = path, fingerprint, run.sums
        self._seen = self._done = 0
        if path is not None and path.exists():
            self._load(path)

    def next_is_due(self) -> bool:
        """Count one more chunk of either pass and tell whether it still has to be summed."""
        self._seen += 1
        return self._seen > self._done

    def count(self, samples: int) -> None:
        """Note that the chunk is in the sums; a crash before the next save repeats at most SAVE_EVERY chunks."""
        self._done, self.samples = self._seen, self.samples + samples
        if self._path is not None and self._done % SAVE_EVERY == 0:
            about = {"fit": self._fingerprint, "done": str(self._done), "samples": str(self.samples)}
            write_tensors(self._path, self._sums, about)

    def _load(self, path: Path) -> None:
        tensors, about = read_tensors(path)
        if about.get("fit") != self._fingerprint:
            raise FactorsDoNotFit(f"{path.name} belongs to the fit {about.get('fit')}, this one is {self._fingerprint}")
        for name, sums in self._sums.items():
            sums.copy_(tensors[name])
        self._done, self.samples = int(about["done"]), int(about["samples"])


def _once(weight: str, runs: list[Run]) -> Run:
    if len(runs) != 1:
        raise NotCovered(f"the layer of {weight} ran once on the first chunk and {len(runs)} times on a later one")
    return runs[0]


def _parts(samples: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, samples, step))


def _fingerprint(objective: Objective, theta_P: Tensor, draws: int, seed: int) -> str:
    """Digest everything that decides the sums: settings, ids, the recipe's code, its first chunk, and every weight."""
    inputs, targets = next(objective.chunks())
    shards, model = objective.shards, objective.model
    words = [draws, seed, len(targets), shards.rank, shards.world, model.names, list(objective.sample_ids)]
    about = {
        "words": json.dumps(words),
        "source": fingerprint.of_source(model.recipe),
        "chunk": fingerprint.of_chunk(inputs, targets),
    }
    return digest_of({**model.state(model.theta_P), "at theta": theta_P}, about)
