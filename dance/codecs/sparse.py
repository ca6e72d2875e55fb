"""Sparse codecs: some elements, their values encoded by a dense codec.

If a share of at least r of ||x||^2 is sent and the codec of the values contracts by w, the whole contracts by
r w: ||C(x) - x||^2 <= ||x||^2 - ||sent||^2 + (1 - w) ||sent||^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from dance import _native
from dance.codecs.dense import DENSE, Uncompressed
from dance.codecs.value import Codec, check_choice, check_integer, parse

__all__ = ["Dgc", "RandK", "Sparse", "Threshold", "TopK"]  # SPARSE and their base, for `dance.codecs`

_SCOPES = (64, 32768)
_SCOPE_BLOCK = 4096
_BY_NAME = {kind.name: kind for kind in DENSE}
_BY_ID = {kind.id: kind for kind in DENSE}
_AS_THEY_ARE = Uncompressed()
S = TypeVar("S", bound="_Selected")


@dataclass(frozen=True, kw_only=True)
class Sparse(Codec):
    """What sparse codecs have in common: ``values``, a dense codec or its text, encodes the elements that are
    sent.
    """

    parallel_numel: ClassVar[int] = _native.PARALLEL_SPARSE_NUMEL

    if TYPE_CHECKING:  # each declares it as its last option
        values: Codec | str

    def __post_init__(self) -> None:
        given = self.values
        if isinstance(given, str):
            try:
                object.__setattr__(self, "values", parse(given.replace(";", ","), _BY_NAME))
            except ValueError as error:
                raise ValueError(f"{self.name}: values must be a dense codec: {error}") from None
        elif not isinstance(given, DENSE):
            raise ValueError(f"{self.name}: expected a dense codec for values, got {given!r}")

    @property
    def dense(self) -> Codec:
        """The codec of the values."""
        assert isinstance(self.values, Codec)  # __post_init__ has seen to it
        return self.values

    @property
    def stochastic(self) -> bool:
        return self.dense.stochastic

    def count(self, numel: int) -> int:
        """Returns the count that the header carries for ``numel`` elements."""
        raise NotImplementedError

    def spec(self, numel: int) -> _native.Spec:
        return self._spec(self.count(numel))

    def _spec(self, count: int, *, scope: int = 0, argument: float = 0.0) -> _native.Spec:
        inner = self.dense.spec(0)
        if not 0 <= count < 1 << 32:
            raise ValueError(f"{self.name}: {count} elements exceed 2^32; send the array in parts")
        return _native.Spec(
            id=self.id,
            values=inner.id,
            mode=inner.mode,
            block=inner.block,
            levels=inner.levels,
            scope=scope,
            count=count,
            argument=argument,
        )


@dataclass(frozen=True, kw_only=True)
class _Selected(Sparse):
    """A share of the elements, of the whole array or of each block."""

    principal: ClassVar[str | None] = "ratio"

    ratio: float = 0.01
    scope: str = "global"
    block: int = _SCOPE_BLOCK
    values: Codec | str = _AS_THEY_ARE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratio(self)
        check_choice(self.name, "scope", self.scope, ("global", "block"))
        check_integer(self.name, "block", self.block, _SCOPES)
        if self.scope == "global" and self.block != _SCOPE_BLOCK:
            raise ValueError(
                f"{self.name}: block={self.block} is what scope=block selects from; add scope=block"
            )

    def count(self, numel: int) -> int:
        """Returns how many elements are sent of ``numel``, or of each full block where scope=block."""
        if self.scope == "block":
            return max(1, math.ceil(self.ratio * self.block))
        return _share(self.ratio, numel)

    def spec(self, numel: int) -> _native.Spec:
        return self._spec(self.count(numel), scope=self.block if self.scope == "block" else 0)

    @classmethod
    def from_spec(cls: type[S], spec: _native.Spec, numel: int) -> S:
        values = _values_of(spec)
        if spec.scope:
            ratio = _ratio_of(spec.count, spec.scope)
            return cls(ratio=ratio, scope="block", block=spec.scope, values=values)
        return cls(values=values) if numel == 0 else cls(ratio=_ratio_of(spec.count, numel), values=values)


@dataclass(frozen=True, kw_only=True)
class TopK(_Selected):
    """``topk``: exactly the max(1, ceil(ratio * numel)) largest magnitudes (Aji & Heafield 2017; Stich et al.
    2018); of each block where scope=block.
    """

    name: ClassVar[str] = "topk"
    id: ClassVar[int] = 5
    examples: ClassVar[tuple[str, ...]] = (
        "topk:ratio=0.01",
        "topk:ratio=0.1,values=int8",
        "topk:ratio=0.02,scope=block,block=64",
        "topk:ratio=0.1,scope=block,values=int4:block=32;rounding=stochastic",
    )

    @property
    def contraction(self) -> float | None:
        # The k largest of n hold k / n of the squares or more; each last, shorter block sends no smaller
        # share.
        inner = self.dense.contraction
        return None if inner is None else self.ratio * inner


@dataclass(frozen=True, kw_only=True)
class RandK(_Selected):
    """``randk``: one element of each of k strata, drawn by the seed, so that no indices are sent (Stich et
    al. 2018). Values are sent as they are, not divided by the ratio: biased towards zero, for use with
    feedback.
    """

    name: ClassVar[str] = "randk"
    id: ClassVar[int] = 13
    examples: ClassVar[tuple[str, ...]] = (
        "randk:ratio=0.01",
        "randk:ratio=0.3,values=bf16",
        "randk:ratio=0.1,scope=block,block=100",
        "randk:ratio=0.1,scope=block,values=sign:block=64",
    )

    @property
    def contraction(self) -> float | None:
        # An element is sent with probability 1 / (size of its stratum), of at most ceil(1 / ratio); 2^-32 of
        # a stratum's size is lost in drawing from it.
        inner = self.dense.contraction
        return None if inner is None else inner * (1.0 - 2.0**-20) / math.ceil(1.0 / self.ratio)

    @property
    def stochastic(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Threshold(Sparse):
    """``threshold``: every element of at least ``value`` in magnitude (Strom 2015)."""

    name: ClassVar[str] = "threshold"
    id: ClassVar[int] = 14
    principal: ClassVar[str | None] = "value"
    examples: ClassVar[tuple[str, ...]] = (
        "threshold:value=0.5",
        "threshold:value=1.0,values=int8:block=32",
    )

    value: float
    values: Codec | str = _AS_THEY_ARE

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.value
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        with np.errstate(over="ignore"):
            if not numeric or not 0.0 < np.float32(value) < np.inf:
                raise ValueError(f"threshold: expected a positive, finite float32 value, got {value!r}")
        object.__setattr__(self, "value", float(value))

    @property
    def contraction(self) -> None:
        return None

    @property
    def bounded(self) -> bool:
        # What is not sent is below the value; what is sent leaves what the codec of the values leaves.
        return self.dense.bounded

    @property
    def fixed_size(self) -> bool:
        return False

    def count(self, numel: int) -> int:
        return 0  # of nothing is known before an encode

    def spec(self, numel: int) -> _native.Spec:
        return self._spec(0, argument=self.value)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Threshold:
        return cls(value=_shortest(spec.argument), values=_values_of(spec))

    def accepts(self, spec: _native.Spec, numel: int) -> bool:
        return self.layout(numel)[0].with_count(spec.count).decodes_like(spec)


@dataclass(frozen=True, kw_only=True)
class Dgc(Sparse):
    """``dgc``: the k largest magnitudes and up to k more, by a threshold that a sample of 32,768 gives (Lin
    et al. 2018); the other parts of deep gradient compression are options of `dance.ErrorFeedback`.
    """

    name: ClassVar[str] = "dgc"
    id: ClassVar[int] = 15
    principal: ClassVar[str | None] = "ratio"
    examples: ClassVar[tuple[str, ...]] = ("dgc:ratio=0.01", "dgc:ratio=0.1,values=int8")

    ratio: float = 0.01
    scope: str = "global"
    values: Codec | str = _AS_THEY_ARE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ratio(self)
        if self.scope == "block":
            raise ValueError("dgc: samples the whole array, so there is no scope=block; use topk:scope=block")
        check_choice(self.name, "scope", self.scope, ("global",))

    @property
    def contraction(self) -> float | None:
        inner = self.dense.contraction  # the k largest are among what is sent
        return None if inner is None else self.ratio * inner

    @property
    def fixed_size(self) -> bool:
        return False

    def count(self, numel: int) -> int:
        """Returns k, the least number of elements that are sent of ``numel``; the most is 2 k."""
        return _share(self.ratio, numel)

    def spec(self, numel: int) -> _native.Spec:
        return self._spec(self.count(numel), argument=self.ratio)

    @classmethod
    def from_spec(cls, spec: _native.Spec, numel: int) -> Dgc:
        return cls(ratio=_shortest(spec.argument), values=_values_of(spec))

    def accepts(self, spec: _native.Spec, numel: int) -> bool:
        least = self.count(numel)
        known = self.layout(numel)[0].with_count(spec.count)
        return least <= spec.count <= min(numel, 2 * least) and known.decodes_like(spec)


SPARSE: tuple[type[Codec], ...] = (TopK, RandK, Threshold, Dgc)


def _check_ratio(codec: Any) -> None:
    ratio = codec.ratio
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.0 < ratio <= 1.0:
        raise ValueError(f"{codec.name}: expected ratio in (0, 1], got {ratio!r}")
    object.__setattr__(codec, "ratio", float(ratio))


def _share(ratio: float, numel: int) -> int:
    return min(numel, max(1, math.ceil(ratio * numel)))


def _ratio_of(count: int, numel: int) -> float:
    """Returns a ratio that sends ``count`` of ``numel``: a header carries the count, not the ratio."""
    ratio = count / numel
    while math.ceil(ratio * numel) > count:  # at most a few steps: the rounding of one division
        ratio = math.nextafter(ratio, 0.0)
    return ratio


def _shortest(argument: float) -> float:
    """The number with the fewest digits among those that round to this float32: what a user wrote."""
    return float(str(np.float32(argument)))


def _values_of(spec: _native.Spec) -> Codec:
    inner = _native.Spec(id=spec.values, mode=spec.mode, block=spec.block, levels=spec.levels)
    return _BY_ID[spec.values].from_spec(inner, 0)
