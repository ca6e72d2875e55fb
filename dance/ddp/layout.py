"""Which parameters share a bucket, remembered over checkpoints.

Blocks and selections of a codec reach over all that is encoded together, so the bits of a step depend on
DDP's buckets. DDP rebuilds them after the first step of an instance; a resumed run begins with the first
layout again. Its first step is therefore grouped as the last step before was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.futures import Future


@dataclass(kw_only=True)
class Part:
    """The gradient of one parameter: ``flat`` is a view into its bucket, in the order of memory."""

    name: str
    flat: torch.Tensor
    shape: torch.Size


class Layout:
    """The names in each bucket of the last step, and the buckets of a step that is to be grouped alike."""

    def __init__(self) -> None:
        self.buckets: list[list[str]] = []
        self._arriving: list[list[str]] = []
        self._expected: list[list[str]] = []
        self._held: list[tuple[Sequence[Part], torch.Tensor, Future[torch.Tensor]]] = []

    def expect(self, buckets: Sequence[Sequence[str]]) -> None:
        """Has the next step grouped like this, or as it comes where its parameters are others."""
        self.buckets = self._expected = [list(names) for names in buckets]

    @property
    def holds(self) -> bool:
        """Whether the buckets of this step wait for the last one."""
        return bool(self._expected)

    def hold(self, parts: Sequence[Part], buffer: torch.Tensor) -> Future[torch.Tensor]:
        """Keeps a bucket; its future is completed by `release`."""
        result: Future[torch.Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        self._held.append((parts, buffer, result))
        return result

    def groups(self) -> list[list[Part]]:
        """Returns what is held, grouped anew."""
        found = {part.name: part for parts, _, _ in self._held for part in parts}
        if sorted(found) != sorted(name for names in self._expected for name in names):
            return [list(parts) for parts, _, _ in self._held]
        return [[found[name] for name in names] for names in self._expected]

    def release(self, done: Future[list[Future[Any]]]) -> None:
        """Completes the futures of all that is held, when everything is ``done``."""
        held, self._held = self._held, []
        try:
            for each in done.value():
                each.value()
        except Exception as error:
            for _, _, result in held:
                result.set_exception(error)  # type: ignore[arg-type]
            return
        for _, buffer, result in held:
            result.set_result(buffer)

    def arrive(self, parts: Sequence[Part]) -> None:
        """Notes a bucket that is not held."""
        self._arriving.append([part.name for part in parts])

    def end_step(self) -> None:
        if not self._expected:
            self.buckets = self._arriving
        self._arriving, self._expected = [], []
