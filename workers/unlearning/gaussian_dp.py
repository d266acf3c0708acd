"""Exact accounting of Gaussian noise: from μ to (ε, δ) and back, and noise that nobody can draw again.

A mechanism is μ-Gaussian-DP when telling its two outcomes apart is no easier than telling N(0, 1) from N(μ, 1): a shift
of at most s under N(0, σ²I) gives μ = s/σ; several, chosen adaptively or not, compose to √Σμ² (Dong, Roth & Su 2022).
What is no positive finite number, and δ outside (0, 1), is refused: a bound computed from it would bound nothing.
"""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import Uncertifiable

_LARGEST = 2.0**1000
"""Where a search gives up: far beyond every sensible bound, and short of infinity."""


def delta_of(mu: float, *, epsilon: float) -> float:
    """Return δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2), exact for μ-Gaussian-DP (Dong, Roth & Su 2022, cor. 2.13).

    Raises:
        Uncertifiable: μ is not positive and finite, or ε not finite and at least 0.
    """
    if not (0 < mu < math.inf and 0 <= epsilon < math.inf):
        raise Uncertifiable(f"μ = {mu}, ε = {epsilon}: finite numbers, μ > 0 and ε ≥ 0, are needed")
    return math.exp(_log_phi(-epsilon / mu + mu / 2)) - math.exp(epsilon + _log_phi(-epsilon / mu - mu / 2))


def epsilon_of(mu: float, *, delta: float) -> float:
    """Return the least ε with δ(ε) ≤ δ.

    Raises:
        Uncertifiable: μ is not positive and finite, δ not inside (0, 1), or no ε below 2^1000 does.

    >>> [round(epsilon_of(mu, delta=1e-5), 2) for mu in (0.1, 0.2, 0.5)]
    [0.34, 0.73, 1.99]
    """
    _require_inside(delta)
    return _least(lambda epsilon: delta_of(mu, epsilon=epsilon) <= delta)


def mu_of(epsilon: float, *, delta: float) -> float:
    """Return the largest μ whose (ε, δ) is no worse than this.

    Raises:
        Uncertifiable: ε is not finite and at least 0, δ not inside (0, 1), or no μ above 2^-1000 does.
    """
    _require_inside(delta)
    return 1 / _least(lambda inverse: inverse > 0 and delta_of(1 / inverse, epsilon=epsilon) <= delta)


def drawn_once(count: int) -> Tensor:
    """Draw standard normals from the operating system's generator, by the inverse of Φ, shape (count,), float64.

    Not from torch's: its CPU generator keeps 32 bits of a seed, few enough to try them all and take the noise off.
    """
    bits = torch.frombuffer(bytearray(secrets.token_bytes(8 * count)), dtype=torch.int64) >> 12
    drawn: Tensor = torch.special.ndtri((bits.double() + 0.5) / 2**52 + 0.5)
    return drawn


def drawn_with(seed: int, count: int) -> Tensor:
    """Draw standard normals that whoever knows the seed can draw again, shape (count,), float64: for tests."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _require_inside(delta: float) -> None:
    if not 0 < delta < 1:
        raise Uncertifiable(f"δ = {delta} must lie inside (0, 1)")


def _least(holds: Callable[[float], bool]) -> float:
    """Return the least x ≥ 0 where a monotone claim holds, rounded up."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not holds(high):
        if high >= _LARGEST:
            raise Uncertifiable(f"nothing up to {high:.3g} keeps the bound")
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_phi(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))
