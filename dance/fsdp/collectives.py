"""The collectives that FSDP calls in place of its own: the protocols of `set_custom_reduce_scatter` and
`set_custom_all_gather`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

import dance.distributed as dd
from dance.distributed import torch_names
from dance.fsdp.compression import Compression
from dance.fsdp.message import Message


class _Comm:
    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class ReduceScatter(_Comm):
    """Reduces the gradients of one message; where one of any rank is not finite they become NaN at all ranks,
    so that a GradScaler skips the step everywhere.
    """

    def __init__(self, compression: Compression, message: Message) -> None:
        self._compression = compression
        self._message = message

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        compression, feedback = self._compression, self._compression.feedback
        if not compression.attached:
            plain = torch_names.reduce_scatter_tensor
            return plain(output_tensor, input_tensor, op, group=group, async_op=async_op)  # type: ignore[no-any-return]
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            raise ValueError(
                f"fsdp: gradients can be reduced by SUM and AVG, got {op}; call "
                "set_force_sum_reduction_for_comms(True) on modules with a divide factor"
            )
        compression.check(self._message, input_tensor.numel())
        work = dd.reduce_scatter_tensor(
            output_tensor,
            input_tensor,
            op,
            codec=compression.codec,
            group=group,
            async_op=True,
            feedback=feedback,
            key=self._message.key,
            min_bytes=compression.min_bytes,
            seed=compression.seed,
            nonfinite="zero",
        )
        return _finish(compression, "gradients", work, async_op, spoilt=output_tensor)


class AllGather(_Comm):
    """Gathers the weights of one message; those that are not floating-point as they are."""

    def __init__(self, compression: Compression, codec: Any) -> None:
        self._compression = compression
        self._codec = codec

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        if not self._compression.attached:
            plain = torch_names.all_gather_into_tensor
            return plain(output_tensor, input_tensor, group=group, async_op=async_op)  # type: ignore[no-any-return]
        work = dd.all_gather_into_tensor(
            output_tensor,
            input_tensor,
            codec=self._codec if input_tensor.is_floating_point() else "none",
            group=group,
            async_op=True,
            min_bytes=self._compression.min_bytes,
            seed=self._compression.seed,
        )
        return _finish(self._compression, "parameters", work, async_op)


def _finish(
    compression: Compression,
    kind: str,
    work: dd.Work | None,
    async_op: bool,
    spoilt: torch.Tensor | None = None,
) -> dist.Work | None:
    assert work is not None
    pending = _Pending(compression, kind, work, spoilt)
    if async_op:
        return pending
    pending.wait()
    return None


class _Pending(dist.Work):
    """A collective under way; FSDP waits for nothing but torch's own class.

    ``spoilt`` becomes NaN if any input was not finite.
    """

    def __init__(
        self, compression: Compression, kind: str, work: dd.Work, spoilt: torch.Tensor | None
    ) -> None:
        super().__init__()
        self._compression, self._kind, self._work = compression, kind, work
        self._spoilt = spoilt
        self._counted = False

    def wait(self, timeout: Any = None) -> bool:
        self._work.wait()
        if not self._counted:
            self._counted = True
            self._compression.count(self._kind, self._work)
            if self._spoilt is not None:
                self._work.stats().spoil(self._spoilt)
        return True
