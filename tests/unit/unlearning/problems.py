"""Small recipes of every kind that the engine claims to cover, and a dense oracle that shares no code with it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.unlearning.model import Inputs

torch.set_num_threads(1)  # these problems are so small that threads get in each other's way


class Toy:
    """A recipe around any module and tensors: the smallest thing that follows the protocol."""

    l2_per_sample = 0.01
    l2_total = 0.2

    def __init__(self, make: Callable[[], nn.Module], inputs: Inputs, targets: Tensor) -> None:
        self._make, self._inputs, self._targets = make, inputs, targets

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self._make().double()

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Inputs, Tensor]:
        ids = list(sample_ids)
        if isinstance(self._inputs, Tensor):
            return self._inputs[ids], self._targets[ids]
        if isinstance(self._inputs, dict):
            return {name: tensor[ids] for name, tensor in self._inputs.items()}, self._targets[ids]
        return tuple(tensor[ids] for tensor in self._inputs), self._targets[ids]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return 0.5 * (outputs - targets).square().flatten(1).sum(1)
        return functional.cross_entropy(outputs, targets, reduction="none")

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.build().state_dict().items()}


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder transposed and a submodule is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4, bias=False)
        self.read.weight = self.code.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.code(torch.tanh(self.code(x)))))


class Ratings(nn.Module):
    """Matrix factorisation: a table of users and a table of items, two integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(5, 3), nn.Embedding(6, 3)
        self.bias = nn.Embedding(6, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.item(item)).sum(-1, keepdim=True) + self.bias(item)


class Glance(nn.Sequential):
    """Convolution, LayerNorm, linear."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3))


class LastState(nn.GRU):
    """The state after the last step as three outputs."""

    def __init__(self) -> None:
        super().__init__(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the toy needs one output
        return super().forward(x)[0][:, -1]


class Attention(nn.Module):
    """One transformer layer over three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def _draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _labels(samples: int, classes: int, seed: int = 2) -> Tensor:
    return torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed))


def convolution() -> Toy:
    """Convolution, LayerNorm and a linear head on 14 images of 6 × 6."""
    return Toy(Glance, _draw(14, 1, 6, 6), _labels(14, 3))


def tied() -> Toy:
    """Weights used three times under two names, several real outputs."""
    return Toy(TiedAutoencoder, _draw(12, 4), _draw(12, 4, seed=3))


def embedding() -> Toy:
    """Two embedding tables, inputs passed by name."""
    users, items = _labels(20, 5, seed=4), _labels(20, 6, seed=5)
    return Toy(Ratings, {"user": users, "item": items}, _draw(20, 1, seed=6))


def attention() -> Toy:
    """Self-attention with dropout, which eval mode switches off."""
    return Toy(Attention, _draw(10, 3, 4), _labels(10, 3))


def recurrent() -> Toy:
    """A GRU over five steps: `vmap` cannot batch it, so its solves go without a preconditioner."""
    return Toy(LastState, _draw(8, 5, 2), _labels(8, 3))


def bilinear() -> Toy:
    """Two inputs passed by position."""
    return Toy(lambda: nn.Bilinear(3, 2, 3), (_draw(9, 3), _draw(9, 2, seed=8)), _labels(9, 3))


PROBLEMS = {f.__name__: f for f in (convolution, tied, embedding, attention, recurrent, bilinear)}


def dense_ggn(toy: Toy, samples: int) -> Tensor:
    """Build Σ JᵀΛJ from full jacobians, one sample at a time, with Λ from its formula."""
    module = toy.build().eval()
    parameters = list(module.parameters())
    total: Tensor | None = None
    for sample in range(samples):
        inputs, targets = toy.fetch([sample])
        z = _call(module, inputs)[0].flatten()
        rows = [torch.autograd.grad(z_c, parameters, retain_graph=True) for z_c in z]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        p = z.detach().softmax(0)
        middle = torch.eye(len(z), dtype=z.dtype) if targets.is_floating_point() else torch.diag(p) - torch.outer(p, p)
        piece = jacobian.T @ middle @ jacobian
        total = piece if total is None else total + piece
    assert total is not None
    return total


def dense_gradient(toy: Toy, samples: Sequence[int]) -> Tensor:
    """Differentiate the summed loss plus weight decay with plain autograd on the module itself."""
    module = toy.build().eval()
    inputs, targets = toy.fetch(samples)
    square = torch.stack([p.square().sum() for p in module.parameters()]).sum()
    l2 = toy.l2_per_sample * len(samples) + toy.l2_total
    loss = toy.loss(_call(module, inputs), targets).sum() + 0.5 * l2 * square
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def _call(module: nn.Module, inputs: Inputs) -> Tensor:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if isinstance(inputs, dict):
            return module(**inputs)
        return module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
