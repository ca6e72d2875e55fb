"""fp8: e4m3 or e5m2 codes, and a float32 scale that takes the largest of a block to the largest code."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference.dense import Blocked, largest, largest_scale, scale_and_inverse
from reference.floats import Bits, Floats
from reference.frame import Parameters
from reference.minifloat import FORMATS


class Fp8(Blocked):
    name, id, bits = "fp8", 6, 8

    def __init__(self, format: str = "e4m3", block: int = 256) -> None:
        self.block, self.mode = block, int(format == "e5m2")
        self.minifloat = FORMATS[format]

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {"block": parameters.block, "format": ("e4m3", "e5m2")[parameters.mode]}

    def largest_scale(self) -> np.float32:
        return largest_scale(self.minifloat.largest)

    def quantise(self, rows: Floats, u: Floats | None) -> tuple[Bits, Floats]:
        scale, inverse = scale_and_inverse(largest(rows), self.minifloat.largest)
        return self.minifloat.code((rows * inverse[:, None]).astype(np.float64), rows), scale

    def value(self, codes: Bits, scales: Floats) -> Floats:
        return self.minifloat.value(codes) * scales

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters(block=self.block, mode=self.mode)
