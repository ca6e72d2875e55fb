"""The arrays of one size in a benchmark, and the work of every codec and operation on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import dance
from dance.codecs import HEADER_NBYTES
from dance.roofline import REDUCED, Machine, Work, element_nbytes


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure: a codec (as text; "-" for mix), an operation, a number of elements."""

    codec: str
    operation: str
    numel: int


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a codec makes of the input: bytes an element with and without the header, the share of elements
    other than zero, and ||decoded - x|| / ||x||.
    """

    bytes_per_element: float
    payload: float
    kept: float
    relative_error: float | None


class Bed:
    """The arrays of one size, allocated and touched once, and the work of every case on them."""

    def __init__(self, machine: Machine, numel: int, dtype: str = "float32", seed: int = 0) -> None:
        values = np.random.default_rng(seed).standard_normal(numel, dtype=np.float32)
        other = np.random.default_rng(seed + 1).standard_normal(numel, dtype=np.float32)
        self.machine = machine
        self.numel = numel
        self.dtype = dtype
        self.input_nbytes = numel * element_nbytes(dtype)
        self.x = machine.array(values, dtype)
        self.other = machine.array(other)
        self.state = machine.array(other)
        self.target = machine.array(other, dtype)
        self._received: dict[str, list[Any]] = {}

    def reset(self) -> None:
        """Give residual and reference their first values again; they change with every call."""
        self.machine.copy(self.other, self.state)()

    def memcpy(self) -> Work:
        """The work all others are compared with: a copy of the input."""
        return Work(call=self.machine.copy(self.x, self.target))

    def work(self, case: Case) -> Work:
        """One call of the case's operation, into memory that is used again; it has run once."""
        if case.operation == "mix":
            # All three are of the input's dtype; over thousands of calls without a reset x would grow.
            other = self.machine.array(self.machine.host(self.other), self.dtype)
            work = Work(
                call=lambda: dance.mix(self.target, other, self.x, 0.5),
                before=self.machine.copy(other, self.target),
            )
            work.call()
            return work
        codec = dance.codec(case.codec)
        if case.operation.startswith("encode"):
            state = () if case.operation == "encode" else (self.state,)
            function = getattr(dance, case.operation)
            packet = function(self.x, *state, codec)
            before = self.reset if state else None
            return Work(call=lambda: function(self.x, *state, codec, out=packet), before=before)
        packets = self._packets(case.codec, REDUCED if case.operation == "reduce" else 1)
        if case.operation == "reduce":
            reduced = dance.reduce(packets, codec=codec)
            return Work(call=lambda: dance.reduce(packets, codec=codec, out=reduced))
        add = case.operation == "decode_add"
        # Weight 1 would let the sum grow over thousands of calls.
        weight = 2.0**-20 if add else 1.0
        work = Work(call=lambda: dance.decode(packets[0], out=self.target, add=add, weight=weight))
        work.call()
        return work

    def _packets(self, codec: str, count: int) -> list[Any]:
        known = self._received.setdefault(codec, [])
        known += [dance.encode(self.x, codec, seed=seed) for seed in range(len(known), count)]
        return known[:count]

    def quality(self, codec: str) -> Quality:
        """What the codec makes of the input."""
        (packet,) = self._packets(codec, 1)
        decoded = self.machine.host(dance.decode(packet))
        return Quality(
            bytes_per_element=packet.nbytes / self.numel,
            payload=(packet.nbytes - HEADER_NBYTES) / self.numel,
            kept=np.count_nonzero(decoded) / self.numel,
            relative_error=self.relative_error(decoded),
        )

    def relative_error(self, decoded: Any) -> float:
        """||decoded - x|| / ||x||."""
        x = self.machine.host(self.x).astype(np.float64)
        return float(np.linalg.norm(decoded - x) / max(np.linalg.norm(x), 1e-300))
