"""The arguments that collectives share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
import torch.distributed as dist

from dance.codecs import DTYPES, Codec, Uncompressed
from dance.feedback import ErrorFeedback


@dataclass(kw_only=True)
class Settings:
    """What the user gave; ``check`` refuses what is none."""

    group: dist.ProcessGroup | None
    async_op: bool
    feedback: ErrorFeedback | None = None
    keys: Sequence[str | None] = (None,)
    min_bytes: int = 0
    seed: int | None = None
    nonfinite: str = "raise"

    def check(self, who: str) -> None:
        if self.nonfinite not in ("raise", "zero"):
            raise ValueError(f"{who}: expected nonfinite 'raise' or 'zero', got {self.nonfinite!r}")
        if self.feedback is not None and not isinstance(self.feedback, ErrorFeedback):
            raise ValueError(
                f"{who}: expected a dance.ErrorFeedback as feedback, got {type(self.feedback).__name__}"
            )
        if self.seed is not None and not (_is_count(self.seed) and self.seed < 1 << 64):
            raise ValueError(f"{who}: expected a seed in [0, 2^64), got {self.seed!r}")
        if not _is_count(self.min_bytes):
            raise ValueError(f"{who}: expected min_bytes as a number of at least 0, got {self.min_bytes!r}")

    def only_direct(self, tensors: Sequence[torch.Tensor], world: int, *, sums: bool = True) -> str:
        """Returns why ``tensors`` can only go uncompressed, whatever a policy might choose; "" if they can
        go otherwise. ``sums``: whether the collective adds up, or only moves, which is what codecs are for.
        """
        if world == 1:
            return "one rank"
        if not sums:
            return "op"
        if any(dtype_text(tensor) not in DTYPES for tensor in tensors):
            return "dtype"
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return "under min_bytes" if num_bytes < self.min_bytes else ""

    def check_average(self, who: str, tensor: torch.Tensor) -> None:
        """Raises ValueError where the mean of such tensors is not of their dtype."""
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(
                f"{who}: an average of {dtype_text(tensor)} is none; cast first, or pass op=ReduceOp.SUM"
            )

    def check_codec(self, who: str, codec: Codec, tensor: torch.Tensor) -> None:
        """Raises ValueError where ``codec`` cannot take ``tensor`` or cannot be used with the feedback."""
        if isinstance(codec, Uncompressed):
            return
        if dtype_text(tensor) not in DTYPES:
            raise ValueError(
                f"{who}: {codec} takes float32, float16 or bfloat16, got {dtype_text(tensor)}; "
                "cast first or pass codec='none'"
            )
        if self.feedback is not None and not codec.bounded:
            raise ValueError(
                f"{who}: the residuals of {codec} have no bound; pass another codec or no feedback"
            )


def check_tensors(who: str, *tensors: Any) -> None:
    """Raises ValueError for what is no dense tensor of torch, with its elements in memory."""
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            kind = f"{type(tensor).__module__.partition('.')[0]}.{type(tensor).__name__}".removeprefix(
                "builtins."
            )
            remedy = {
                "numpy.ndarray": "; pass torch.from_numpy(x), which shares its memory",
                "list": "; make a call for each, or one all_reduce_coalesced",
            }.get(kind, "")
            raise ValueError(f"{who}: expected a torch tensor, got {kind}{remedy}")
        if tensor.layout is not torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise ValueError(f"{who}: expected a dense tensor, got layout {layout}; pass tensor.to_dense()")
        if tensor.is_meta:
            raise ValueError(
                f"{who}: a tensor on the meta device has no elements to send; make it on the CPU or a GPU"
            )


def check_op(who: str, op: Any) -> None:
    """Raises ValueError for what is no reduction of torch, such as a codec given in its place."""
    if not isinstance(op, (dist.ReduceOp, type(dist.ReduceOp.SUM))):
        codec = isinstance(op, (str, Codec)) or hasattr(op, "choose")
        remedy = f"; a codec is passed by name: codec={op!r}" if codec else ""
        raise ValueError(f"{who}: expected an op such as ReduceOp.SUM, got {op!r}{remedy}")


def _is_count(value: Any) -> bool:
    try:
        return index(value) >= 0
    except TypeError:
        return False


def dtype_text(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
