"""topk, randk, threshold, dgc: which elements of an array are sent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.elias_fano import Indices
from reference.floats import Floats, bits_of, f32, floats_of
from reference.frame import Parameters
from reference.noise import random_rows
from reference.sparse import Sparse, k_largest, keys

SAMPLE = 32768
MIN_SCOPE, MAX_SCOPE = 64, 32768
WEYL = 0x9E3779B97F4A7C15


def k_of(ratio: float, n: int) -> int:
    return min(n, max(1, math.ceil(ratio * n)))


def stratified(seeds: NDArray[np.uint64], n: int, k: int) -> Indices:
    """One element of each of k strata of n elements, a row for every seed."""
    i = np.arange(k, dtype=np.uint64)
    begin = i * np.uint64(n) // np.uint64(max(k, 1))
    size = (i + np.uint64(1)) * np.uint64(n) // np.uint64(max(k, 1)) - begin
    return (begin + (random_rows(seeds, k).astype(np.uint64) * size >> np.uint64(32))).astype(np.int64)


def seeds_of(seed: int, blocks: int) -> NDArray[np.uint64]:
    return np.uint64(seed) + np.arange(blocks, dtype=np.uint64) * np.uint64(WEYL)  # modulo 2^64


class Scoped(Sparse):
    """Selects by a ratio, of the whole array or of blocks of ``scope`` elements."""

    def __init__(
        self, ratio: float = 0.01, scope: str = "global", block: int = 4096, values: Any = None
    ) -> None:
        super().__init__(values)
        self.ratio, self.scope = ratio, block if scope == "block" else 0

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        if parameters.scope and not MIN_SCOPE <= parameters.scope <= MAX_SCOPE:
            raise ValueError(parameters)
        return {"scope": "block", "block": parameters.scope} if parameters.scope else {}

    def count(self, numel: int, selected: int) -> int:
        return k_of(self.ratio, self.scope or numel)

    def total(self, numel: int, count: int) -> int:
        if not self.scope:
            return count
        full, rest = divmod(numel, self.scope)
        return full * count + -(-count * rest // self.scope)

    def index_bytes(self, indices: Indices, numel: int) -> bytes:
        if not self.scope:
            return super().index_bytes(indices, numel)
        data = (indices % self.scope).astype("<u2").tobytes()
        return data + bytes(-len(data) % 4)

    def index_nbytes(self, numel: int, count: int) -> int:
        if not self.scope:
            return super().index_nbytes(numel, count)
        return -(-2 * self.total(numel, count) // 4) * 4

    def indices(self, data: bytes, numel: int, count: int, seed: int) -> Indices:
        if not self.scope:
            return super().indices(data, numel, count, seed)
        relative = np.frombuffer(data, "<u2")[: self.total(numel, count)].astype(np.int64)
        starts = [np.full(k, start, np.int64) for start, _, k in self.blocks(numel, count)]
        return relative + np.concatenate([np.zeros(0, np.int64), *starts])


class TopK(Scoped):
    name, id = "topk", 5

    def select(self, v: Floats, seed: int) -> Indices:
        key = keys(v)
        if not self.scope:
            return k_largest(key, k_of(self.ratio, v.size))
        found = [
            start + k_largest(key[start : start + n], k)
            for start, n, k in self.blocks(v.size, self.count(v.size, 0))
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])


class RandK(Scoped):
    name, id = "randk", 13
    sends_indices = False

    def select(self, v: Floats, seed: int) -> Indices:
        return self.indices(b"", v.size, self.count(v.size, 0), seed)

    def indices(self, data: bytes, numel: int, count: int, seed: int) -> Indices:
        if not self.scope:
            return stratified(seeds_of(seed, 1), numel, count)[0]
        full, rest = divmod(numel, self.scope)
        seeds, starts = seeds_of(seed, full + 1), np.arange(full + 1)[:, None] * self.scope
        last = -(-count * rest // self.scope)
        return np.concatenate(
            [
                (starts[:full] + stratified(seeds[:full], self.scope, count)).reshape(-1),
                (starts[full:] + stratified(seeds[full:], rest, last)).reshape(-1),
            ]
        )


class Threshold(Sparse):
    name, id = "threshold", 14

    def __init__(self, value: float, values: Any = None) -> None:
        super().__init__(values)
        self.argument = int(bits_of(np.array([value], f32))[0])

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        if not 0 < parameters.argument < 0x7F800000:
            raise ValueError(parameters)
        return {"value": float(floats_of(np.array([parameters.argument]))[0])}

    def select(self, v: Floats, seed: int) -> Indices:
        return np.flatnonzero(keys(v) >= self.argument).astype(np.int64)


class Dgc(Sparse):
    """Lin et al. 2018, "Deep gradient compression": the threshold comes from a sample."""

    name, id = "dgc", 15

    def __init__(self, ratio: float = 0.01, values: Any = None) -> None:
        super().__init__(values)
        self.ratio = ratio
        self.argument = int(bits_of(np.array([ratio], f32))[0])

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        if not 0 < parameters.argument <= 0x3F800000:  # the bits of 1
            raise ValueError(parameters)
        return {"ratio": float(floats_of(np.array([parameters.argument]))[0])}

    def select(self, v: Floats, seed: int) -> Indices:
        n = v.size
        if n == 0:
            return np.zeros(0, np.int64)
        k, m = k_of(self.ratio, n), min(n, SAMPLE)
        key = keys(v)
        rank = min(m, -(-3 * k * m // (2 * n)))
        least = np.sort(key[stratified(seeds_of(seed, 1), n, m)[0]])[::-1][rank - 1]
        found = np.flatnonzero(key >= least)
        if found.size < k:
            return k_largest(key, k)
        return found.astype(np.int64) if found.size <= 2 * k else k_largest(key, min(2 * k, n))
