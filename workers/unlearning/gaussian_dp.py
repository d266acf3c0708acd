"""Exact accounting of Gaussian noise: from μ to (ε, δ) and back, and noise that nobody can draw again.

A mechanism is μ-Gaussian-DP when telling its two outcomes apart is no easier than telling N(0, 1) from N(μ, 1): a shift
of at most s under N(0, σ²I) gives μ = s/σ; several, chosen adaptively or not, compose to √Σμ² (Dong, Roth & Su 2022).
"""

import math
import secrets
from collections.abc import Callable

import torch
from torch import Tensor


def delta_of(mu: float, *, epsilon: float) -> float:
    """Return δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2), exact for μ-Gaussian-DP (Dong, Roth & Su 2022, cor. 2.13)."""
    return math.exp(_log_phi(-epsilon / mu + mu / 2)) - math.exp(epsilon + _log_phi(-epsilon / mu - mu / 2))


def epsilon_of(mu: float, *, delta: float) -> float:
    """Return the least ε with δ(ε) ≤ δ.

    >>> [round(epsilon_of(mu, delta=1e-5), 2) for mu in (0.1, 0.2, 0.5)]
    [0.34, 0.73, 1.99]
    """
    return _least(lambda epsilon: delta_of(mu, epsilon=epsilon) <= delta)


def mu_of(epsilon: float, *, delta: float) -> float:
    """Return the largest μ whose (ε, δ) is no worse than this."""
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


def _least(holds: Callable[[float], bool]) -> float:
    """Return the least x ≥ 0 where a monotone claim holds, rounded up."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_phi(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))
