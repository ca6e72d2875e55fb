"""Increasing indices of a whole array in 2 to 3 bits more than their entropy (Elias 1974, Fano 1971)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.packing import bits_to_words, words_to_bits

Indices = NDArray[np.int64]


def low_bits(n: int, k: int) -> int:
    """The largest l with k 2^l <= n."""
    return (n // k).bit_length() - 1


def sizes(n: int, k: int) -> tuple[int, int]:
    """Bytes of the low bits and of the bit vector."""
    if k == 0:
        return 0, 0
    low = low_bits(n, k)
    return 4 * -(-k * low // 32), 4 * -(-(((n - 1) >> low) + k) // 32)


def write(indices: Indices, n: int) -> bytes:
    k = indices.size
    if k == 0:
        return b""
    low = low_bits(n, k)
    lows = (indices[:, None] >> np.arange(low)) & 1  # least significant bit first
    vector = np.zeros(((n - 1) >> low) + k, np.bool_)
    vector[(indices >> low) + np.arange(k)] = True
    return bits_to_words(lows.reshape(-1).astype(np.bool_)) + bits_to_words(vector)


def read(data: bytes, n: int, k: int) -> Indices:
    """The indices of a valid payload."""
    if k == 0:
        return np.zeros(0, np.int64)
    low = low_bits(n, k)
    at = sizes(n, k)[0]
    lows = words_to_bits(data[:at])[: k * low].reshape(k, low).astype(np.int64)
    high = np.flatnonzero(words_to_bits(data[at:])) - np.arange(k)
    return (high << low) + (lows << np.arange(low)).sum(axis=1)
