"""The oracle: every codec and operation in plain NumPy, from docs/format.md; it imports nothing of dance.

For readers first: a file a noun, whole blocks at a time. Tests demand equality of bits with it. A codec
joins by an entry in `CODECS`: a class that has what `dense.Dense` or `sparse.Sparse` ask for.
"""

from __future__ import annotations

from typing import Any

from reference import check
from reference.elementwise import Bf16, Fp16, Uncompressed
from reference.floats import DTYPES, FLT_MAX, FLT_MIN, first_bad, load, store
from reference.fp8 import Fp8
from reference.frame import Fields, Parameters, crc32c, frame
from reference.integers import Int2, Int4, Int8, Qsgd
from reference.mx import MxFp4, MxFp8
from reference.operations import (
    Packet,
    decode,
    decode_add,
    encode,
    encode_difference,
    encode_feedback,
    mix,
    reduce,
    reduce_encode,
)
from reference.selectors import Dgc, RandK, Threshold, TopK
from reference.sign import Sign
from reference.ternary import Ternary

__all__ = [
    "CODECS",
    "DTYPES",
    "FLT_MAX",
    "FLT_MIN",
    "IDS",
    "Fields",
    "Packet",
    "Parameters",
    "codec",
    "crc32c",
    "decode",
    "decode_add",
    "encode",
    "encode_difference",
    "encode_feedback",
    "fields",
    "first_bad",
    "frame",
    "load",
    "mix",
    "packet",
    "reduce",
    "reduce_encode",
    "store",
    "verdict",
    "wire",
]

CODECS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Uncompressed,
        Fp16,
        Bf16,
        Int8,
        Sign,
        TopK,
        Fp8,
        Int4,
        Int2,
        MxFp8,
        MxFp4,
        Qsgd,
        Ternary,
        RandK,
        Threshold,
        Dgc,
    )
}
IDS: dict[str, int] = {name: kind.id for name, kind in CODECS.items()}
_OPTIONS = {"block": int, "levels": int, "ratio": float, "value": float}


def codec(text: str) -> Any:
    """The oracle of a text such as ``int8:block=100`` or ``topk:values=int4:block=64;rounding=nearest``."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, _, value = item.partition("=")
        options[key] = codec(value.replace(";", ",")) if key == "values" else _OPTIONS.get(key, str)(value)
    return CODECS[name](**options)


def verdict(data: bytes) -> str:
    """Who refuses a packet: "header", "payload" (decode does as well), "codes", or nobody: ""."""
    return check.verdict(data, CODECS)


def fields(p: Packet, *, round: int = 0, sender: int = 0) -> Fields:
    """The header of a packet."""
    return Fields(
        codec=p.codec.id,
        dtype=DTYPES.index(p.dtype),
        numel=p.numel,
        payload_nbytes=len(p.payload),
        parameters=bytes(p.codec.parameters(p.numel, p.count)),
        seed=p.seed,
        round=round,
        sender=sender,
    )


def wire(p: Packet, *, round: int = 0, sender: int = 0) -> bytes:
    """Header and payload of a packet as they go over the wire."""
    return frame(fields(p, round=round, sender=sender), p.payload)


def packet(
    text: str, x: Any, *, dtype: str = "float32", seed: int = 0, round: int = 0, sender: int = 0
) -> bytes:
    """The whole packet of ``x`` under the codec ``text``."""
    return wire(encode(codec(text), x, dtype=dtype, seed=seed).packet, round=round, sender=sender)
