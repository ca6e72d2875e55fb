"""Noise as a function of a seed: Philox4x32-7.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.floats import Floats, f32

Words = NDArray[np.uint64]  # 32 bits each
ROUNDS = 7


def philox(counter: tuple[Words, ...], key: tuple[Words, Words], rounds: int = ROUNDS) -> tuple[Words, ...]:
    """The four words of every counter under every key: both may be arrays."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(rounds):
        a = c0 * np.uint64(0xD2511F53)
        b = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & low, (a >> 32) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def random_rows(seeds: Words, count: int) -> NDArray[np.uint32]:
    """R(0) ... R(count - 1) of every seed: word i mod 4 of block i div 4."""
    low, block = np.uint64(0xFFFFFFFF), np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    seeds, zero = seeds[:, None], np.zeros_like(block)
    words = philox((block & low, block >> np.uint64(32), zero, zero), (seeds & low, seeds >> np.uint64(32)))
    rows = np.stack(words, axis=2).reshape(len(seeds), 4 * block.size)
    return rows[:, :count].astype(np.uint32)


def random_words(seed: int, count: int) -> NDArray[np.uint32]:
    return random_rows(np.array([seed], np.uint64), count)[0]


def random_halves(seed: int, count: int) -> NDArray[np.uint16]:
    """r(0) ... r(count - 1): the low, then the high half of each word."""
    words = random_words(seed, -(-count // 2)).astype(np.uint32)
    return np.stack([words & 0xFFFF, words >> 16], axis=1).reshape(-1)[:count].astype(np.uint16)


def dither(seed: int, count: int) -> Floats:
    """u(0) ... u(count - 1), in (-1/2, 1/2)."""
    return ((random_halves(seed, count).astype(np.float32) - f32(32767.5)) * f32(2.0**-16)).astype(np.float32)
