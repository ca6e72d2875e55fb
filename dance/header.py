"""The 64 bytes in front of a payload (docs/format.md): read, checked, compared with an expectation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, TypeAlias

import numpy as np

from dance import _native
from dance.arrays import kind_of
from dance.codecs import DTYPES, HEADER_NBYTES, Codec, Like, codec, dtype_number, from_header
from dance.errors import FrameError

# Without an expectation, a receiver makes room for no more than this many elements (1 GiB of float32).
MAX_NUMEL = 1 << 28

# What a receiver expects: codec (None: any that this version knows), shape, dtype (its name, or that of
# torch or NumPy).
Expect: TypeAlias = "tuple[Like | None, Sequence[int], Any]"


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header whose every field was checked by itself; `check` compares it with an expectation."""

    codec: Codec
    dtype: str
    numel: int
    payload_nbytes: int
    seed: int
    round: int
    sender: int
    spec: _native.Spec = field(repr=False)
    raw: bytes = field(repr=False)

    def check(self, expect: Expect | None) -> Codec:
        """Returns the codec to decode with; FrameError where the header is not what ``expect`` says.

        Call it before making room for the payload. Without ``expect`` only the number of elements is limited.
        ValueError, no FrameError, where ``expect`` itself is none: that is the receiver's own mistake.
        """
        if expect is None:
            if self.numel > MAX_NUMEL:
                raise FrameError(
                    f"header: {self.numel} elements exceed 2^28; pass expect=(codec, shape, dtype)"
                )
            return self.codec
        expected, shape, dtype = _open_expect(expect)
        if dtype != self.dtype:
            raise FrameError(f"header: expected dtype {dtype}, got {self.dtype}")
        if math.prod(shape) != self.numel:
            raise FrameError(
                f"header: expected {math.prod(shape)} elements of shape {shape}, got {self.numel}"
            )
        if expected is None:
            return self.codec
        # A sparse codec's header carries its count, so codecs are compared by what they do to this many
        # elements.
        if expected.id != self.codec.id or not expected.accepts(self.spec, self.numel):
            raise FrameError(f"header: expected codec {expected}, got {self.codec}")
        return expected


def _open_expect(expect: Any) -> tuple[Codec | None, tuple[int, ...], str]:
    if not isinstance(expect, (tuple, list)) or len(expect) != 3:
        raise ValueError(f"expect: expected (codec, shape, dtype), got {expect!r}")
    like, sizes, dtype = expect
    try:
        shape = tuple(index(size) for size in sizes)
    except TypeError:
        shape = (-1,)
    if min(shape, default=0) < 0:
        raise ValueError(f"expect: expected a shape of sizes such as (70,), got {sizes!r}")
    return None if like is None else codec(like), shape, DTYPES[dtype_number("expect", dtype)]


def parse_header(data: Any) -> Header:
    """Returns the header in the first 64 bytes of ``data`` (bytes-like or a uint8 array); FrameError if bad.

    Nothing is allocated on its word: call `Header.check`, then make room for ``payload_nbytes``.
    """
    if not isinstance(data, (bytes, bytearray, memoryview, np.ndarray)):
        data = kind_of(data, "header").to_host(data)
    raw = bytes(data[:HEADER_NBYTES])
    fields = _native.header_parse(raw)
    return Header(
        codec=from_header(fields["spec"], fields["numel"]),
        dtype=DTYPES[fields["dtype"]],
        numel=fields["numel"],
        payload_nbytes=fields["payload_nbytes"],
        seed=fields["seed"],
        round=fields["round"],
        sender=fields["sender"],
        spec=fields["spec"],
        raw=raw,
    )
