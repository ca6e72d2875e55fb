"""The oracle: every codec and operation in plain NumPy, from docs/format.md; it imports nothing of dance.

One block or element at a time, for readers and not for speed. Tests demand equality of bits with it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
f32 = np.float32

FLT_MAX = np.finfo(np.float32).max
FLT_MIN = np.finfo(np.float32).tiny
LANES = 32


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What one pass over a vector v gives: bytes, what they decode to, and which elements were left out as
    non-finite.
    """

    payload: bytes
    decoded: Floats
    touched: NDArray[np.bool_]  # elements whose state changes: not bad, and for a sparse codec sent
    first_bad: int  # -1 when all are finite


def bits_of(x: Floats) -> NDArray[np.uint32]:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def floats_of(bits: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def finite(x: Floats) -> NDArray[np.bool_]:
    return (bits_of(x) & 0x7FFFFFFF) < 0x7F800000


def first_bad(v: Floats) -> int:
    bad = np.flatnonzero(~finite(v))
    return int(bad[0]) if bad.size else -1


def striped_sum(values: Floats) -> np.float32:
    """Lane l of 32 adds elements l, l+32, ... in order; then lanes are folded by 16, 8, 4, 2, 1."""
    padded = np.zeros(-(-values.size // LANES) * LANES, f32)
    padded[: values.size] = values  # adding +0.0 to a sum of magnitudes changes nothing
    lanes = np.zeros(LANES, f32)
    for row in padded.reshape(-1, LANES):
        lanes = lanes + row
    for half in (16, 8, 4, 2, 1):
        lanes[:half] = lanes[:half] + lanes[half : 2 * half]
    return f32(lanes[0])


class Elementwise:
    """none, fp16, bf16: a code an element, no blocks; a non-finite element is sent as +0.0."""

    def __init__(self, name: str) -> None:
        self.name = name

    def count(self, numel: int) -> int:
        return 0

    def parameters(self, numel: int) -> bytes:
        return bytes(16)

    def nbytes(self, numel: int) -> int:
        return (4 if self.name == "none" else 2) * numel

    def encode(self, v: Floats) -> Encoded:
        ok = finite(v)
        payload = self._codes(np.where(ok, v, f32(0.0)))
        return Encoded(
            payload=payload, decoded=self.decode(payload, v.size), touched=ok, first_bad=first_bad(v)
        )

    def _codes(self, v: Floats) -> bytes:
        if self.name == "none":
            return v.astype("<f4").tobytes()
        if self.name == "fp16":
            return np.clip(v, f32(-65504.0), f32(65504.0)).astype("<f2").tobytes()
        bits = bits_of(v).astype(np.uint64)
        size = bits & 0x7FFFFFFF
        rounded = (size + 0x7FFF + ((size >> 16) & 1)) >> 16  # ties to even
        return (np.minimum(rounded, 0x7F7F) | ((bits >> 16) & 0x8000)).astype("<u2").tobytes()

    def decode(self, payload: bytes, numel: int) -> Floats:
        if self.name == "none":
            return np.frombuffer(payload, "<f4").astype(f32)
        if self.name == "fp16":
            return np.frombuffer(payload, "<f2").astype(f32)
        return floats_of(np.frombuffer(payload, "<u2").astype(np.uint32) << np.uint32(16))


class Blocked:
    """int8 and sign: codes of all blocks, then a float32 scale a block; a block with a non-finite element is
    sent as zero.
    """

    name: str
    block: int

    def count(self, numel: int) -> int:
        return 0

    def parameters(self, numel: int) -> bytes:
        return struct.pack("<I12x", self.block)

    def ranges(self, numel: int) -> list[slice]:
        return [slice(start, min(start + self.block, numel)) for start in range(0, numel, self.block)]

    def encode(self, v: Floats) -> Encoded:
        codes, scales, touched = [], [], np.zeros(v.size, np.bool_)
        decoded = np.zeros(v.size, f32)
        for part in self.ranges(v.size):
            block = v[part]
            ok = bool(finite(block).all())
            code, scale = self._encode_block(block if ok else np.zeros_like(block))
            codes.append(code)
            scales.append(scale)
            touched[part] = ok
            decoded[part] = self._decode_block(code, scale, block.size)
        payload = b"".join(codes)
        payload += bytes(-len(payload) % 4) + np.array(scales, "<f4").tobytes()
        return Encoded(payload=payload, decoded=decoded, touched=touched, first_bad=first_bad(v))

    def decode(self, payload: bytes, numel: int) -> Floats:
        parts = self.ranges(numel)
        scales = np.frombuffer(payload, "<f4", offset=len(payload) - 4 * len(parts)).astype(f32)
        out, at = np.zeros(numel, f32), 0
        for part, scale in zip(parts, scales, strict=True):
            n = part.stop - part.start
            out[part] = self._decode_block(payload[at : at + self._block_nbytes(n)], scale, n)
            at += self._block_nbytes(n)
        return out

    def nbytes(self, numel: int) -> int:
        codes = sum(self._block_nbytes(part.stop - part.start) for part in self.ranges(numel))
        return -(-codes // 4) * 4 + 4 * len(self.ranges(numel))

    def _block_nbytes(self, n: int) -> int:
        raise NotImplementedError

    def _encode_block(self, v: Floats) -> tuple[bytes, np.float32]:
        raise NotImplementedError

    def _decode_block(self, code: bytes, scale: np.float32, n: int) -> Floats:
        raise NotImplementedError


class Int8(Blocked):
    """code = round(v * 127 / max|v|), decoded = code * scale with scale = max|v| / 127."""

    name = "int8"

    def __init__(self, block: int = 256) -> None:
        self.block = block

    def _block_nbytes(self, n: int) -> int:
        return n

    def _encode_block(self, v: Floats) -> tuple[bytes, np.float32]:
        largest = f32(np.abs(v).max())
        scale = largest / f32(127.0)
        if not np.isfinite(scale * f32(127.0)):
            scale = np.nextafter(scale, f32(0.0))
        if scale < FLT_MIN:
            return bytes(v.size), f32(0.0)
        inverse = f32(127.0) / largest
        shifted = v * inverse + f32(
            12582912.0
        )  # 1.5 * 2^23: the low byte is the nearest integer, ties to even
        return (bits_of(shifted) & 0xFF).astype(np.uint8).tobytes(), f32(scale)

    def _decode_block(self, code: bytes, scale: np.float32, n: int) -> Floats:
        return np.frombuffer(code, np.int8).astype(f32) * scale


class Sign(Blocked):
    """The sign bit of each element and the mean magnitude of the block."""

    name = "sign"

    def __init__(self, block: int = 256) -> None:
        self.block = block

    def _block_nbytes(self, n: int) -> int:
        return 4 * -(-n // 32)

    def _encode_block(self, v: Floats) -> tuple[bytes, np.float32]:
        total = striped_sum(np.abs(v) * f32(2.0**-13))
        scale = min(total / f32(v.size) * f32(2.0**13), FLT_MAX)
        words = [0] * -(-v.size // 32)
        if scale < FLT_MIN:
            return struct.pack(f"<{len(words)}I", *words), f32(0.0)
        for e in np.flatnonzero(np.signbit(v)).tolist():
            words[e % len(words)] |= 1 << (e // len(words))
        return struct.pack(f"<{len(words)}I", *words), f32(scale)

    def _decode_block(self, code: bytes, scale: np.float32, n: int) -> Floats:
        words = np.frombuffer(code, "<u4").astype(np.uint32)
        e = np.arange(n)
        bit = (words[e % words.size] >> (e // words.size).astype(np.uint32)) & 1
        negative = (bit == 1) & (scale > 0)
        return np.where(negative, -scale, scale).astype(f32)


class TopK:
    """The k elements of largest magnitude, ties to the lower index; a non-finite element counts as +0.0."""

    name = "topk"

    def __init__(self, ratio: float = 0.01) -> None:
        self.ratio = ratio

    def count(self, numel: int) -> int:
        return min(numel, max(1, math.ceil(self.ratio * numel)))

    def parameters(self, numel: int) -> bytes:
        return struct.pack("<Q8x", self.count(numel))

    def nbytes(self, numel: int) -> int:
        return 8 * self.count(numel)

    def encode(self, v: Floats) -> Encoded:
        ok = finite(v)
        values = np.where(ok, v, f32(0.0)).astype(f32)
        size = (bits_of(values) & 0x7FFFFFFF).astype(np.int64)
        chosen = np.sort(np.argsort(-size, kind="stable")[: self.count(v.size)])
        payload = chosen.astype("<u4").tobytes() + values[chosen].astype("<f4").tobytes()
        touched = np.zeros(v.size, np.bool_)
        touched[chosen] = True
        return Encoded(
            payload=payload,
            decoded=self.decode(payload, v.size),
            touched=touched & ok,
            first_bad=first_bad(v),
        )

    def decode(self, payload: bytes, numel: int) -> Floats:
        k = len(payload) // 8
        out = np.zeros(numel, f32)
        out[np.frombuffer(payload, "<u4", k)] = np.frombuffer(payload, "<f4", k, 4 * k)
        return out


Codec = Elementwise | Int8 | Sign | TopK
IDS = {"none": 0, "fp16": 1, "bf16": 2, "int8": 3, "sign": 4, "topk": 5}


def codec(text: str) -> Codec:
    """The oracle of a codec text such as ``int8:block=100``."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, value = item.split("=")
        options[key] = float(value) if key == "ratio" else int(value)
    if name in ("none", "fp16", "bf16"):
        return Elementwise(name)
    return {"int8": Int8, "sign": Sign, "topk": TopK}[name](**options)


# Operations. All return new arrays; the codec only sees v.


def encode(c: Codec, x: Floats) -> Encoded:
    return c.encode(x)


def encode_feedback(c: Codec, x: Floats, residual: Floats) -> tuple[Encoded, Floats]:
    """v = x + residual is sent; the residual becomes v - decoded, and stays where v is not finite."""
    v = x + residual
    e = c.encode(v)
    ok = finite(v) if isinstance(c, TopK) else e.touched  # what topk does not send stays in the residual
    return e, np.where(ok, v - e.decoded, residual).astype(f32)


def encode_difference(c: Codec, x: Floats, reference: Floats) -> tuple[Encoded, Floats]:
    """v = x - reference is sent; the reference grows by what is decoded, within +-FLT_MAX."""
    e = c.encode(x - reference)
    moved = np.clip(reference + e.decoded, -FLT_MAX, FLT_MAX)
    return e, np.where(e.touched, moved, reference).astype(f32)


def decode(c: Codec, payload: bytes, numel: int, weight: float = 1.0) -> Floats:
    out = f32(weight) * c.decode(payload, numel)
    if isinstance(c, TopK):  # what was not sent is +0.0 whatever the weight
        sent = np.zeros(numel, np.bool_)
        sent[np.frombuffer(payload, "<u4", len(payload) // 8)] = True
        return np.where(sent, out, f32(0.0)).astype(f32)
    return out.astype(f32)


def decode_add(c: Codec, payload: bytes, out: Floats, weight: float) -> Floats:
    moved = out + f32(weight) * c.decode(payload, out.size)
    if isinstance(c, TopK):  # what was not sent is not touched
        sent = np.zeros(out.size, np.bool_)
        sent[np.frombuffer(payload, "<u4", len(payload) // 8)] = True
        return np.where(sent, moved, out).astype(f32)
    return moved.astype(f32)


def mix(x: Floats, neighbour_sum: Floats, reference: Floats, step_size: float) -> Floats:
    return (x + f32(step_size) * (neighbour_sum - reference)).astype(f32)


# The frame.


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), reflected, as in RFC 3720: crc32c(b"123456789") == 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Every field of the 64-byte header, so that a test can write a wrong one."""

    magic: bytes = b"DNCE"
    version: int = 1
    codec: int = 0
    dtype: int = 0
    flags: int = 0
    numel: int = 0
    payload_nbytes: int = 0
    parameters: bytes = bytes(16)
    seed: int = 0
    round: int = 0
    sender: int = 0
    payload_crc: int | None = None  # None: the right one
    header_crc: int | None = None


def frame(fields: Fields, payload: bytes) -> bytes:
    """Header and payload as they go over the wire."""
    head = struct.pack(
        "<4sBBBBQQ16sQII",
        fields.magic,
        fields.version,
        fields.codec,
        fields.dtype,
        fields.flags,
        fields.numel,
        fields.payload_nbytes,
        fields.parameters,
        fields.seed,
        fields.round,
        fields.sender,
    )
    head += struct.pack("<I", crc32c(payload) if fields.payload_crc is None else fields.payload_crc)
    head += struct.pack("<I", crc32c(head) if fields.header_crc is None else fields.header_crc)
    return head + payload


def packet(text: str, x: Floats, *, seed: int = 0, round: int = 0, sender: int = 0) -> bytes:
    """The whole packet of ``x`` under the codec ``text``."""
    c = codec(text)
    payload = encode(c, x).payload
    fields = Fields(
        codec=IDS[c.name],
        numel=x.size,
        payload_nbytes=len(payload),
        parameters=c.parameters(x.size),
        seed=seed,
        round=round,
        sender=sender,
    )
    return frame(fields, payload)
