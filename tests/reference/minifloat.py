"""Floats of 8 and 4 bits as tables of what their codes stand for (OCP OFP8 and MX specifications, v1.0)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reference.floats import Bits, bits_of


@dataclass(frozen=True, kw_only=True)
class Minifloat:
    """Sign, exponent with ``bias`` and mantissa; positive codes above ``last`` are not numbers."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    last: int

    @property
    def sign(self) -> int:
        return 1 << (self.exponent_bits + self.mantissa_bits)

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """The values of codes 0 to ``last``, which increase."""
        return np.array([self._value(code) for code in range(self.last + 1)])

    def _value(self, code: int) -> float:
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        fraction = mantissa / (1 << self.mantissa_bits)
        if exponent == 0:
            return fraction * 2.0 ** (1 - self.bias)
        return (1.0 + fraction) * 2.0 ** (exponent - self.bias)

    @property
    def largest(self) -> float:
        return float(self.table[-1])

    def code(self, t: NDArray[np.float64], sign_of: NDArray[np.float32]) -> Bits:
        """The codes of the values nearest to |t|, ties to the even code, with the signs of ``sign_of``."""
        table = self.table
        middles = (table[:-1] + table[1:]) / 2.0
        size = np.abs(t)
        code = np.searchsorted(middles, size, side="left")
        tie = (code < middles.size) & (size == middles[np.minimum(code, middles.size - 1)])
        code = code + (tie & (code % 2 == 1))
        return (code + np.where(bits_of(sign_of) >> 31 == 1, self.sign, 0)).astype(np.uint32)

    def value(self, code: Bits) -> NDArray[np.float32]:
        table = np.append(self.table, np.full(self.sign - 1 - self.last, np.nan))
        size = table[code & np.uint32(self.sign - 1)]
        return np.where(code & np.uint32(self.sign), -size, size).astype(np.float32)


E4M3 = Minifloat(exponent_bits=4, mantissa_bits=3, bias=7, last=0x7E)
E5M2 = Minifloat(exponent_bits=5, mantissa_bits=2, bias=15, last=0x7B)
E2M1 = Minifloat(exponent_bits=2, mantissa_bits=1, bias=1, last=7)
FORMATS = {"e4m3": E4M3, "e5m2": E5M2}
