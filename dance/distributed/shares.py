"""Reduce-scatter: rank r gets everybody's part r, encoded, and adds its own, exact."""

from __future__ import annotations

import time

import torch

from dance.coding import reduce
from dance.distributed.call import Call, Options
from dance.distributed.section import EXACT, Section
from dance.exchange.parts import Incoming, Part
from dance.exchange.stamp import NONFINITE
from dance.packet import Packet
from dance.plan import chunks


class ReduceScatter:
    """One reduce-scatter of ``section`` (world equal shares) into ``output``; `run` executes it."""

    def __init__(self, call: Call, section: Section, output: torch.Tensor, options: Options) -> None:
        self._call = call
        self._section = section
        self._output = output
        self._mean = options.mean
        self._came: list[dict[int, Packet | None]] = []

    def run(self) -> None:
        with self._call.ending([self._section]):
            self._run()

    def _run(self) -> None:
        call, section = self._call, self._section
        share = self._output.numel()
        spans = chunks(section.codec, (0, share))
        peers = call.peers
        self._came = [{} for _ in spans]
        for source in peers:
            for index, span in enumerate(spans):
                call.expect(source, 0, index, [section.part(span)])
        call.start(self._accept, peers if spans else [])
        section.begin()
        for index, (start, stop) in enumerate(spans):
            messages = []
            # All of a row first, so that each last message tells of all that is not finite.
            for rank in peers:
                message = call.outgoing([section.part((start, stop))])
                section.encode((rank * share + start, rank * share + stop), message.packets[0])
                messages.append((rank, message))
            own = call.outgoing([Part(EXACT, stop - start, section.dtype)]).packets[0]
            section.encode_own((call.rank * share + start, call.rank * share + stop), own)
            self._came[index][call.rank] = own
            if section.nonfinite_at >= 0:
                call.flag(NONFINITE)
            for rank, message in messages:
                call.send(message, [rank], 0, index)
        for index, (start, stop) in enumerate(spans):
            call.wait_for(0, index, len(peers))
            start_s = time.perf_counter()
            found = [self._came[index].get(rank) for rank in range(call.world)]
            packets = [packet for packet in found if packet is not None]
            if len(packets) == call.world:  # else finish raises
                reduce(packets, mean=self._mean, out=self._output[start:stop])
            call.decode_s.append(time.perf_counter() - start_s)

    def _accept(self, message: Incoming) -> None:
        self._came[message.index][message.source] = message.packets[0]
