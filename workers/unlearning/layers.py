"""What a linear, convolutional or embedding layer knows about its own gradient: rows in, rows of gradients out.

The gradient of sample n in a layer is Σ_l g_nl a_nlᵀ over the positions l where the layer ran for that sample (tokens,
pixels), a being its inputs (patches of the image for a convolution, with a one for the bias) and g the gradient of its
outputs. EK-FAC needs three sums of these: Σ aaᵀ, Σ ggᵀ, and the squares of the samples' gradients in a rotated basis.
Nothing of the size samples × parameters is formed.

Shape suffixes: N samples, L positions of a sample, I inputs of a layer (bias included), O its outputs, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import Model

Run = tuple[Tensor, Tensor]  # a layer's input and its output
Dense = nn.Linear | nn.Conv1d | nn.Conv2d
LARGEST_PIECE = 1 << 24  # numbers held at once while samples are summed over positions


@dataclass(frozen=True)
class Layer:
    """A module whose gradient factorises.

    Attributes:
        module: one of `Dense` or an embedding.
        weight: name of its moving weight.
        bias: name of its bias if that moves too.
    """

    module: Dense | nn.Embedding
    weight: str
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the moving parameters in the order of the gradient's columns."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns of the gradient: (O, I), or (V, O) of an embedding."""
        weight = self.module.weight
        return len(weight), weight[0].numel() + (self.bias is not None)


def layers(model: Model) -> list[Layer]:
    """Name the modules of a supported kind whose weight moves and belongs to no other module.

    Whether each really ran once, on all paths of its weight, only a run can tell: see `gradient`.
    """
    uses = Counter(model.first_name(name) for name, _ in model.module.named_parameters(remove_duplicate=False))
    own = {name for name in model.names if uses[name] == 1}
    found = []
    for prefix, module in model.module.named_modules():
        weight, bias = (f"{prefix}.{name}" if prefix else name for name in ("weight", "bias"))
        if _supported(module) and weight in own:
            found.append(Layer(module, weight, bias if bias in own else None))
    return found


@contextmanager
def recorded(observed: Sequence[Layer]) -> Iterator[dict[str, list[Run]]]:
    """Collect the input and the output of every run of these layers, by weight, while the model is called.

    The model goes on with a copy of the output, so that an operation in place does not change what was recorded.
    """
    runs: dict[str, list[Run]] = {layer.weight: [] for layer in observed}

    def note(weight: str, positional: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor:
        runs[weight].append(((*positional, *named.values())[0].detach(), output))
        return output.clone()

    hooks = [
        layer.module.register_forward_hook(
            lambda _, positional, named, output, weight=layer.weight: note(weight, positional, named, output),
            with_kwargs=True,
        )
        for layer in observed
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def add_covariances(layer: Layer, sums: dict[str, Tensor], x: Tensor, g: Tensor, *, samples: int) -> None:
    """Add Σ aaᵀ to `sums["right"]` and Σ ggᵀ to `sums["left"]` (of an embedding, only Σ ggᵀ, to "right")."""
    if isinstance(layer.module, nn.Embedding):
        _, g_RO = _lookups(layer.module, x, g)
        sums["right"] += (g_RO.T @ g_RO).double()
        return
    for x_NLI, g_NLO in _rows(layer, x, g, samples):
        sums["right"] += torch.einsum("nli,nlj->ij", x_NLI, x_NLI).double()
        sums["left"] += torch.einsum("nlo,nlp->op", g_NLO, g_NLO).double()


def add_moments(layer: Layer, moments: Tensor, bases: dict[str, Tensor], x: Tensor, g: Tensor, *, samples: int) -> None:
    """Add the squares of each sample's gradient, rotated into the bases "left" and "right", to `moments`."""
    right = bases["right"].to(g.dtype)
    if isinstance(layer.module, nn.Embedding):
        _add_embedding_moments(layer.module, moments, right, (x, g), samples)
        return
    left_OO = bases["left"].to(g.dtype)
    for x_NLI, g_NLO in _rows(layer, x, g, samples):
        moments += _squares(g_NLO @ left_OO, x_NLI @ right).double()


def gradient(layer: Layer, x: Tensor, g: Tensor, *, samples: int) -> Tensor:
    """Return the layer's gradient from its rows; it differs from autograd's if the weight was used elsewhere too."""
    if isinstance(layer.module, nn.Embedding):
        ids_R, g_RO = _lookups(layer.module, x, g)
        return g.new_zeros(layer.shape).index_add_(0, ids_R, g_RO)
    pieces = [torch.einsum("nlo,nli->oi", g_NLO, x_NLI) for x_NLI, g_NLO in _rows(layer, x, g, samples)]
    return torch.stack(pieces).sum(0)


def _supported(module: nn.Module) -> TypeGuard[Dense | nn.Embedding]:
    """Accept modules that run torch's own forward: what a subclass does with its weight cannot be known."""
    own = type(module).forward in {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Embedding.forward}
    return own and getattr(module, "groups", 1) == 1


def _squares(g_NLO: Tensor, x_NLI: Tensor) -> Tensor:
    """Sum (Σ_l g_nlo a_nli)² over the samples; with one position that is a product of two matrices of squares."""
    if g_NLO.shape[1] == 1:
        return g_NLO[:, 0].square().T @ x_NLI[:, 0].square()
    return torch.einsum("nlo,nli->noi", g_NLO, x_NLI).square().sum(0)


def _rows(layer: Layer, x: Tensor, g: Tensor, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs (N, L, I) and gradients (N, L, O), a bounded number of samples at a time.

    Rows that cannot be dealt to the samples evenly (time before samples) count as samples of their own.
    """
    if x.shape[0] % samples and isinstance(layer.module, nn.Linear):
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    whole = x.shape[0] if x.shape[0] % samples else samples
    per, (outputs, inputs) = x.shape[0] // whole, layer.shape
    positions = g.numel() // (outputs * whole)
    step = max(1, LARGEST_PIECE // (inputs * max(positions, outputs if positions > 1 else 1)))
    for start in range(0, whole, step):
        count = min(step, whole - start)
        part = slice(start * per, (start + count) * per)
        yield _inputs(layer, x[part]).reshape(count, -1, inputs), _gradients(layer, g[part]).reshape(count, -1, outputs)


def _inputs(layer: Layer, x: Tensor) -> Tensor:
    """Return one row for each position: the layer's inputs there, then a one if its bias moves."""
    rows = x if isinstance(layer.module, nn.Linear) else _patches(layer.module, x)
    rows = rows.reshape(-1, rows.shape[-1])
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _gradients(layer: Layer, g: Tensor) -> Tensor:
    """Return one row for each position, in the order of `_inputs`."""
    return g if isinstance(layer.module, nn.Linear) else g.flatten(2).transpose(1, 2)


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """Return the patches that a convolution multiplies with its kernel, (samples, positions, numbers of a patch)."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    margins = module._reversed_padding_repeated_twice  # noqa: SLF001 - "same", numbers and modes alike, as torch pads
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(x, margins, mode=mode)
    flat = isinstance(module, nn.Conv1d)
    kernel, dilation, stride = (
        (1, *size) if flat else size for size in (module.kernel_size, module.dilation, module.stride)
    )
    image = padded.unsqueeze(2) if flat else padded
    return functional.unfold(image, kernel, dilation=dilation, stride=stride).transpose(1, 2)


def _lookups(module: nn.Embedding, ids: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return each looked-up id and its gradient, which is zero for padding."""
    ids_R, g_RO = ids.reshape(-1), g.reshape(-1, g.shape[-1])
    return ids_R, g_RO if module.padding_idx is None else g_RO * (ids_R != module.padding_idx)[:, None]


def _add_embedding_moments(
    module: nn.Embedding, moments_VO: Tensor, basis_OO: Tensor, run: tuple[Tensor, Tensor], samples: int
) -> None:
    """Sum each sample's gradients of the same id before squaring, without forming a table for each sample."""
    ids_R, g_RO = _lookups(module, *run)
    per = len(ids_R) // samples if run[0].shape[0] % samples == 0 else 1
    sample_R = torch.arange(len(ids_R), device=ids_R.device) // per
    keys, place_R = torch.unique(sample_R * len(moments_VO) + ids_R, return_inverse=True)
    summed = g_RO.new_zeros(len(keys), g_RO.shape[1]).index_add_(0, place_R, g_RO @ basis_OO)
    moments_VO.index_add_(0, keys % len(moments_VO), summed.square().double())
