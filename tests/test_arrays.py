"""Arrays of every library and dtype in and out, and what is refused of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from values import wave

import dance
from dance import codecs

CODECS = [text for kind in codecs.CODECS for text in kind.examples]
DTYPES = codecs.DTYPES


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


def test_tensors_whose_storage_was_freed_are_refused() -> None:
    """As FSDP leaves them of freed shards: with a size, but without memory, at whatever offset."""

    def freed(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        whole = torch.ones(100, dtype=dtype)
        views = [whole[:90], whole[10:]]
        whole.untyped_storage().resize_(0)
        return views

    good = torch.ones(90)
    p = dance.encode(good, "none")
    for x, state in zip(freed(), freed(), strict=True):
        for call in (
            lambda x=x: dance.encode(x, "int8"),
            lambda state=state: dance.encode_feedback(good, state, "int8"),
            lambda state=state: dance.encode_difference(good, state, "int8"),
            lambda state=state: dance.decode(p, out=state),
            lambda state=state: dance.decode(p, out=state, add=True),
            lambda state=state: dance.reduce([p], out=state),
            lambda state=state: dance.reduce([p], codec="int8", residual=state),
            lambda x=x: dance.mix(good, x, good, 0.5),
            lambda state=state: dance.mix(state, good, good, 0.5),
        ):
            with pytest.raises(ValueError, match="of 90 elements whose storage was freed; gather"):
                call()
    for payload in freed(torch.uint8):
        with pytest.raises(ValueError, match=r"payload: .*storage was freed"):
            dance.Packet.from_parts(p.header(), payload)
    empty = torch.ones(0)
    assert dance.decode(dance.encode(empty, "int8")).shape == (0,)


def test_why_an_array_is_not_handed_out_is_said() -> None:
    class Guarded(Foreign):
        dtype = np.dtype(np.float32)

        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("it needs a gradient")

    with pytest.raises(ValueError, match="int8: Guarded does not hand out its memory: it needs a gradient"):
        dance.encode(Guarded(wave()), "int8")


@pytest.mark.parametrize("wrap", [np.copy, torch.from_numpy, StandardArray, Foreign])
def test_momentum_changes_the_states_of_every_library_in_place(wrap: Any) -> None:
    feedback, expected = (dance.ErrorFeedback("topk:ratio=0.1", momentum=0.9) for _ in range(2))
    for step in range(3):
        p = feedback.encode(wrap(wave() + step))
        assert p.to_bytes() == expected.encode(wave() + step).to_bytes()
        if step == 0:
            held = feedback.residual(), feedback.velocity()
    assert held[0] is feedback.residual()
    assert held[1] is feedback.velocity()
    assert np.array_equal(np.from_dlpack(held[0]), expected.residual())
    assert np.array_equal(np.from_dlpack(held[1]), expected.velocity())
    scalar = dance.ErrorFeedback("topk:ratio=0.1", momentum=0.5)
    for _ in range(2):
        assert dance.decode(scalar.encode(np.array(1.0, np.float32))).shape == ()
