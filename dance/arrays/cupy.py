"""CuPy arrays, and what else lies on a CUDA GPU and has the CUDA array interface."""

from __future__ import annotations

from typing import Any

import numpy as np

from dance.arrays.kind import FLOAT32, NO_INDEX, Memory, from_flags
from dance.arrays.numpy import NP_FLOAT32, NP_FLOAT64, UINT8, number_of, numpy_dtype, saturate
from dance.arrays.refusal import check_cuda, refused_layout, refused_payload


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
        with x.device:
            if x.dtype == NP_FLOAT64:
                x = x.astype(NP_FLOAT32)
            dtype = FLOAT32 if x.dtype == NP_FLOAT32 else number_of(x.dtype, who)
            x = self._cupy.ascontiguousarray(x)
        return int(x.data.ptr), int(x.size), int(x.device.id), x, dtype

    def write(self, x: Any, who: str) -> Memory:
        check_cuda(who)
        x = self._view(x)
        dtype = FLOAT32 if x.dtype == NP_FLOAT32 else number_of(x.dtype, who)
        if not x.flags.c_contiguous:
            raise refused_layout(who, x)
        return int(x.data.ptr), int(x.size), int(x.device.id), x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        check_cuda(who)
        payload = self._view(payload)
        if payload.dtype != UINT8 or not payload.flags.c_contiguous:
            raise refused_payload(who, payload)
        return int(payload.data.ptr), int(payload.size), int(payload.device.id), payload, 0

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            payload = self._cupy.empty(num_bytes, dtype=UINT8)
        return payload, int(payload.data.ptr)

    def slice(self, payload: Any, num_bytes: int) -> Any:
        return payload[:num_bytes]

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        with self._cupy.cuda.Device(device):
            out = self._cupy.empty(shape, dtype=numpy_dtype(dtype))
        return int(out.data.ptr), int(out.size), device, out, dtype

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        number = self.read(x, "zeros")[4] if dtype is None else dtype
        with self._view(x).device:
            return self._cupy.zeros(tuple(x.shape), dtype=numpy_dtype(number))

    def copy(self, x: Any) -> Any:
        x = self._view(x)
        with x.device:
            return self._cupy.array(x, order="C")

    def assign(self, y: Any, x: Any) -> None:
        y = self._view(y)
        with y.device:
            y[...] = self._view(x)

    def add(self, y: Any, x: Any) -> None:
        y = self._view(y)
        with y.device:
            y += self._view(x)
            saturate(self._cupy, y)

    def corrected(self, residual: Any, velocity: Any, factor: float, x: Any) -> tuple[Any, Any]:
        residual, velocity, x = self._view(residual), self._view(velocity), self._view(x)
        with residual.device:
            moved = np.float32(factor) * velocity
            state = residual + moved
            x = x.astype(np.float32, copy=False)
            moved += self._cupy.where(self._cupy.isfinite(x), x, np.float32(0.0))
            saturate(self._cupy, state)
            saturate(self._cupy, moved)
        return state, moved

    def clear(self, y: Any, indices: Any) -> None:
        y = self._view(y)
        with y.device:
            y.reshape(-1)[self._cupy.asarray(indices)] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = self._cupy.asnumpy(payload)
        return host

    def stream(self, device: int) -> tuple[Any, int]:
        stream = self._cupy.cuda.get_current_stream(device)
        return stream, int(stream.ptr)

    def new_flags(self, device: int) -> tuple[Any, int]:
        with self._cupy.cuda.Device(device):
            flags = self._cupy.full((2,), NO_INDEX, dtype=np.int64)
        return flags, int(flags.data.ptr)

    def read_flags(self, flags: Any) -> tuple[int, int]:
        return from_flags(flags.tolist())
