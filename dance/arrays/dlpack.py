"""CPU arrays of any library that speaks DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

from dance.arrays.kind import Memory
from dance.arrays.numpy import NumpyKind
from dance.arrays.refusal import check_cuda, refused_device, refused_dtype

_READABLE = ("float16", "float32", "float64")


class DlpackKind(NumpyKind):
    """CPU arrays that speak DLPack: worked on as NumPy views, handed back through their own namespace."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def _view(self, x: Any, who: str) -> Any:
        device_type = int(x.__dlpack_device__()[0])
        if device_type == 2:
            check_cuda(who)
        if device_type not in (1, 3):  # kDLCPU, kDLCUDAHost
            raise refused_device(who, f"of DLPack type {device_type}")
        try:
            return np.from_dlpack(x)
        except (RuntimeError, BufferError) as error:
            dtype = str(getattr(x, "dtype", "another dtype"))
            if dtype.rpartition(".")[2] in _READABLE:
                raise ValueError(f"{who}: {type(x).__name__} does not hand out its memory: {error}") from None
            raise refused_dtype(who, dtype) from None  # NumPy knows no bfloat16

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

    def assign(self, y: Any, x: Any) -> None:
        super().assign(self._view(y, "state"), self._view(x, "state"))

    def add(self, y: Any, x: Any) -> None:
        super().add(self._view(y, "state"), self._view(x, "state"))

    def corrected(self, residual: Any, velocity: Any, factor: float, x: Any) -> tuple[Any, Any]:
        residual, velocity = self._view(residual, "residual"), self._view(velocity, "velocity")
        return super().corrected(residual, velocity, factor, self._view(x, "input"))

    def clear(self, y: Any, indices: Any) -> None:
        super().clear(self._view(y, "velocity"), indices)

    def result(self, owner: Any) -> Any:
        from_dlpack = getattr(self._namespace, "from_dlpack", None)
        return owner if from_dlpack is None else from_dlpack(owner)
