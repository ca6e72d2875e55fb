"""sign: the sign bit of each element and the mean magnitude of its block (Karimireddy et al. 2019)."""

from __future__ import annotations

import numpy as np

from reference.dense import Blocked, striped_sum
from reference.floats import FLT_MAX, Bits, Floats, bits_of, f32


class Sign(Blocked):
    name, id, bits = "sign", 4, 1

    def __init__(self, block: int = 256) -> None:
        self.block = block

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        total = striped_sum(np.abs(rows) * f32(2.0**-13))
        scale = np.minimum(total / f32(rows.shape[1]) * f32(2.0**13), FLT_MAX)
        return bits_of(rows) >> 31, scale.astype(f32)

    def value(self, codes: Bits, scales: Floats) -> Floats:
        return np.where((codes == 1) & (scales > 0), -scales, scales).astype(f32)
