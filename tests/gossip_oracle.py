"""The recursion of compressed gossip, and the codecs, in float64 NumPy: an oracle apart from the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Compress = Callable[[Array], Array]

BLOCK = 256


def none(v: Array) -> Array:
    return v.copy()


def fp16(v: Array) -> Array:
    return np.clip(v, -65504.0, 65504.0).astype(np.float16).astype(np.float64)


def bf16(v: Array) -> Array:
    bits = v.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + ((bits >> 16) & 1)
    rounded: Array = (bits & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    return rounded


def int8(v: Array) -> Array:
    out = np.empty_like(v)
    for start in range(0, v.shape[1], BLOCK):
        block = v[:, start : start + BLOCK]
        scale = np.abs(block).max(axis=1, keepdims=True) / 127.0
        out[:, start : start + BLOCK] = np.round(block / np.where(scale > 0.0, scale, 1.0)) * scale
    return out


def sign(v: Array) -> Array:
    out = np.empty_like(v)
    for start in range(0, v.shape[1], BLOCK):
        block = v[:, start : start + BLOCK]
        out[:, start : start + BLOCK] = np.copysign(np.abs(block).mean(axis=1, keepdims=True), block)
    return out


def topk(ratio: float) -> Compress:
    def compress(v: Array) -> Array:
        k = max(1, int(np.ceil(ratio * v.shape[1])))
        kept = np.argsort(-np.abs(v), axis=1, kind="stable")[:, :k]
        out = np.zeros_like(v)
        np.put_along_axis(out, kept, np.take_along_axis(v, kept, axis=1), axis=1)
        return out

    return compress


COMPRESS: dict[str, Compress] = {
    "none": none,
    "fp16": fp16,
    "bf16": bf16,
    "int8": int8,
    "sign": sign,
    "topk:ratio=0.1": topk(0.1),
    "topk:ratio=0.01": topk(0.01),
}


def recursion(
    x: Array, weights: Array, compress: Compress, step_size: float
) -> Iterator[tuple[Array, Array]]:
    """Yields (x, x_hat) after each round, from x_hat = 0; rows are nodes."""
    x, copies = x.copy(), np.zeros_like(x)
    while True:
        copies = copies + compress(x - copies)
        x = x + step_size * (weights @ copies - copies)
        yield x, copies


def disagreement(x: Array) -> float:
    """Returns the sum of squared distances to the mean."""
    return float(((x - x.mean(axis=0)) ** 2).sum())
