"""What encoders and decoders do to arrays; new arrays are returned. All arithmetic is float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.dense import Coded
from reference.floats import FLT_MAX, Floats, Mask, f32, finite, load, store
from reference.sparse import Sparse

Raw = NDArray[Any]  # an array of some dtype; bfloat16 as uint16


@dataclass(frozen=True, kw_only=True)
class Packet:
    codec: Any
    dtype: str
    numel: int
    seed: int
    count: int
    payload: bytes


@dataclass(frozen=True, kw_only=True)
class Encoded:
    packet: Packet
    v: Floats
    coded: Coded

    @property
    def payload(self) -> bytes:
        return self.packet.payload


def _encode(c: Any, v: Floats, dtype: str, seed: int) -> Encoded:
    coded = c.encode(v, dtype, seed)
    packet = Packet(codec=c, dtype=dtype, numel=v.size, seed=seed, count=coded.count, payload=coded.payload)
    return Encoded(packet=packet, v=v, coded=coded)


@np.errstate(all="ignore")
def encode(c: Any, x: Raw, *, dtype: str = "float32", seed: int = 0) -> Encoded:
    return _encode(c, load(x, dtype), dtype, seed)


@np.errstate(all="ignore")
def encode_feedback(
    c: Any, x: Raw, residual: Raw, *, dtype: str = "float32", state_dtype: str = "float32", seed: int = 0
) -> tuple[Encoded, Raw]:
    """v = x + residual is sent; the residual becomes v - decoded, which is v for what was not sent."""
    e = _encode(c, load(x, dtype) + load(residual, state_dtype), dtype, seed)
    return e, np.where(e.coded.sound, store(e.v - e.coded.decoded, state_dtype), residual)


@np.errstate(all="ignore")
def encode_difference(
    c: Any, x: Raw, reference: Raw, *, dtype: str = "float32", state_dtype: str = "float32", seed: int = 0
) -> tuple[Encoded, Raw]:
    """v = x - reference is sent; where something was sent the reference grows by what is decoded."""
    before = load(reference, state_dtype)
    e = _encode(c, load(x, dtype) - before, dtype, seed)
    moved = store(np.clip(before + e.coded.decoded, -FLT_MAX, FLT_MAX), state_dtype)
    # Receivers add what is decoded, so the sender does as well, even where v was not finite.
    return e, np.where(e.coded.sent & finite(before), moved, reference)


def _decoded(p: Packet) -> tuple[Floats, Mask]:
    if isinstance(p.codec, Sparse):
        return p.codec.decode(p.payload, p.numel, p.dtype, p.count, p.seed)
    return p.codec.decode(p.payload, p.numel, p.dtype), np.ones(p.numel, np.bool_)


def _decode(p: Packet, weight: float) -> Floats:
    decoded, sent = _decoded(p)
    return np.where(sent, f32(weight) * decoded, f32(0.0)).astype(f32)


def _decode_add(p: Packet, out: Floats, weight: float) -> tuple[Floats, Mask]:
    """A finite sum that overflows stays at the largest finite value; infinities and NaN stay."""
    decoded, sent = _decoded(p)
    moved = out + f32(weight) * decoded
    moved = np.where(np.isfinite(out), np.clip(moved, -FLT_MAX, FLT_MAX), moved)
    return np.where(sent, moved, out).astype(f32), sent


@np.errstate(all="ignore")
def decode(p: Packet, *, out_dtype: str | None = None, weight: float = 1.0) -> Raw:
    return store(_decode(p, weight), out_dtype or p.dtype)


@np.errstate(all="ignore")
def decode_add(p: Packet, out: Raw, *, out_dtype: str = "float32", weight: float = 1.0) -> Raw:
    moved, sent = _decode_add(p, load(out, out_dtype), weight)
    return np.where(sent, store(moved, out_dtype), out)


@np.errstate(all="ignore")
def summed(packets: Sequence[Packet], weight: float = 1.0) -> Floats:
    total = _decode(packets[0], weight)
    for p in packets[1:]:
        total, _ = _decode_add(p, total, weight)
    return total


@np.errstate(all="ignore")
def reduce(packets: Sequence[Packet], *, out_dtype: str = "float32", weight: float = 1.0) -> Raw:
    """The weighted sum; it is rounded to ``out_dtype`` once, at the end."""
    return store(summed(packets, weight), out_dtype)


@np.errstate(all="ignore")
def reduce_encode(
    c: Any,
    packets: Sequence[Packet],
    *,
    residual: Raw | None = None,
    dtype: str = "float32",
    state_dtype: str = "float32",
    seed: int = 0,
    weight: float = 1.0,
) -> tuple[Encoded, Raw | None]:
    """The weighted sum, never rounded to 16 bits, encoded again, with its own residual where there is one."""
    total = summed(packets, weight)
    if residual is None:
        return _encode(c, total, dtype, seed), None
    e = _encode(c, total + load(residual, state_dtype), dtype, seed)
    return e, np.where(e.coded.sound, store(e.v - e.coded.decoded, state_dtype), residual)


@np.errstate(all="ignore")
def mix(x: Raw, neighbour_sum: Raw, reference: Raw, step_size: float, *, dtype: str = "float32") -> Raw:
    moved = load(x, dtype) + f32(step_size) * (load(neighbour_sum, dtype) - load(reference, dtype))
    return store(moved.astype(f32), dtype)
