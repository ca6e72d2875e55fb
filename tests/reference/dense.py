"""What all dense codecs have in common, and the base of those with blocks and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from reference import noise
from reference.floats import FLT_MAX, FLT_MIN, Bits, Floats, Mask, f32, finite
from reference.frame import Parameters
from reference.packing import pack, unpack, words_of

LANES = 32
MIN_BLOCK, MAX_BLOCK = 32, 4096


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What one pass over v gives: bytes, what they decode to, where v is sound, and where something was sent.

    ``sound`` is False where a residual stays as it was: a non-finite element, or the block that holds one.
    """

    payload: bytes
    decoded: Floats
    sound: Mask
    sent: Mask
    count: int = 0  # of a sparse codec: its parameter in the header


class Dense(Protocol):
    name: str
    id: int

    def parameters(self, numel: int, count: int = 0) -> Parameters: ...
    def nbytes(self, numel: int, dtype: str) -> int: ...
    def encode(self, v: Floats, dtype: str, seed: int) -> Coded: ...
    def decode(self, payload: bytes, numel: int, dtype: str) -> Floats: ...


def striped_sum(rows: Floats) -> Floats:
    """The sum of each row: lane l of 32 adds elements l, l + 32, ...; then lanes fold by 16, 8, 4, 2, 1."""
    blocks, n = rows.shape
    padded = np.zeros((blocks, -(-n // LANES) * LANES), f32)
    padded[:, :n] = rows  # adding +0.0 to a sum of magnitudes changes nothing
    lanes = np.zeros((blocks, LANES), f32)
    for at in range(0, padded.shape[1], LANES):
        lanes = lanes + padded[:, at : at + LANES]
    for half in (16, 8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


def largest(rows: Floats) -> Floats:
    return np.abs(rows).max(axis=1)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")
def scale_and_inverse(m: Floats, top: float) -> tuple[Floats, Floats]:
    """A scale under which codes up to ``top`` reach m and stay finite, and what v is multiplied with."""
    scale = m / f32(top)
    scale = np.where(np.isfinite(scale * f32(top)), scale, np.nextafter(scale, f32(0.0)))
    return scale.astype(f32), (f32(top) / m).astype(f32)


def largest_scale(top: float) -> np.float32:
    """The scale of a block of the largest floats: no encoder makes a larger one."""
    return f32(scale_and_inverse(np.array([FLT_MAX], f32), top)[0][0])


class Blocked:
    """Codes of all blocks, then a scale a block; a block with a non-finite element is sent as zeros."""

    name: str
    id: int
    block: int
    bits: int
    stochastic = False
    scale_type = "<f4"

    @classmethod
    def of(cls, parameters: Parameters, kinds: Any) -> Blocked:
        """The codec that a header names; ValueError where its parameters are out of range."""
        if not MIN_BLOCK <= parameters.block <= MAX_BLOCK or parameters.mode > 1:
            raise ValueError(parameters)
        return cls(**cls.options(parameters))

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {"block": parameters.block}

    def valid(self, codes: Bits) -> bool:
        """Whether an encoder makes these codes, beside those that decode to no number."""
        return True

    def largest_scale(self) -> np.float32:
        return FLT_MAX

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        """Codes and scales of blocks (blocks x elements) of finite values; blocks whose scale is less than
        FLT_MIN are set to zero afterwards. ``u`` is the dither of stochastic codecs.
        """
        raise NotImplementedError

    def value(self, codes: Bits, scales: Floats) -> Floats:
        """What codes decode to; ``scales`` has a column."""
        raise NotImplementedError

    def scale_of_bytes(self, stored: Floats) -> Floats:
        return stored

    def groups(self, numel: int) -> Iterator[tuple[slice, int]]:
        """The elements of all full blocks and those of the last one, and how many a block of these has."""
        full = numel // self.block * self.block
        if full:
            yield slice(0, full), self.block
        if full < numel:
            yield slice(full, numel), numel - full

    def encode(self, v: Floats, dtype: str = "float32", seed: int = 0) -> Coded:
        u = noise.dither(seed, v.size) if self.stochastic else None
        data, all_scales = b"", []
        decoded, sound = np.zeros(v.size, f32), np.zeros(v.size, np.bool_)
        for part, n in self.groups(v.size):
            rows = v[part].reshape(-1, n)
            ok = finite(rows).all(axis=1)
            codes, scales = self.quantise(
                np.where(ok[:, None], rows, f32(0.0)).astype(f32),
                None if u is None else u[part].reshape(-1, n),
            )
            sent = self.large_enough(scales)
            codes = np.where(sent[:, None], codes, 0).astype(np.uint32)
            scales = np.where(sent, scales, 0).astype(scales.dtype)
            decoded[part] = self.value(codes, self.scale_of_bytes(scales)[:, None]).reshape(-1)
            sound[part] = np.repeat(ok, n)
            data += codes.astype(np.uint8).tobytes() if self.bits == 8 else pack(codes, self.bits)
            all_scales.append(scales.astype(self.scale_type).tobytes())
        data += bytes(-len(data) % 4)
        return Coded(
            payload=data + b"".join(all_scales), decoded=decoded, sound=sound, sent=np.ones(v.size, np.bool_)
        )

    def large_enough(self, scales: Floats) -> Mask:
        return np.asarray(scales >= FLT_MIN)

    def decode(self, payload: bytes, numel: int, dtype: str = "float32") -> Floats:
        codes_nbytes, _ = self.sizes(numel)
        stored = np.frombuffer(payload, self.scale_type, offset=codes_nbytes)
        scales = self.scale_of_bytes(stored.astype(stored.dtype.newbyteorder("=")))
        out, at, block = np.zeros(numel, f32), 0, 0
        for part, n in self.groups(numel):
            blocks = (part.stop - part.start) // n
            size = blocks * self.block_nbytes(n)
            if self.bits == 8:
                codes = np.frombuffer(payload[at : at + size], np.uint8).astype(np.uint32).reshape(blocks, n)
            else:
                codes = unpack(payload[at : at + size], blocks, n, self.bits)
            out[part] = self.value(codes, scales[block : block + blocks, None]).reshape(-1)
            at, block = at + size, block + blocks
        return out

    def block_nbytes(self, n: int) -> int:
        return n if self.bits == 8 else 4 * words_of(n, self.bits)

    def sizes(self, numel: int) -> tuple[int, int]:
        """Bytes of the codes and their padding, and of the scales."""
        codes = sum((part.stop - part.start) // n * self.block_nbytes(n) for part, n in self.groups(numel))
        return -(-codes // 4) * 4, -(-numel // self.block) * np.dtype(self.scale_type).itemsize

    def nbytes(self, numel: int, dtype: str = "float32") -> int:
        return sum(self.sizes(numel))

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters(block=self.block)
