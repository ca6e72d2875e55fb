"""Arrays of NumPy, torch, CuPy and DLPack as what the core takes: address, size, device, stream.

One `Kind` per library reads an input, opens a state for writing in place and allocates what goes out. Nothing
is imported here but NumPy: torch and CuPy are touched only when an object of theirs came in.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol, TypeAlias

import numpy as np

from dance import _native
from dance.errors import UnavailableError

CPU = -1  # as a device; a CUDA device is its ordinal

# address, number of elements, device, the object that owns the memory (keep it alive during the call)
Memory: TypeAlias = "tuple[int, int, int, Any]"

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_NO_INDEX = 2**63 - 1  # kernels lower it to the first index they object to
_address = _native.address


class Kind(Protocol):
    """What this package needs from a library of arrays; float32 unless it says payload."""

    def read(self, x: Any, who: str) -> Memory:
        """The memory of an input; an input that is not contiguous is copied first."""

    def write(self, x: Any, who: str) -> Memory:
        """The memory of a state changed in place; ValueError when it is not contiguous or read-only."""

    def payload(self, payload: Any, who: str) -> Memory:
        """The memory of contiguous uint8 bytes."""

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        """Fresh uint8 memory and its address."""

    def new_output(self, shape: tuple[int, ...], device: int) -> Memory:
        """Fresh float32 memory."""

    def zeros(self, x: Any) -> Any:
        """A contiguous array of zeros like ``x``, for a residual."""

    def copy(self, x: Any) -> Any:
        """A copy of ``x`` in the same place."""

    def result(self, owner: Any) -> Any:
        """What the user gets for the owner of `new_output`."""

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a payload as a NumPy array; waits for a GPU."""

    def stream(self, device: int) -> int:
        """The caller's current stream on this device; 0 on the CPU."""

    def new_flag(self, device: int) -> tuple[Any, int]:
        """Fresh int64 device memory that holds `_NO_INDEX`, and its address."""

    def read_flag(self, flag: Any) -> int:
        """What a kernel left in a flag, -1 for nothing; waits for the GPU."""


def _refused_dtype(who: str, dtype: Any) -> ValueError:
    return ValueError(
        f"{who}: expected float32 on one device, got {str(dtype).removeprefix('torch.')}; cast first"
    )


def _refused_layout(who: str) -> ValueError:
    return ValueError(
        f"{who}: is changed in place and must be contiguous and writable; pass a contiguous array"
    )


def _refused_payload(who: str) -> ValueError:
    return ValueError(f"{who}: expected a payload of contiguous uint8")


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


class NumpyKind:
    """NumPy arrays, and whatever else this package holds in them."""

    def read(self, x: Any, who: str) -> Memory:
        if x.dtype is not _FLOAT32 and x.dtype != _FLOAT32:
            raise _refused_dtype(who, x.dtype)
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            x = np.array(x, order="C")
        return _address(x), x.size, CPU, x

    def write(self, x: Any, who: str) -> Memory:
        if x.dtype is not _FLOAT32 and x.dtype != _FLOAT32:
            raise _refused_dtype(who, x.dtype)
        if not x.flags.carray:  # contiguous, aligned and writable
            raise _refused_layout(who)
        return _address(x), x.size, CPU, x

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype != _UINT8 or not payload.flags.c_contiguous:
            raise _refused_payload(who)
        return _address(payload), payload.size, CPU, payload

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        payload = np.empty(num_bytes, _UINT8)
        return payload, _address(payload)

    def new_output(self, shape: tuple[int, ...], device: int) -> Memory:
        out = np.empty(shape, _FLOAT32)
        return _address(out), out.size, CPU, out

    def zeros(self, x: Any) -> Any:
        return np.zeros(x.shape, _FLOAT32)

    def copy(self, x: Any) -> Any:
        return np.array(x, order="C")

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload
        return host

    def stream(self, device: int) -> int:
        return 0

    def new_flag(self, device: int) -> tuple[Any, int]:
        raise AssertionError("only CUDA encodes leave a flag")

    def read_flag(self, flag: Any) -> int:
        raise AssertionError("only CUDA encodes leave a flag")


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
        return np.from_dlpack(x)

    def read(self, x: Any, who: str) -> Memory:
        return super().read(self._view(x, who), who)

    def write(self, x: Any, who: str) -> Memory:
        return super().write(self._view(x, who), who)

    def payload(self, payload: Any, who: str) -> Memory:
        return super().payload(self._view(payload, who), who)

    def zeros(self, x: Any) -> Any:
        return self.result(np.zeros(tuple(x.shape), _FLOAT32))

    def copy(self, x: Any) -> Any:
        return self.result(np.array(self._view(x, "copy")))

    def result(self, owner: Any) -> Any:
        from_dlpack = getattr(self._namespace, "from_dlpack", None)
        return owner if from_dlpack is None else from_dlpack(owner)


class TorchKind:
    """torch tensors on the CPU or a CUDA GPU, gradients ignored."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._float32 = torch.float32
        self._uint8 = torch.uint8
        self._empty = torch.empty
        self._cpu = torch.device("cpu")

    def read(self, x: Any, who: str) -> Memory:
        if x.dtype is not self._float32:
            raise _refused_dtype(who, x.dtype)
        if x.layout is not self._torch.strided:
            raise ValueError(f"{who}: expected a dense tensor, got layout {x.layout}; call to_dense first")
        if not x.is_contiguous() or x.is_neg():  # a lazily negated view has the bits of its base
            x = x.detach().resolve_neg().contiguous()
        return x.data_ptr(), x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x

    def write(self, x: Any, who: str) -> Memory:
        if x.dtype is not self._float32:
            raise _refused_dtype(who, x.dtype)
        if x.layout is not self._torch.strided or not x.is_contiguous() or x.is_neg():
            raise _refused_layout(who)
        return x.data_ptr(), x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype is not self._uint8 or not payload.is_contiguous():
            raise _refused_payload(who)
        device = CPU if payload.is_cpu else self._ordinal(payload, who)
        return payload.data_ptr(), payload.numel(), device, payload

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

    def new_output(self, shape: tuple[int, ...], device: int) -> Memory:
        out = self._empty(shape, dtype=self._float32, device=self._device(device))
        return out.data_ptr(), out.numel(), device, out

    def zeros(self, x: Any) -> Any:
        return self._torch.zeros(tuple(x.shape), dtype=self._float32, device=x.device)

    def copy(self, x: Any) -> Any:
        return x.detach().clone(memory_format=self._torch.contiguous_format)

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload.cpu().numpy()
        return host

    def stream(self, device: int) -> int:
        return 0 if device < 0 else int(self._torch.cuda.current_stream(device).cuda_stream)

    def new_flag(self, device: int) -> tuple[Any, int]:
        flag = self._torch.full((1,), _NO_INDEX, dtype=self._torch.int64, device=self._device(device))
        return flag, flag.data_ptr()

    def read_flag(self, flag: Any) -> int:
        index = int(flag.item())
        return -1 if index == _NO_INDEX else index


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
        if x.dtype != _FLOAT32:
            raise _refused_dtype(who, x.dtype)
        x = self._cupy.ascontiguousarray(x)
        return int(x.data.ptr), int(x.size), int(x.device.id), x

    def write(self, x: Any, who: str) -> Memory:
        check_cuda(who)
        x = self._view(x)
        if x.dtype != _FLOAT32:
            raise _refused_dtype(who, x.dtype)
        if not x.flags.c_contiguous:
            raise _refused_layout(who)
        return int(x.data.ptr), int(x.size), int(x.device.id), x

    def payload(self, payload: Any, who: str) -> Memory:
        check_cuda(who)
        payload = self._view(payload)
        if payload.dtype != _UINT8 or not payload.flags.c_contiguous:
            raise _refused_payload(who)
        return int(payload.data.ptr), int(payload.size), int(payload.device.id), payload

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            payload = self._cupy.empty(num_bytes, dtype=_UINT8)
        return payload, int(payload.data.ptr)

    def new_output(self, shape: tuple[int, ...], device: int) -> Memory:
        with self._cupy.cuda.Device(device):
            out = self._cupy.empty(shape, dtype=_FLOAT32)
        return int(out.data.ptr), int(out.size), device, out

    def zeros(self, x: Any) -> Any:
        with self._view(x).device:
            return self._cupy.zeros(tuple(x.shape), dtype=_FLOAT32)

    def copy(self, x: Any) -> Any:
        return self._cupy.array(self._view(x), order="C")

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = self._cupy.asnumpy(payload)
        return host

    def stream(self, device: int) -> int:
        return int(self._cupy.cuda.get_current_stream(device).ptr)

    def new_flag(self, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            flag = self._cupy.full((1,), _NO_INDEX, dtype=np.int64)
        return flag, int(flag.data.ptr)

    def read_flag(self, flag: Any) -> int:
        index = int(flag.item())
        return -1 if index == _NO_INDEX else index


NUMPY = NumpyKind()
KINDS: dict[type[Any], Kind] = {np.ndarray: NUMPY}


def kind_of(x: Any, who: str) -> Kind:
    """Returns the kind of ``x``, found once per type; ValueError for what is no array."""
    known = KINDS.get(type(x))
    if known is None:
        known = KINDS[type(x)] = _find(x, who)
    return known


def _find(x: Any, who: str) -> Kind:
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
    if hasattr(type(x), "__cuda_array_interface__") or hasattr(x, "__cuda_array_interface__"):
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
