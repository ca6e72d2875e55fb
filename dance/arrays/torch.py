"""torch tensors; torch itself is handed in, imported by whoever made the first tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from dance.arrays.kind import CPU, FLOAT32, LARGEST, NO_INDEX, Memory, from_flags
from dance.arrays.refusal import check_cuda, refused_device, refused_dtype, refused_layout, refused_payload

# An address below this may be an offset in a storage without memory, as FSDP leaves them of freed shards.
_OFFSETS = 1 << 40


def _check_memory(x: Any, who: str) -> None:
    if (x.is_cpu or x.is_cuda) and x.numel() and x.untyped_storage().data_ptr() == 0:
        raise ValueError(
            f"{who}: expected a tensor with memory, got one of {x.numel()} elements whose storage was freed; "
            "gather or allocate it first"
        )


class TorchKind:
    """torch tensors on the CPU or a CUDA GPU, gradients ignored."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._float32 = torch.float32
        self._strided = torch.strided
        self._dtypes = (torch.float32, torch.float16, torch.bfloat16)
        self._uint8 = torch.uint8
        self._empty = torch.empty
        self._cpu = torch.device("cpu")

    def _dtype(self, dtype: Any, who: str) -> int:
        if dtype not in self._dtypes:
            raise refused_dtype(who, dtype)
        return self._dtypes.index(dtype)

    def read(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32
        if x.dtype is not self._float32:
            if x.dtype is self._torch.float64:
                x = x.detach().to(self._float32)
            else:
                dtype = self._dtype(x.dtype, who)
        if x.layout is not self._strided:
            raise ValueError(f"{who}: expected a dense tensor, got layout {x.layout}; call to_dense first")
        if not x.is_contiguous() or x.is_neg():  # a lazily negated view has the bits of its base
            x = x.detach().resolve_neg().contiguous()
        address = x.data_ptr()
        if address < _OFFSETS:
            _check_memory(x, who)
        return address, x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x, dtype

    def write(self, x: Any, who: str) -> Memory:
        dtype = FLOAT32 if x.dtype is self._float32 else self._dtype(x.dtype, who)
        if x.layout is not self._strided or not x.is_contiguous() or x.is_neg():
            raise refused_layout(who, x)
        address = x.data_ptr()
        if address < _OFFSETS:
            _check_memory(x, who)
        return address, x.numel(), CPU if x.is_cpu else self._ordinal(x, who), x, dtype

    def payload(self, payload: Any, who: str) -> Memory:
        if payload.dtype is not self._uint8 or not payload.is_contiguous():
            raise refused_payload(who, payload)
        device = CPU if payload.is_cpu else self._ordinal(payload, who)
        address = payload.data_ptr()
        if address < _OFFSETS:
            _check_memory(payload, who)
        return address, payload.numel(), device, payload, 0

    def _ordinal(self, x: Any, who: str) -> int:
        if not x.is_cuda:
            raise refused_device(who, str(x.device))
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

    def assign(self, y: Any, x: Any) -> None:
        y.copy_(x)

    def add(self, y: Any, x: Any) -> None:
        y.add_(x)
        self._saturate(y)

    def corrected(self, residual: Any, velocity: Any, factor: float, x: Any) -> tuple[Any, Any]:
        moved = velocity * factor
        state = residual + moved  # not alpha=factor, which may fuse: NumPy would give other bits
        x = x.detach().to(moved.dtype)
        moved.add_(self._torch.where(x.isfinite(), x, 0.0))
        self._saturate(state)
        self._saturate(moved)
        return state, moved

    def _saturate(self, y: Any) -> None:
        largest = LARGEST[self._dtypes.index(y.dtype)]
        y.clamp_(-largest, largest)

    def clear(self, y: Any, indices: Any) -> None:
        y.view(-1)[self._torch.from_numpy(indices).to(y.device)] = 0.0

    def result(self, owner: Any) -> Any:
        return owner

    def to_host(self, payload: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        host: np.ndarray[Any, np.dtype[np.uint8]] = payload.cpu().numpy()
        return host

    def stream(self, device: int) -> tuple[Any, int]:
        stream = self._torch.cuda.current_stream(device)
        return stream, int(stream.cuda_stream)

    def new_flags(self, device: int) -> tuple[Any, int]:
        flags = self._torch.full((2,), NO_INDEX, dtype=self._torch.int64, device=self._device(device))
        return flags, flags.data_ptr()

    def read_flags(self, flags: Any) -> tuple[int, int]:
        return from_flags(flags.tolist())
