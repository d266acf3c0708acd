"""The exact generalised Gauss-Newton matrix of the data term, as products only: G v = Σ_n Jₙᵀ Λₙ Jₙ v.

Jₙ is the Jacobian of the outputs of sample n in the moving parameters, Λₙ the Hessian of its loss in the outputs. One
product is a forward-mode pass (J v), a Hessian-vector product in the outputs (Λ u) and a reverse-mode pass (Jᵀ w): any
module works, tied weights and embeddings included, and nothing of size P×P is ever formed. Positive semi-definite when
the loss is convex in the outputs (Schraudolph 2002).

Shape suffixes: N samples of a chunk, P moving parameters.
"""

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import NotCovered
from .objective import Inputs, Objective


class GaussNewton:
    """The GGN of an objective's data term at fixed weights (weight decay not included).

    Args:
        objective: whose samples are summed.
        theta_P: where the network is linearised.
    """

    def __init__(self, objective: Objective, theta_P: Tensor) -> None:
        self._objective = objective
        self._theta_P = theta_P

    def product(self, v_P: Tensor) -> Tensor:
        """Return G v, shape (P,), float64.

        Raises:
            NotCovered: an operation of the module has no forward-mode derivative.
        """
        total_P = torch.zeros_like(v_P)
        for inputs, targets in self._objective.chunks():
            total_P += self._chunk_product(inputs, targets, v_P)
        self._objective.cost.add(len(self._objective), 2)
        return total_P

    def _chunk_product(self, inputs: Inputs, targets: Tensor, v_P: Tensor) -> Tensor:
        model = self._objective.model
        moving, tangent = model.unflatten(self._theta_P), model.unflatten(v_P)
        with sdpa_kernel(SDPBackend.MATH), _no_attention_shortcut():  # the fused kernels have no forward mode
            try:
                outputs, Jv = jvp(lambda p: model.call(p, inputs), (moving,), (tangent,))[:2]
            except NotImplementedError as missing:
                raise NotCovered(f"no forward-mode derivative: {str(missing).splitlines()[0]}") from missing
            pull = vjp(lambda p: model.call(p, inputs), moving)[1]
        (product,) = pull(output_hessian(self._objective, outputs, targets, Jv))
        return model.flatten(product)


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
