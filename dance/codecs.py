"""The codecs as values: frozen, hashable, written as text such as ``int8:block=256``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

from dance import _native
from dance.errors import FrameError

HEADER_NBYTES = 64
DTYPES = ("float32", "float16", "bfloat16")  # position = number in the wire header
_MIN_BLOCK, _MAX_BLOCK = 32, 4096
_MAX_SIZES = 1024  # how many sizes a codec remembers


@dataclass(frozen=True, kw_only=True)
class Codec:
    """What all codecs have in common; use the subclasses or `codec`.

    ``contraction`` is w with ``||C(x) - x||^2 <= (1 - w) ||x||^2`` for all x of normal range, or None.
    """

    name: ClassVar[str]
    id: ClassVar[int]
    principal: ClassVar[str | None] = None  # the option that the text of a codec always shows
    fixed_size: ClassVar[bool] = True
    unbiased: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False

    # numel -> (count, payload bytes): the answer of the core, asked for once. Not part of the value.
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def native_block(self) -> int:
        """The block as the core takes it; 0 for a codec without blocks."""
        return 0

    @property
    def contraction(self) -> float | None:
        raise NotImplementedError

    def count(self, numel: int) -> int:
        """Returns how many elements a sparse codec sends of ``numel``; 0 for a dense codec."""
        return 0

    def sizes(self, numel: int) -> tuple[int, int]:
        """Returns (count, payload bytes) for ``numel`` elements, remembered per codec."""
        known = self._sizes.get(numel)
        if known is None:
            if not 0 <= numel < 1 << 62:
                raise ValueError(f"{self}: expected a number of elements in [0, 2^62), got {numel}")
            count = self.count(numel)
            known = (count, _native.payload_nbytes(self.id, self.native_block, count, numel))
            if len(self._sizes) >= _MAX_SIZES:
                self._sizes.clear()
            self._sizes[numel] = known
        return known

    def packet_nbytes(self, numel: int, dtype: str = "float32") -> int:
        """Returns the bytes of a packet of ``numel`` elements, its 64-byte header included."""
        if dtype != "float32":
            raise ValueError(f"{self}: expected dtype float32, got {dtype}; cast first")
        return HEADER_NBYTES + self.sizes(numel)[1]

    def __str__(self) -> str:
        options = [
            f"{option.name}={getattr(self, option.name)!s}"
            for option in fields(self)
            if option.init and (option.name == self.principal or getattr(self, option.name) != option.default)
        ]
        return f"{self.name}:{','.join(options)}" if options else self.name

    # A codec is its options; what it remembers of sizes stays behind when it is copied or pickled.
    def __reduce__(self) -> tuple[Callable[[str], Codec], tuple[str]]:
        return codec, (str(self),)


@dataclass(frozen=True, kw_only=True)
class Uncompressed(Codec):
    """``none``: float32 as it is, the codec that is always a candidate."""

    name: ClassVar[str] = "none"
    id: ClassVar[int] = 0
    unbiased: ClassVar[bool] = True

    @property
    def contraction(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Fp16(Codec):
    """``fp16``: IEEE binary16, nearest even, saturating at 65504; contracts in its normal range (6.2e-5 to
    65504).
    """

    name: ClassVar[str] = "fp16"
    id: ClassVar[int] = 1

    @property
    def contraction(self) -> float:
        return 1.0 - 2.0**-22


@dataclass(frozen=True, kw_only=True)
class Bf16(Codec):
    """``bf16``: bfloat16, nearest even, saturating at 0x7f7f; contracts in its normal range."""

    name: ClassVar[str] = "bf16"
    id: ClassVar[int] = 2

    @property
    def contraction(self) -> float:
        return 1.0 - 2.0**-16


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """``int8``: 255 equal steps between -max|x| and max|x| of each block (Dettmers 2016)."""

    name: ClassVar[str] = "int8"
    id: ClassVar[int] = 3
    principal: ClassVar[str | None] = "block"

    block: int = 256
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        _check_block(self.name, self.block)
        _check_choice(self.name, "rounding", self.rounding, ("nearest",))

    @property
    def native_block(self) -> int:
        return self.block

    @property
    def contraction(self) -> float:
        # Each element errs by at most scale / 2 = max / 254, and ||x||^2 >= max^2.
        return 1.0 - self.block / (4.0 * 127.0**2)


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """``sign``: one bit an element and the mean magnitude of its block (Karimireddy et al. 2019)."""

    name: ClassVar[str] = "sign"
    id: ClassVar[int] = 4
    principal: ClassVar[str | None] = "block"

    block: int = 256

    def __post_init__(self) -> None:
        _check_block(self.name, self.block)

    @property
    def native_block(self) -> int:
        return self.block

    @property
    def contraction(self) -> float:
        # ||x||_1^2 / (n ||x||_2^2) of a block, least for a single element other than zero.
        return 1.0 / self.block


@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    """``topk``: exactly the max(1, ceil(ratio * numel)) largest magnitudes (Stich et al. 2018)."""

    name: ClassVar[str] = "topk"
    id: ClassVar[int] = 5
    principal: ClassVar[str | None] = "ratio"

    ratio: float = 0.01
    scope: str = "global"
    values: str = "none"

    def __post_init__(self) -> None:
        if (
            isinstance(self.ratio, bool)
            or not isinstance(self.ratio, (int, float))
            or not 0.0 < self.ratio <= 1.0
        ):
            raise ValueError(f"topk: expected ratio in (0, 1], got {self.ratio!r}")
        object.__setattr__(self, "ratio", float(self.ratio))
        _check_choice(self.name, "scope", self.scope, ("global",))
        _check_choice(self.name, "values", self.values, ("none",))

    def count(self, numel: int) -> int:
        return min(numel, max(1, math.ceil(self.ratio * numel)))

    @property
    def contraction(self) -> float:
        return self.ratio

    @classmethod
    def of_count(cls, count: int, numel: int) -> TopK:
        """Returns a codec that sends ``count`` of ``numel``: a header carries the count, not the ratio."""
        if numel == 0 and count == 0:
            return cls()
        if not 1 <= count <= numel:
            raise FrameError(f"topk: a packet of {numel} elements cannot hold {count} of them")
        ratio = count / numel
        while math.ceil(ratio * numel) > count:  # at most a few steps: the rounding of one division
            ratio = math.nextafter(ratio, 0.0)
        return cls(ratio=ratio)


Like: TypeAlias = "Codec | str"  # every codec argument takes the value or its text

CODECS: tuple[type[Codec], ...] = (Uncompressed, Fp16, Bf16, Int8, Sign, TopK)
_BY_NAME: dict[str, type[Codec]] = {kind.name: kind for kind in CODECS}
_BY_ID: dict[int, type[Codec]] = {kind.id: kind for kind in CODECS}


def codec(text: Like) -> Codec:
    """Returns the codec that ``text`` describes, ``name`` or ``name:option=value,...``; a codec is returned
    as it is.

    ``str(c)`` gives the text back: the name, the principal option, the others where they are not the default.
    Raises ValueError naming what is wrong and what there is.
    """
    if isinstance(text, Codec):
        return text
    if not isinstance(text, str):
        raise ValueError(
            f"codec: expected a text such as 'int8:block=256' or a codec, got {type(text).__name__}"
        )
    return _parse(text)


@lru_cache(maxsize=256)
def _parse(text: str) -> Codec:
    name, colon, rest = text.strip().partition(":")
    kind = _BY_NAME.get(name)
    if kind is None:
        if name == "auto":
            raise ValueError("codec 'auto' is a policy, not a codec; only collectives and training accept it")
        raise ValueError(f"unknown codec {text!r}; there is {', '.join(_BY_NAME)}")
    known = {option.name: option for option in fields(kind) if option.init}
    listing = ", ".join(f"{option.name}={option.default}" for option in known.values()) or "no options"
    if colon and not rest:
        raise ValueError(f"codec {text!r}: nothing after the colon; {name} has {listing}")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in known:
            raise ValueError(f"codec {text!r}: unknown option {item.strip()!r}; {name} has {listing}")
        if key in options:
            raise ValueError(f"codec {text!r}: option {key} is given twice")
        options[key] = _value(text, key, value, type(known[key].default))
    return kind(**options)


def _value(text: str, key: str, value: str, kind: type[Any]) -> Any:
    try:
        return kind(value)
    except ValueError:
        expected = {int: "an integer", float: "a number"}[kind]
        raise ValueError(f"codec {text!r}: expected {expected} for {key}, got {value!r}") from None


def from_header(codec_id: int, block: int, count: int, numel: int) -> Codec:
    """Returns the codec that a wire header names by number and parameters; FrameError if there is none."""
    kind = _BY_ID.get(codec_id)
    if kind is None:
        raise FrameError(f"header: unknown codec {codec_id}; this version knows {', '.join(_BY_NAME)}")
    try:
        if kind is TopK:
            return TopK.of_count(count, numel)
        return _cached(codec_id, block)
    except FrameError:
        raise
    except ValueError as error:
        raise FrameError(f"header: {error}") from None


@lru_cache(maxsize=256)
def _cached(codec_id: int, block: int) -> Codec:
    kind: Any = _BY_ID[codec_id]
    value: Codec = kind(block=block) if kind.principal == "block" else kind()
    return value


def _check_block(name: str, block: int) -> None:
    if isinstance(block, bool) or not isinstance(block, int) or not _MIN_BLOCK <= block <= _MAX_BLOCK:
        raise ValueError(f"{name}: expected an integer block in [{_MIN_BLOCK}, {_MAX_BLOCK}], got {block!r}")


def _check_choice(name: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {option}={'|'.join(choices)}, got {value!r}")
