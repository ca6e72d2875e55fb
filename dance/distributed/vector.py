"""Tensors as one contiguous vector on the host, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Vector:
    """One or more tensors of one dtype as a vector on ``device``; they themselves where they are one already.

    ``values`` may be read when `ready` has returned; `give_back` writes it to the tensors. What is on a GPU
    and wanted on the host is copied to pinned memory in the current stream, and back in a stream of its own.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device, *, read: bool = True) -> None:
        self._tensors = [tensor.detach() for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        flat = _as_one(self._tensors, device)
        self.copied = flat is None
        if flat is not None:
            self.values = flat
            return
        first = self._tensors[0]
        total = sum(tensor.numel() for tensor in self._tensors)
        self._staged = first.is_cuda and device.type == "cpu"
        self.values = torch.empty(total, dtype=first.dtype, device=device, pin_memory=self._staged)
        if read:
            for place, tensor in zip(self._places(), self._tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            if self._staged:
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._event.record(torch.cuda.current_stream(first.device))

    def ready(self) -> None:
        """Waits until ``values`` holds what the tensors did."""
        if self._event is not None:
            self._event.synchronize()

    def give_back(self) -> torch.cuda.Event | None:
        """Writes ``values`` to the tensors; returns the event of a copy from the host to a GPU."""
        if not self.copied:
            return None
        if not self._staged:
            self._write()
            return None
        stream = torch.cuda.Stream(self._tensors[0].device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            self._write()
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        event.synchronize()  # the pinned memory may go
        return event

    def _write(self) -> None:
        # The mode belongs to the caller's thread, and outside of it torch refuses to write to its tensors.
        with torch.inference_mode(any(tensor.is_inference() for tensor in self._tensors)):
            for place, tensor in zip(self._places(), self._tensors, strict=True):
                tensor.copy_(place, non_blocking=True)

    def _places(self) -> list[torch.Tensor]:
        sizes = [tensor.numel() for tensor in self._tensors]
        parts = torch.split(self.values, sizes)
        return [part.view(tensor.shape) for part, tensor in zip(parts, self._tensors, strict=True)]


def _as_one(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor | None:
    """Returns the vector that the tensors are in memory; None where they have gaps or are elsewhere."""
    first = tensors[0]
    if first.device != device:
        return None
    if len(tensors) == 1:
        return first.view(-1) if first.is_contiguous() and not first.is_neg() else None
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for tensor in tensors:
        if not tensor.is_contiguous() or tensor.is_neg() or tensor.data_ptr() != end:
            return None
        if tensor.untyped_storage().data_ptr() != storage:
            return None  # neighbours by chance
        end += tensor.numel() * tensor.element_size()
    return first.as_strided((sum(tensor.numel() for tensor in tensors),), (1,))
