"""What all sparse codecs have in common: indices, then the payload of a dense codec for the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from reference import elias_fano
from reference.dense import Coded, Dense
from reference.elementwise import Uncompressed
from reference.elias_fano import Indices
from reference.floats import Bits, Floats, Mask, f32, finite, magnitude
from reference.frame import Parameters


def keys(v: Floats) -> Bits:
    """Magnitudes as they are compared: non-finite elements count as 0."""
    return np.where(finite(v), magnitude(v), 0).astype(np.uint32)


def k_largest(key: Bits, k: int) -> Indices:
    """Indices of the k largest, the lower index among equals; increasing."""
    return np.sort(np.argsort(-key.astype(np.int64), kind="stable")[:k])


class Sparse:
    name: str
    id: int
    scope = 0
    argument = 0
    sends_indices = True

    def __init__(self, values: Any = None) -> None:
        self.values: Dense = Uncompressed() if values is None else values

    @classmethod
    def of(cls, parameters: Parameters, kinds: Any) -> Sparse:
        """The codec that a header names, as far as a receiver needs it; ValueError if out of range."""
        kind = kinds.get(parameters.values)
        if kind is None or issubclass(kind, Sparse):
            raise ValueError(parameters)
        return cls(**cls.options(parameters), values=kind.of(parameters, kinds))

    @classmethod
    def options(cls, parameters: Parameters) -> dict[str, Any]:
        return {}

    def blocks(self, numel: int, count: int) -> Iterator[tuple[int, int, int]]:
        """First element, elements and sent elements of each block of the scope."""
        for start in range(0, numel, self.scope):
            n = min(self.scope, numel - start)
            yield start, n, -(-count * n // self.scope)

    def select(self, v: Floats, seed: int) -> Indices:
        raise NotImplementedError

    def count(self, numel: int, selected: int) -> int:
        """The parameter in the header; ``selected`` elements are sent."""
        return selected

    def total(self, numel: int, count: int) -> int:
        """How many values a packet with this parameter holds."""
        return count

    def indices(self, data: bytes, numel: int, count: int, seed: int) -> Indices:
        return elias_fano.read(data, numel, count)

    def index_bytes(self, indices: Indices, numel: int) -> bytes:
        return elias_fano.write(indices, numel)

    def index_nbytes(self, numel: int, count: int) -> int:
        return sum(elias_fano.sizes(numel, count))

    def encode(self, v: Floats, dtype: str = "float32", seed: int = 0) -> Coded:
        chosen = self.select(v, seed)
        values = v[chosen]
        inner = self.values.encode(np.where(finite(values), values, f32(0.0)).astype(f32), dtype, seed)
        decoded, sent = np.zeros(v.size, f32), np.zeros(v.size, np.bool_)
        decoded[chosen], sent[chosen] = inner.decoded, True
        indices = self.index_bytes(chosen, v.size) if self.sends_indices else b""
        return Coded(
            payload=indices + inner.payload,
            decoded=decoded,
            sound=finite(v),
            sent=sent,
            count=self.count(v.size, chosen.size),
        )

    def decode(self, payload: bytes, numel: int, dtype: str, count: int, seed: int) -> tuple[Floats, Mask]:
        """What the packet decodes to, and where it holds a value."""
        at = self.index_nbytes(numel, count) if self.sends_indices else 0
        chosen = self.indices(payload[:at], numel, count, seed)
        decoded, sent = np.zeros(numel, f32), np.zeros(numel, np.bool_)
        decoded[chosen] = self.values.decode(payload[at:], chosen.size, dtype)
        sent[chosen] = True
        return decoded, sent

    def nbytes(self, numel: int, dtype: str = "float32", count: int | None = None) -> int:
        if count is None:  # as topk and randk have it
            count = self.count(numel, 0)
        at = self.index_nbytes(numel, count) if self.sends_indices else 0
        return at + self.values.nbytes(self.total(numel, count), dtype)

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return replace(
            self.values.parameters(numel),
            values=self.values.id,
            scope=self.scope,
            count=count,
            argument=self.argument,
        )
