"""What every benchmark bed shares: who is a member, how it is trained, how two of its models are compared.

A bed is a recipe over real (or generated) people with ordinary training: seeded weights and order, mini-batches, a
constant learning rate, a fixed number of epochs. 70 % of the people are members; 80 % of a member's rows train, the
rest are test rows; the other people are strangers that no model has seen.

Everything is float32 on the CPU. With one thread (`torch.set_num_threads(1)`) the same seed gives the same bits.

Shape suffix: N samples.
"""

import math
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Progress = Callable[[float], None]
BatchLoss = Callable[[Tensor, Tensor, list[int]], Tensor]
MEMBERS, TRAINED = 0.7, 0.8
PADDED = -100  # a target that counts nowhere: what comes after the end of a sequence


class DataAbsent(Exception):
    """The folder with the benchmark data, or a package that carries some, is not on this machine."""


class Split(NamedTuple):
    """Who is who, as sample ids."""

    members: list[list[int]]
    test_ids: list[int]
    strangers: list[list[int]]


class Bed(ABC):
    """A recipe keyed by person, with everything that a benchmark needs to know about it.

    Attributes:
        name: short, unique.
        law: how outputs are compared: "softmax", KL of the predicted distributions; "plain", squared difference.
        epochs: passes over the training rows, where an engineer would have stopped.
        lr: constant learning rate.
        members: training sample ids of every member.
        test_ids: the members' held-back rows.
        strangers: sample ids of people that were never trained on.
        memorised: indices into `members` of the people that the model owes most; empty where no cheap rule tells.
        ordinary: indices into `members` of the others.
    """

    name: ClassVar[str]
    law: ClassVar[Literal["softmax", "plain"]] = "softmax"
    epochs: int
    lr = 1e-3
    batch_size = 32
    l2_per_sample = 0.0
    l2_total = 0.0

    def __init__(self, inputs: Tensor, targets: Tensor, who: Split) -> None:
        self.inputs, self.targets = inputs, targets
        self.members, self.test_ids, self.strangers = who
        self.memorised: list[int] = []
        self.ordinary = list(range(len(self.members)))

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the module with weights drawn from torch's global generator."""

    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Tensor, Tensor]:
        """Return samples by number."""
        rows = torch.as_tensor(list(sample_ids), dtype=torch.long)
        return self.inputs[rows], self.targets[rows]

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return the cross-entropy per sample."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    @property
    def passes(self) -> float:
        """What a training costs, in passes over its samples."""
        return float(self.epochs)

    @property
    def training_ids(self) -> list[int]:
        """Every member's training rows."""
        return [i for ids in self.members for i in ids]

    def without(self, gone: Sequence[int]) -> list[int]:
        """Return the training rows of the members that stay; `gone` are indices into `members`."""
        left = set(gone)
        return [i for number, ids in enumerate(self.members) if number not in left for i in ids]

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Progress = lambda _: None) -> nn.Module:
        """Train a fresh model on exactly these samples; the seed draws the weights and the order."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.build()
        self._descend(module, list(sample_ids), epochs=self.epochs, seed=seed, progress=progress)
        return module

    def more(
        self,
        weights: Mapping[str, Tensor],
        sample_ids: Sequence[int],
        *,
        epochs: float,
        seed: int,
        loss: BatchLoss | None = None,
        lr: float | None = None,
    ) -> dict[str, Tensor]:
        """Continue ordinary training from these weights, which are not written to, with a fresh optimiser.

        Args:
            weights: a full state dict.
            sample_ids: the rows trained on.
            epochs: passes over them; a part of one is that part of its mini-batches, rounded up.
            seed: of the order.
            loss: what to minimise instead, called with a batch's outputs, targets and sample ids, returns shape (N,).
            lr: constant learning rate instead of the bed's.
        """
        module = self.loaded(weights)
        module.train()
        self._descend(module, list(sample_ids), epochs=epochs, seed=seed, loss=loss, lr=lr)
        return state(module)

    def loaded(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a module with these weights, in eval mode."""
        with torch.random.fork_rng():
            module = self.build()
        module.load_state_dict(dict(weights))
        return module.eval()

    def outputs(self, weights: Mapping[str, Tensor], sample_ids: Sequence[int]) -> Tensor:
        """Return the module's outputs for these samples."""
        with torch.no_grad():
            module = self.loaded(weights)
            return torch.cat([module(self.fetch(ids)[0]) for ids in _cut(list(sample_ids), 1024)])

    def mean_loss(self, weights: Mapping[str, Tensor], sample_ids: Sequence[int]) -> float:
        """Return the mean loss per sample."""
        return float(self.loss(self.outputs(weights, sample_ids), self.fetch(sample_ids)[1]).double().mean())

    def accuracy(self, weights: Mapping[str, Tensor], sample_ids: Sequence[int]) -> float:
        """Return the share of right answers, padding left out; for regression minus the root mean squared error."""
        outputs, targets = self.outputs(weights, sample_ids), self.fetch(sample_ids)[1]
        if self.law == "plain":
            return -math.sqrt(2 * float(self.loss(outputs, targets).double().mean()))
        counted = targets != PADDED
        return float((outputs.argmax(-1) == targets)[counted].double().mean())

    def apart(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], sample_ids: Sequence[int]) -> float:
        """Return mean KL(a‖b) in nats, or the mean squared difference, per output that counts."""
        counted = self.fetch(sample_ids)[1] != PADDED
        z_a, z_b = (self.outputs(each, sample_ids)[counted].double() for each in (a, b))
        if self.law == "plain":
            return float((z_a - z_b).square().mean())
        log_a, log_b = z_a.log_softmax(-1), z_b.log_softmax(-1)
        return float((log_a.exp() * (log_a - log_b)).sum(-1).mean())

    def _descend(
        self,
        module: nn.Module,
        sample_ids: list[int],
        *,
        epochs: float,
        seed: int,
        loss: BatchLoss | None = None,
        lr: float | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        """Minimise the mean loss plus ½·l2·|θ|² by Adam, one mini-batch after the other."""
        objective = loss or (lambda outputs, targets, _: self.loss(outputs, targets))
        decay = self.l2_per_sample + self.l2_total / len(sample_ids)
        optimiser = torch.optim.Adam(module.parameters(), lr=lr or self.lr, weight_decay=decay)
        batches = math.ceil(epochs * math.ceil(len(sample_ids) / self.batch_size) - 1e-9)
        for number, ids in enumerate(_batches(sample_ids, self.batch_size, batches, seed)):
            inputs, targets = self.fetch(ids)
            optimiser.zero_grad()
            objective(module(inputs), targets, ids).mean().backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
            optimiser.step()
            progress((number + 1) / batches)
        module.eval()


def split(people: Sequence[int], *, seed: int) -> Split:
    """Deal people and their rows; `people[i]` is the person of row i."""
    deal = random.Random(seed)
    rows: dict[int, list[int]] = {}
    for row, person in enumerate(people):
        rows.setdefault(int(person), []).append(row)
    order = sorted(rows)
    deal.shuffle(order)
    many = round(MEMBERS * len(order))
    members: list[list[int]] = []
    test_ids: list[int] = []
    for person in order[:many]:
        own = deal.sample(rows[person], len(rows[person]))
        kept = round(TRAINED * len(own))
        members.append(sorted(own[:kept]))
        test_ids += sorted(own[kept:])
    return Split(members, test_ids, [rows[person] for person in order[many:]])


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's state dict."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def data_file(*parts: str) -> Path:
    """Return a file of the data folder: EXPUNGE_DATA, or shared/data beside the repository.

    Raises:
        DataAbsent: naming the folder that was looked in.
    """
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("EXPUNGE_DATA") or beside)
    found = folder.joinpath(*parts)
    if not found.is_file():
        raise DataAbsent(f"{'/'.join(parts)} is not in {folder}: set EXPUNGE_DATA to the folder with the data sets")
    return found


def _batches(sample_ids: list[int], size: int, count: int, seed: int) -> list[list[int]]:
    """Return `count` mini-batches, a new order for every pass."""
    draw = torch.Generator().manual_seed(seed)
    batches: list[list[int]] = []
    while len(batches) < count:
        order = torch.randperm(len(sample_ids), generator=draw).tolist()
        batches += _cut([sample_ids[k] for k in order], size)
    return batches[:count]


def _cut(sample_ids: list[int], size: int) -> list[list[int]]:
    return [sample_ids[start : start + size] for start in range(0, len(sample_ids), size)]
