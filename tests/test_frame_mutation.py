"""A changed packet is never accepted: 100,000 mutations of valid packets, each refused with FrameError.

And where both checksums are made right again, as one who means harm would: refused exactly where the oracle
says that no encoder could have made it, and otherwise decoded to finite values.
"""

from __future__ import annotations

import struct
from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import dance

TOTAL = 100_000
BATCH = 250  # mutations drawn by one example: Hypothesis costs more than the parser
BYTES = 6  # of noise a mutation takes
CODECS = (
    "none",
    "fp16",
    "bf16",
    "int8:block=32",
    "sign:block=32",
    "topk:ratio=0.2",
    "topk:ratio=0.2,scope=block,block=64,values=int4:block=32",
    "randk:ratio=0.2,values=fp8:block=32",
    "threshold:value=0.5",
    "qsgd:levels=7,block=32",
    "mxfp4",
)
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


# ---- with checksums that are right


SEALED = 60_000
SEALED_CODECS = (
    *CODECS,
    "int4:block=32",
    "int2:block=32,rounding=stochastic",
    "fp8:block=32",
    "fp8:format=e5m2,block=32",
    "mxfp8",
    "mxfp8:format=e5m2",
    "qsgd:levels=255,norm=l2,block=32",
    "qsgd:levels=21,block=32",
    "topk:ratio=1.0,values=sign:block=32",
    "topk:ratio=0.5,scope=block,block=64,values=mxfp8",
    "randk:ratio=0.5,scope=block,block=64",
    "dgc:ratio=0.1,values=bf16",
)
DTYPES = reference.DTYPES
AWKWARD = (0x00, 0x01, 0x7C, 0x7F, 0x80, 0xFF)


def sealed(data: bytearray) -> bytes:
    """``data`` with the checksums of what it holds."""
    data[56:60] = struct.pack("<I", reference.crc32c(bytes(data[64:])))
    data[60:64] = struct.pack("<I", reference.crc32c(bytes(data[:60])))
    return bytes(data)


def changed_somewhere(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three changes of the payload, or of a field that says what the payload is."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        header = len(data) == 64 or rng.random() < 0.25
        at = int(rng.integers(4, 40) if header else rng.integers(64, len(data)))
        kind = rng.random()
        if kind < 0.5:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind < 0.8:
            changed[at] = int(rng.integers(256))
        else:
            changed[at] = int(rng.choice(AWKWARD))
    return sealed(changed)


def accepted(data: bytes) -> dance.Packet | None:
    try:
        return dance.Packet.from_bytes(data)
    except dance.FrameError:
        return None


@pytest.mark.parametrize("codec", SEALED_CODECS)
def test_with_right_checksums_what_the_oracle_refuses_is_refused_and_the_rest_is_finite(codec: str) -> None:
    rng = np.random.default_rng(list(codec.encode()))
    said: Counter[str] = Counter()
    for numel in SIZES:
        x = np.cos(np.arange(numel)).astype(np.float32)
        for dtype in DTYPES:
            data = reference.packet(codec, reference.store(x, dtype), dtype=dtype, seed=99)
            for _ in range(SEALED // len(SEALED_CODECS) // len(SIZES) // len(DTYPES)):
                changed = changed_somewhere(rng, data)
                verdict = reference.verdict(changed)
                said[verdict] += 1
                packet = accepted(changed)
                expected, got = verdict or "accepted", "refused" if packet is None else "accepted"
                assert (packet is None) == bool(verdict), f"{got}, not {expected}: {changed.hex()}"
                if packet is not None and packet.numel <= 1 << 16:
                    out = np.zeros(packet.numel, np.float32)
                    dance.decode(packet, out=out)
                    assert np.isfinite(out).all(), changed.hex()
                    dance.decode(packet, out=out, add=True, weight=-1.0)
                    assert not out.any(), changed.hex()
    assert said["header"] > 10
    assert said[""] > 10
