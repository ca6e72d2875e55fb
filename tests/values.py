"""Families of awkward values: float32 arrays of any size from a generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from reference import FLT_MAX


def wave(numel: int = 70) -> np.ndarray:
    return (2.0 * np.sin(np.arange(numel))).astype(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def magnitudes(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    x = np.exp2(rng.uniform(low, high, n)) * rng.choice([-1.0, 1.0], n)
    return np.clip(x, -FLT_MAX, FLT_MAX).astype(np.float32)


def _sprinkle(rng: np.random.Generator, n: int, *values: float) -> np.ndarray:
    """Gaussian with a bad value about every 400 elements, so that some blocks are clean and some are not."""
    x = rng.standard_normal(n).astype(np.float32)
    for i in np.flatnonzero(rng.random(n) < 1 / 400).tolist():
        x[i] = rng.choice(values)
    if n:
        x[n // 2] = values[0]
    return x


def _halfway(rng: np.random.Generator, n: int) -> np.ndarray:
    """Multiples of m / 256 with m the largest: ties of integer codes and of 8-bit floats."""
    x = rng.integers(-256, 257, n).astype(np.float32) * np.float32(0.0625)
    x[::31] = 16.0
    return x


def _looked_at(n: int) -> np.ndarray:
    """Where an exact selector samples an array of n elements (estimate_bounds in csrc/cpu/candidates.cpp)."""
    size = 256
    while size < 16384 and size * size < 16 * n:
        size *= 2
    i, step = np.arange(min(size, n)), max(1, n // size)
    return i * step + ((i * 0x9E3779B1 % 2**32 * step) >> 32)


def _misled(rng: np.random.Generator, n: int, factor: float, *bad: float) -> np.ndarray:
    """Elements of a selector's sample are so many times as large as all others: what it says is wrong."""
    x = _sprinkle(rng, n, *bad) if bad else rng.standard_normal(n).astype(np.float32)
    chosen = _looked_at(n)
    x[chosen] = np.float32(factor) * (np.sign(x[chosen]) + x[chosen])
    return x


VALUES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gaussian": lambda rng, n: rng.standard_normal(n).astype(np.float32),
    "zero": lambda rng, n: np.zeros(n, np.float32),
    "negative_zero": lambda rng, n: np.where(rng.random(n) < 0.5, np.float32(-0.0), np.float32(0.0)),
    "denormal": lambda rng, n: magnitudes(rng, n, -149, -126),
    # around the scales that are too small to be sent
    "smallest": lambda rng, n: magnitudes(rng, n, -128, -109),
    "huge": lambda rng, n: np.where(rng.random(n) < 0.5, FLT_MAX, -FLT_MAX).astype(np.float32),
    # from below float16's subnormals to above its largest
    "half": lambda rng, n: magnitudes(rng, n, -26, 18),
    "mixed": lambda rng, n: magnitudes(rng, n, -149, 128),
    "ties": lambda rng, n: rng.integers(-3, 4, n).astype(np.float32) * np.float32(0.5),
    "halfway": _halfway,
    "inf": lambda rng, n: _sprinkle(rng, n, np.inf, -np.inf),
    "nan": lambda rng, n: _sprinkle(rng, n, np.nan, np.inf),
}
# For selectors alone: far fewer are as large as the sample says, so there is a second attempt; or far more.
MISLEADING: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "sample_too_large": lambda rng, n: _misled(rng, n, 1024),
    "sample_too_large, nan": lambda rng, n: _misled(rng, n, 1024, np.nan, np.inf),
    "sample_too_small": lambda rng, n: _misled(rng, n, 1 / 1024),
}
_NAN = {"float32": (0x7F800000, 0x7FFFFF, 31), "float16": (0x7C00, 0x3FF, 15), "bfloat16": (0x7F80, 0x7F, 15)}


def any_nan(rng: np.random.Generator, raw: np.ndarray, dtype: str) -> np.ndarray:
    """``raw`` with every NaN replaced by some NaN, signalling ones and both signs among them."""
    exponent, mantissa, sign = _NAN[dtype]
    bits = raw.view(np.uint32 if dtype == "float32" else np.uint16).copy()
    where = (bits & (exponent | mantissa)) > exponent
    payload = rng.integers(1, mantissa + 1, raw.size) | rng.integers(0, 2, raw.size) << sign
    return np.where(where, exponent | payload, bits).astype(bits.dtype).view(raw.dtype)
