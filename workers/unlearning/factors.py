"""EK-FAC factors: a block-diagonal curvature that is inverted by two rotations and a division, and its file.

A block is L (e ⊙ (LᵀXR)) Rᵀ for the parameters laid out as a matrix X: L and R rotate into the eigenbases of the
Kronecker factors, e are the corrected eigenvalues (George et al. 2018). A missing rotation is the identity. All numbers
are float64.

Shape suffix: P moving parameters.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .errors import FactorsDoNotFit, NotCovered, NotInvertible
from .model import Model
from .solve import Operator
from .tensor_files import read_tensors, write_tensors

FORMAT = "ekfac-2"  # since 2 with a digest of its tensors


@dataclass(frozen=True)
class Block:
    """The curvature of one layer, or the diagonal of one parameter.

    Attributes:
        kind: "kronecker" (both rotations), "embedding" (right only) or "diagonal" (none).
        names: parameters laid side by side, each reshaped to the eigenvalues' number of rows.
        eigenvalues: matrix e ≥ 0, summed over the samples.
        left: orthogonal, rows × rows.
        right: orthogonal, columns × columns.
    """

    kind: str
    names: tuple[str, ...]
    eigenvalues: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def filtered(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiply x by these factors in the block's basis."""
        rotated = x if self.left is None else self.left.T @ x
        rotated = factors * (rotated if self.right is None else rotated @ self.right)
        rotated = rotated if self.left is None else self.left @ rotated
        return rotated if self.right is None else rotated @ self.right.T


class Ekfac:
    """Fitted factors of the data term's GGN, summed over the samples; weight decay not included.

    Args:
        blocks: each moving parameter in exactly one.
        shapes: moving parameters in the order of the vectors, as `Model.flatten` lays them.
        samples: how many were summed over.

    Raises:
        NotCovered: a parameter is in no block or in two.
        FactorsDoNotFit: an eigenvalue is negative or not finite, or no samples were summed over.
    """

    def __init__(self, blocks: Sequence[Block], shapes: Mapping[str, Sequence[int]], samples: int) -> None:
        counts = Counter(name for block in blocks for name in block.names)
        wrong = {name: counts[name] for name in {*shapes, *counts} if counts[name] != 1 or name not in shapes}
        if wrong:
            raise NotCovered(f"curvature blocks per parameter, where not exactly one: {wrong}")
        bad = sum(not bool((b.eigenvalues >= 0).all() and b.eigenvalues.isfinite().all()) for b in blocks)
        if bad or samples < 1:
            raise FactorsDoNotFit(
                f"{bad} of {len(blocks)} blocks hold eigenvalues that no curvature has; {samples} samples"
            )
        self.blocks = tuple(blocks)
        self.samples = samples
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]

    @property
    def kinds(self) -> dict[str, str]:
        """Return each parameter's kind of block."""
        return {name: block.kind for block in self.blocks for name in block.names}

    def product(self, v_P: Tensor) -> Tensor:
        """Return EKFAC v, shape (P,), float64."""
        return self._filtered(v_P, lambda eigenvalues: eigenvalues)

    def inverse(self, *, shift: float, scale: float = 1.0) -> Operator:
        """Return r ↦ (scale·EKFAC + shift·I)⁻¹ r, symmetric positive definite.

        A model that is held still in places needs `Model.free` around it.

        Args:
            shift: weight decay plus damping, > 0.
            scale: samples of the system to be solved over `samples` of the fit.

        Raises:
            NotInvertible: shift or scale leave it indefinite or singular.
        """
        if not (0 < shift < math.inf and 0 <= scale < math.inf):
            raise NotInvertible(f"shift {shift:.3g} and scale {scale:.3g} give no positive definite preconditioner")
        return lambda r_P: self._filtered(r_P, lambda eigenvalues: 1 / (scale * eigenvalues + shift))

    def check_fits(self, model: Model, *, called: str = "the curvature") -> None:
        """Refuse a model that moves other parameters than these factors cover.

        Raises:
            FactorsDoNotFit: with both lists of shapes.
        """
        shapes = _shapes_of(model)
        if list(self._shapes.items()) != list(shapes.items()):
            raise FactorsDoNotFit(f"{called} covers {json.dumps(self._shapes)}, the model moves {json.dumps(shapes)}")

    def save(self, path: Path, *, weights_digest: str, manifest_digest: str) -> None:
        """Write one safetensors file, whole or not at all, bound to the weights and the manifest it was fitted to."""
        about = {
            "format": FORMAT,
            "weights": weights_digest,
            "manifest": manifest_digest,
            "samples": str(self.samples),
            "shapes": json.dumps(self._shapes),
            "blocks": json.dumps([{"kind": block.kind, "names": block.names} for block in self.blocks]),
        }
        parts = {f"{i}.{part}": getattr(b, part) for i, b in enumerate(self.blocks) for part in _PARTS}
        write_tensors(path, {name: tensor for name, tensor in parts.items() if tensor is not None}, about)

    @classmethod
    def load(cls, path: Path, model: Model, *, weights_digest: str, manifest_digest: str) -> Self:
        """Read factors back, onto the model's device.

        Raises:
            DamagedFile: the file was cut or altered, or is none of ours.
            FactorsDoNotFit: it was fitted to other weights, samples or parameters.
        """
        tensors, about = read_tensors(path)
        wanted = {"format": FORMAT, "weights": weights_digest, "manifest": manifest_digest}
        for key, value in wanted.items():
            if about.get(key) != value:
                raise FactorsDoNotFit(f"{key} of {path.name} is {about.get(key)}, asked for {value}")
        parts = {name: tensor.to(model.theta_P.device) for name, tensor in tensors.items()}
        blocks = [
            Block(b["kind"], tuple(b["names"]), *(parts.get(f"{i}.{part}") for part in _PARTS))  # type: ignore[arg-type]  # eigenvalues are always there
            for i, b in enumerate(json.loads(about["blocks"]))
        ]
        found = cls(blocks, json.loads(about["shapes"]), int(about["samples"]))
        found.check_fits(model, called=path.name)
        return found

    def _filtered(self, v_P: Tensor, factors: Callable[[Tensor], Tensor]) -> Tensor:
        pieces = dict(zip(self._shapes, torch.split(v_P, self._sizes), strict=True))
        for block in self.blocks:
            columns = [pieces[name].reshape(len(block.eigenvalues), -1) for name in block.names]
            result = block.filtered(torch.cat(columns, dim=1), factors(block.eigenvalues))
            split = torch.split(result, [column.shape[1] for column in columns], dim=1)
            pieces.update({name: part.reshape(-1) for name, part in zip(block.names, split, strict=True)})
        return torch.cat([pieces[name] for name in self._shapes])


_PARTS = ("eigenvalues", "left", "right")


def _shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.unflatten(model.theta_P).items()}
