"""What this package needs of a library of arrays: address, size, device, dtype, stream."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

CPU = -1  # as a device; a CUDA device is its ordinal

# address, number of elements, device, the object that owns the memory (keep it alive during the call), and
# the dtype by its number in `DTYPES` (0 for payloads)
Memory: TypeAlias = "tuple[int, int, int, Any, int]"

FLOAT32, FLOAT16, BFLOAT16 = range(3)  # positions in dance.codecs.DTYPES
# Of each dtype; a number of Python is converted to that of the array without rounding.
LARGEST = (float(np.finfo(np.float32).max), 65504.0, float.fromhex("0x1.fep127"))
NO_INDEX = 2**63 - 1  # kernels lower it to the first index they object to


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

    def assign(self, y: Any, x: Any) -> None:
        """y = x, in place; both of one shape and dtype. Asks for no memory."""

    def add(self, y: Any, x: Any) -> None:
        """y += x, in place; all finite, and y saturates at its largest finite value."""

    def corrected(self, residual: Any, velocity: Any, factor: float, x: Any) -> tuple[Any, Any]:
        """Fresh residual + factor * velocity and factor * velocity + x, saturating as well; the two given are
        finite and float32, what is not finite in x counts as 0.
        """

    def clear(self, y: Any, indices: Any) -> None:
        """Sets the elements at ``indices`` (int64 of NumPy) of the flattened array to 0, in place."""

    def result(self, owner: Any) -> Any:
        """What the user gets for the owner of `new_output`."""

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a payload as a NumPy array; of a GPU, copied on the current stream and waited for."""

    def stream(self, device: int) -> tuple[Any, int]:
        """The caller's current stream on a CUDA device, which has ``synchronize()``, and its address."""

    def new_flags(self, device: int) -> tuple[Any, int]:
        """Fresh device memory of two int64 that hold `NO_INDEX`, and its address."""

    def read_flags(self, flags: Any) -> tuple[int, int]:
        """What a kernel left in flags: the first non-finite index or -1, and the number of values; read
        on the current stream, and waits for it.
        """


def from_flags(values: list[int]) -> tuple[int, int]:
    """What `Kind.read_flags` returns, of the two int64 once they are on the host."""
    return -1 if values[0] == NO_INDEX else values[0], values[1] & 0xFFFFFFFF
