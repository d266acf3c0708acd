"""Random cotangents whose covariance is the loss's curvature in the outputs, and their way back to the parameters.

With LLᵀ = Λ and random signs ε, v = Lε has E[vvᵀ] = Λ, hence E[(Jᵀv)(Jᵀv)ᵀ] = JᵀΛJ: one reverse pass samples the GGN.
Two laws of Λ are recognised by probing, however wide the outputs: diagonal (squared errors, independent logistic
outputs), and w·(diag(p) − ppᵀ) at each position with p the softmax of the outputs (cross entropy with class weights,
masks, smoothed labels). The latter has the closed root √w·(diag(√p) − p√pᵀ). Signs through it are preferred to labels
drawn from p: for any direction their relative variance is at most 2, a drawn label's grows like 1/p.

Shape suffixes: N samples of a chunk, O numbers in one sample's output, m groups, P moving parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .curvature import output_hessian
from .model import Inputs
from .objective import Objective

Root = Callable[[Tensor], Tensor]

LARGEST_OUTPUT = 512  # numbers in one sample's output: above this a Λ that follows no known law is not factored
HUTCHINSON_PROBES = 8


def square_root(objective: Objective, outputs: Tensor, targets: Tensor) -> Root | None:
    """Return ε ↦ Λ^½ ε on tensors shaped like the outputs, or None: wide outputs under a law that is not recognised."""

    def curve(u: Tensor) -> Tensor:
        return output_hessian(objective, outputs, targets, u.to(outputs.dtype)).double()

    root = _diagonal_root(curve, outputs)
    for dim in sorted({outputs.dim() - 1, 1} & set(range(1, outputs.dim())), reverse=True):
        root = root or _softmax_root(curve, outputs, dim)
    if root is None and outputs[0].numel() <= LARGEST_OUTPUT:
        root = _factored_root(curve, outputs)
    return root


def rough_root(objective: Objective, outputs: Tensor, targets: Tensor) -> Root:
    """Return ε ↦ diag(Λ)^½ ε with the diagonal estimated by signs (Hutchinson): good enough for a preconditioner only.

    Off-diagonal curvature is lost, and the diagonal carries the noise of `HUTCHINSON_PROBES` probes.
    """
    total = torch.zeros_like(outputs, dtype=torch.float64)
    for probe in range(HUTCHINSON_PROBES):
        u = _probe(outputs, probe).sign()
        total += u * output_hessian(objective, outputs, targets, u.to(outputs.dtype)).double()
    root = (total / HUTCHINSON_PROBES).clamp_min(0).sqrt()
    return lambda signs: (root * signs).to(outputs.dtype)


def cotangents(root: Root, outputs: Tensor, *, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield v = Λ^½ ε, `draws` times.

    Draw d multiplies one set of random signs by row d of a Hadamard matrix. So when `draws` is a power of two and at
    least the numbers in one sample's output, the mean of vvᵀ over the draws is Λ exactly, without noise.
    """
    signs = (torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1).to(outputs.device)
    index_O = torch.arange(outputs[0].numel(), device=outputs.device)
    for draw in range(draws):
        shared_O = index_O & draw
        odd_O = torch.stack([(shared_O >> bit) & 1 for bit in range(draws.bit_length())]).sum(0) % 2
        yield root((signs * (1 - 2 * odd_O).reshape(outputs.shape[1:])).double())


def pulled_back(
    objective: Objective, theta_P: Tensor, groups: Inputs, cotangents_m: Tensor, names: Sequence[str]
) -> Tensor:
    """Return Jᵀv of every group of samples for these parameters, one row per group, in one vectorised reverse pass.

    Args:
        objective: whose model is differentiated.
        theta_P: where.
        groups: inputs of shape (m, samples per group, …).
        cotangents_m: shape (m, samples per group, …outputs).
        names: parameters differentiated; the others stay constant.

    Raises:
        RuntimeError: `torch.vmap` cannot batch an operation of the module.
    """
    model = objective.model
    moving = model.unflatten(theta_P)
    chosen = {name: moving[name] for name in names}

    def row(group: Inputs, cotangent: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda p: model.call({**moving, **p}, group), chosen)[1]
        return cast("dict[str, Tensor]", pull(cotangent)[0])

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        rows = vmap(row)(groups, cotangents_m)
    return torch.cat([rows[name].reshape(len(cotangents_m), -1).double() for name in names], dim=1)


def each_input(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a change to the tensors of a chunk's inputs, whatever holds them."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(change(tensor) for tensor in inputs)


def _diagonal_root(curve: Root, outputs: Tensor) -> Root | None:
    u = _probe(outputs, 0)
    diagonal = curve(torch.ones_like(u))
    if not _agree(curve(u), diagonal * u, u, outputs.dtype):
        return None
    root = diagonal.clamp_min(0).sqrt()
    return lambda signs: (root * signs).to(outputs.dtype)


def _softmax_root(curve: Root, outputs: Tensor, dim: int) -> Root | None:
    """Fit the weight w of each position on one probe, and believe it if a second probe agrees."""
    p = outputs.detach().double().softmax(dim)

    def law(u: Tensor) -> Tensor:
        return p * (u - (p * u).sum(dim, keepdim=True))

    first, second = _probe(outputs, 0), _probe(outputs, 1)
    unit = law(first)
    square = unit.square().sum(dim, keepdim=True)
    weight = (curve(first) * unit).sum(dim, keepdim=True) / square.where(square > 0, 1.0)
    if not _agree(curve(second), weight * law(second), second, outputs.dtype):
        return None
    scale, root = weight.clamp_min(0).sqrt(), p.sqrt()
    return lambda signs: (scale * (root * signs - p * (root * signs).sum(dim, keepdim=True))).to(outputs.dtype)


def _factored_root(curve: Root, outputs: Tensor) -> Root:
    """Build Λ column by column and take its root by eigenvalues."""
    width = outputs[0].numel()
    basis_OO = torch.eye(width, dtype=torch.float64, device=outputs.device)
    columns = [curve(e_O.reshape(outputs.shape[1:]).expand_as(outputs)).reshape(-1, width) for e_O in basis_OO]
    values_NO, vectors_NOO = torch.linalg.eigh(torch.stack(columns, dim=2))
    root_NOO = vectors_NOO * values_NO.clamp_min(0).sqrt()[:, None, :]
    return lambda signs: (root_NOO @ signs.reshape(-1, width, 1)).reshape(outputs.shape).to(outputs.dtype)


def _probe(outputs: Tensor, number: int) -> Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.randn(outputs.shape, generator=draw, dtype=torch.float64).to(outputs.device)


def _agree(seen: Tensor, expected: Tensor, u: Tensor, dtype: torch.dtype) -> bool:
    """Compare two curvature products up to the rounding of the loss's own dtype."""
    eps = torch.finfo(dtype).eps
    allowed: float = 8 * eps**0.5 * float(seen.norm()) + 8 * eps * float(u.norm())
    return float((seen - expected).norm()) <= allowed
