"""Messages of one or more packets as they lie in memory: what is expected, what goes out, what comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dance.arrays import CPU, KINDS, Kind, kind_of
from dance.codecs import DTYPES, HEADER_NBYTES, Codec
from dance.exchange.arena import Arena
from dance.header import Header
from dance.packet import Packet

_ALIGN = 8  # packets within a message start at multiples of it: kernels read words


@dataclass(frozen=True)
class Part:
    """What one packet of a message is: the codec, and how many elements of which dtype (its number)."""

    codec: Codec
    numel: int
    dtype: int = 0

    def check(self, header: Header) -> None:
        """FrameError where ``header`` is not that of this part."""
        same = header.numel == self.numel and header.codec.id == self.codec.id
        if not (same and header.dtype == DTYPES[self.dtype] and self.codec.accepts(header.spec, self.numel)):
            header.check((self.codec, (self.numel,), DTYPES[self.dtype]))  # says what differs

    def __str__(self) -> str:
        return f"{self.numel} {DTYPES[self.dtype]} as {self.codec}"


def layout(parts: Sequence[Part]) -> tuple[list[tuple[int, int]], int]:
    """Returns where each packet of a message begins and its most payload bytes, and the message's bytes."""
    places = []
    end = 0
    for part in parts:
        offset = -(-end // _ALIGN) * _ALIGN
        num_bytes = part.codec.layout(part.numel, part.dtype)[1]
        places.append((offset, num_bytes))
        end = offset + HEADER_NBYTES + num_bytes
    return places, end


class Outgoing:
    """A message to be: packets to encode into, in memory of its own."""

    def __init__(self, parts: Sequence[Part], arena: Arena) -> None:
        self.parts = parts
        places, num_bytes = layout(parts)
        self._buffer = arena.take(num_bytes)
        self._bytes = self._buffer.numpy()
        self._offsets = [offset for offset, _ in places]
        kind = _torch_kind()
        address = self._buffer.data_ptr()
        self.packets: list[Packet] = []
        for part, (offset, payload_nbytes) in zip(parts, places, strict=True):
            start = offset + HEADER_NBYTES
            payload = self._buffer[start : start + payload_nbytes]
            memory = (address + start, payload_nbytes, CPU, payload, 0)
            spec = part.codec.layout(part.numel, part.dtype)[0]
            packet = Packet(part.codec, (part.numel,), spec, kind, memory, part.numel)
            packet._dtype = part.dtype
            self.packets.append(packet)

    def seal(self, rank: int, stamp: int) -> torch.Tensor:
        """Stamps all packets, writes their headers and returns the bytes of the message."""
        for offset, packet in zip(self._offsets, self.packets, strict=True):
            packet.sender, packet.round = rank, stamp
            self._bytes[offset : offset + HEADER_NBYTES] = np.frombuffer(packet.header(), np.uint8)
        return self._buffer[: self._offsets[-1] + self.packets[-1].nbytes]


@dataclass
class Incoming:
    """A message to come from ``source``: the ``index``-th of a phase. ``announced``: its first header comes
    alone; ``first``: of the phase from that source; ``greeting``: that header is all of it.
    """

    source: int
    phase: int
    index: int
    parts: Sequence[Part]
    announced: bool
    first: bool = False
    greeting: bool = False
    header: torch.Tensor | None = None
    header_work: Any = None
    buffer: torch.Tensor | None = None
    work: Any = None
    packets: list[Packet | None] = field(default_factory=list)


def _torch_kind() -> Kind:
    kind = KINDS.get(torch.Tensor)
    return kind_of(torch.empty(0), "wire") if kind is None else kind
