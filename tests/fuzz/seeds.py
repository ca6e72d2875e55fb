"""Writes first inputs for the fuzz targets to build/fuzz/corpus: golden packets, and every codec.

`python tests/fuzz/seeds.py && make fuzz && bash tests/fuzz/run.sh merge` makes the corpus from nothing.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np

import dance

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "build" / "fuzz" / "corpus"
KINDS = 40  # at least as many as the codecs' kinds: their number wraps around


def write(target: str, name: str, data: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def long_packet() -> bytes:
    """Of so many elements that its checksum is computed in three parts at once: more than 12,288 bytes."""
    x = np.sin(np.arange(13_000), dtype=np.float32)
    return dance.encode(x, "int8").to_bytes()


def main() -> None:
    for file in ("packets.json", "bad_packets.json"):
        for i, entry in enumerate(json.loads((ROOT / "tests" / "golden" / file).read_text())):
            for flag in (0, 1):  # checksums repaired, or as they are
                write("frame", f"{file[:3]}{i}_{flag}", bytes([flag]) + bytes.fromhex(entry["packet"]))
    write("frame", "long", bytes([0]) + long_packet())
    draw = random.Random(1)
    for kind in range(KINDS):
        for operation in range(3):
            for size in (5, 70, 299):
                numel = struct.pack("<BH", 0, size)
                codec = bytes([kind]) + draw.randbytes(8)
                body = struct.pack("<Q", 42) + draw.randbytes(200)
                write("round_trip", f"{kind}_{operation}_{size}", bytes([operation]) + numel + codec + body)
                write("targets", f"{kind}_{operation}_{size}", bytes([operation]) + numel + codec + body)
                flags = bytes([(1, 9, 0)[operation], 0, 0, 0]) + bytes(4)
                write("decode", f"{kind}_{operation}_{size}", flags + numel + codec + body)


if __name__ == "__main__":
    main()
