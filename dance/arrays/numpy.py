"""NumPy arrays; those of bfloat16 are arrays of ml_dtypes, which is imported only where one is to be made."""

from __future__ import annotations

from typing import Any

import numpy as np

from dance import _native
from dance.arrays.kind import BFLOAT16, CPU, FLOAT16, FLOAT32, LARGEST, Memory
from dance.arrays.refusal import refused_dtype, refused_layout, refused_payload
from dance.errors import UnavailableError

NP_FLOAT32, NP_FLOAT16, NP_FLOAT64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)
UINT8 = np.dtype(np.uint8)
_address = _native.address


def _narrowed(x: Any) -> Any:
    with np.errstate(over="ignore"):  # what becomes infinite is for `nonfinite` to decide
        return x.astype(NP_FLOAT32)


def number_of(dtype: Any, who: str) -> int:
    """The number of a 16-bit dtype of NumPy or CuPy; ValueError for all but these."""
    if dtype == NP_FLOAT16:
        return FLOAT16
    if dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative:  # that of ml_dtypes
        return BFLOAT16
    raise refused_dtype(who, dtype)


def saturate(numpy: Any, y: Any) -> None:
    """Ends y at the largest finite value of its dtype, in place; ``numpy`` is NumPy or CuPy."""
    largest = LARGEST[FLOAT32 if y.dtype == NP_FLOAT32 else number_of(y.dtype, "state")]
    numpy.clip(y, -largest, largest, out=y)


def numpy_dtype(dtype: int) -> Any:
    """The dtype with this number; UnavailableError for bfloat16 where there is no ml_dtypes."""
    if dtype != BFLOAT16:
        return NP_FLOAT16 if dtype == FLOAT16 else NP_FLOAT32
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
        if x.dtype is not NP_FLOAT32 and x.dtype != NP_FLOAT32:
            if x.dtype == NP_FLOAT64:
                x = _narrowed(x)
            else:
                dtype = number_of(x.dtype, who)
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
            x = np.array(x, order="C")
        return _address(x), x.size, CPU, x, dtype

    def write(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32
        if x.dtype is not NP_FLOAT32 and x.dtype != NP_FLOAT32:
            dtype = number_of(x.dtype, who)
        if not x.flags.carray:  # contiguous, aligned and writable
            raise refused_layout(who, x)
        return _address(x), x.size, CPU, x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype != UINT8 or not payload.flags.c_contiguous:
            raise refused_payload(who, payload)
        return _address(payload), payload.size, CPU, payload, 0

    def new_payload(self, num_bytes: int, device: int) -> tuple[Any, int]:
        payload = np.empty(num_bytes, UINT8)
        return payload, _address(payload)

    def slice(self, payload: Any, num_bytes: int) -> Any:
        return payload[:num_bytes]

    def new_output(self, shape: tuple[int, ...], device: int, dtype: int) -> Memory:
        out = np.empty(shape, numpy_dtype(dtype))
        return _address(out), out.size, CPU, out, dtype

    def zeros(self, x: Any, dtype: int | None = None) -> Any:
        return np.zeros(x.shape, numpy_dtype(self.read(x, "zeros")[4] if dtype is None else dtype))

    def copy(self, x: Any) -> Any:
        return np.array(x, order="C")

    def assign(self, y: Any, x: Any) -> None:
        y[...] = x

    def add(self, y: Any, x: Any) -> None:
        with np.errstate(over="ignore"):
            y += x
        saturate(np, y)

    def corrected(self, residual: Any, velocity: Any, factor: float, x: Any) -> tuple[Any, Any]:
        state, moved = np.empty_like(residual), np.empty_like(velocity)  # of no dimensions, too
        with np.errstate(over="ignore"):
            np.multiply(velocity, np.float32(factor), out=moved)
            np.add(residual, moved, out=state)
            x = x.astype(np.float32, copy=False)
            moved += np.where(np.isfinite(x), x, np.float32(0.0))
        saturate(np, state)
        saturate(np, moved)
        return state, moved

    def clear(self, y: Any, indices: Any) -> None:
        y.reshape(-1)[indices] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload
        return host

    def stream(self, device: int) -> tuple[Any, int]:
        raise AssertionError("only CUDA devices have streams")

    def new_flags(self, device: int) -> tuple[Any, int]:
        raise AssertionError("only CUDA encodes leave flags")

    def read_flags(self, flags: Any) -> tuple[int, int]:
        raise AssertionError("only CUDA encodes leave flags")
