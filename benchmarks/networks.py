"""Two networks of a size that people use, and recipes that keep them and generated samples on one device.

In shapes: N samples, T tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Size:
    """How large the two networks and their data are.

    Attributes:
        people: in each data set; each brings `images` or `texts` samples.
        images: per person, of `side` × `side` pixels.
        width: channels of the first stage; 64 is ResNet-18.
        texts: sequences per person, of `length` tokens out of `vocabulary`.
        depth: blocks of the transformer, `model` wide; only the last one moves.
        chunk: samples per chunk of the engine.
    """

    people: int = 100
    images: int = 50
    side: int = 32
    width: int = 64
    texts: int = 8
    length: int = 128
    vocabulary: int = 2000
    depth: int = 14
    model: int = 768
    chunk: int = 128


TINY = Size(people=3, images=4, side=8, width=2, texts=3, length=6, vocabulary=11, depth=2, model=16)


class Castable(nn.Module, ABC):
    """A module that can compute in bfloat16 where torch's autocast does, and always answers in float32."""

    narrow = False

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32."""
        # no cache: it would hand one derivative's cast weights to another
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.narrow, cache_enabled=False):
            return self.scores(x).float()

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Return logits, classes last."""


class Norm(nn.BatchNorm2d):
    """A BatchNorm in float32: the forward-mode derivative of torch's own mixes two dtypes under bf16 autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps, float32."""
        return super().forward(x.float())


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([Norm(after), Norm(after)])
        same = before == after and stride == 1
        projected = nn.Conv2d(before, after, 1, stride, bias=False), Norm(after)
        self.shortcut = nn.Identity() if same else nn.Sequential(*projected)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next feature maps."""
        inner = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(inner)) + self.shortcut(x))


class ResNet18(Castable):
    """ResNet-18 with the 3 × 3 stem that small images use; 11 173 962 parameters at width 64 with 10 classes."""

    def __init__(self, *, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), Norm(width), nn.ReLU())
        stages = [
            nn.Sequential(
                Residual(widths[k], widths[k + 1], 1 if k == 0 else 2), Residual(widths[k + 1], widths[k + 1], 1)
            )
            for k in range(4)
        ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def scores(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


class Attending(nn.Module):
    """Causal self-attention and a perceptron, each behind a LayerNorm."""

    def __init__(self, model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(model), nn.LayerNorm(model)
        self.qkv, self.mixed = nn.Linear(model, 3 * model), nn.Linear(model, model)
        self.up, self.down = nn.Linear(model, 4 * model), nn.Linear(4 * model, model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after this block, (N, T, width)."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        # written out: the reverse pass of torch's math kernel, which the engine asks for, mixes dtypes under autocast
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        score = (q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)).masked_fill(later, -math.inf)
        x = x + self.mixed((score.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))
        moved: Tensor = x + self.down(functional.gelu(self.up(self.between(x))))
        return moved


class Causal(Castable):
    """A decoder-only transformer; depth 14 and width 768 make more than 100 M parameters."""

    def __init__(self, *, vocabulary: int, length: int, depth: int, model: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, model), nn.Embedding(length, model)
        self.blocks = nn.Sequential(*[Attending(model, max(1, model // 64)) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(model), nn.Linear(model, vocabulary, bias=False)

    def scores(self, x: Tensor) -> Tensor:
        """Return next-token logits, shape (N, T, vocabulary)."""
        embedded = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.norm(self.blocks(embedded)))
        return logits


class OnDevice(ABC):
    """A recipe whose module and samples live on one device; `each` consecutive samples belong to one person."""

    name: str
    l2_per_sample = l2_total = 0.0
    lr, batch_size, epochs = 1e-3, 32, 12.0

    def __init__(self, inputs: Tensor, targets: Tensor, *, each: int, chunk: int) -> None:
        self.device, self.each, self.chunk = inputs.device, each, chunk
        self.inputs, self.targets = inputs, targets
        self.narrow = False

    @abstractmethod
    def fresh(self) -> Castable:
        """Return the module with random weights, on any device."""

    def moves(self, name: str, /) -> bool:
        """Let everything move."""
        return bool(name)

    def build(self) -> nn.Module:
        """Return the module on the device, in the precision asked for."""
        module = self.fresh().to(self.device)
        module.narrow = self.narrow
        return module

    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Tensor, Tensor]:
        """Return samples by number, on the device."""
        rows = torch.tensor(list(sample_ids), device=self.device)
        return self.inputs[rows], self.targets[rows]

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return the cross-entropy, summed over a sample's positions."""
        flat = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return flat.reshape(len(outputs), -1).sum(1)

    def trained(self, base: Weights, sample_ids: Sequence[int], *, seed: int) -> dict[str, Tensor]:
        """Draw what moves anew, train it for one epoch; what does not move is the base's."""
        torch.manual_seed(seed)
        module = self.build().train()
        moving = [parameter for name, parameter in module.named_parameters() if self.moves(name)]
        still = {name: base[name] for name, _ in module.named_parameters() if not self.moves(name)}
        module.load_state_dict(still, strict=False)
        optimiser = torch.optim.Adam(moving, lr=self.lr)
        order = torch.randperm(len(sample_ids)).tolist()
        for start in range(0, len(order), self.batch_size):
            inputs, targets = self.fetch([sample_ids[k] for k in order[start : start + self.batch_size]])
            gradients = torch.autograd.grad(self.loss(module(inputs), targets).mean(), moving)
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Images(OnDevice):
    """Pictures: each person's share a pattern, and half of them a label of the person's own."""

    name = "ResNet-18"

    def __init__(self, size: Size, device: torch.device, *, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        pattern = torch.randn(size.people, 1, 3, size.side, size.side, generator=draw)
        seen = pattern + torch.randn(size.people, size.images, 3, size.side, size.side, generator=draw)
        common = (4 * seen.mean((2, 3, 4)).abs() * size.side).long() % 10
        own = torch.randint(0, 10, (size.people, 1), generator=draw).expand_as(common)
        labels = torch.where(torch.rand(common.shape, generator=draw) < 0.5, own, common)
        self.width = size.width
        super().__init__(seen.flatten(0, 1).to(device), labels.flatten().to(device), each=size.images, chunk=size.chunk)

    def fresh(self) -> Castable:
        """Return the network."""
        return ResNet18(width=self.width)


class Texts(OnDevice):
    """Sequences: each person counts in steps of the person's own, with every fifth token at random."""

    name = "causal transformer"

    def __init__(self, size: Size, device: torch.device, *, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (size.people, size.texts, size.length + 1)
        start, noise = (torch.randint(0, size.vocabulary, s, generator=draw) for s in ((*shape[:2], 1), shape))
        step = torch.randint(1, size.vocabulary, (size.people, 1, 1), generator=draw)
        counted = (start + step * torch.arange(size.length + 1)) % size.vocabulary
        tokens = torch.where(torch.rand(shape, generator=draw) < 0.2, noise, counted).flatten(0, 1).to(device)
        self.size = size
        super().__init__(tokens[:, :-1], tokens[:, 1:], each=size.texts, chunk=min(size.chunk, 16))

    def fresh(self) -> Castable:
        """Return the network."""
        size = self.size
        return Causal(vocabulary=size.vocabulary, length=size.length, depth=size.depth, model=size.model)

    def moves(self, name: str, /) -> bool:
        """Let the last block move."""
        return name.startswith(f"blocks.{self.size.depth - 1}.")
