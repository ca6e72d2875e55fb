"""Codes of a block in words of 32 bits, and bits in a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.floats import Bits

WORD = 32


def fields(bits: int) -> list[tuple[int, int]]:
    """(bits, lowest bit) of the fields of 4, 2 and 1 bits that a code is cut into, the high bits first."""
    found, low = [], bits
    for field in (4, 2, 1):
        if bits & field:
            low -= field
            found.append((field, low))
    return found


def words_of(n: int, bits: int) -> int:
    return sum(-(-n * field // WORD) for field, _ in fields(bits))


def pack(codes: Bits, bits: int) -> bytes:
    """The codes of blocks (blocks x elements) of less than a byte each, block after block."""
    blocks, n = codes.shape
    parts = []
    for field, low in fields(bits):
        width = -(-n * field // WORD)
        per_word = WORD // field
        padded = np.zeros((blocks, per_word * width), np.uint32)
        padded[:, :n] = (codes >> np.uint32(low)) & np.uint32((1 << field) - 1)
        shifts = (field * np.arange(per_word, dtype=np.uint32))[:, None]
        parts.append(np.bitwise_or.reduce(padded.reshape(blocks, per_word, width) << shifts, axis=1))
    return np.concatenate(parts, axis=1).astype("<u4").tobytes()


def unpack(data: bytes, blocks: int, n: int, bits: int) -> Bits:
    words = np.frombuffer(data, "<u4").astype(np.uint32).reshape(blocks, words_of(n, bits))
    codes, at = np.zeros((blocks, n), np.uint32), 0
    for field, low in fields(bits):
        width = -(-n * field // WORD)
        e = np.arange(n)
        shifts = (field * (e // width)).astype(np.uint32)
        codes |= ((words[:, at + e % width] >> shifts) & np.uint32((1 << field) - 1)) << np.uint32(low)
        at += width
    return codes


def bits_to_words(bits: NDArray[np.bool_]) -> bytes:
    """A row of bits as words filled from bit 0 on."""
    data = np.packbits(bits, bitorder="little").tobytes()
    return data + bytes(-len(data) % 4)


def words_to_bits(data: bytes) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").astype(np.bool_)
