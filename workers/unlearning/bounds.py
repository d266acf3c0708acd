"""What a setting may be: checked where it is made, so that no update runs on a number that means nothing.

A projection of no products or a slack below zero does nothing and would call itself complete.
"""

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from operator import index

import torch

from .errors import BadSetting, NothingToForget


def whole(settings: object, *, least: int, names: Sequence[str]) -> None:
    """Refuse fields that are no whole numbers of at least this much."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, Integral) or int(value) < least:
            raise BadSetting(f"{name} is {value!r}: it must be a whole number of at least {least}")


def within(settings: object, low: float, high: float, *, names: Sequence[str]) -> None:
    """Refuse fields outside [low, high]; NaN is outside."""
    for name in names:
        value = getattr(settings, name)
        if not (isinstance(value, Real) and low <= float(value) <= high):
            raise BadSetting(f"{name} is {value!r}: it must be a number from {low:g} to {high:g}")


def above_zero(settings: object, *, names: Sequence[str]) -> None:
    """Refuse fields that are not finite and above zero."""
    for name in names:
        value = getattr(settings, name)
        if not (isinstance(value, Real) and 0 < float(value) < math.inf):
            raise BadSetting(f"{name} is {value!r}: it must be a finite number above 0")


def not_below_zero(settings: object, *, names: Sequence[str]) -> None:
    """Refuse fields that are not finite and at least zero."""
    for name in names:
        value = getattr(settings, name)
        if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
            raise BadSetting(f"{name} is {value!r}: it must be a finite number of at least 0")


def one_of(name: str, value: object, known: Collection[str]) -> None:
    """Refuse a word that is none of the known ones."""
    if value not in known:
        raise BadSetting(f"{name} is {value!r}: it must be one of {', '.join(sorted(known))}")


def plain_ids(sample_ids: Sequence[int] | torch.Tensor) -> list[int]:
    """Return sample ids as Python's own ints: two tensors of the same number are two members of a set.

    >>> plain_ids(torch.tensor([3, 4])), len({*map(torch.tensor, [3, 3])}), len({*plain_ids([torch.tensor(3)] * 2)})
    ([3, 4], 2, 1)
    """
    listed = sample_ids.tolist() if isinstance(sample_ids, torch.Tensor) else sample_ids
    try:
        return [index(sample_id) for sample_id in listed]
    except TypeError:
        raise NothingToForget("sample ids must be whole numbers, one to a sample") from None
