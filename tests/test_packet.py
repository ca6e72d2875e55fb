"""Packets: arrays of every library in and out, the header's fields, expectations, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

import dance
from dance import codecs

CODECS = [text for kind in codecs.CODECS for text in kind.examples]
DTYPES = codecs.DTYPES
EXPECT = ("int8:block=32", (5, 14), "float32")


def wave(numel: int = 70) -> np.ndarray:
    return (2.0 * np.sin(np.arange(numel))).astype(np.float32)


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


class HereOrThere(Foreign):
    """An array of JAX: its class has the CUDA array interface, which an array on the CPU has not."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.array.size != 4:
            raise AttributeError("this array lies on the CPU")
        return OnGpu.__cuda_array_interface__


# ---- libraries


def test_arrays_of_one_class_may_lie_on_the_cpu_or_a_gpu() -> None:
    expected = dance.encode(wave(), "int8").to_bytes()
    for _ in range(2):  # what one array was is not remembered for the next
        assert dance.encode(HereOrThere(wave()), "int8").to_bytes() == expected
        if not dance.info()["cuda_available"]:
            with pytest.raises(dance.UnavailableError, match="CUDA"):
                dance.encode(HereOrThere(wave(4)), "int8")


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
        np.ones(4, np.int64),
        np.ones(4, np.complex64),
        np.ones(4, ">f4"),
        np.ones(4, ">f2"),
        torch.ones(4, dtype=torch.int8),
        torch.ones(4, dtype=torch.float8_e4m3fn),
        Foreign(np.ones(4, np.int64)),
    ],
)
def test_other_dtypes_are_refused_with_the_remedy(x: Any) -> None:
    says = r"expected float32, float16 or bfloat16 on one device, got .*; cast first"
    with pytest.raises(ValueError, match=f"int8: {says}"):
        dance.encode(x, "int8")
    with pytest.raises(ValueError, match=f"out: {says}"):
        dance.decode(dance.encode(np.ones(4, np.float32), "int8"), out=x)


@pytest.mark.parametrize("library", [np.copy, torch.from_numpy, Foreign])
def test_float64_is_read_as_float32_and_never_written(library: Any) -> None:
    x = np.linspace(-1.0, 1.0, 70)
    x[3] = 1e300  # infinite in float32
    p = dance.encode(library(x.copy()), "int8:block=32", nonfinite="zero")
    assert p.dtype == "float32"
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    assert p.to_bytes() == dance.encode(narrow, "int8:block=32", nonfinite="zero").to_bytes()
    assert np.from_dlpack(dance.decode(p)).dtype == np.float32
    with pytest.raises(dance.NonFiniteError, match="element 3"):
        dance.encode(library(x.copy()), "none")
    state = library(np.zeros(70))
    for call in (
        lambda: dance.encode_feedback(narrow, state, "int8"),
        lambda: dance.encode_difference(narrow, state, "int8"),
        lambda: dance.decode(p, out=state),
        lambda: dance.mix(state, narrow, narrow, 0.5),
    ):
        with pytest.raises(ValueError, match="got float64; cast first"):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
def test_each_dtype_comes_back_and_travels(codec: str, dtype: str) -> None:
    x = torch.from_numpy(wave().reshape(7, 10)).to(getattr(torch, dtype))
    p = dance.encode(x, codec, seed=9)
    assert p.dtype == dtype
    y = dance.decode(p)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    if dtype == "float16":
        array = x.numpy()
        assert dance.encode(array, codec, seed=9).to_bytes() == p.to_bytes()
        assert dance.decode(dance.encode(array, codec, seed=9)).dtype == np.float16
    back = dance.Packet.from_bytes(p.to_bytes(), expect=(codec, (7, 10), dtype))
    assert back.dtype == dtype
    assert back.to_bytes() == p.to_bytes()
    exact = dance.decode(p, out=torch.empty(7, 10))
    for out_dtype in DTYPES:  # an output of any dtype takes what is decoded, rounded once
        out = torch.empty(7, 10, dtype=getattr(torch, out_dtype))
        assert torch.equal(dance.decode(back, out=out), exact.to(out.dtype))


def test_bfloat16_of_numpy_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = wave().astype(ml_dtypes.bfloat16)
    residual = np.zeros(70, ml_dtypes.bfloat16)
    p = dance.encode_feedback(x, residual, "int4:block=32")
    assert p.dtype == "bfloat16"
    other = torch.zeros(70, dtype=torch.bfloat16)
    q = dance.encode_feedback(torch.from_numpy(wave()).to(torch.bfloat16), other, "int4:block=32")
    assert p.to_bytes() == q.to_bytes()
    assert np.array_equal(residual.view(np.uint16), other.view(torch.uint16).numpy())
    y = dance.decode(p)
    assert y.dtype == ml_dtypes.bfloat16
    assert np.array_equal(y.view(np.uint16), dance.decode(q).view(torch.uint16).numpy())


def test_bfloat16_without_ml_dtypes_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    data = dance.encode(torch.ones(8, dtype=torch.bfloat16), "int8").to_bytes()
    p = dance.Packet.from_bytes(data)
    with pytest.raises(dance.UnavailableError, match=r"pip install ml_dtypes, or pass .* as out"):
        dance.decode(p)
    assert np.array_equal(dance.decode(p, out=np.zeros(8, np.float32)), np.ones(8))


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
    for wrong in (1.5, "a", None, -1):
        p.round = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match=rf"integers in \[0, 2\^32\), got {wrong!r} and 0"):
            p.to_bytes()
    p.round, p.sender = np.int64(7), 3  # type: ignore[assignment]
    assert dance.Packet.from_bytes(p.to_bytes()).round == 7
    with pytest.raises(AttributeError):
        p.payload = None  # type: ignore[misc]


def test_what_is_no_number_is_refused() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    assert dance.encode(x, "int8", seed=np.int64(5)).seed == 5  # type: ignore[arg-type]
    for seed in (1.5, None, "1", np.float32(2.0)):
        for call in (
            lambda seed=seed: dance.encode(x, "int8", seed=seed),
            lambda seed=seed: dance.reduce([p], codec="int8", seed=seed),
        ):
            with pytest.raises(ValueError, match=r"expected an integer seed in \[0, 2\^64\), got "):
                call()
    for wrong in ("a", "1", None, [1.0], 10**400):
        with pytest.raises(ValueError, match="decode: expected a finite weight of float32, got "):
            dance.decode(p, weight=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="mix: expected a finite step_size of float32, got "):
            dance.mix(x, x.copy(), x.copy(), wrong)  # type: ignore[arg-type]
    assert np.array_equal(dance.decode(p, weight=np.float32(0.5)), dance.decode(p, weight=0.5))
    for threads in (2.5, "2", None, 0):
        with pytest.raises(ValueError, match=f"integer of at least 1, got {threads!r}"):
            dance.set_num_threads(threads)  # type: ignore[arg-type]
    for out in (np.zeros(70, np.float32), torch.zeros(70), b"", [p]):
        with pytest.raises(
            ValueError, match=f"out is a Packet to use again, got {type(out).__name__}; pass a"
        ):
            dance.encode(x, "int8", out=out)  # type: ignore[arg-type]


def test_what_came_is_named() -> None:
    x, p = wave(), dance.encode(wave(), "int8")
    read_only = x.copy()
    read_only.flags.writeable = False
    for state, says in (
        (np.zeros((70, 2), np.float32)[:, 0], r"shape \(70,\) with strides \(8,\)"),
        (torch.zeros(70, 2)[:, 0], r"shape \(70,\) with strides \(2,\)"),
        (read_only, "a read-only array"),
        (np.frombuffer(bytearray(281), np.float32, offset=1), "not aligned"),
        (torch.zeros(70, dtype=torch.complex64).conj().imag, "lazily negated: True"),
        (torch.zeros(70).to_sparse(), "layout torch.sparse_coo"),
    ):
        with pytest.raises(ValueError, match=rf"^residual: .*, got .*{says}.*; pass a contiguous array"):
            dance.encode_feedback(x[: state.shape[0]], state, "int8")
    for payload, says in (
        (x, r"got float32 in shape \(70,\)"),
        (torch.zeros(140, dtype=torch.uint8)[::2], r"got uint8 in shape \(70,\) with strides \(2,\)"),
    ):
        with pytest.raises(ValueError, match=rf"expected a payload of contiguous uint8, {says}"):
            dance.Packet.from_parts(p.header(), payload)
    for data in ([1, 2], p.to_bytes().hex(), torch.zeros(100, dtype=torch.uint8), None, x[::2]):
        with pytest.raises(ValueError, match=f"got {type(data).__name__}; .*Packet.from_parts") as caught:
            dance.Packet.from_bytes(data)
        assert not isinstance(caught.value, dance.FrameError)
    with pytest.raises(dance.FrameError, match="at least 64 bytes, got 0"):
        dance.Packet.from_bytes(b"")


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_does_not_take_the_rest_along(codec: str) -> None:
    x = wave()
    x[40] = np.nan
    for run in (dance.encode_feedback, dance.encode_difference):
        kept, raised = np.ones(70, np.float32), np.ones(70, np.float32)
        sent = run(x, kept, codec, nonfinite="zero", seed=3)
        with pytest.raises(dance.NonFiniteError) as caught:
            run(x, raised, codec, seed=3)
        assert caught.value.packet.to_bytes() == sent.to_bytes()
        assert raised.tobytes() == kept.tobytes()
    with pytest.raises(dance.NonFiniteError) as caught:
        dance.encode(x, codec, seed=3)
    assert caught.value.packet.to_bytes() == dance.encode(x, codec, seed=3, nonfinite="zero").to_bytes()


def test_out_reuses_a_packet() -> None:
    p = dance.encode(wave(), "int8:block=32", seed=1)
    memory = p.payload
    again = dance.encode(-wave().reshape(7, 10), "int8:block=32", seed=2, out=p)
    assert again is p
    assert p.payload is memory
    assert (p.seed, p.shape) == (2, (7, 10))
    assert p.to_bytes() == dance.encode(-wave(), "int8:block=32", seed=2).to_bytes()
    # A packet takes whatever finds room in it, and keeps its room.
    for x, codec in ((wave(64), "int8:block=32"), (wave(), "sign:block=32"), (wave(), "int8:block=32")):
        assert dance.encode(x, codec, out=p) is p
        assert p.to_bytes() == dance.encode(x, codec).to_bytes()
    with pytest.raises(ValueError, match=r"out: expected a packet with room for 280 .* on the CPU, got 84"):
        dance.encode(wave(), "none", out=p)
    with pytest.raises(ValueError, match="out: its payload is of another library"):
        dance.encode(torch.from_numpy(wave()), "int8:block=32", out=p)
    data = p.to_bytes()
    with pytest.raises(ValueError, match="out: its payload is read-only"):
        dance.encode(wave(), "int8:block=32", out=dance.Packet.from_bytes(data))
    assert data == p.to_bytes()


# ---- the wire


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


# ---- sparse packets


@pytest.mark.parametrize("codec", [text for kind in codecs.SPARSE for text in kind.examples])
def test_indices_are_where_a_packet_changes_an_array(codec: str) -> None:
    x = np.random.default_rng(5).standard_normal(1000).astype(np.float32)
    for array in (x, torch.from_numpy(x)):
        p = dance.encode(array, codec, seed=77)
        found = p.indices()
        assert found.dtype == np.int64
        assert (np.diff(found) > 0).all()
        untouched = np.full(1000, np.float32(-0.0))
        dance.decode(p, out=untouched, add=True, weight=0.0)
        # -0.0 + 0.0 = +0.0 where something is held, and that alone; +0.0 * -v is -0.0 again.
        held = set(np.flatnonzero(~np.signbit(untouched)).tolist())
        assert held <= set(found.tolist())
        assert dance.Packet.from_bytes(p.to_bytes()).indices().tolist() == found.tolist()
        if codecs.codec(codec).values == codecs.Uncompressed():
            decoded = np.zeros(1000, np.float32)
            decoded[found] = x[found]
            assert np.array_equal(dance.decode(p, out=np.empty(1000, np.float32)), decoded)


def test_indices_are_of_sparse_packets_alone() -> None:
    with pytest.raises(ValueError, match="int8: sends every element"):
        dance.encode(wave(), "int8").indices()
    assert dance.encode(np.zeros(0, np.float32), "topk").indices().size == 0
    assert dance.encode(wave(), "threshold:value=2").indices().size == 0


def test_randk_is_decoded_by_the_seed_of_the_packet() -> None:
    x = np.arange(1, 1001, dtype=np.float32)
    p = dance.encode(x, "randk:ratio=0.1", seed=3)
    first = p.indices()
    p.seed = 4
    assert p.indices().tolist() != first.tolist()
    assert not np.array_equal(np.flatnonzero(dance.decode(p)), first)
    p.seed = 3
    assert np.flatnonzero(dance.decode(p)).tolist() == first.tolist()


@pytest.mark.parametrize("codec", ["threshold:value=0.5", "dgc:ratio=0.05,values=int8:block=32"])
def test_packets_of_varying_size_are_trimmed_and_reused(codec: str) -> None:
    rng = np.random.default_rng(8)
    p = dance.encode(np.zeros(1000, np.float32), codec)
    room = p._buffer
    for numel in (1000, 1000, 300, 0, 1, 999):
        x = rng.standard_normal(numel).astype(np.float32)
        assert dance.encode(x, codec, out=p) is p
        fresh = dance.encode(x, codec)
        assert p.to_bytes() == fresh.to_bytes()
        assert p.payload.size == p.nbytes - 64 == len(p.to_bytes()) - 64
        assert p.nbytes <= dance.codec(codec).packet_nbytes(numel)
        assert np.array_equal(dance.decode(p), dance.decode(fresh))
    assert p._buffer == room
    with pytest.raises(ValueError, match="room for"):
        dance.encode(rng.standard_normal(1100).astype(np.float32), codec, out=p)


@pytest.mark.parametrize("codec", [text for kind in codecs.SPARSE for text in kind.examples])
def test_packets_of_varying_size_pass_an_exchange(codec: str) -> None:
    from dance.exchange import Expected, Message, SimulatedExchange

    exchange = SimulatedExchange(2)
    x = torch.from_numpy(np.random.default_rng(8).standard_normal(500).astype(np.float32))
    p = dance.encode(x.bfloat16(), codec, seed=5)
    for shape in ((500,), (5, 100)):
        expected = Expected(
            source=0, target=1, kind="g", shape=shape, dtype="bfloat16", codec=dance.codec(codec)
        )
        (message,) = exchange.deliver([Message(source=0, target=1, kind="g", packet=p)], [expected])
        assert torch.equal(dance.decode(message.packet).ravel(), dance.decode(p))
    assert exchange.counts.bytes_sent == 2 * len(p.to_bytes())
    assert exchange.counts.raw_bytes == 2 * (64 + 2 * 500)


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
