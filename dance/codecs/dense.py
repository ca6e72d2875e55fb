"""Dense codecs: a code for every element. Each states how far it contracts, and why.

Bounds hold for x of normal range: no scale below the smallest normal float32, in the range of a cast. What
the float32 arithmetic of an encoder adds to the real number's error is within the factor `_ARITHMETIC`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dance import _native
from dance.codecs.value import Codec, check_choice, check_integer

__all__ = [  # the classes in DENSE, for `dance.codecs`
    "Bf16",
    "Fp8",
    "Fp16",
    "Int2",
    "Int4",
    "Int8",
    "MxFp4",
    "MxFp8",
    "Qsgd",
    "Sign",
    "Ternary",
    "Uncompressed",
]

_BLOCKS = (32, 4096)
# Each operation rounds within 2^-24 and a code is at most 127 steps of its scale: half a step grows to no
# more than 0.5 + 127 * 2^-22 of one.
_ARITHMETIC = 1.0 + 2.0**-12


@dataclass(frozen=True, kw_only=True)
class Uncompressed(Codec):
    """``none``: elements as they are, the codec that is always a candidate."""

    name: ClassVar[str] = "none"
    id: ClassVar[int] = 0
    examples: ClassVar[tuple[str, ...]] = ("none",)

    @property
    def contraction(self) -> float:
        return 1.0

    @property
    def unbiased(self) -> bool:
        return True

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Uncompressed:
        return cls()


@dataclass(frozen=True, kw_only=True)
class Fp16(Codec):
    """``fp16``: IEEE binary16, nearest even, saturating at 65504; contracts in its normal range (6.2e-5 to
    65504).
    """

    name: ClassVar[str] = "fp16"
    id: ClassVar[int] = 1
    examples: ClassVar[tuple[str, ...]] = ("fp16",)

    @property
    def contraction(self) -> float:
        return 1.0 - 2.0**-22  # each element errs by at most 2^-11 of itself

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Fp16:
        return cls()


@dataclass(frozen=True, kw_only=True)
class Bf16(Codec):
    """``bf16``: bfloat16, nearest even, saturating at 0x7f7f; contracts in its normal range."""

    name: ClassVar[str] = "bf16"
    id: ClassVar[int] = 2
    examples: ClassVar[tuple[str, ...]] = ("bf16",)

    @property
    def contraction(self) -> float:
        return 1.0 - 2.0**-16  # 2^-8 of each element

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Bf16:
        return cls()


# Format -> mode in the header, largest value M, relative error u of normal values, absolute error s of
# subnormal ones.
_FP8 = {"e4m3": (0, 448.0, 2.0**-4, 2.0**-10), "e5m2": (1, 57344.0, 2.0**-3, 2.0**-17)}
_FP8_FORMATS = tuple(_FP8)


@dataclass(frozen=True, kw_only=True)
class Fp8(Codec):
    """``fp8``: OCP 8-bit floats with a float32 scale a block, which maps the largest magnitude to 448 or
    57344.
    """

    name: ClassVar[str] = "fp8"
    id: ClassVar[int] = 6
    principal: ClassVar[str | None] = "format"
    examples: ClassVar[tuple[str, ...]] = ("fp8:format=e4m3", "fp8:format=e5m2,block=64")

    format: str = "e4m3"
    block: int = 256

    def __post_init__(self) -> None:
        check_choice(self.name, "format", self.format, _FP8_FORMATS)
        check_integer(self.name, "block", self.block, _BLOCKS)

    @property
    def contraction(self) -> float:
        # In units where the largest magnitude is M: u of a normal element, s of a subnormal one.
        _, largest, normal, subnormal = _FP8[self.format]
        return 1.0 - _ARITHMETIC * (normal**2 + self.block * (subnormal / largest) ** 2)

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, mode=_FP8[self.format][0], block=self.block)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Fp8:
        return cls(format=_FP8_FORMATS[spec.mode], block=spec.block)


@dataclass(frozen=True, kw_only=True)
class _Integer(Codec):
    """255, 15 or 3 equal steps between -max|x| and max|x| of each block (Dettmers 2016)."""

    principal: ClassVar[str | None] = "block"
    levels: ClassVar[int]  # L: codes are -L to L

    block: int = 256
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_integer(self.name, "block", self.block, _BLOCKS)
        check_choice(self.name, "rounding", self.rounding, ("nearest", "stochastic"))

    @property
    def contraction(self) -> float | None:
        if self.stochastic:
            return _within_one(_variance_of_max(self.levels, self.block))
        # The largest element m is hit. Each other errs by at most e = m / 2L and by no more than itself, zero
        # being a level: error <= A and norm >= m^2 + A, where A <= (block - 1) e^2.
        return 1.0 - _ARITHMETIC * (self.block - 1) / (4.0 * self.levels**2 + self.block - 1)

    @property
    def unbiased(self) -> bool:
        return self.stochastic

    @property
    def stochastic(self) -> bool:
        return self.rounding == "stochastic"

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, mode=int(self.stochastic), block=self.block)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> _Integer:
        return cls(block=spec.block, rounding="stochastic" if spec.mode else "nearest")


@dataclass(frozen=True, kw_only=True)
class Int8(_Integer):
    """``int8``: 255 equal steps between -max|x| and max|x| of each block (Dettmers 2016)."""

    name: ClassVar[str] = "int8"
    id: ClassVar[int] = 3
    levels: ClassVar[int] = 127
    examples: ClassVar[tuple[str, ...]] = ("int8:block=256", "int8:block=100,rounding=stochastic")


@dataclass(frozen=True, kw_only=True)
class Int4(_Integer):
    """``int4``: 15 equal steps between -max|x| and max|x| of each block, two elements a byte."""

    name: ClassVar[str] = "int4"
    id: ClassVar[int] = 7
    levels: ClassVar[int] = 7
    examples: ClassVar[tuple[str, ...]] = ("int4:block=256", "int4:block=100,rounding=stochastic")


@dataclass(frozen=True, kw_only=True)
class Int2(_Integer):
    """``int2``: -max|x|, 0 or max|x| of each block, four elements a byte (as TernGrad, Wen et al. 2017)."""

    name: ClassVar[str] = "int2"
    id: ClassVar[int] = 8
    levels: ClassVar[int] = 1
    examples: ClassVar[tuple[str, ...]] = ("int2:block=256", "int2:block=100,rounding=stochastic")


@dataclass(frozen=True, kw_only=True)
class MxFp8(Codec):
    """``mxfp8``: OCP microscaling, 8-bit floats and a power-of-two scale for each 32 elements."""

    name: ClassVar[str] = "mxfp8"
    id: ClassVar[int] = 9
    principal: ClassVar[str | None] = "format"
    examples: ClassVar[tuple[str, ...]] = ("mxfp8:format=e4m3", "mxfp8:format=e5m2")

    format: str = "e4m3"

    def __post_init__(self) -> None:
        check_choice(self.name, "format", self.format, _FP8_FORMATS)

    @property
    def contraction(self) -> float:
        # The largest magnitude is scaled to between 8/7 and 4/7 of M = 1.75 * 2^e: what lies above M
        # saturates and loses up to 1/8 of itself, more than rounding of normal values does.
        _, largest, _, subnormal = _FP8[self.format]
        return 1.0 - _ARITHMETIC * (2.0**-6 + 31 * (subnormal / (largest / 1.75)) ** 2)

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, mode=_FP8[self.format][0], block=32)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> MxFp8:
        return cls(format=_FP8_FORMATS[spec.mode])


@dataclass(frozen=True, kw_only=True)
class MxFp4(Codec):
    """``mxfp4``: OCP microscaling, 4-bit floats (e2m1) and a power-of-two scale for each 32 elements."""

    name: ClassVar[str] = "mxfp4"
    id: ClassVar[int] = 10
    examples: ClassVar[tuple[str, ...]] = ("mxfp4",)

    @property
    def contraction(self) -> float:
        # The largest magnitude is scaled to between 4 and 8: what lies above M = 6 loses up to 1/4 of itself,
        # a value below 1 up to 1/4.
        return 1.0 - _ARITHMETIC * (1.0 / 16.0 + 31 * (0.25 / 4.0) ** 2)

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, block=32)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> MxFp4:
        return cls()


@dataclass(frozen=True, kw_only=True)
class Qsgd(Codec):
    """``qsgd``: an odd number of levels between -m and m of each block, rounded at random (Alistarh et al.
    2017); m is the largest magnitude or the Euclidean norm.
    """

    name: ClassVar[str] = "qsgd"
    id: ClassVar[int] = 11
    principal: ClassVar[str | None] = "levels"
    examples: ClassVar[tuple[str, ...]] = (
        "qsgd:levels=255",
        "qsgd:levels=15,block=64",
        "qsgd:levels=7,norm=l2,block=32",
        "qsgd:levels=129,norm=l2",
    )

    levels: int = 255
    norm: str = "max"
    block: int = 256

    def __post_init__(self) -> None:
        check_integer(self.name, "levels", self.levels, (3, 255))
        if self.levels % 2 == 0:
            raise ValueError(f"qsgd: expected an odd number of levels, got {self.levels}")
        check_choice(self.name, "norm", self.norm, ("max", "l2"))
        check_integer(self.name, "block", self.block, _BLOCKS)

    @property
    def contraction(self) -> float | None:
        return _within_one(self.variance)

    @property
    def variance(self) -> float:
        """tau with ``E ||C(x) - x||^2 <= tau ||x||^2``; C / (1 + tau) contracts by 1 / (1 + tau)."""
        largest = (self.levels - 1) // 2
        return (_variance_of_max if self.norm == "max" else _variance_of_l2)(largest, self.block)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def stochastic(self) -> bool:
        return True

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, mode=int(self.norm == "l2"), block=self.block, levels=self.levels)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Qsgd:
        return cls(levels=spec.levels, norm="l2" if spec.mode else "max", block=spec.block)


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """``sign``: one bit an element and the mean magnitude of its block (Karimireddy et al. 2019)."""

    name: ClassVar[str] = "sign"
    id: ClassVar[int] = 4
    principal: ClassVar[str | None] = "block"
    examples: ClassVar[tuple[str, ...]] = ("sign:block=256", "sign:block=100")

    block: int = 256

    def __post_init__(self) -> None:
        check_integer(self.name, "block", self.block, _BLOCKS)

    @property
    def contraction(self) -> float:
        # ||x||_1^2 / (n ||x||_2^2) of a block, least for a single element other than zero; the mean minimises
        # the error, so that rounding it changes nothing in first order.
        return (1.0 - 2.0**-20) / self.block

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, block=self.block)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Sign:
        return cls(block=spec.block)


@dataclass(frozen=True, kw_only=True)
class Ternary(Codec):
    """``ternary``: -1, 0 or 1 times one and a half mean magnitudes of its block, the nearest (after Li & Liu
    2016).
    """

    name: ClassVar[str] = "ternary"
    id: ClassVar[int] = 12
    principal: ClassVar[str | None] = "block"
    examples: ClassVar[tuple[str, ...]] = ("ternary:block=256", "ternary:block=100")

    block: int = 256

    def __post_init__(self) -> None:
        check_integer(self.name, "block", self.block, _BLOCKS)

    @property
    def contraction(self) -> float:
        # With a = 1.5 m, m the mean magnitude and S the elements above a/2, the error falls by the sum over S
        # of a (2|x| - a). All others together have at most (n - |S|) a/2 of the total n m, so that the sum is
        # at least a (2 n m - n a) = 0.75 n m^2, and ||x||^2 <= n^2 m^2.
        return 0.75 * (1.0 - 2.0**-20) / self.block

    def spec(self, numel: int) -> _native.Spec:
        return _native.Spec(id=self.id, block=self.block)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Ternary:
        return cls(block=spec.block)


DENSE: tuple[type[Codec], ...] = (
    Uncompressed,
    Fp16,
    Bf16,
    Fp8,
    Int8,
    Int4,
    Int2,
    MxFp8,
    MxFp4,
    Qsgd,
    Sign,
    Ternary,
)


def _variance_of_max(levels: int, block: int) -> float:
    """tau of rounding at random to L levels of m = max|x|.

    In steps m / L an element y errs by y (1 - y) in the mean square if y < 1, and less of its square beyond;
    the other block - 1 all at y maximise N y (1 - y) / (L^2 + N y^2), which gives (sqrt(1 + N / L^2) - 1) /
    2.
    """
    return (math.sqrt(1.0 + (block - 1) / levels**2) - 1.0) / 2.0 + _of_16_bits(levels, block)


def _variance_of_l2(levels: int, block: int) -> float:
    """tau of rounding at random to L levels of m = ||x||.

    In steps the squares sum to L^2, and the mean square error sqrt(z) - z of a square z (1/4 from z = 1/4 on)
    is concave: the sum is largest where all are equal.
    """
    ratio = math.sqrt(block) / levels
    return (ratio - 1.0 if ratio >= 2.0 else ratio**2 / 4.0) + _of_16_bits(levels, block)


def _of_16_bits(levels: int, block: int) -> float:
    """What 16 bits of noise, and float32 arithmetic, may add: 2^-16 of a squared step for each element."""
    return block * 2.0**-16 / levels**2


def _within_one(variance: float) -> float | None:
    return 1.0 - variance if variance < 1.0 else None
