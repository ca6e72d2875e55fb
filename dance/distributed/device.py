"""The device transport: payloads that stay on the GPU, moved by torch's own collectives of raw bytes.

For groups without gloo (NCCL). All of it goes on the caller's stream from the caller's thread, which waits
for nothing, unless a policy wants calls timed. There are no headers and no checksums: all ranks know the
sizes beforehand, so codecs of varying size are refused, and the kernels check indices. Receivers derive a
packet's seed from its sender. The same code runs over gloo on CPU tensors, which is how it is tested without
a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from dance.arrays import kind_of
from dance.codecs import Codec
from dance.coding import decode, reduce
from dance.distributed.section import EXACT, Section
from dance.distributed.torch_names import all_gather_into_tensor
from dance.distributed.work import CallStats
from dance.errors import NonFiniteError
from dance.packet import Packet
from dance.plan import Span, plan, shards

_ALIGN = 256  # payloads start at multiples of it, as fresh CUDA memory does
_FINITE = 2**63 - 1  # what a kernel leaves in its flag where all was finite


@dataclass(kw_only=True)
class DeviceCall:
    """One collective on the device; its methods execute it. ``timed``: wait for the device around messages,
    for a policy wants to know what they take.
    """

    group: dist.ProcessGroup
    stats: CallStats
    mean: bool = False
    timed: bool = False
    rank: int = field(init=False)
    world: int = field(init=False)
    _packets: list[Packet] = field(default_factory=list)  # encoded here: their flags tell what is not finite

    def __post_init__(self) -> None:
        self.rank, self.world = self.group.rank(), self.group.size()

    def all_reduce(self, section: Section) -> None:
        numel = section.values.numel()
        dtype = str(section.values.dtype).removeprefix("torch.")
        section.begin()
        if plan("all_reduce", section.codec, numel, self.world, dtype=dtype).algorithm != "two-shot":
            reduce(self._gather(section, (0, numel)), mean=self.mean, out=section.values)
            return
        spans = shards(numel, self.world)
        start, stop = spans[self.rank]
        room = self._room(section, spans[0])
        if stop > start:
            own = self._packet(section, EXACT, stop - start)
            section.encode_exact((start, stop), own)
            self._packets.append(own)
            packets = self._trade(section, spans, [stop - start] * self.world)
            packets[self.rank] = own
            seed = section.packet_seed("sum", self.rank)
            total = self._packet(section, section.codec, stop - start, room)
            self._packets.append(total)
            try:
                reduce(
                    [packets[rank] for rank in range(self.world)],
                    codec=section.codec,
                    out=total,
                    seed=seed,
                    residual=None if section.residual is None else section.residual.values[start:stop],
                )
            except NonFiniteError as error:
                section.found(start + error.index)
        else:
            self._trade(section, spans, [0] * self.world)
        gathered = self._all_gather(room)
        for rank, (first, last) in enumerate(spans):
            if last > first:
                packet = self._packet(section, section.codec, last - first, gathered[rank])
                packet.seed = section.packet_seed("sum", rank, rank=rank)
                weight = 1.0 / self.world if self.mean else 1.0
                decode(packet, out=section.values[first:last], weight=weight)

    def reduce_scatter(self, section: Section, output: torch.Tensor) -> None:
        section.begin()
        share = output.numel()
        spans = [(rank * share, (rank + 1) * share) for rank in range(self.world)]
        packets = self._trade(section, spans, [share] * self.world)
        own = packets[self.rank] = self._packet(section, EXACT, share)
        section.encode_own(spans[self.rank], own)
        self._packets.append(own)
        if share:
            reduce([packets[rank] for rank in range(self.world)], mean=self.mean, out=output)

    def all_gather(self, section: Section, output: torch.Tensor) -> None:
        section.begin()
        packets = self._gather(section, (0, section.values.numel()))
        for packet, place in zip(packets, output.view(self.world, -1), strict=True):
            decode(packet, out=place)

    def broadcast(self, section: Section, root: int) -> None:
        numel = section.values.numel()
        room = self._room(section, (0, numel))
        packet = self._packet(section, section.codec, numel, room)
        if self.rank == root:
            section.begin()
            self._encode(section, (0, numel), packet, "to all")
        sent, received = (self.world - 1) * room.numel(), 0
        if self.rank != root:
            sent, received = 0, room.numel()
        self._move(lambda: dist.broadcast(room, group=self.group, group_src=root), sent, received)
        packet.seed = section.packet_seed("to all", 0, rank=root)
        decode(packet, out=section.values)

    def all_to_all(self, section: Section, given: Sequence[Span], places: dict[int, torch.Tensor]) -> None:
        """Sends span r of the section to rank r, and decodes what comes from it into ``places[r]``."""
        section.begin()
        taken = [places[rank].numel() if rank in places else 0 for rank in range(self.world)]
        for rank, packet in self._trade(section, given, taken).items():
            decode(packet, out=places[rank])

    def neighbors(self, section: Section, targets: Sequence[int], places: dict[int, torch.Tensor]) -> None:
        """Sends the section, encoded once, to ``targets``; decodes what comes from r into ``places[r]``."""
        section.begin()
        numel = section.values.numel()
        one = self._room(section, (0, numel)) if targets else None
        if one is not None:
            self._encode(section, (0, numel), self._packet(section, section.codec, numel, one), "to all")
        rooms = [one if rank in targets else None for rank in range(self.world)]
        taken = [places[rank].numel() if rank in places else 0 for rank in range(self.world)]
        for rank, packet in self._exchange(section, rooms, taken).items():
            packet.seed = section.packet_seed("to all", 0, rank=rank)
            decode(packet, out=places[rank])

    def nonfinite(self, sections: Sequence[Section]) -> torch.Tensor:
        """Returns, on the device, 1 where the input of any rank was not finite, else 0."""
        device = sections[0].values.device
        found = any(section.nonfinite_at >= 0 for section in sections)  # on the CPU an encode has told
        bad = torch.zeros(
            1, dtype=torch.int32, device=device
        )  # a tensor of values would be a copy that waits
        if found:
            bad.fill_(1)
        flags = [packet._flags[:1] for packet in self._packets if packet._flags is not None]
        if flags:
            bad |= (torch.cat(flags) != _FINITE).any()
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=self.group)
        return bad

    # ------------------------------------------------------------------------------------------- messages

    def _gather(self, section: Section, span: Span) -> list[Packet]:
        """Sends ``span`` to everybody; returns the packets of all, in order of rank."""
        numel = span[1] - span[0]
        room = self._room(section, span)
        self._encode(section, span, self._packet(section, section.codec, numel, room), "to all")
        packets = []
        for rank, payload in enumerate(self._all_gather(room)):
            packet = self._packet(section, section.codec, numel, payload)
            packet.seed = section.packet_seed("to all", 0, rank=rank)
            packets.append(packet)
        return packets

    def _trade(self, section: Section, given: Sequence[Span], taken: Sequence[int]) -> dict[int, Packet]:
        """Sends span r to rank r; returns the packets of ``taken[r]`` elements that came from the others."""
        rooms: list[torch.Tensor | None] = [None] * self.world
        for rank, span in enumerate(given):
            if rank != self.rank and span[1] > span[0]:
                room = rooms[rank] = self._room(section, span)
                packet = self._packet(section, section.codec, span[1] - span[0], room)
                self._encode(section, span, packet, "to", rank)
        packets = self._exchange(section, rooms, taken)
        for rank, packet in packets.items():
            packet.seed = section.packet_seed("to", self.rank, rank=rank)
        return packets

    def _exchange(
        self, section: Section, rooms: Sequence[torch.Tensor | None], taken: Sequence[int]
    ) -> dict[int, Packet]:
        """Sends ``rooms[r]`` to rank r; returns the packets of ``taken[r]`` elements that came."""
        to = [0 if room is None else room.numel() for room in rooms]
        of = [0 if rank == self.rank else self._nbytes(section, numel) for rank, numel in enumerate(taken)]
        none = torch.empty(0, dtype=torch.uint8, device=section.values.device)
        sends = torch.cat([none, *(room for room in rooms if room is not None)])
        came = none.new_empty(sum(of))
        self._move(
            lambda: dist.all_to_all_single(came, sends, of, to, group=self.group), sends.numel(), came.numel()
        )
        packets = {}
        for rank, payload in enumerate(torch.split(came, of)):
            if of[rank]:
                packets[rank] = self._packet(section, section.codec, taken[rank], payload)
        return packets

    def _encode(self, section: Section, span: Span, packet: Packet, phase: str, at: int = 0) -> None:
        section.encode(span, packet, seed=section.packet_seed(phase, at))
        self._packets.append(packet)

    def _all_gather(self, room: torch.Tensor) -> list[torch.Tensor]:
        gathered = room.new_empty(self.world * room.numel())
        sent = (self.world - 1) * room.numel()
        self._move(lambda: all_gather_into_tensor(gathered, room, group=self.group), sent, sent)
        return list(torch.split(gathered, [room.numel()] * self.world))

    def _move(self, start: Callable[[], Any], sent: int, received: int) -> None:
        """Moves bytes in the order of the stream; counts those for others and those from others."""
        if self.timed:
            _synchronize()
        start_s = time.monotonic()
        start()
        if self.timed:
            _synchronize()
            self.stats.wire_s = (self.stats.wire_s or 0.0) + time.monotonic() - start_s
        self.stats.bytes_sent += sent
        self.stats.bytes_received += received

    def _nbytes(self, section: Section, numel: int) -> int:
        payload_nbytes = section.codec.layout(numel, section.dtype)[1] if numel else 0
        return -(-payload_nbytes // _ALIGN) * _ALIGN

    def _room(self, section: Section, span: Span) -> torch.Tensor:
        num_bytes = self._nbytes(section, span[1] - span[0])
        return torch.zeros(num_bytes, dtype=torch.uint8, device=section.values.device)

    def _packet(self, section: Section, codec: Codec, numel: int, room: torch.Tensor | None = None) -> Packet:
        """A packet to encode into, or of what came, at the head of ``room``."""
        spec, num_bytes, _ = codec.layout(numel, section.dtype)
        device = section.values.device
        if room is None:
            room = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        payload = room[:num_bytes]
        ordinal = device.index if device.type == "cuda" else -1
        memory = (payload.data_ptr(), num_bytes, ordinal, payload, 0)
        packet = Packet(codec, (numel,), spec, kind_of(payload, "payload"), memory, numel)
        packet._dtype = section.dtype
        return packet


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
