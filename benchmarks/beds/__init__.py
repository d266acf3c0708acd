"""Benchmark beds: one recipe per data set, keyed by person."""

from collections.abc import Callable

from .authors import Authors
from .common import Bed, DataAbsent
from .digits import Digits
from .handwriting import HandwritingCNN, HandwritingMLP
from .ratings import Ratings
from .vowel import Vowels
from .wages import Wages

BEDS: dict[str, Callable[[], Bed]] = {
    bed.name: bed for bed in (HandwritingMLP, HandwritingCNN, Vowels, Digits, Wages, Ratings, Authors)
}

__all__ = ["BEDS", "Bed", "DataAbsent"]
