"""Arrays of NumPy, torch, CuPy and DLPack as what the core takes: address, size, device, dtype, stream.

One `Kind` per library reads an input, opens a state for writing in place and allocates what goes out. Dtypes
are float32, float16 and bfloat16; an input of float64 is converted to float32. Nothing is imported here but
NumPy: torch, CuPy and ml_dtypes (bfloat16 for NumPy) are touched only when an object of theirs came in.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from dance.arrays.cupy import CupyKind
from dance.arrays.dlpack import DlpackKind
from dance.arrays.kind import CPU, Kind, Memory
from dance.arrays.numpy import NumpyKind
from dance.arrays.refusal import check_cuda
from dance.arrays.torch import TorchKind
from dance.errors import UnavailableError

__all__ = ["CPU", "KINDS", "Kind", "Memory", "kind_of"]

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
    raise ValueError(
        f"{who}: expected an array (NumPy, torch, CuPy or DLPack), got {type(x).__name__}; "
        "make one of it, as by numpy.asarray"
    )


def _import_cupy(who: str, x: Any) -> Any:
    try:
        import cupy
    except ImportError:
        raise UnavailableError(
            f"{who}: {type(x).__name__} needs CuPy: pip install 'dance-gan[cupy]', or pass a torch tensor"
        ) from None
    return cupy
