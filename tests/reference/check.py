"""What a receiver refuses: the header field by field, then the structure and the codes of the payload."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from reference import elias_fano
from reference.dense import Blocked
from reference.elementwise import Elementwise
from reference.floats import DTYPES, FLT_MIN, f32, finite
from reference.frame import Parameters, crc32c
from reference.mx import Mx
from reference.packing import pack, unpack, words_to_bits
from reference.selectors import Scoped
from reference.sparse import Sparse

MAX_NUMEL, MAX_UNEXPECTED, MAX_SPARSE = 2**40, 2**28, 2**32 - 1
HEADER = 64


def verdict(data: bytes, codecs: dict[str, type[Any]]) -> str:
    """Who refuses a packet that nobody expected: "header", "payload", "codes"; "" where it is accepted."""
    if len(data) < HEADER or crc32c(data[:60]) != struct.unpack_from("<I", data, 60)[0]:
        return "header"
    magic, version, number, dtype, flags, numel, nbytes = struct.unpack_from("<4sBBBBQQ", data)
    parameters = Parameters(*struct.unpack_from("<HHBBHII", data, 24))
    kinds = {kind.id: kind for kind in codecs.values()}
    if magic != b"DNCE" or version != 1 or number not in kinds or dtype >= len(DTYPES) or flags:
        return "header"
    if numel > MAX_UNEXPECTED or (issubclass(kinds[number], Sparse) and numel > MAX_SPARSE):
        return "header"
    try:
        c = kinds[number].of(parameters, kinds)
        if isinstance(c, Sparse):
            expected = _check_count(c, parameters, numel) or c.nbytes(numel, DTYPES[dtype], parameters.count)
        else:
            expected = c.nbytes(numel, DTYPES[dtype])
        same = c.parameters(numel, parameters.count) == parameters
    except ValueError:
        return "header"
    payload = data[HEADER:]
    if not same or nbytes != expected or len(payload) != nbytes:
        return "header"
    if crc32c(payload) != struct.unpack_from("<I", data, 56)[0]:
        return "header"
    return _payload(c, payload, numel, DTYPES[dtype], parameters.count)


def _check_count(c: Sparse, parameters: Parameters, numel: int) -> int:
    least = 1 if isinstance(c, Scoped) and (c.scope or numel) else 0
    if not least <= parameters.count <= (c.scope or numel):
        raise ValueError(parameters.count)
    return 0


def _payload(c: Any, payload: bytes, numel: int, dtype: str, count: int) -> str:
    if isinstance(c, Sparse):
        at = c.index_nbytes(numel, count) if c.sends_indices else 0
        if c.sends_indices and not _indices(c, payload[:at], numel, count):
            return "payload"
        return _payload(c.values, payload[at:], c.total(numel, count), dtype, 0)
    if isinstance(c, Elementwise):
        return "" if finite(c.decode(payload, numel, dtype)).all() else "codes"
    return _blocked(c, payload, numel)


def _blocked(c: Blocked, payload: bytes, numel: int) -> str:
    codes_nbytes, _ = c.sizes(numel)
    scales = np.frombuffer(payload, c.scale_type, offset=codes_nbytes)
    if isinstance(c, Mx):
        ok = scales <= 254 - c.top_exponent
    else:
        zero = scales.view("<u4") == 0
        ok = zero | ((scales >= FLT_MIN) & (scales <= c.largest_scale()))
    if not ok.all():
        return "payload"
    at, sound = 0, True
    for part, n in c.groups(numel):
        blocks = (part.stop - part.start) // n
        piece = payload[at : at + blocks * c.block_nbytes(n)]
        at += len(piece)
        if c.bits == 8:
            codes = np.frombuffer(piece, np.uint8).astype(np.uint32)
        else:
            codes = unpack(piece, blocks, n, c.bits)
            if pack(codes, c.bits) != piece:  # a bit that belongs to no element
                return "payload"
        sound = sound and bool(np.isfinite(c.value(codes, np.ones_like(codes, f32))).all() and c.valid(codes))
    if any(payload[at:codes_nbytes]):
        return "payload"
    return "" if sound else "codes"


def _indices(c: Sparse, data: bytes, numel: int, count: int) -> bool:
    if c.scope:
        k = c.total(numel, count)
        relative, at = np.frombuffer(data, "<u2").astype(np.int64), 0
        if any(data[2 * k :]):
            return False
        for _, n, sent in c.blocks(numel, count):
            part, at = relative[at : at + sent], at + sent
            if (part >= n).any() or (np.diff(part) <= 0).any():
                return False
        return True
    if count == 0:
        return True
    low, (low_nbytes, _) = elias_fano.low_bits(numel, count), elias_fano.sizes(numel, count)
    vector = words_to_bits(data[low_nbytes:])
    used = ((numel - 1) >> low) + count
    if words_to_bits(data[:low_nbytes])[count * low :].any() or vector[used:].any() or vector.sum() != count:
        return False
    indices = elias_fano.read(data, numel, count)
    return bool((np.diff(indices) > 0).all() and indices[-1] < numel)
