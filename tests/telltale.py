"""The toy model whose code dies whenever it is asked for samples, and says of whom it was thinking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tests import toy


class TelltaleError(Exception):
    """An error as owners' code raises them: with the data in its message."""


class Telltale(toy.Toy):
    def fetch(self, sample_ids: Sequence[int], /) -> tuple[Tensor, Tensor]:
        raise TelltaleError(f"no sample {sample_ids[0]} of {toy.user_id(sample_ids[0] // toy.EACH)}, {toy.user_id(1)}")

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        raise TelltaleError(f"{toy.user_id(1)} is not among them")


recipe = Telltale()
REFERENCE = "tests.telltale:recipe"
