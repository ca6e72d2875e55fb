"""A changed packet is never accepted: 100,000 mutations of valid packets, each refused with FrameError."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dance

TOTAL = 100_000
BATCH = 250  # mutations drawn by one example: Hypothesis costs more than the parser
BYTES = 6  # of noise a mutation takes
CODECS = ("none", "fp16", "bf16", "int8:block=32", "sign:block=32", "topk:ratio=0.2")
SIZES = (0, 1, 33, 70)
PACKETS = [
    (
        codec,
        numel,
        reference.packet(codec, np.cos(np.arange(numel)).astype(np.float32), seed=99, round=5, sender=1),
    )
    for codec in CODECS
    for numel in SIZES
]

refused = 0


def mutate(data: bytes, noise: bytes) -> bytes:
    """One change of ``data``, chosen by BYTES bytes of noise; always different from ``data``."""
    kind, value = noise[0] % 8, noise[1] or 1
    at = int.from_bytes(noise[2:4], "little") % len(data)
    length = 1 + int.from_bytes(noise[4:6], "little") % 32
    if kind < 4:  # one byte anywhere
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
    if kind == 4:  # one byte of the header
        at %= 64
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
    if kind == 5:  # a piece is lost
        return data[:at] + data[at + length :]
    if kind == 6:  # a piece is added
        return data[:at] + bytes([value]) * length + data[at:]
    piece = bytes(
        b ^ ((value + i) & 0xFF) for i, b in enumerate(data[at : at + length])
    )  # a piece is garbled
    changed = data[:at] + piece + data[at + length :]
    return changed if changed != data else data[:at]


@settings(max_examples=TOTAL // BATCH)
@given(st.sampled_from(PACKETS), st.booleans(), st.binary(min_size=BATCH * BYTES, max_size=BATCH * BYTES))
def mutations(packet: tuple[str, int, bytes], expecting: bool, noise: bytes) -> None:
    global refused
    codec, numel, data = packet
    expect = (codec, (numel,), "float32") if expecting else None
    assert dance.Packet.from_bytes(data, expect=expect).numel == numel
    for i in range(0, len(noise), BYTES):
        changed = mutate(data, noise[i : i + BYTES])
        assert changed != data
        try:
            dance.Packet.from_bytes(changed, expect=expect)
        except dance.FrameError:
            refused += 1
        else:
            pytest.fail(f"accepted {changed.hex()}, made of {data.hex()}")


def test_100_000_mutations_are_refused() -> None:
    mutations()
    assert refused >= TOTAL


def test_every_single_bit_is_guarded() -> None:
    for _, _, data in PACKETS:
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(dance.FrameError):
                dance.Packet.from_bytes(changed)
