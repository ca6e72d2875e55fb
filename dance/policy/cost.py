"""What a codec costs a send whose links have meters: bytes, seconds, and what it loses."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np

from dance.codec_speed import Speed
from dance.codecs import Codec
from dance.coding import decode, encode
from dance.plan import Plan, plan
from dance.policy.explanation import Cost, Row
from dance.policy.send import Send

# A compressed call's own time before anything is coded or sent; what calls take corrects it.
CALL_S = 2e-4
_NUMEL = 4096  # of the normal data that errors are told of: a multiple of every block size in use
_STRIDE = 1597  # coprime to _NUMEL: puts the quantiles in an order without trend


@lru_cache(maxsize=256)
def relative_error(codec: Codec) -> float:
    """Returns ||decoded - x|| / ||x|| of one encoding of normal data, rounded to three digits.

    The data are 4,096 quantiles of the normal distribution in a fixed order, so every machine finds the same.
    """
    order = (np.arange(_NUMEL) * _STRIDE) % _NUMEL
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((k + 0.5) / _NUMEL) for k in range(_NUMEL)])
    x = quantiles[order].astype(np.float32)
    lost = decode(encode(x, codec)).astype(np.float64) - x
    return float(f"{np.linalg.norm(lost) / np.linalg.norm(x.astype(np.float64)):.2e}")


def call_cost(parts: Plan, speed: Speed, wire_s: float) -> Cost:
    """Returns what a collective takes whose messages take ``wire_s``: coding hides behind the wire, or the
    wire behind coding, but for the first and the last chunk. Of a direct call the wire is all.
    """
    if parts.algorithm == "direct":
        return Cost(encode_s=0.0, wire_s=wire_s, decode_s=0.0, total_s=wire_s)
    encode_s, decode_s = parts.encoded * speed.encode_s, parts.decoded * speed.decode_s
    longer, shorter = max(wire_s, encode_s + decode_s), min(wire_s, encode_s + decode_s)
    total_s = CALL_S + longer + shorter / parts.chunks
    return Cost(encode_s=encode_s, wire_s=wire_s, decode_s=decode_s, total_s=total_s)


def link_cost(send: Send, codec: Codec, speed: Speed | None = None) -> Cost | None:
    """Returns what a packet of ``send`` takes on its slowest link, None where one is not measured yet.

    ``speed``: that of the codec; None counts the wire alone.
    """
    num_bytes = codec.packet_nbytes(send.numel, send.dtype)
    times = [meter.predict_s(num_bytes) for meter in send.links]
    known = [seconds for seconds in times if seconds is not None]
    if not times or len(known) < len(times):
        return None
    wire_s = max(known)
    encode_s, decode_s = (speed.encode_s * send.numel, speed.decode_s * send.numel) if speed else (0.0, 0.0)
    return Cost(encode_s=encode_s, wire_s=wire_s, decode_s=decode_s, total_s=encode_s + wire_s + decode_s)


def link_doubt(send: Send, codec: Codec) -> tuple[float, float]:
    """Returns the standard deviation of a packet's seconds on the slowest link of ``send``, and what it may
    take at best; all links are known.

    Where latency cannot be told from the rate, all the time of the packets so far may have been latency.
    """
    num_bytes = codec.packet_nbytes(send.numel, send.dtype)
    estimates = [estimate for meter in send.links if (estimate := meter.estimate()) is not None]
    slowest = max(estimates, key=lambda estimate: estimate.predict_s(num_bytes))
    deviation_s = float(slowest.predict_deviation_s(num_bytes))
    at = num_bytes if slowest.latency_s else min(num_bytes, round(slowest.center_bytes))
    return deviation_s, float(slowest.predict_s(at))


def row(codec: Codec, send: Send) -> Row:
    """Returns the row of an explanation for a policy that knows one codec for a send, and no more of its cost
    than the meters of its links say.
    """
    cost = link_cost(send, codec)
    return Row(
        codec=str(codec),
        num_bytes=sent_nbytes(codec, send),
        cost=cost,
        error=relative_error(codec),
        fits=send.budget_s is None or (cost is not None and cost.total_s <= send.budget_s),
        chosen=True,
    )


def sent_nbytes(codec: Codec, send: Send) -> int:
    """Returns the bytes that a packet has, or that the busiest rank of a collective sends."""
    if send.is_collective:
        return plan(send.kind, codec, send.numel, send.world, dtype=send.dtype).bytes_sent
    return codec.packet_nbytes(send.numel, send.dtype)
