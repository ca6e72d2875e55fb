"""What is refused of an array, each with what came and the remedy."""

from __future__ import annotations

from typing import Any

from dance import _native
from dance.errors import UnavailableError


def refused_dtype(who: str, dtype: Any) -> ValueError:
    got = str(dtype).removeprefix("torch.")
    return ValueError(f"{who}: expected float32, float16 or bfloat16 on one device, got {got}; cast first")


def refused_layout(who: str, x: Any) -> ValueError:
    return ValueError(
        f"{who}: is changed in place and must be contiguous and writable, got {_layout_text(x)}; "
        "pass a contiguous array"
    )


def refused_payload(who: str, payload: Any) -> ValueError:
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


def refused_device(who: str, device: str) -> UnavailableError:
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
