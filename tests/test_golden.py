"""Golden packets, golden bad packets, the worked example of docs/format.md: bytes that never change."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import cases
import numpy as np
import pytest
import reference

import dance

RAW = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
GOLDEN = Path(__file__).parent / "golden"
FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
PACKETS: list[dict[str, Any]] = json.loads((GOLDEN / "packets.json").read_text())
BAD: list[dict[str, Any]] = json.loads((GOLDEN / "bad_packets.json").read_text())


def named(entries: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=[entry["name"] for entry in entries])


def array(entry: dict[str, Any]) -> Any:
    """The input: NumPy, or torch for bfloat16."""
    raw = np.frombuffer(bytes.fromhex(entry["input"]), RAW[entry["dtype"]]).copy()
    return cases.to_arrays(raw, entry["dtype"])


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [entry["name"] for entry in dance._native.codecs()])
def test_every_codec_has_golden_packets(name: str) -> None:
    """Good ones of float32 and bad ones; tests/golden/make.py and bad_packets.py list the codecs."""
    good = sum(entry["codec"].partition(":")[0] == name for entry in PACKETS)
    assert good >= 9, f"{name} has {good} golden packets, fewer than 9: tests/golden/make.py"
    bad = any(entry["name"].partition(":")[0].split()[0] == name for entry in BAD)
    assert bad, f"{name} has no bad packet: tests/golden/bad_packets.py"


def test_the_files_are_what_the_oracle_writes() -> None:
    maker = load_maker()
    assert (GOLDEN / "packets.json").read_text() == maker.text(maker.good())
    assert (GOLDEN / "bad_packets.json").read_text() == maker.text(maker.bad())


@named(PACKETS)
def test_golden_packet(entry: dict[str, Any]) -> None:
    packet, x = bytes.fromhex(entry["packet"]), array(entry)
    codec = dance.codec(entry["codec"])
    made = dance.encode(x, codec, seed=entry["seed"], nonfinite="zero")
    made.round, made.sender = entry["round"], entry["sender"]
    assert made.to_bytes() == packet
    assert made.nbytes == len(packet) <= codec.packet_nbytes(x.shape[0], entry["dtype"])
    assert made.nbytes == codec.packet_nbytes(x.shape[0], entry["dtype"]) or not codec.fixed_size

    read = dance.Packet.from_bytes(packet, expect=(codec, x.shape, entry["dtype"]))
    assert (read.seed, read.round, read.sender) == (entry["seed"], entry["round"], entry["sender"])
    assert read.codec == codec
    assert cases.to_raw(dance.decode(made)).tobytes().hex() == entry["decoded"]
    out = cases.to_arrays(np.zeros(read.numel, RAW[entry["dtype"]]), entry["dtype"])
    dance.decode(read, out=out)
    assert cases.to_raw(out).tobytes().hex() == entry["decoded"]
    unexpected = dance.Packet.from_bytes(packet)
    assert unexpected.to_bytes() == packet
    assert unexpected.codec.name == codec.name
    assert reference.verdict(packet) == ""


@named(BAD)
def test_golden_bad_packet(entry: dict[str, Any]) -> None:
    data, sound = bytes.fromhex(entry["packet"]), bytes.fromhex(entry["sound"])
    assert reference.verdict(data) == entry["refused_by"]
    with pytest.raises(dance.FrameError, match=re.escape(entry["says"])):
        dance.Packet.from_bytes(data)
    if entry["refused_by"] != "payload":
        return
    # The same payload in a packet that never went through from_bytes.
    payload = np.frombuffer(sound[64:], np.uint8).copy()
    packet = dance.Packet.from_parts(sound[:64], payload)
    payload[:] = np.frombuffer(data[64:], np.uint8)
    out = np.full(packet.numel, 7.0, np.float32)
    for add in (False, True):
        with pytest.raises(dance.FrameError, match=re.escape(entry["says"])):
            dance.decode(packet, out=out, add=add)
        assert (out == 7.0).all(), "the output was touched"
    with pytest.raises(dance.FrameError, match=re.escape(entry["says"])):
        dance.reduce([packet, packet], out=out)
    assert (out == 7.0).all(), "the output was touched"


def test_checksum() -> None:
    from dance import _native

    assert _native.crc32c(b"123456789") == 0xE3069283
    data = bytes(range(256)) * 3
    for start in range(9):
        for stop in (start, start + 1, start + 7, start + 8, start + 9, 700):
            assert _native.crc32c(data[start:stop]) == reference.crc32c(data[start:stop])
    long = data * 33  # three parts of 4,096 bytes go at once
    for size in (12287, 12288, 12289, 24583):
        assert _native.crc32c(long[1 : 1 + size]) == reference.crc32c(long[1 : 1 + size])


def examples() -> list[tuple[dict[str, str], bytes]]:
    """The settings and the bytes of each worked example: `| name | value |` rows and lines of `offset: hex
    meaning`.
    """
    found = []
    for section in FORMAT.read_text().split("## Worked examples", 1)[1].split("\n### ")[1:]:
        settings = dict(re.findall(r"^\| ([a-z ]+) \| `([^`]+)` \|$", section, re.MULTILINE))
        data = b""
        for line in section.split("```text\n", 1)[1].split("```", 1)[0].splitlines():
            offset, rest = line.split(":", 1)
            assert int(offset) == len(data), line
            hexadecimal = re.match(r"(?: [0-9a-f]{2})+", rest)
            assert hexadecimal is not None, line
            data += bytes.fromhex(hexadecimal.group())
        found.append((settings, data))
    return found


@pytest.mark.parametrize("example", examples(), ids=["dense", "sparse"])
def test_the_worked_examples_of_the_document(example: tuple[dict[str, str], bytes]) -> None:
    settings, data = example
    x = np.array([float(v) for v in settings["input"].split(",")], np.float32)
    stamp = {key: int(settings[key]) for key in ("seed", "round", "sender")}
    assert reference.packet(settings["codec"], x, **stamp) == data

    made = dance.encode(x, settings["codec"], seed=stamp["seed"])
    made.round, made.sender = stamp["round"], stamp["sender"]
    assert made.to_bytes() == data
    decoded = np.array([float(v) for v in settings["decoded"].split(",")], np.float32)
    assert np.array_equal(dance.decode(dance.Packet.from_bytes(data)), decoded)
