"""How a sum over samples is shared out: each process sums its own slice, one all-reduce adds the slices up.

Every rank runs the whole engine on the same sample ids. Sums over samples (gradient, GGN product, losses) run over the
rank's slice and end in exactly one `sum`; everything else (recurrences, norms, decisions) runs redundantly. It comes
out the same on every rank because an all-reduce hands identical bits to all of them and the ranks run the same code on
the same kind of device with the same number of threads. A rank that strays or raises alone leaves the others waiting
in a collective until the group's timeout turns that into an error; no rank goes on with a part of a sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist


class Shards(Protocol):
    """One process's place among those that share a sum."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def world(self) -> int:
        """How many processes share the sum."""

    def mine(self, sample_ids: Sequence[int], /) -> list[int]:
        """Return this rank's contiguous slice: the slices of all ranks in order are the whole, sizes within one."""

    def sum(self, part: Tensor, /) -> Tensor:
        """Return Σ over ranks of `part`, with identical bits on every rank. A collective: every rank must call it."""


@dataclass(frozen=True)
class Alone:
    """A single process: its slice is everything and its sum is already the sum."""

    rank: int = 0
    world: int = 1

    def mine(self, sample_ids: Sequence[int], /) -> list[int]:
        """Return all the ids."""
        return list(sample_ids)

    def sum(self, part: Tensor, /) -> Tensor:
        """Return the part."""
        return part


ALONE = Alone()


class ProcessGroup:
    """Ranks of a `torch.distributed` process group that the caller has initialised (gloo on CPU, nccl on GPU).

    Args:
        group: the group; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank: int = dist.get_rank(group)
        self.world: int = dist.get_world_size(group)

    def mine(self, sample_ids: Sequence[int], /) -> list[int]:
        """Return this rank's slice; empty where there are fewer samples than ranks before it."""
        total = len(sample_ids)
        return list(sample_ids[self.rank * total // self.world : (self.rank + 1) * total // self.world])

    def sum(self, part: Tensor, /) -> Tensor:
        """All-reduce a copy once; nccl sums on this rank's GPU whatever device the part is on."""
        on_gpu = dist.get_backend(self._group) == dist.Backend.NCCL and not part.is_cuda
        total = part.to(torch.device("cuda", torch.cuda.current_device())) if on_gpu else part.clone()
        dist.all_reduce(total, group=self._group)
        return total.to(part.device)
