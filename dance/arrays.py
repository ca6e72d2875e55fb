"""Arrays of NumPy, torch, CuPy and DLPack as what the core takes: address, size, device, dtype, stream.

One `Kind` per library reads an input, opens a state for writing in place and allocates what goes out. Dtypes
are float32, float16 and bfloat16; an input of float64 is converted to float32. Nothing is imported here but
NumPy: torch, CuPy and ml_dtypes (bfloat16 for NumPy) are touched only when an object of theirs came in.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol, TypeAlias

import numpy as np

from dance import _native
from dance.errors import UnavailableError

CPU = -1  # as a device; a CUDA device is its ordinal

# address, number of elements, device, the object that owns the memory (keep it alive during the call), and
# the dtype by its number in `DTYPES` (0 for payloads)
Memory: TypeAlias = "tuple[int, int, int, Any, int]"

FLOAT32, FLOAT16, BFLOAT16 = range(3)  # positions in dance.codecs.DTYPES
_FLOAT32, _FLOAT16, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)
_UINT8 = np.dtype(np.uint8)
# Of each dtype; a number of Python is converted to that of the array without rounding.
_LARGEST = (float(np.finfo(np.float32).max), 65504.0, float.fromhex("0x1.fep127"))
_NO_INDEX = 2**63 - 1  # kernels lower it to the first index they object to
_address = _native.address


class Kind(Protocol):
    """What this package needs from a library of arrays; dtypes are numbers of `DTYPES`."""

    def read(self, x: Any, who: str) -> Memory:
        """The memory of an input, copied first where it is not contiguous or is float64."""

    def write(self, x: Any, who: str) -> Memory:
        """The memory of a state changed in place; ValueError when it is not contiguous or read-only."""

    def payload(self, payload: Any, who: str) -> Memory:
        """The memory of contiguous uint8 bytes."""

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        """Fresh uint8 memory and its address."""

    def slice(self, payload: Any, num_bytes: int) -> Any:
        """A view of the first bytes of a payload."""

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        """Fresh memory for an array."""

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        """A contiguous array of zeros in the shape and place of ``x``; dtype None: that in which x is
        encoded.
        """

    def copy(self, x: Any) -> Any:
        """A copy of ``x`` in the same place."""

    def add_scaled(self, y: Any, factor: float, x: Any) -> None:
        """y += factor * x, in place; all finite, and y saturates at its largest finite value."""

    def decay_and_add(self, y: Any, factor: float, x: Any) -> None:
        """y = factor * y + x, in place, saturating as well; what is not finite in x counts as 0."""

    def clear(self, y: Any, indices: Any) -> None:
        """Sets the elements at ``indices`` (int64 of NumPy) of the flattened array to 0, in place."""

    def result(self, owner: Any) -> Any:
        """What the user gets for the owner of `new_output`."""

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a payload as a NumPy array; waits for a GPU."""

    def stream(self, device: int) -> int:
        """The caller's current stream on this device; 0 on the CPU."""

    def new_flags(self, device: int) -> tuple[Any, int]:
        """Fresh device memory of two int64 that hold `_NO_INDEX`, and its address."""

    def read_flags(self, flags: Any) -> tuple[int, int]:
        """What a kernel left in flags: the first non-finite index or -1, and the number of values; waits."""


def _refused_dtype(who: str, dtype: Any) -> ValueError:
    got = str(dtype).removeprefix("torch.")
    return ValueError(f"{who}: expected float32, float16 or bfloat16 on one device, got {got}; cast first")


def _refused_layout(who: str, x: Any) -> ValueError:
    return ValueError(
        f"{who}: is changed in place and must be contiguous and writable, got {_layout_text(x)}; "
        "pass a contiguous array"
    )


def _refused_payload(who: str, payload: Any) -> ValueError:
    dtype = str(payload.dtype).removeprefix("torch.")
    return ValueError(
        f"{who}: expected a payload of contiguous uint8, got {dtype} in {_layout_text(payload)}; "
        "pass Packet.payload or bytes"
    )


def _layout_text(x: Any) -> str:
    flags = getattr(x, "flags", None)
    if flags is not None and not getattr(flags, "writeable", True):
        return "a read-only array"
    if getattr(flags, "aligned", True) is False:
        return "an array that is not aligned"
    if flags is None and (str(x.layout) != "torch.strided" or x.is_neg()):
        return f"a tensor of layout {x.layout}, lazily negated: {x.is_neg()}"
    strides = x.stride() if flags is None else x.strides
    return f"shape {tuple(x.shape)} with strides {tuple(strides)}"


def _refused_device(who: str, device: str) -> UnavailableError:
    return UnavailableError(
        f"{who}: there are no kernels for device {device}; move the data to the CPU or a CUDA GPU"
    )


def check_cuda(who: str) -> None:
    """Raises UnavailableError with the remedy where CUDA memory cannot be worked on."""
    if _native.cuda_available():
        return
    if not _native.cuda_built():
        remedy = (
            "this build holds no CUDA code; build with --config-settings cmake.define.DANCE_CUDA=ON, "
            "or move the data to the CPU"
        )
    else:
        remedy = "no CUDA GPU or driver was found on this machine; move the data to the CPU"
    raise UnavailableError(f"{who}: the input lies on a CUDA device: {remedy}")


def _narrowed(x: Any) -> Any:
    with np.errstate(over="ignore"):  # what becomes infinite is for `nonfinite` to decide
        return x.astype(_FLOAT32)


def _numpy_dtype(dtype: Any, who: str) -> int:
    if dtype == _FLOAT16:
        return FLOAT16
    if dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative:  # that of ml_dtypes
        return BFLOAT16
    raise _refused_dtype(who, dtype)


def _saturate(numpy: Any, y: Any) -> None:
    largest = _LARGEST[FLOAT32 if y.dtype == _FLOAT32 else _numpy_dtype(y.dtype, "state")]
    numpy.clip(y, -largest, largest, out=y)


def _numpy_type(dtype: int) -> Any:
    if dtype != BFLOAT16:
        return _FLOAT16 if dtype == FLOAT16 else _FLOAT32
    try:
        import ml_dtypes  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UnavailableError(
            "a NumPy array of bfloat16 needs ml_dtypes: pip install ml_dtypes, "
            "or pass an array of float32 as out"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


class NumpyKind:
    """NumPy arrays, and whatever else this package holds in them."""

    def read(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32
        if x.dtype is not _FLOAT32 and x.dtype != _FLOAT32:
            if x.dtype == _FLOAT64:
                x = _narrowed(x)
            else:
                dtype = _numpy_dtype(x.dtype, who)
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            x = np.array(x, order="C")
        return _address(x), x.size, CPU, x, dtype

    def write(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32
        if x.dtype is not _FLOAT32 and x.dtype != _FLOAT32:
            dtype = _numpy_dtype(x.dtype, who)
        if not x.flags.carray:  # contiguous, aligned and writable
            raise _refused_layout(who, x)
        return _address(x), x.size, CPU, x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype != _UINT8 or not payload.flags.c_contiguous:
            raise _refused_payload(who, payload)
        return _address(payload), payload.size, CPU, payload, 0

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        payload = np.empty(num_bytes, _UINT8)
        return payload, _address(payload)

    def slice(self, payload: Any, num_bytes: int) -> Any:
        return payload[:num_bytes]

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        out = np.empty(shape, _numpy_type(dtype))
        return _address(out), out.size, CPU, out, dtype

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        return np.zeros(x.shape, _numpy_type(self.read(x, "zeros")[4] if dtype is None else dtype))

    def copy(self, x: Any) -> Any:
        return np.array(x, order="C")

    def add_scaled(self, y: Any, factor: float, x: Any) -> None:
        with np.errstate(over="ignore"):
            y += np.float32(factor) * x
        _saturate(np, y)

    def decay_and_add(self, y: Any, factor: float, x: Any) -> None:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
            y *= np.float32(factor)
            y += np.where(np.isfinite(x), x, np.float32(0.0))
        _saturate(np, y)

    def clear(self, y: Any, indices: Any) -> None:
        y.reshape(-1)[indices] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload
        return host

    def stream(self, device: int) -> int:
        return 0

    def new_flags(self, device: int) -> tuple[Any, int]:
        raise AssertionError("only CUDA encodes leave flags")

    def read_flags(self, flags: Any) -> tuple[int, int]:
        raise AssertionError("only CUDA encodes leave flags")


class DlpackKind(NumpyKind):
    """CPU arrays that speak DLPack: worked on as NumPy views, handed back through their own namespace."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def _view(self, x: Any, who: str) -> Any:
        device_type = int(x.__dlpack_device__()[0])
        if device_type == 2:
            check_cuda(who)
        if device_type not in (1, 3):  # kDLCPU, kDLCUDAHost
            raise _refused_device(who, f"of DLPack type {device_type}")
        try:
            return np.from_dlpack(x)
        except (RuntimeError, BufferError):  # NumPy knows no bfloat16
            raise _refused_dtype(who, getattr(x, "dtype", "another dtype")) from None

    def read(self, x: Any, who: str) -> Memory:
        return super().read(self._view(x, who), who)

    def write(self, x: Any, who: str) -> Memory:
        return super().write(self._view(x, who), who)

    def payload(self, payload: Any, who: str) -> Memory:
        return super().payload(self._view(payload, who), who)

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        return self.result(super().zeros(self._view(x, "zeros"), dtype))

    def copy(self, x: Any) -> Any:
        return self.result(np.array(self._view(x, "copy")))

    def add_scaled(self, y: Any, factor: float, x: Any) -> None:
        super().add_scaled(self._view(y, "residual"), factor, self._view(x, "velocity"))

    def decay_and_add(self, y: Any, factor: float, x: Any) -> None:
        super().decay_and_add(self._view(y, "velocity"), factor, self._view(x, "input"))

    def clear(self, y: Any, indices: Any) -> None:
        super().clear(self._view(y, "velocity"), indices)

    def result(self, owner: Any) -> Any:
        from_dlpack = getattr(self._namespace, "from_dlpack", None)
        return owner if from_dlpack is None else from_dlpack(owner)


class TorchKind:
    """torch tensors on the CPU or a CUDA GPU, gradients ignored."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._float32 = torch.float32
        self._dtypes = (torch.float32, torch.float16, torch.bfloat16)
        self._uint8 = torch.uint8
        self._empty = torch.empty
        self._cpu = torch.device("cpu")

    def _dtype(self, dtype: Any, who: str) -> int:
        if dtype not in self._dtypes:
            raise _refused_dtype(who, dtype)
        return self._dtypes.index(dtype)

    def read(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32
        if x.dtype is not self._float32:
            if x.dtype is self._torch.float64:
                x = x.detach().to(self._float32)
            else:
                dtype = self._dtype(x.dtype, who)
        if x.layout is not self._torch.strided:
            raise ValueError(f"{who}: expected a dense tensor, got layout {x.layout}; call to_dense first")
        if not x.is_contiguous() or x.is_neg():  # a lazily negated view has the bits of its base
            x = x.detach().resolve_neg().contiguous()
        return x.data_ptr(), x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x, dtype

    def write(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32 if x.dtype is self._float32 else self._dtype(x.dtype, who)
        if x.layout is not self._torch.strided or not x.is_contiguous() or x.is_neg():
            raise _refused_layout(who, x)
        return x.data_ptr(), x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype is not self._uint8 or not payload.is_contiguous():
            raise _refused_payload(who, payload)
        device = CPU if payload.is_cpu else self._ordinal(payload, who)
        return payload.data_ptr(), payload.numel(), device, payload, 0

    def _ordinal(self, x: Any, who: str) -> int:
        if not x.is_cuda:
            raise _refused_device(who, str(x.device))
        check_cuda(who)
        return int(x.get_device())

    def _device(self, device: int) -> Any:
        return self._cpu if device < 0 else self._torch.device("cuda", device)

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        payload = self._empty(num_bytes, dtype=self._uint8, device=self._device(device))
        return payload, payload.data_ptr()

    def slice(self, payload: Any, num_bytes: int) -> Any:
        return payload[:num_bytes]

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        out = self._empty(shape, dtype=self._dtypes[dtype], device=self._device(device))
        return out.data_ptr(), out.numel(), device, out, dtype

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        number = self.read(x, "zeros")[4] if dtype is None else dtype
        return self._torch.zeros(tuple(x.shape), dtype=self._dtypes[number], device=x.device)

    def copy(self, x: Any) -> Any:
        return x.detach().clone(memory_format=self._torch.contiguous_format)

    def add_scaled(self, y: Any, factor: float, x: Any) -> None:
        y.add_(x * factor)  # not alpha=factor, which may fuse: NumPy would give other bits
        self._saturate(y)

    def decay_and_add(self, y: Any, factor: float, x: Any) -> None:
        x = x.detach().to(y.dtype)
        y.mul_(factor).add_(self._torch.where(x.isfinite(), x, 0.0))
        self._saturate(y)

    def _saturate(self, y: Any) -> None:
        largest = _LARGEST[self._dtypes.index(y.dtype)]
        y.clamp_(-largest, largest)

    def clear(self, y: Any, indices: Any) -> None:
        y.view(-1)[self._torch.from_numpy(indices).to(y.device)] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload.cpu().numpy()
        return host

    def stream(self, device: int) -> int:
        return 0 if device < 0 else int(self._torch.cuda.current_stream(device).cuda_stream)

    def new_flags(self, device: int) -> tuple[Any, int]:
        flags = self._torch.full((2,), _NO_INDEX, dtype=self._torch.int64, device=self._device(device))
        return flags, flags.data_ptr()

    def read_flags(self, flags: Any) -> tuple[int, int]:
        return _flags(flags.tolist())


def _flags(values: list[int]) -> tuple[int, int]:
    return -1 if values[0] == _NO_INDEX else values[0], values[1] & 0xFFFFFFFF


class CupyKind:
    """CuPy arrays; with ``convert``, others of the CUDA array interface through CuPy views."""

    def __init__(self, cupy: Any, convert: bool = False) -> None:
        self._cupy = cupy
        self._convert = convert

    def _view(self, x: Any) -> Any:
        return self._cupy.asarray(x) if self._convert else x

    def read(self, x: Any, who: str) -> Memory:
        check_cuda(who)
        x = self._view(x)
        if x.dtype == _FLOAT64:
            x = x.astype(_FLOAT32)
        dtype = FLOAT32 if x.dtype == _FLOAT32 else _numpy_dtype(x.dtype, who)
        x = self._cupy.ascontiguousarray(x)
        return int(x.data.ptr), int(x.size), int(x.device.id), x, dtype

    def write(self, x: Any, who: str) -> Memory:
        check_cuda(who)
        x = self._view(x)
        dtype = FLOAT32 if x.dtype == _FLOAT32 else _numpy_dtype(x.dtype, who)
        if not x.flags.c_contiguous:
            raise _refused_layout(who, x)
        return int(x.data.ptr), int(x.size), int(x.device.id), x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        check_cuda(who)
        payload = self._view(payload)
        if payload.dtype != _UINT8 or not payload.flags.c_contiguous:
            raise _refused_payload(who, payload)
        return int(payload.data.ptr), int(payload.size), int(payload.device.id), payload, 0

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            payload = self._cupy.empty(num_bytes, dtype=_UINT8)
        return payload, int(payload.data.ptr)

    def slice(self, payload: Any, num_bytes: int) -> Any:
        return payload[:num_bytes]

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        with self._cupy.cuda.Device(device):
            out = self._cupy.empty(shape, dtype=_numpy_type(dtype))
        return int(out.data.ptr), int(out.size), device, out, dtype

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        number = self.read(x, "zeros")[4] if dtype is None else dtype
        with self._view(x).device:
            return self._cupy.zeros(tuple(x.shape), dtype=_numpy_type(number))

    def copy(self, x: Any) -> Any:
        return self._cupy.array(self._view(x), order="C")

    def add_scaled(self, y: Any, factor: float, x: Any) -> None:
        y = self._view(y)
        y += np.float32(factor) * self._view(x)
        _saturate(self._cupy, y)

    def decay_and_add(self, y: Any, factor: float, x: Any) -> None:
        y, x = self._view(y), self._view(x).astype(np.float32, copy=False)
        y *= np.float32(factor)
        y += self._cupy.where(self._cupy.isfinite(x), x, np.float32(0.0))
        _saturate(self._cupy, y)

    def clear(self, y: Any, indices: Any) -> None:
        self._view(y).reshape(-1)[self._cupy.asarray(indices)] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = self._cupy.asnumpy(payload)
        return host

    def stream(self, device: int) -> int:
        return int(self._cupy.cuda.get_current_stream(device).ptr)

    def new_flags(self, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            flags = self._cupy.full((2,), _NO_INDEX, dtype=np.int64)
        return flags, int(flags.data.ptr)

    def read_flags(self, flags: Any) -> tuple[int, int]:
        return _flags(flags.tolist())


NUMPY = NumpyKind()
KINDS: dict[type[Any], Kind] = {np.ndarray: NUMPY}


def kind_of(x: Any, who: str) -> Kind:
    """Returns the kind of ``x``, found once per type; ValueError for what is no array."""
    known = KINDS.get(type(x))
    if known is None:
        known = _library_of(x)
        if known is None:
            known = _protocol_of(x, who)
            # Arrays of one class may lie here or there (JAX): then each says so itself.
            if hasattr(type(x), "__cuda_array_interface__") and hasattr(type(x), "__dlpack__"):
                return known
        KINDS[type(x)] = known
    return known


def _library_of(x: Any) -> Kind | None:
    if isinstance(x, np.ndarray):
        return NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        kind = KINDS.get(torch.Tensor)
        if kind is None:
            kind = KINDS[torch.Tensor] = TorchKind(torch)
        return kind
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return CupyKind(cupy)
    return None


def _protocol_of(x: Any, who: str) -> Kind:
    # Asked of the array, not of its class, whose property may raise AttributeError where it lies on the CPU.
    if hasattr(x, "__cuda_array_interface__"):
        check_cuda(who)
        return CupyKind(_import_cupy(who, x), convert=True)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        namespace = getattr(x, "__array_namespace__", None)
        return DlpackKind(None if namespace is None else namespace())
    raise ValueError(f"{who}: expected an array (NumPy, torch, CuPy or DLPack), got {type(x).__name__}")


def _import_cupy(who: str, x: Any) -> Any:
    try:
        import cupy
    except ImportError:
        raise UnavailableError(
            f"{who}: {type(x).__name__} needs CuPy: pip install 'dance-gan[cupy]', or pass a torch tensor"
        ) from None
    return cupy
