"""Memory that every call of a collective uses again: fresh memory costs more than any codec."""

from __future__ import annotations

import torch


class Arena:
    """Gives out uint8 memory, all of it anew after each `reset`."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def reset(self) -> None:
        """Gives everything out again; grows to what the last round took."""
        if self._used > self._memory.numel():
            self._memory = torch.empty(self._used, dtype=torch.uint8)
        self._used = 0

    def abandon(self) -> list[torch.Tensor]:
        """Returns all memory, to be kept: somebody may still write to it."""
        memory, self._memory = [self._memory], torch.empty(0, dtype=torch.uint8)
        return memory

    def take(self, num_bytes: int) -> torch.Tensor:
        """Returns uint8 memory, valid until the next reset."""
        start = self._used
        self._used = start + -(-num_bytes // 64) * 64
        if self._used > self._memory.numel():
            return torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[start : start + num_bytes]
