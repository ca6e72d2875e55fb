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
_NAN = {"float32": (0x7F800000, 0x7FFFFF, 31), "float16": (0x7C00, 0x3FF, 15), "bfloat16": (0x7F80, 0x7F, 15)}


def any_nan(rng: np.random.Generator, raw: np.ndarray, dtype: str) -> np.ndarray:
    """``raw`` with every NaN replaced by some NaN, signalling ones and both signs among them."""
    exponent, mantissa, sign = _NAN[dtype]
    bits = raw.view(np.uint32 if dtype == "float32" else np.uint16).copy()
    where = (bits & (exponent | mantissa)) > exponent
    payload = rng.integers(1, mantissa + 1, raw.size) | rng.integers(0, 2, raw.size) << sign
    return np.where(where, exponent | payload, bits).astype(bits.dtype).view(raw.dtype)
