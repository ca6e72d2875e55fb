"""mxfp8 and mxfp4: blocks of 32 under a power of two, E8M0 (OCP Microscaling Formats (MX), v1.0)."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference.dense import Blocked, largest
from reference.floats import Bits, Floats, Mask, bits_of, f32
from reference.frame import Parameters
from reference.minifloat import E2M1, FORMATS, Minifloat


class Mx(Blocked):
    block = 32
    scale_type = "u1"
    mode = 0
    minifloat: Minifloat

    @property
    def top_exponent(self) -> int:
        """e, the exponent of the largest code."""
        return int(np.log2(self.minifloat.largest))

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        exponent = (bits_of(largest(rows)) >> 23).astype(np.int64)
        x = np.where(exponent == 0, 0, np.maximum(exponent - self.top_exponent, 1))
        return self.minifloat.code(np.ldexp(rows.astype(np.float64), (127 - x)[:, None]), rows), x.astype(
            np.uint8
        )

    def large_enough(self, scales: Floats) -> Mask:
        return np.asarray(scales > 0)

    def scale_of_bytes(self, stored: Floats) -> Floats:
        return np.where(stored == 0, f32(0.0), np.ldexp(f32(1.0), stored.astype(np.int32) - 127)).astype(f32)

    def value(self, codes: Bits, scales: Floats) -> Floats:
        return self.minifloat.value(codes) * scales

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters(block=self.block, mode=self.mode)


class MxFp8(Mx):
    name, id, bits = "mxfp8", 9, 8

    def __init__(self, format: str = "e4m3") -> None:
        self.mode, self.minifloat = int(format == "e5m2"), FORMATS[format]

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {"format": ("e4m3", "e5m2")[parameters.mode]}


class MxFp4(Mx):
    name, id, bits, minifloat = "mxfp4", 10, 4, E2M1

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {}
