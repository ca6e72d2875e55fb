"""Floats by their bits, and arrays of the three dtypes: bfloat16 is held as its uint16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]
Mask = NDArray[np.bool_]
f32 = np.float32

FLT_MAX = np.finfo(np.float32).max
FLT_MIN = np.finfo(np.float32).tiny  # 2^-126, the smallest normal number
DTYPES = ("float32", "float16", "bfloat16")  # position = number in the header
RAW = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def bits_of(x: Floats) -> Bits:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def floats_of(bits: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def magnitude(x: Floats) -> Bits:
    """The bits of |x|: as unsigned integers they order like the magnitudes, with infinity and NaN on top."""
    return bits_of(x) & np.uint32(0x7FFFFFFF)


def finite(x: Floats) -> Mask:
    return magnitude(x) < 0x7F800000


def first_bad(v: Floats) -> int:
    """Index of the first element that is NaN or infinite, or -1."""
    bad = np.flatnonzero(~finite(v))
    return int(bad[0]) if bad.size else -1


def to_half(x: Floats) -> NDArray[np.float16]:
    """float16 of finite floats: nearest even, at most 65504."""
    return np.clip(x, f32(-65504.0), f32(65504.0)).astype(np.float16)


def to_bfloat(x: Floats) -> NDArray[np.uint16]:
    """bfloat16 of finite floats: nearest even, at most 0x7f7f."""
    size = magnitude(x).astype(np.uint64)
    rounded = (size + 0x7FFF + ((size >> 16) & 1)) >> 16
    return (np.minimum(rounded, 0x7F7F) | ((bits_of(x) >> 16) & 0x8000)).astype(np.uint16)


def from_bfloat(bits: NDArray[Any]) -> Floats:
    return floats_of(np.asarray(bits).astype(np.uint32) << np.uint32(16))


def load(raw: NDArray[Any], dtype: str) -> Floats:
    """An array of a dtype as float32, exactly."""
    return from_bfloat(raw) if dtype == "bfloat16" else raw.astype(np.float32)


@np.errstate(over="ignore", invalid="ignore")
def store(x: Floats, dtype: str) -> NDArray[Any]:
    """Floats as results of operations are written: finite ones saturate, infinities and NaN stay such."""
    x = np.asarray(x, np.float32)
    if dtype == "float32":
        return x
    ok = finite(x)
    if dtype == "float16":
        return np.where(ok, to_half(np.where(ok, x, f32(0.0))), x.astype(np.float16))
    return np.where(ok, to_bfloat(x), (bits_of(x) >> 16).astype(np.uint16))
