"""int8, int4, int2 and qsgd: codes are integers from -L to L, decoded = code * scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.dense import Blocked, largest, largest_scale, scale_and_inverse, striped_sum
from reference.floats import FLT_MAX, Bits, Floats, bits_of, f32
from reference.frame import Parameters

MAGIC = f32(12582912.0)  # 1.5 * 2^23: added, it leaves the nearest integer, ties to even, in the low bits


class Integers(Blocked):
    top: int  # L

    def norm(self, rows: Floats) -> Floats:
        return largest(rows)

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        scale, inverse = scale_and_inverse(self.norm(rows), self.top)
        t = rows * inverse[:, None]
        if u is not None:
            t = np.clip(t + u, f32(-self.top), f32(self.top))
        return bits_of(t + MAGIC) & np.uint32((1 << self.bits) - 1), scale

    def signed(self, codes: Bits) -> NDArray[np.int32]:
        """Two's complement."""
        half = 1 << (self.bits - 1)
        return ((codes.astype(np.int32) + half) & (2 * half - 1)) - half

    def value(self, codes: Bits, scales: Floats) -> Floats:
        return self.signed(codes).astype(f32) * scales

    def valid(self, codes: Bits) -> bool:
        return bool((np.abs(self.signed(codes)) <= self.top).all())

    def largest_scale(self) -> np.float32:
        return largest_scale(self.top)


class _Int(Integers):
    def __init__(self, block: int = 256, rounding: str = "nearest") -> None:
        self.block = block
        self.stochastic = rounding == "stochastic"

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {"block": parameters.block, "rounding": ("nearest", "stochastic")[parameters.mode]}

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters(block=self.block, mode=int(self.stochastic))


class Int8(_Int):
    name, id, bits, top = "int8", 3, 8, 127


class Int4(_Int):
    name, id, bits, top = "int4", 7, 4, 7


class Int2(_Int):
    name, id, bits, top = "int2", 8, 2, 1


class Qsgd(Integers):
    """Alistarh et al. 2017, with a norm a block."""

    name, id, stochastic = "qsgd", 11, True

    def __init__(self, levels: int = 255, norm: str = "max", block: int = 256) -> None:
        self.levels, self.block, self.l2 = levels, block, norm == "l2"
        self.top = (levels - 1) // 2
        self.bits = (levels - 1).bit_length()

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        levels = parameters.levels
        if not 3 <= levels <= 255 or levels % 2 == 0:
            raise ValueError(parameters)
        return {"block": parameters.block, "levels": levels, "norm": ("max", "l2")[parameters.mode]}

    def norm(self, rows: Floats) -> Floats:
        if not self.l2:
            return largest(rows)
        exponent = np.minimum(bits_of(largest(rows)) >> 23, 253).astype(np.int32)
        w = rows * np.ldexp(f32(1.0), 127 - exponent)[:, None]
        back = np.where(exponent == 0, f32(0.0), np.ldexp(f32(1.0), exponent - 127))
        return np.minimum(np.sqrt(striped_sum(w * w)) * back, FLT_MAX).astype(f32)

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters(block=self.block, levels=self.levels, mode=int(self.l2))
