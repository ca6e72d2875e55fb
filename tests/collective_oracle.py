"""What collectives must give, in plain NumPy on top of the codecs' oracle; it imports nothing of dance and
knows nothing of messages and threads. docs/collectives.md says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference

HEADER = 64
SHARD_ALIGN = 256
SPARSE = ("topk", "randk", "threshold", "dgc")
EXACT = reference.codec("none")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The sizes by which algorithms are chosen; tests make them small."""

    one_shot_nbytes: int = 8192
    chunk_numel: int = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """What every rank ends with, what each keeps, and the bytes that each sends."""

    output: np.ndarray
    residuals: list[np.ndarray]
    sent: list[int]
    two_shot: bool


def shards(numel: int, world: int) -> list[tuple[int, int]]:
    size = SHARD_ALIGN * math.ceil(math.ceil(numel / world) / SHARD_ALIGN)
    return [(min(rank * size, numel), min((rank + 1) * size, numel)) for rank in range(world)]


def chunks(text: str, span: tuple[int, int], rules: Rules) -> list[tuple[int, int]]:
    start, stop = span
    if start == stop:
        return []
    if text.partition(":")[0] in SPARSE:
        return [span]
    return [(a, min(a + rules.chunk_numel, stop)) for a in range(start, stop, rules.chunk_numel)]


def is_two_shot(text: str, numel: int, world: int, dtype: str, rules: Rules) -> bool:
    if world <= 2 or text.partition(":")[0] in SPARSE or not numel:
        return False
    zeros = reference.store(np.zeros(numel, np.float32), dtype)
    payload = reference.encode(reference.codec(text), zeros, dtype=dtype).payload
    return HEADER + len(payload) > rules.one_shot_nbytes


def all_reduce(
    text: str,
    inputs: Sequence[np.ndarray],
    *,
    dtype: str = "float32",
    residuals: Sequence[np.ndarray] | None = None,
    mean: bool = False,
    seeds: Any = lambda rank, phase, start: 0,
    rules: Rules | None = None,
) -> Reduced:
    """``inputs`` of all ranks (bfloat16 as uint16) and their residuals (float32)."""
    rules = rules or Rules()
    world, numel = len(inputs), inputs[0].size
    kept = [None if residuals is None else r.copy() for r in residuals or [None] * world]
    codec = reference.codec(text)
    output = np.zeros(numel, reference.store(np.zeros(1, np.float32), dtype).dtype)
    sent = [0] * world
    weight = float(np.float32(1.0 / world)) if mean else 1.0

    def encode(rank: int, start: int, stop: int) -> Any:
        x, seed = inputs[rank][start:stop], seeds(rank, "send", start)
        if kept[rank] is None:
            return reference.encode(codec, x, dtype=dtype, seed=seed)
        e, left = reference.encode_feedback(codec, x, kept[rank][start:stop], dtype=dtype, seed=seed)
        kept[rank][start:stop] = left
        return e

    two_shot = is_two_shot(text, numel, world, dtype, rules)
    if not two_shot:
        for start, stop in chunks(text, (0, numel), rules):
            encoded = [encode(rank, start, stop) for rank in range(world)]
            for rank in range(world):
                sent[rank] += (world - 1) * (HEADER + len(encoded[rank].payload))
            packets = [e.packet for e in encoded]
            output[start:stop] = reference.reduce(packets, out_dtype=dtype, weight=weight)
    else:
        for owner, span in enumerate(shards(numel, world)):
            for start, stop in chunks(text, span, rules):
                packets = []
                for rank in range(world):
                    if rank == owner:
                        own = reference.encode(EXACT, inputs[rank][start:stop], dtype=dtype)
                        packets.append(own.packet)
                    else:
                        e = encode(rank, start, stop)
                        sent[rank] += HEADER + len(e.payload)
                        packets.append(e.packet)
                left = None if kept[owner] is None else kept[owner][start:stop]
                seed = seeds(owner, "sum", start)
                e, left = reference.reduce_encode(codec, packets, residual=left, dtype=dtype, seed=seed)
                if left is not None:
                    kept[owner][start:stop] = left
                sent[owner] += (world - 1) * (HEADER + len(e.payload))
                output[start:stop] = reference.decode(e.packet, out_dtype=dtype, weight=weight)
    return Reduced(output=output, residuals=[k for k in kept if k is not None], sent=sent, two_shot=two_shot)
