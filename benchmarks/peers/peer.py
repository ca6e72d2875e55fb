"""A peer: a way to do an operation of one of our codecs with another library, on the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BLOCK = 256
CPU = ("cpu",)
EVERYWHERE = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a peer makes of the arrays: a call to time, the bytes it would send, and how to decode them."""

    call: Callable[[], object]
    nbytes: float | None = None
    decoded: Callable[[], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A name for reports, the codec (its name) and the operation it stands for, and what it needs."""

    name: str
    codec: str
    operation: str
    package: str
    devices: tuple[str, ...]
    make: Callable[[Arrays], Step]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Flat float32 torch tensors that share the memory of a benchmark's arrays, and buffers for all peers."""

    x: Any
    state: Any
    target: Any
    codec: Any
    threads: int
    buffers: dict[Any, Any]

    @property
    def rows(self) -> Any:
        """x in rows of 256."""
        return self.x.view(-1, BLOCK)

    def buffer(self, name: str, dtype: Any, *shape: int) -> Any:
        """A buffer of that name, shared by all peers: no peer may rely on what is in it after its call."""
        import torch

        key = (name, dtype, shape)
        if key not in self.buffers:
            self.buffers[key] = torch.zeros(shape, dtype=dtype, device=self.x.device)
        return self.buffers[key]

    def scratch(self, name: str = "scratch") -> Any:
        """Such a buffer, float32 and as long as x."""
        import torch

        return self.buffer(name, torch.float32, self.x.numel())


PEERS: list[Peer] = []


def peer(
    name: str, codec: str, operation: str, *, package: str = "torch", devices: tuple[str, ...] = CPU
) -> Callable[[Callable[[Arrays], Step]], Callable[[Arrays], Step]]:
    """Enters a function from arrays to a step into PEERS."""

    def enter(make: Callable[[Arrays], Step]) -> Callable[[Arrays], Step]:
        PEERS.append(
            Peer(name=name, codec=codec, operation=operation, package=package, devices=devices, make=make)
        )
        return make

    return enter
