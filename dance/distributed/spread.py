"""The collectives that add nothing up: all-gather, broadcast, all-to-all, exchange with neighbours."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dance.coding import decode
from dance.distributed.call import Call
from dance.distributed.section import Section
from dance.exchange.parts import Incoming
from dance.exchange.stamp import NONFINITE
from dance.packet import Packet
from dance.plan import Span, chunks


@dataclass(kw_only=True)
class Lane:
    """A span of the section, and the ranks that get it: its packets are encoded once."""

    span: Span
    targets: Sequence[int]


@dataclass(kw_only=True)
class Spread:
    """Sends ``lanes`` and decodes what comes from rank r into ``places[r]``, as soon as it comes.

    ``own`` is where this rank decodes what it sends in its first lane. With ``hold`` all lanes are encoded
    before any is sent, so that every message tells of all that is not finite. With ``greet`` ranks that get
    nothing are greeted (`WireCall.start`).
    """

    call: Call
    section: Section
    lanes: Sequence[Lane]
    places: Mapping[int, torch.Tensor]
    own: torch.Tensor | None = None
    hold: bool = False
    greet: bool = True

    def run(self) -> None:
        with self.call.ending([self.section]):
            self._run()

    def _run(self) -> None:
        call, section = self.call, self.section
        for source, place in self.places.items():
            for index, span in enumerate(chunks(section.codec, (0, place.numel()))):
                call.expect(source, 0, index, [section.part(span)])
        spans = [chunks(section.codec, lane.span) for lane in self.lanes]
        targets = [
            rank for lane, parts in zip(self.lanes, spans, strict=True) if parts for rank in lane.targets
        ]
        call.start(self._accept, targets if self.greet else None)
        section.begin()
        rows = [
            [
                (index, lane, parts[index])
                for lane, parts in zip(self.lanes, spans, strict=True)
                if index < len(parts)
            ]
            for index in range(max(map(len, spans), default=0))
        ]
        if self.hold:
            rows = [[item for row in rows for item in row]]
        for row in rows:
            messages = []
            for index, lane, span in row:
                message = call.outgoing([section.part(span)])
                section.encode(span, message.packets[0])
                messages.append((index, lane, span, message))
            if section.nonfinite_at >= 0:
                call.flag(NONFINITE)
            for index, lane, span, message in messages:
                call.send(message, lane.targets, 0, index)
                if self.own is not None and lane is self.lanes[0]:
                    self._store(
                        self.own, (span[0] - lane.span[0], span[1] - lane.span[0]), message.packets[0]
                    )

    def _accept(self, message: Incoming) -> None:
        packet, place = message.packets[0], self.places[message.source]
        if packet is not None:
            span = chunks(self.section.codec, (0, place.numel()))[message.index]
            self._store(place, span, packet)

    def _store(self, place: torch.Tensor, span: Span, packet: Packet) -> None:
        start_s = time.perf_counter()
        decode(packet, out=place[span[0] : span[1]])
        self.call.decode_s.append(time.perf_counter() - start_s)
