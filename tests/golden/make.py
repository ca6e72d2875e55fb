"""Writes packets.json and bad_packets.json from the oracle (tests/reference), never from the library.

Run `python tests/golden/make.py` only when docs/format.md gets a new version: packets of a version never
change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import bad_packets
import reference

HERE = Path(__file__).parent
DENSE = (
    "none",
    "fp16",
    "bf16",
    "int8:block=32",
    "int8:block=256",
    "int8:block=32,rounding=stochastic",
    "int4:block=50",
    "int4:block=50,rounding=stochastic",
    "int2:block=32",
    "int2:block=64,rounding=stochastic",
    "sign:block=32",
    "sign:block=50",
    "fp8:block=32",
    "fp8:format=e5m2,block=64",
    "mxfp8",
    "mxfp8:format=e5m2",
    "mxfp4",
    "qsgd:levels=3,block=32",
    "qsgd:levels=7,norm=l2,block=50",
    "qsgd:levels=15,block=32",
    "qsgd:levels=21,norm=l2,block=32",
    "qsgd:levels=63,block=32",
    "qsgd:levels=127,block=32",
    "qsgd:levels=255,norm=l2,block=256",
)
SPARSE = (
    "topk:ratio=0.1",
    "topk:ratio=0.3,scope=block,block=64,values=int8:block=32",
    "topk:ratio=0.5,values=mxfp4",
    "topk:ratio=0.2,values=fp16",
    "randk:ratio=0.1",
    "randk:ratio=0.3,scope=block,block=64,values=qsgd:levels=15;block=32",
    "threshold:value=1.5",
    "threshold:value=2.0,values=bf16",
    "dgc:ratio=0.1",
    "dgc:ratio=0.2,values=int4:block=32;rounding=stochastic",
)
HALVES = ("none", "int8:block=32", "sign:block=32", "topk:ratio=0.1", "randk:ratio=0.1,values=fp8:block=32")


def inputs() -> dict[str, np.ndarray]:
    """Small exact vectors: no random generator, so that they are the same for ever."""
    i = np.arange(70)
    wave = bad_packets.WAVE
    found = {
        "empty": np.zeros(0),
        "one": np.array([-1.5]),
        "wave": wave,
        "zeros": np.zeros(33),
        "signed_zeros": np.array([0.0, -0.0, 0.0, -0.0, 1.0]),
        "scales": np.ldexp(1.0, (i * 7 % 60) - 40) * np.where(i % 3 == 0, -1, 1),
        "largest": np.where(i[:40] % 2 == 0, reference.FLT_MAX, -reference.FLT_MAX),
        "denormal": np.ldexp(1.0, -149 + (i[:34] % 20)),
        "bad": np.where(i == 40, np.nan, np.where(i == 3, np.inf, wave)),
    }
    return {name: x.astype(np.float32) for name, x in found.items()}


def good() -> list[dict[str, Any]]:
    """Every codec on every input; ``input`` and ``decoded`` are little-endian elements of ``dtype``."""
    entries = []
    chosen = [(codec, "float32") for codec in (*DENSE, *SPARSE)]
    chosen += [(codec, dtype) for codec in HALVES for dtype in ("float16", "bfloat16")]
    # Later codecs come last: the seed of an entry is its place.
    chosen += [("ternary:block=32", "float32"), ("ternary:block=50", "bfloat16")]
    for number, (codec, dtype) in enumerate(chosen):
        for name, x in inputs().items():
            with np.errstate(over="ignore"):  # infinity becomes one of 16 bits
                raw = reference.store(x, dtype)
            seed, stamp = 0x0123456789ABCDEF + number, {"round": number * 1000 + x.size, "sender": number}
            packet = reference.encode(reference.codec(codec), raw, dtype=dtype, seed=seed).packet
            entries.append(
                {
                    "name": f"{codec} {name}" + (f" {dtype}" if dtype != "float32" else ""),
                    "codec": codec,
                    "dtype": dtype,
                    "seed": seed,
                    **stamp,
                    "input": raw.tobytes().hex(),
                    "packet": reference.wire(packet, **stamp).hex(),
                    "decoded": reference.decode(packet).tobytes().hex(),
                }
            )
    return entries


def bad() -> list[dict[str, Any]]:
    return bad_packets.entries()


def text(entries: list[dict[str, Any]]) -> str:
    return json.dumps(entries, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "packets.json").write_text(text(good()))
    (HERE / "bad_packets.json").write_text(text(bad()))
