"""Packets on the wire: whole and in parts, the header's fields, expectations, wrong payloads; their seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from values import wave

import dance
from dance import codecs
from dance.arrays.numpy import NumpyKind

CODECS = [text for kind in codecs.CODECS for text in kind.examples]
EXPECT = ("int8:block=32", (5, 14), "float32")


def fields_of(codec: str, x: np.ndarray) -> tuple[reference.Fields, bytes]:
    packet = reference.encode(reference.codec(codec), x).packet
    return reference.fields(packet), packet.payload


@pytest.mark.parametrize("codec", CODECS)
def test_packets_travel(codec: str) -> None:
    x = wave()
    p = dance.encode(x, codec, seed=3)
    p.round, p.sender = 11, 4
    data = p.to_bytes()
    assert len(data) == p.nbytes
    for buffer in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        back = dance.Packet.from_bytes(buffer)
        assert (back.seed, back.round, back.sender, back.dtype) == (3, 11, 4, "float32")
        assert back.to_bytes() == data
        assert np.array_equal(dance.decode(back), dance.decode(p))
    shifted = memoryview(b"\0" + data)[1:]  # not aligned to 4
    assert np.array_equal(dance.decode(dance.Packet.from_bytes(shifted)), dance.decode(p))


@pytest.mark.parametrize("codec", CODECS)
def test_parts_travel_apart(codec: str) -> None:
    p = dance.encode(torch.from_numpy(wave()), codec, seed=5)
    head = p.header()
    parsed = dance.parse_header(torch.frombuffer(bytearray(head), dtype=torch.uint8))
    assert parsed.check((None, (70,), "float32")) == parsed.codec
    assert parsed.payload_nbytes == p.nbytes - 64
    for header in (head, bytearray(head), parsed):
        for payload in (p.payload, bytes(p.payload.numpy()), p.payload.numpy()):
            for expect in (
                None,
                (codec, (7, 10), "float32"),
                (None, (7, 10), "float32"),
                (p.codec, [70], "float32"),
            ):
                back = dance.Packet.from_parts(header, payload, expect=expect)
                assert back.shape == ((70,) if expect is None else tuple(expect[1]))
                if expect is not None and expect[0] is not None:
                    assert back.codec == p.codec
                assert np.array_equal(np.asarray(dance.decode(back)).ravel(), dance.decode(p).numpy())
    back = dance.Packet.from_parts(head, p.payload)
    assert isinstance(dance.decode(back), torch.Tensor)
    with pytest.raises(dance.FrameError, match="payload"):
        dance.Packet.from_parts(head, p.payload[:-4].clone())
    with pytest.raises(ValueError, match="uint8"):
        dance.Packet.from_parts(head, p.payload.to(torch.int32))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"magic": b"dnce"}, "DNCE"),
        ({"version": 0}, "version 0"),
        ({"version": 255}, "version 255"),
        ({"codec": 77}, "codec 77"),
        ({"codec": 255}, "codec 255"),
        ({"dtype": 3}, "dtype 3"),
        ({"flags": 1}, "flags"),
        ({"flags": 128}, "flags"),
        ({"numel": 2**63}, "elements"),
        ({"numel": 2**64 - 1}, "elements"),
        ({"payload_nbytes": 0}, "payload"),
        ({"payload_nbytes": 2**63}, "payload"),
        ({"parameters": b"\0" * 15 + b"\1"}, "parameter|argument|count|imply"),
        ({"parameters": b"\xff" * 16}, "parameter|argument"),
        ({"payload_crc": 1}, "checksum"),
        ({"header_crc": 1}, "checksum"),
    ],
)
def test_each_header_field_is_checked(codec: str, change: dict[str, Any], says: str) -> None:
    fields, payload = fields_of(codec, wave())
    assert dance.Packet.from_bytes(reference.frame(fields, payload)).numel == 70
    with pytest.raises(dance.FrameError, match=says):
        dance.Packet.from_bytes(reference.frame(replace(fields, **change), payload))


@pytest.mark.parametrize(
    ("expect", "says"),
    [
        (("int8:block=64", (70,), "float32"), "expected codec int8:block=64, got int8:block=32"),
        (("sign:block=32", (70,), "float32"), "expected codec sign:block=32"),
        (("int8:block=32", (71,), "float32"), r"expected 71 elements of shape \(71,\), got 70"),
        (("int8:block=32", (70, 0), "float32"), "expected 0 elements"),
        ((None, (7, 11), "float32"), "expected 77 elements"),
        (("int8:block=32", (70,), "float16"), "expected dtype float16, got float32"),
        (
            ("int8:block=32,rounding=stochastic", (70,), "float32"),
            "expected codec int8:block=32,rounding=sto",
        ),
        ((None, (2**40, 2**40), "float32"), "elements"),
    ],
)
def test_each_expectation_is_checked(expect: Any, says: str) -> None:
    data = dance.encode(wave(), "int8:block=32").to_bytes()
    assert dance.Packet.from_bytes(data, expect=EXPECT).shape == (5, 14)
    with pytest.raises(dance.FrameError, match=says):
        dance.Packet.from_bytes(data, expect=expect)
    with pytest.raises(dance.FrameError, match=says):
        dance.parse_header(data[:64]).check(expect)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), torch.float32])
def test_an_expected_dtype_is_that_of_any_library(dtype: Any) -> None:
    data = dance.encode(wave(), "int8:block=32").to_bytes()
    assert dance.Packet.from_bytes(data, expect=("int8:block=32", torch.Size([7, 10]), dtype)).shape == (
        7,
        10,
    )
    with pytest.raises(dance.FrameError, match="expected dtype bfloat16"):
        dance.Packet.from_bytes(data, expect=(None, (np.int64(70),), torch.bfloat16))


@pytest.mark.parametrize(
    ("expect", "says"),
    [
        (("int8", (70,)), r"expected \(codec, shape, dtype\), got \('int8', \(70,\)\)"),
        ("int8", r"expected \(codec, shape, dtype\), got 'int8'"),
        ("abc", r"expected \(codec, shape, dtype\), got 'abc'"),
        (7, r"expected \(codec, shape, dtype\), got 7"),
        (("int8:block=32", 70, "float32"), r"a shape of sizes such as \(70,\), got 70"),
        (("int8:block=32", (-7, -10), "float32"), r"sizes such as .*, got \(-7, -10\)"),
        (("int8:block=32", (70.0,), "float32"), r"sizes such as .*, got \(70.0,\)"),
        (("int8:block=32", "70", "float32"), "sizes such as .*, got '70'"),
        (("int8:block=32", (70,), "float64"), "got float64"),
        (("int8:block=32", (70,), None), "got None"),
        (("int9", (70,), "float32"), "unknown codec 'int9'"),
        ((8, (70,), "float32"), "codec: expected a text"),
    ],
)
def test_a_malformed_expectation_is_the_mistake_of_the_receiver(expect: Any, says: str) -> None:
    data = dance.encode(wave(), "int8:block=32").to_bytes()
    with pytest.raises(ValueError, match=says) as caught:
        dance.Packet.from_bytes(data, expect=expect)
    assert not isinstance(caught.value, dance.FrameError)


def test_the_count_of_topk_is_part_of_the_expectation() -> None:
    data = dance.encode(wave(), "topk:ratio=0.1").to_bytes()
    assert (
        str(dance.Packet.from_bytes(data, expect=("topk:ratio=0.1", (70,), "float32")).codec)
        == "topk:ratio=0.1"
    )
    with pytest.raises(dance.FrameError, match=r"expected codec topk:ratio=0\.2"):
        dance.Packet.from_bytes(data, expect=("topk:ratio=0.2", (70,), "float32"))


def test_without_expectation_the_size_is_limited() -> None:
    fields = reference.Fields(numel=2**28, payload_nbytes=2**30)
    assert dance.parse_header(reference.frame(fields, b"")).check(None) == dance.codec("none")
    more = reference.frame(reference.Fields(numel=2**28 + 1, payload_nbytes=4 * (2**28 + 1)), b"")
    with pytest.raises(dance.FrameError, match=r"2\^28; pass expect"):
        dance.Packet.from_bytes(more)
    assert dance.parse_header(more).check(("none", (2**28 + 1,), "float32"))


@given(
    st.sampled_from(CODECS),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=0, max_size=1700),
)
def test_any_payload_is_decoded_or_refused_with_the_output_untouched(
    codec: str, numel: int, seed: int, noise: bytes
) -> None:
    """Right checksums over a wrong payload: FrameError or a decode, never anything else."""
    fields, payload = fields_of(codec, wave(numel))
    data = np.frombuffer(payload, np.uint8).copy()
    rng = np.random.default_rng(seed)
    if data.size:
        where = rng.integers(0, data.size, rng.integers(1, 8))
        data[where] = np.frombuffer(noise.ljust(8, b"\xff")[:8], np.uint8)[: where.size]
    framed = reference.frame(fields, data.tobytes())
    p = dance.Packet.from_bytes(reference.frame(fields, payload))  # decode must not rely on what this checks
    room = np.empty(data.size + 4, np.uint8)[: data.size]  # aligned
    room[:] = data
    p._memory = (room.ctypes.data, room.size, -1, room, 0)
    out = np.full(numel, 5.0, np.float32)
    try:
        dance.decode(p, out=out)
    except dance.FrameError:
        assert (out == 5.0).all()
        with pytest.raises(dance.FrameError):
            dance.Packet.from_bytes(framed)
        if numel:  # the same when adding
            with pytest.raises(dance.FrameError):
                dance.decode(p, out=out, add=True)
            assert (out == 5.0).all()


def test_derive_seed() -> None:
    seed = dance.derive_seed(1, 2, 3, "weight", "gossip")
    assert seed == dance.derive_seed(1, 2, 3, "weight", "gossip")
    assert 0 <= seed < 2**64
    others = [(0, 2, 3, "weight", "gossip"), (1, 0, 3, "weight", "gossip"), (1, 2, 0, "weight", "gossip")]
    others += [(1, 2, 3, "bias", "gossip"), (1, 2, 3, "weight", "image"), (12, 3, 3, "weight", "gossip")]
    others += [
        (1, 2, 3, "weight gossip", ""),
        (1, 2, 3, "", "weight gossip"),
        (1, 2, 3, 0, 0),
        (1, 2, 3, "0", 0),
    ]
    assert len({seed, *(dance.derive_seed(*arguments) for arguments in others)}) == len(others) + 1
    assert seed == 0xF7ADD78B32F8A615  # frozen: runs would not repeat otherwise


class _Late:
    """The stream of an encode whose bytes are there when it has been waited for."""

    def __init__(self, payload: np.ndarray) -> None:
        self.payload, self.bytes = payload, payload.copy()
        payload[:] = 0xEE

    def synchronize(self) -> None:
        self.payload[:] = self.bytes


class _DeviceKind(NumpyKind):
    """A device whose memory is that of the host."""

    copies = 0

    def to_host(self, payload: np.ndarray) -> np.ndarray:
        self.copies += 1
        return payload.copy()

    def read_flags(self, flags: _Late) -> tuple[int, int]:
        return int(flags.payload[0]), int(flags.payload[1])


def _on_device(codec: str, flags: tuple[int, int] | None = None) -> dance.Packet:
    p = dance.encode(wave(), codec)
    p._memory, p._kind = (p._memory[0], p._memory[1], 0, p._memory[3], 0), _DeviceKind()
    p._stream = _Late(p._memory[3])
    if flags is not None:
        p._report, p._flags = True, _Late(np.array(flags))
        payload = p._stream

        class Both:
            @staticmethod
            def synchronize() -> None:
                payload.synchronize()
                p._flags.synchronize()

        p._stream = Both
    return p


def test_what_waits_for_an_encode_waits_for_its_stream_and_copies_once() -> None:
    for codec in ("int8", "topk:ratio=0.1"):
        expected = dance.encode(wave(), codec)
        p = _on_device(codec)
        assert p.to_bytes() == expected.to_bytes()
        assert p._kind.copies == 1  # type: ignore[attr-defined]
        assert _on_device(codec).header() == expected.header()
    assert np.array_equal(_on_device("topk:ratio=0.1").indices(), expected.indices())
    with pytest.raises(dance.NonFiniteError, match="element 3"):
        _on_device("int8", (3, 0)).check_finite()
    threshold = dance.encode(wave(), "threshold:value=0.5")
    late = _on_device("threshold:value=0.5", (-1, threshold.indices().size))
    assert late.nbytes == threshold.nbytes
    assert late.to_bytes() == threshold.to_bytes()


def test_a_packet_in_the_memory_of_an_array_is_not_written_over_it() -> None:
    for codec in ("none", "topk:ratio=0.3", "int8:block=32"):
        x = wave()
        p = dance.encode(x, codec)
        room = np.zeros(max(p.nbytes, 4 * x.size + 64) // 4, np.float32)
        payload = room.view(np.uint8)[: p.nbytes - 64]
        payload[:] = p.payload
        q = dance.Packet.from_parts(p.header(), payload)
        before, array = room.copy(), room[: x.size]
        for call in (
            lambda q=q, array=array: dance.decode(q, out=array),
            lambda q=q, array=array: dance.decode(q, out=array, add=True),
            lambda q=q, array=array, codec=codec: dance.encode(array, codec, out=q),
            lambda q=q, array=array, codec=codec: dance.encode_feedback(wave(), array, codec, out=q),
        ):
            with pytest.raises(ValueError, match=r"shares memory with the .*pass another out"):
                call()
        assert np.array_equal(room, before)
