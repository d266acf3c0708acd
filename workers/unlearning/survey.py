"""Which parameter gets which block of EK-FAC: found out by running the model, not by trusting its modules.

Linear, Conv1d, Conv2d (one group) and Embedding get a block of their own. Everything else that moves gets the GGN's
diagonal: normalisation, recurrent and attention weights (torch runs the latter without their modules), grouped
convolutions, biases of frozen weights, and every weight that is tied, runs more than once per pass, or is also used
outside its module, where published K-FAC libraries are silently wrong. A layer keeps its block only if its inputs and
output gradients reproduce autograd's gradient of the weight on the first chunk.

Shape suffixes: N samples of a chunk, P moving parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cotangents import each_input, pulled_back
from .errors import NotCovered
from .layers import LARGEST_PIECE, Layer, Run, gradient, layers, recorded
from .model import Inputs, Model
from .objective import Objective

FEWEST_ROWS = 8  # per-sample gradients that must fit in memory at once to be formed


@dataclass(frozen=True)
class Plan:
    """What the first chunk showed.

    Attributes:
        layers: get a Kronecker-factored block (an embedding: half of one).
        diagonal: names of all other moving parameters.
        batched: the diagonal's per-sample gradients fit in memory, and vmap knows the module's operations.
    """

    layers: list[Layer]
    diagonal: list[str]
    batched: bool

    @property
    def sums(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of everything that is summed."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            rows, columns = layer.shape
            shapes[f"eigenvalues:{layer.weight}"] = (rows, columns)
            shapes[f"right:{layer.weight}"] = (columns, columns)
            if not isinstance(layer.module, nn.Embedding):
                shapes[f"left:{layer.weight}"] = (rows, rows)
        return shapes


def survey(objective: Objective, theta_P: Tensor) -> Plan:
    """Run the first chunk forward and backward, and decide.

    Raises:
        NotCovered: a moving parameter has no path to the outputs.
    """
    model, (inputs, targets) = objective.model, next(objective.chunks())
    moving, found = leaves(model, theta_P), layers(model)
    with recorded(found) as calls, torch.enable_grad():
        outputs = model.call(moving, inputs)
    single = {w: runs[0] for w, runs in calls.items() if len(runs) == 1 and runs[0][1].requires_grad}
    probe = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(outputs)
    autograd = _gradients(outputs, probe, moving)
    backward = pulled(outputs, probe, single)
    good = [
        layer for layer in found if layer.weight in backward and _reproduced(layer, backward, autograd, len(targets))
    ]
    objective.cost.add(len(targets), 1 + 2 / 3)
    diagonal = [name for name in model.names if name not in {name for layer in good for name in layer.names}]
    return Plan(good, diagonal, _batches(objective, theta_P, inputs, probe, diagonal))


def pulled(outputs: Tensor, cotangent: Tensor, runs: dict[str, Run]) -> dict[str, Run]:
    """Replace each layer's output by the gradient there."""
    if not runs:
        return {}
    ends = [output for _, output in runs.values()]
    grads = torch.autograd.grad(outputs, ends, cotangent, allow_unused=True, materialize_grads=True, retain_graph=True)
    return {weight: (x, grad) for (weight, (x, _)), grad in zip(runs.items(), grads, strict=True)}


def leaves(model: Model, theta_P: Tensor) -> dict[str, Tensor]:
    """Return the moving parameters as leaves of autograd."""
    return {name: tensor.detach().requires_grad_() for name, tensor in model.unflatten(theta_P).items()}


def _gradients(outputs: Tensor, cotangent: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return autograd's gradients, refusing parameters without a path to the outputs."""
    if not outputs.requires_grad:
        raise NotCovered("the outputs depend on no moving parameter")
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangent, allow_unused=True, retain_graph=True)
    reached = {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    if len(reached) < len(leaves):
        raise NotCovered(f"no gradient path from the outputs to {sorted(leaves.keys() - reached.keys())}")
    return reached


def _reproduced(layer: Layer, runs: dict[str, Run], autograd: dict[str, Tensor], samples: int) -> bool:
    """Tell whether the layer's rows account for its whole gradient."""
    x, g = runs[layer.weight]
    if not isinstance(layer.module, nn.Linear | nn.Embedding) and x.dim() != layer.module.weight.dim():
        return False  # a convolution of one image without a batch
    rows = layer.shape[0]
    expected = torch.cat([autograd[name].reshape(rows, -1) for name in layer.names], dim=1)
    error = float((gradient(layer, x, g, samples=samples) - expected).norm())
    allowed: float = 8 * torch.finfo(g.dtype).eps ** 0.5 * float(expected.norm())
    return error <= allowed


def _batches(objective: Objective, theta_P: Tensor, inputs: Inputs, probe: Tensor, names: list[str]) -> bool:
    """Tell whether per-sample gradients of these parameters can be formed: small enough, and known to vmap."""
    size = sum(tensor.numel() for name, tensor in objective.model.unflatten(theta_P).items() if name in names)
    if not size or size * FEWEST_ROWS > LARGEST_PIECE:
        return False
    try:
        pulled_back(objective, theta_P, each_input(inputs, lambda t: t[:2, None]), probe[:2, None], names)
    except RuntimeError:  # vmap's only way to say that an operation cannot be batched
        return False
    return True
