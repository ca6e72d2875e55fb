"""Writes packets.json and bad_packets.json from the oracle (tests/reference.py), never from the library.

Run `python tests/golden/make.py` only when docs/format.md gets a new version: packets of a version never
change.
"""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import reference
from reference import IDS, Fields, frame

HERE = Path(__file__).parent


def inputs() -> dict[str, np.ndarray]:
    """Small exact vectors: no random generator, so that they are the same for ever."""
    i = np.arange(70)
    wave = ((i * 37 % 101) - 50).astype(np.float32) / np.float32(16.0)
    return {
        "empty": np.zeros(0, np.float32),
        "one": np.array([-1.5], np.float32),
        "wave": wave,
        "zeros": np.zeros(33, np.float32),
        "signed_zeros": np.array([0.0, -0.0, 0.0, -0.0, 1.0], np.float32),
        "scales": np.ldexp(np.float32(1.0), (i * 7 % 60) - 40).astype(np.float32)
        * np.where(i % 3 == 0, -1, 1),
        "largest": np.where(i[:40] % 2 == 0, reference.FLT_MAX, -reference.FLT_MAX).astype(np.float32),
        "denormal": np.ldexp(np.float32(1.0), -149 + (i[:34] % 20)).astype(np.float32),
        "bad": np.where(i == 40, np.float32(np.nan), np.where(i == 3, np.float32(np.inf), wave)).astype(
            np.float32
        ),
    }


CODECS = (
    "none",
    "fp16",
    "bf16",
    "int8:block=32",
    "int8:block=256",
    "sign:block=32",
    "sign:block=50",
    "topk:ratio=0.1",
)


def good() -> list[dict[str, Any]]:
    entries = []
    for number, codec in enumerate(CODECS):
        for name, x in inputs().items():
            x = x.astype(np.float32)
            stamp = {"seed": 0x0123456789ABCDEF + number, "round": number * 1000 + x.size, "sender": number}
            c = reference.codec(codec)
            with np.errstate(all="ignore"):
                data = reference.packet(codec, x, **stamp)
                decoded = reference.decode(c, data[64:], x.size)
            entries.append(
                {
                    "name": f"{codec} {name}",
                    "codec": codec,
                    **stamp,
                    "input": x.astype("<f4").tobytes().hex(),
                    "packet": data.hex(),
                    "decoded": decoded.astype("<f4").tobytes().hex(),
                }
            )
    return entries


def bad() -> list[dict[str, Any]]:
    """Packets that must be refused; ``says`` is a word of the error.

    ``refused_by`` is header, payload (what decode refuses as well) or values.
    """
    entries: list[dict[str, Any]] = []

    def add(name: str, data: bytes, refused_by: str, says: str) -> None:
        entries.append({"name": name, "packet": data.hex(), "refused_by": refused_by, "says": says})

    x = inputs()["wave"]

    def of(codec: str, numel: int = x.size) -> tuple[Fields, bytes]:
        c = reference.codec(codec)
        payload = reference.encode(c, x[:numel]).payload
        fields = Fields(
            codec=IDS[c.name],
            numel=numel,
            payload_nbytes=len(payload),
            parameters=c.parameters(numel),
            seed=7,
        )
        return fields, payload

    fields, payload = of("int8:block=32")
    whole = frame(fields, payload)
    add("no bytes", b"", "header", "64")
    add("half a header", whole[:32], "header", "64")
    add("a header alone", whole[:64], "header", "payload")
    add("one byte short", whole[:-1], "header", "payload")
    add("one byte long", whole + b"\0", "header", "payload")
    wrong = {
        "magic": ({"magic": b"DANC"}, "DNCE"),
        "version 0": ({"version": 0}, "version"),
        "version 2": ({"version": 2}, "version"),
        "unknown codec": ({"codec": 77}, "codec"),
        "unknown dtype": ({"dtype": 9}, "dtype"),
        "dtype float16": ({"dtype": 1}, "dtype"),
        "a flag": ({"flags": 1}, "flags"),
        "numel too small": ({"numel": fields.numel - 40}, "bytes"),
        "numel too large": ({"numel": fields.numel + 40}, "bytes"),
        "numel 2^64 - 1": ({"numel": 2**64 - 1}, "elements"),
        "payload length": ({"payload_nbytes": len(payload) - 4}, "bytes"),
        "payload length 2^64 - 4": ({"payload_nbytes": 2**64 - 4}, "bytes"),
        "block 0": ({"parameters": bytes(16)}, "block"),
        "block 31": ({"parameters": struct.pack("<I12x", 31)}, "block"),
        "block 4097": ({"parameters": struct.pack("<I12x", 4097)}, "block"),
        "a spare parameter byte": ({"parameters": struct.pack("<I11xB", 32, 1)}, "parameter"),
        "payload checksum": ({"payload_crc": 0x12345678}, "checksum"),
        "header checksum": ({"header_crc": 0x12345678}, "checksum"),
    }
    for name, (change, says) in wrong.items():
        add(name, frame(replace(fields, **change), payload), "header", says)
    # A header that is consistent in itself but announces more than anybody asked for.
    huge, _ = of("none")
    add(
        "numel 2^28 + 1",
        frame(replace(huge, numel=2**28 + 1, payload_nbytes=4 * (2**28 + 1)), b""),
        "header",
        "2^28",
    )

    # Checksums are right from here on: what is wrong is the content of the payload.
    padded, codes = of("int8:block=32", 69)
    add("int8 padding", frame(padded, codes[:70] + b"\1" + codes[71:]), "payload", "padding")
    for name, bits in (("infinite", 0x7F800000), ("NaN", 0x7FC00000), ("negative", 0xBF800000)):
        add(f"int8 {name} scale", frame(fields, payload[:-4] + struct.pack("<I", bits)), "payload", "scale")
        signs, words = of("sign:block=32")
        add(f"sign {name} scale", frame(signs, words[:-4] + struct.pack("<I", bits)), "payload", "scale")
    signs, words = of("sign:block=32")  # 70 elements: the third block has 6, in one word
    add(
        "sign unused bit of the last block",
        frame(signs, words[:8] + struct.pack("<I", 1 << 6) + words[12:]),
        "payload",
        "bits",
    )
    signs, words = of("sign:block=50")  # 50 elements in 2 words of 25
    first = struct.unpack_from("<I", words)[0] | 1 << 31
    add(
        "sign unused bit of a whole block",
        frame(signs, struct.pack("<I", first) + words[4:]),
        "payload",
        "bits",
    )
    sparse, chosen = of("topk:ratio=0.1")
    k = len(chosen) // 8
    indices = list(struct.unpack_from(f"<{k}I", chosen))

    def with_indices(values: list[int]) -> bytes:
        return frame(sparse, struct.pack(f"<{k}I", *values) + chosen[4 * k :])

    add("topk index out of range", with_indices([*indices[:-1], 70]), "payload", "index")
    add("topk index 2^32 - 1", with_indices([*indices[:-1], 2**32 - 1]), "payload", "index")
    add("topk equal indices", with_indices([indices[0], indices[0], *indices[2:]]), "payload", "index")
    add("topk falling indices", with_indices(indices[::-1]), "payload", "index")
    # Values that encode never sends.
    for codec, code in (
        ("none", b"\0\0\x80\x7f"),
        ("fp16", b"\1\x7e"),
        ("bf16", b"\x80\xff"),
        ("topk:ratio=0.1", b"\0\0\xc0\xff"),
    ):
        plain, content = of(codec)
        add(
            f"{codec} non-finite value",
            frame(plain, content[: -len(code)] + code),
            "values",
            "NaN or infinite",
        )
    more = replace(sparse, parameters=struct.pack("<Q8x", 71), payload_nbytes=8 * 71)
    add("topk count above numel", frame(more, bytes(8 * 71)), "header", "71")
    none_sent = replace(sparse, parameters=bytes(16), payload_nbytes=0)
    add("topk count 0", frame(none_sent, b""), "header", "topk")
    return entries


def text(entries: list[dict[str, Any]]) -> str:
    return json.dumps(entries, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "packets.json").write_text(text(good()))
    (HERE / "bad_packets.json").write_text(text(bad()))
