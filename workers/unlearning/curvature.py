"""The exact generalised Gauss-Newton matrix of the data term, as products only: G v = Σ_n Jₙᵀ Λₙ Jₙ v.

Jₙ is the Jacobian of the outputs of sample n in the moving parameters, Λₙ the Hessian of its loss in the outputs. One
product is a forward-mode pass (J v), a Hessian-vector product in the outputs (Λ u) and a reverse-mode pass (Jᵀ w): any
module works, tied weights and embeddings included, and nothing of size P×P is ever formed. Positive semi-definite when
the loss is convex in the outputs (Schraudolph 2002).

A solve asks for many products at one θ. From the second on, each chunk's forward pass is kept as a tape, where memory
allows: u ↦ Jᵀu is linear in u, and pulling v back through it gives J v (double reverse mode). A tape is trusted only
after it gave the same product as forward mode did, since an owner's backward need not be differentiable itself.

Shape suffixes: N samples of a chunk, P moving parameters.
"""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import NotCovered
from .model import Inputs
from .objective import Objective


class GaussNewton:
    """The GGN of an objective's data term at fixed weights (weight decay not included).

    Args:
        objective: whose samples are summed.
        theta_P: where the network is linearised.
    """

    def __init__(self, objective: Objective, theta_P: Tensor) -> None:
        self._objective = objective
        self._theta_P = theta_P
        self._products = 0
        self._room_bytes = objective.keep_bytes
        self._tapes: dict[int, _Tape] = {}

    def product(self, v_P: Tensor) -> Tensor:
        """Return G v, shape (P,), float64; zero where the model is held still, whatever v says there.

        A collective with one all-reduce where the objective is sharded.

        Raises:
            NotCovered: an operation of the module has no forward-mode derivative.
        """
        free, total_P = self._objective.model.free, torch.zeros_like(v_P)
        for number, (inputs, targets) in enumerate(self._objective.own_chunks()):
            if number in self._tapes:
                total_P += self._tapes[number].product(targets, free(v_P))
                continue
            part_P = self._chunk_product(inputs, targets, free(v_P))
            total_P += part_P
            if self._products == 1:
                self._keep_tape(number, inputs, targets, v_P=free(v_P), product_P=part_P)
        self._products += 1
        self._objective.cost.add(len(self._objective), 2)
        return free(self._objective.shards.sum(total_P))

    def _chunk_product(self, inputs: Inputs, targets: Tensor, v_P: Tensor) -> Tensor:
        model = self._objective.model
        moving, tangent = model.unflatten(self._theta_P), model.unflatten(v_P)
        with sdpa_kernel(SDPBackend.MATH), _no_attention_shortcut():  # the fused kernels have no forward mode
            try:
                outputs, Jv = jvp(lambda p: model.call(p, inputs), (moving,), (tangent,))[:2]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as missing:  # NotImplementedError, or a kernel that refuses its tangent's dtype
                raise NotCovered(
                    f"no forward-mode derivative, renewal or retraining do without: {str(missing).splitlines()[0]}"
                ) from missing
            pull = vjp(lambda p: model.call(p, inputs), moving)[1]
        (product,) = pull(output_hessian(self._objective, outputs, targets, Jv))
        return model.flatten(product)

    def _keep_tape(self, number: int, inputs: Inputs, targets: Tensor, *, v_P: Tensor, product_P: Tensor) -> None:
        """Tape a chunk if there is room, and keep the tape if it agrees with forward mode to half of the digits."""
        if self._room_bytes <= 0:
            return
        try:
            tape = _Tape(self._objective, self._theta_P, inputs)
            error = float((tape.product(targets, v_P) - product_P).norm())
        except RuntimeError:  # torch's only way to say that a backward cannot be differentiated
            return
        self._room_bytes -= tape.bytes
        if self._room_bytes >= 0 and error <= torch.finfo(tape.dtype).eps ** 0.5 * float(product_P.norm()):
            self._tapes[number] = tape


class _Tape:
    """One chunk's outputs z(θ) and the graph of u ↦ Jᵀu, ready for any number of products."""

    def __init__(self, objective: Objective, theta_P: Tensor, inputs: Inputs) -> None:
        self._objective = objective
        leaves = {name: t.detach().requires_grad_() for name, t in objective.model.unflatten(theta_P).items()}
        self._leaves = list(leaves.values())
        held: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        plain = sdpa_kernel(SDPBackend.MATH), _no_attention_shortcut()  # the fused kernels have no second derivative
        with torch.enable_grad(), saved_tensors_hooks(count, lambda kept: kept), plain[0], plain[1]:
            self._outputs = objective.model.call(leaves, inputs)
            self._u = torch.zeros_like(self._outputs, requires_grad=True)
            self._pulled = torch.autograd.grad(self._outputs, self._leaves, self._u, create_graph=True)
        self.dtype = self._outputs.dtype
        self.bytes = sum(held.values()) + sum(t.numel() * t.element_size() for t in (self._outputs, *self._pulled))

    def product(self, targets: Tensor, v_P: Tensor) -> Tensor:
        """Return this chunk's share of G v, shape (P,), float64."""
        model = self._objective.model
        tangents = list(model.unflatten(v_P).values())
        (Jv,) = torch.autograd.grad(self._pulled, self._u, tangents, retain_graph=True)
        w = output_hessian(self._objective, self._outputs, targets, Jv)
        product = torch.autograd.grad(self._outputs, self._leaves, w, retain_graph=True)
        return model.flatten(dict(zip(model.names, product, strict=True)))


def output_hessian(objective: Objective, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
    """Return Λ u: the loss's Hessian in the outputs, block-diagonal over samples, times u of the outputs' shape."""
    slope = grad(lambda z: objective.model.recipe.loss(z, targets).sum())
    curved: Tensor = jvp(slope, (outputs.detach(),), (u.detach(),))[1]
    return curved.detach()


class _no_attention_shortcut:  # noqa: N801 - reads as a context manager
    """Switch off nn.TransformerEncoderLayer's fused inference path, which has no forward mode, for one product."""

    def __enter__(self) -> None:
        self._was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._was)
