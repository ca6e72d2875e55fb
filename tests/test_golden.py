"""Golden packets, golden bad packets, the worked example of docs/format.md: bytes that never change."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import reference

import dance

GOLDEN = Path(__file__).parent / "golden"
FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
PACKETS: list[dict[str, Any]] = json.loads((GOLDEN / "packets.json").read_text())
BAD: list[dict[str, Any]] = json.loads((GOLDEN / "bad_packets.json").read_text())


def named(entries: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=[entry["name"] for entry in entries])


def floats(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float32)


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_oracle_writes() -> None:
    maker = load_maker()
    assert (GOLDEN / "packets.json").read_text() == maker.text(maker.good())
    assert (GOLDEN / "bad_packets.json").read_text() == maker.text(maker.bad())


@named(PACKETS)
def test_golden_packet(entry: dict[str, Any]) -> None:
    packet, x = bytes.fromhex(entry["packet"]), floats(entry["input"])
    made = dance.encode(x, entry["codec"], seed=entry["seed"], nonfinite="zero")
    made.round, made.sender = entry["round"], entry["sender"]
    assert made.to_bytes() == packet
    assert made.nbytes == len(packet) == dance.codec(entry["codec"]).packet_nbytes(x.size)

    read = dance.Packet.from_bytes(packet, expect=(entry["codec"], x.shape, "float32"))
    assert (read.seed, read.round, read.sender) == (entry["seed"], entry["round"], entry["sender"])
    assert read.codec == dance.codec(entry["codec"])
    assert dance.decode(read).tobytes().hex() == entry["decoded"]
    assert dance.Packet.from_bytes(packet).to_bytes() == packet


@named(BAD)
def test_golden_bad_packet(entry: dict[str, Any]) -> None:
    data = bytes.fromhex(entry["packet"])
    with pytest.raises(dance.FrameError, match=re.escape(entry["says"])):
        dance.Packet.from_bytes(data)
    if entry["refused_by"] != "payload":
        return
    # The same payload in a packet that never went through from_bytes.
    header = dance.parse_header(data)
    packet = dance.encode(np.zeros(header.numel, np.float32), header.codec)
    packet.payload[:] = np.frombuffer(data[64:], np.uint8)
    out = np.full(packet.numel, 7.0, np.float32)
    for add in (False, True):
        with pytest.raises(dance.FrameError, match=re.escape(entry["says"])):
            dance.decode(packet, out=out, add=add)
        assert (out == 7.0).all(), "the output was touched"


def test_checksum() -> None:
    from dance import _native

    assert _native.crc32c(b"123456789") == 0xE3069283
    data = bytes(range(256)) * 3
    for start in range(9):
        for stop in (start, start + 1, start + 7, start + 8, start + 9, 700):
            assert _native.crc32c(data[start:stop]) == reference.crc32c(data[start:stop])


def example() -> tuple[dict[str, str], bytes]:
    """The settings and the bytes of the worked example: `| name | value |` rows and lines of `offset: hex
    meaning`.
    """
    section = FORMAT.read_text().split("## A worked example", 1)[1].split("\n## ", 1)[0]
    settings = dict(re.findall(r"^\| ([a-z ]+) \| `([^`]+)` \|$", section, re.MULTILINE))
    block = section.split("```text\n", 1)[1].split("```", 1)[0]
    data = b""
    for line in block.splitlines():
        offset, rest = line.split(":", 1)
        assert int(offset) == len(data), line
        hexadecimal = re.match(r"(?: [0-9a-f]{2})+", rest)
        assert hexadecimal is not None, line
        data += bytes.fromhex(hexadecimal.group())
    return settings, data


def test_the_worked_example_of_the_document() -> None:
    settings, data = example()
    x = np.array([float(v) for v in settings["input"].split(",")], np.float32)
    stamp = {key: int(settings[key]) for key in ("seed", "round", "sender")}
    assert reference.packet(settings["codec"], x, **stamp) == data

    made = dance.encode(x, settings["codec"], seed=stamp["seed"])
    made.round, made.sender = stamp["round"], stamp["sender"]
    assert made.to_bytes() == data
    decoded = np.array([float(v) for v in settings["decoded"].split(",")], np.float32)
    assert np.array_equal(dance.decode(dance.Packet.from_bytes(data)), decoded)


def test_every_codec_has_its_section_and_its_number_in_the_document() -> None:
    text = FORMAT.read_text()
    for entry in dance._native.codecs():
        assert re.search(rf"^### `{entry['name']}`", text, re.MULTILINE), entry
        assert re.search(rf"^\| {entry['id']} \| `{entry['name']}` \|", text, re.MULTILINE), entry
