"""ternary: the nearest of -1, 0 and 1 times one and a half mean magnitudes of the block."""

from __future__ import annotations

import numpy as np

from reference.dense import striped_sum
from reference.floats import FLT_MAX, Bits, Floats, f32
from reference.integers import Integers


class Ternary(Integers):
    name, id, bits, top = "ternary", 12, 2, 1

    def __init__(self, block: int = 256) -> None:
        self.block = block

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        total = striped_sum(np.abs(rows) * f32(2.0**-13))
        scale = np.minimum(total / f32(rows.shape[1]) * f32(12288.0), FLT_MAX).astype(f32)
        codes = np.where(np.abs(rows) > scale[:, None] / f32(2.0), np.sign(rows), f32(0.0))
        return codes.astype(np.int32).astype(np.uint32) & np.uint32(3), scale

    def largest_scale(self) -> np.float32:
        return f32(FLT_MAX)
