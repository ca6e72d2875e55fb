"""Packets: arrays of every library in and out, the header's fields, expectations, and clear errors."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

import dance

CODECS = ["none", "fp16", "bf16", "int8:block=32", "sign:block=32", "topk:ratio=0.1"]
EXPECT = ("int8:block=32", (5, 14), "float32")


def wave(numel: int = 70) -> np.ndarray:
    return np.sin(np.arange(numel)).astype(np.float32)


class Foreign:
    """An array of a library that this package does not know, readable through DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class StandardArray(Foreign):
    """The same, with a namespace of the Python array API standard."""

    def __array_namespace__(self) -> Any:
        class Namespace:
            @staticmethod
            def from_dlpack(x: Any) -> StandardArray:
                return StandardArray(np.from_dlpack(x))

        return Namespace


class OnGpu:
    """What a GPU array looks like from outside."""

    __cuda_array_interface__ = {  # noqa: RUF012
        "shape": (4,),
        "typestr": "<f4",
        "data": (4096, False),
        "version": 3,
        "strides": None,
    }
    shape = (4,)


# ---- libraries


@pytest.mark.parametrize("codec", CODECS)
def test_every_library_gives_the_same_bytes_and_gets_its_own_arrays_back(codec: str) -> None:
    x = wave().reshape(7, 10)
    expected = dance.encode(x, codec).to_bytes()
    for wrap, kind, payload_kind in (
        (np.copy, np.ndarray, np.ndarray),
        (torch.from_numpy, torch.Tensor, torch.Tensor),
        (StandardArray, StandardArray, np.ndarray),
        (Foreign, np.ndarray, np.ndarray),
    ):
        p = dance.encode(wrap(x.copy()), codec)
        assert p.to_bytes() == expected
        assert type(p.payload) is payload_kind
        assert p.shape == (7, 10)
        assert type(p.shape) is tuple
        y = dance.decode(p)
        assert type(y) is kind
        assert tuple(y.shape) == (7, 10)
        y = np.from_dlpack(y)
        assert y.dtype == np.float32
        assert np.array_equal(y, dance.decode(dance.encode(x, codec)))


@pytest.mark.parametrize("wrap", [np.copy, torch.from_numpy, StandardArray, Foreign])
def test_states_of_every_library_change_in_place(wrap: Any) -> None:
    x, state = wave(), np.full(70, 0.25, np.float32)
    expected = state.copy()
    dance.encode_feedback(x, expected, "int8:block=32")
    held = state.copy()
    dance.encode_feedback(wrap(x.copy()), wrap(held) if wrap is not np.copy else held, "int8:block=32")
    assert np.array_equal(held, expected)


def test_libraries_mix_on_the_cpu() -> None:
    x = wave()
    p = dance.encode(x, "int8:block=32")
    y = torch.zeros(70)
    assert dance.decode(p, out=y) is y
    assert np.array_equal(y.numpy(), dance.decode(p))
    residual = torch.zeros(70)
    dance.encode_feedback(x, residual, "int8:block=32")
    assert residual.abs().max() > 0
    parameter = torch.nn.Parameter(torch.zeros(70))
    dance.decode(p, out=parameter, add=True)
    assert np.array_equal(parameter.detach().numpy(), dance.decode(p))


def test_odd_layouts_are_copied_for_reading_and_refused_for_writing() -> None:
    square = np.arange(36, dtype=np.float32).reshape(6, 6)
    expected = dance.encode(np.ascontiguousarray(square.T), "none").to_bytes()
    assert dance.encode(square.T, "none").to_bytes() == expected
    assert dance.encode(torch.from_numpy(square).T, "none").to_bytes() == expected
    unaligned = np.frombuffer(b"\0" + square.T.tobytes(), np.float32, offset=1).reshape(6, 6)
    assert dance.encode(unaligned, "none").to_bytes() == expected

    read_only = np.zeros(36, np.float32)
    read_only.flags.writeable = False
    for state in (
        square.T.copy("F"),
        np.zeros(72, np.float32)[::2],
        read_only,
        unaligned,
        torch.zeros(72)[::2],
    ):
        with pytest.raises(ValueError, match="contiguous"):
            dance.encode_feedback(np.ones(36, np.float32), state, "int8")
    p = dance.encode(read_only, "int8")  # reading is fine
    with pytest.raises(ValueError, match=r"out: .*contiguous"):
        dance.decode(p, out=np.zeros((6, 12), np.float32)[:, ::2])


def test_shapes() -> None:
    for shape in ((), (0,), (3, 0, 2), (1,), (2, 3, 4)):
        x = np.ones(shape, np.float32)
        for p in (dance.encode(x, "int8"), dance.encode(torch.ones(shape), "int8")):
            assert p.shape == shape
            assert tuple(dance.decode(p).shape) == shape
        back = dance.Packet.from_bytes(p.to_bytes(), expect=("int8", shape, "float32"))
        assert back.shape == shape
        assert np.array_equal(dance.decode(back), x)
        assert dance.Packet.from_bytes(p.to_bytes()).shape == (x.size,)


# ---- wrong arguments


@pytest.mark.parametrize(
    "x",
    [
        np.ones(4),
        np.ones(4, np.int64),
        np.ones(4, np.float16),
        np.ones(4, ">f4"),
        torch.ones(4, dtype=torch.float64),
        torch.ones(4, dtype=torch.bfloat16),
        Foreign(np.ones(4)),
    ],
)
def test_other_dtypes_are_refused_with_the_remedy(x: Any) -> None:
    with pytest.raises(ValueError, match=r"int8: expected float32 on one device, got .*; cast first"):
        dance.encode(x, "int8")
    with pytest.raises(ValueError, match="out: expected float32"):
        dance.decode(dance.encode(np.ones(4, np.float32), "int8"), out=x)


@pytest.mark.parametrize("x", [None, 3.0, [1.0, 2.0], "text", np.float32(3)])
def test_what_is_no_array_is_refused(x: Any) -> None:
    with pytest.raises(ValueError, match="expected an array"):
        dance.encode(x, "int8")


def test_sparse_and_absent_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="dense tensor"):
        dance.encode(torch.ones(4).to_sparse(), "int8")
    with pytest.raises(dance.UnavailableError, match="device meta"):
        dance.encode(torch.ones(4, device="meta"), "int8")


@pytest.mark.skipif(dance.info()["cuda_available"], reason="there is a GPU: tests/test_cuda.py")
def test_without_a_gpu_cuda_input_is_unavailable_with_the_remedy() -> None:
    ones = np.ones(4, np.float32)
    p = dance.encode(ones, "int8")
    for call in (
        lambda: dance.encode(OnGpu(), "int8"),
        lambda: dance.encode_feedback(ones, OnGpu(), "int8"),
        lambda: dance.encode_difference(OnGpu(), ones, "int8"),
        lambda: dance.decode(p, out=OnGpu()),
        lambda: dance.mix(OnGpu(), ones, ones, 0.5),
    ):
        with pytest.raises(dance.UnavailableError, match=r"CUDA.*move the (data|array) to the CPU"):
            call()


def test_sizes_must_agree() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    with pytest.raises(ValueError, match="residual: expected 70 elements, got 69"):
        dance.encode_feedback(x, np.zeros(69, np.float32), "int8")
    with pytest.raises(ValueError, match="out: expected 70 elements, got 71"):
        dance.decode(p, out=np.zeros(71, np.float32))
    with pytest.raises(ValueError, match="reference: expected 70 elements, got 1"):
        dance.mix(x, x.copy(), np.zeros(1, np.float32), 0.5)
    with pytest.raises(ValueError, match="residual: is the input itself"):
        dance.encode_feedback(x, x, "int8")
    with pytest.raises(ValueError, match="reference: overlaps the input"):
        dance.encode_difference(x[1:], x[:-1], "int8")
    with pytest.raises(ValueError, match="reference: overlaps x"):
        dance.mix(x[1:], x[1:].copy(), x[:-1], 0.5)


def test_numbers_must_be_sane() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            dance.encode(x, "int8", seed=seed)
    assert dance.encode(x, "int8", seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match="add needs out"):
        dance.decode(p, add=True)
    for weight in (np.nan, np.inf, -1e39):  # the last is finite, but not in float32
        with pytest.raises(ValueError, match="finite weight"):
            dance.decode(p, weight=weight)
        with pytest.raises(ValueError, match="finite step_size"):
            dance.mix(x, x.copy(), x.copy(), weight)
    p.round = 2**32
    with pytest.raises(ValueError, match=r"4294967296"):
        p.to_bytes()
    with pytest.raises(AttributeError):
        p.payload = None  # type: ignore[misc]


def test_out_reuses_a_packet() -> None:
    p = dance.encode(wave(), "int8:block=32", seed=1)
    memory = p.payload
    again = dance.encode(-wave().reshape(7, 10), "int8:block=32", seed=2, out=p)
    assert again is p
    assert p.payload is memory
    assert (p.seed, p.shape) == (2, (7, 10))
    assert p.to_bytes() == dance.encode(-wave(), "int8:block=32", seed=2).to_bytes()
    with pytest.raises(ValueError, match=r"out: expected a packet with 72 payload bytes on the CPU, got 84"):
        dance.encode(wave(64), "int8:block=32", out=p)
    with pytest.raises(ValueError, match="out: its payload is of another library"):
        dance.encode(torch.from_numpy(wave()), "int8:block=32", out=p)
    data = p.to_bytes()
    with pytest.raises(ValueError, match="out: its payload is read-only"):
        dance.encode(wave(), "int8:block=32", out=dance.Packet.from_bytes(data))
    assert data == p.to_bytes()


# ---- the wire


def fields_of(codec: str, x: np.ndarray) -> tuple[reference.Fields, bytes]:
    c = reference.codec(codec)
    payload = reference.encode(c, x).payload
    fields = reference.Fields(
        codec=reference.IDS[c.name],
        numel=x.size,
        payload_nbytes=len(payload),
        parameters=c.parameters(x.size),
    )
    return fields, payload


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
        ({"codec": 6}, "codec 6"),
        ({"codec": 255}, "codec 255"),
        ({"dtype": 1}, "dtype float16"),
        ({"dtype": 2}, "dtype bfloat16"),
        ({"dtype": 3}, "dtype 3"),
        ({"flags": 1}, "flags"),
        ({"flags": 128}, "flags"),
        ({"numel": 2**63}, "elements"),
        ({"numel": 2**64 - 1}, "elements"),
        ({"payload_nbytes": 0}, "payload"),
        ({"payload_nbytes": 2**63}, "payload"),
        ({"parameters": b"\0" * 15 + b"\1"}, "parameter"),
        ({"parameters": b"\xff" * 16}, "parameter"),
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
    p = dance.encode(wave(numel), codec)  # decode must not rely on what from_bytes checks
    p.payload[:] = data
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


def test_topk_values_lie_where_the_indices_say() -> None:
    p = dance.encode(np.array([0, 5, -7, 1], np.float32), "topk:ratio=0.5")
    assert struct.unpack("<2I2f", bytes(p.payload)) == (1, 2, 5.0, -7.0)


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
