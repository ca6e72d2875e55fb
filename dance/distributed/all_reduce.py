"""All-reduce of one or more sections in the same messages, one-shot and two-shot (`dance.plan`).

One-shot: everybody sends its packets to everybody, who adds them up in order of rank. Two-shot: rank r gets
the packets of shard r, adds its own part, exact, encodes the sum and sends that to everybody. Its residual of
that shard keeps what encoding the sum lost: it sends none of its own there, so the place is free.

Both in parts (`dance.plan.chunks`): while one is on the wire the next is encoded, and one that came from all
is added up while others come in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dance import coding
from dance.distributed.call import Call, Options
from dance.distributed.section import EXACT, Section
from dance.errors import NonFiniteError
from dance.exchange.parts import Incoming, Outgoing, Part
from dance.exchange.stamp import NONFINITE
from dance.packet import Packet
from dance.plan import Span, chunks, shards, two_shot

_MESSAGE_NBYTES = 1 << 17  # packets share a message up to so many bytes


@dataclass
class Piece:
    """A chunk of a section: ``spans[r]`` is what rank r adds up: a part of its shard, or the same at all."""

    section: Section
    spans: Sequence[Span]

    def part(self, rank: int) -> Part:
        return self.section.part(self.spans[rank])

    def empty(self, rank: int) -> bool:
        return self.spans[rank][0] == self.spans[rank][1]


@dataclass
class Row:
    """Pieces that travel in the same messages; sharded ones go to their owners, others to everybody."""

    sharded: bool
    pieces: list[Piece]

    def of(self, rank: int) -> list[Piece]:
        """The pieces that have something for ``rank``."""
        return [piece for piece in self.pieces if not piece.empty(rank)]


def rows_of(sections: Sequence[Section], world: int) -> list[Row]:
    """Cuts sections into rows; the same at all ranks."""
    rows: list[Row] = []
    room = 0
    for sharded in (True, False):
        for section in sections:
            numel = section.values.numel()
            dtype = str(section.values.dtype).removeprefix("torch.")
            # Uncompressed sections, too: here they travel in messages like the others.
            if numel == 0 or two_shot(section.codec, numel, world, dtype) is not sharded:
                continue
            for piece in _pieces(section, world, sharded):
                num_bytes = section.codec.packet_nbytes(piece.spans[0][1] - piece.spans[0][0], dtype)
                fits = rows and rows[-1].sharded is sharded and num_bytes <= room
                if fits and rows[-1].pieces[-1].section is not section and section.codec.fixed_size:
                    rows[-1].pieces.append(piece)
                    room -= num_bytes
                else:
                    rows.append(Row(sharded, [piece]))
                    room = _MESSAGE_NBYTES - num_bytes if section.codec.fixed_size else 0
    return rows


def _pieces(section: Section, world: int, sharded: bool) -> list[Piece]:
    whole = (0, section.values.numel())
    if not sharded:
        return [Piece(section, [span] * world) for span in chunks(section.codec, whole)]
    by_rank = [chunks(section.codec, span) for span in shards(whole[1], world)]
    nothing = (whole[1], whole[1])
    return [
        Piece(section, [spans[k] if k < len(spans) else nothing for spans in by_rank])
        for k in range(len(by_rank[0]))
    ]


class AllReduce:
    """One all-reduce at one rank; `run` executes it, on any one thread."""

    def __init__(self, call: Call, sections: Sequence[Section], options: Options) -> None:
        self._call = call
        self._sections = sections
        self._mean = options.mean
        self._rank, self._world = call.rank, call.world
        self._peers = call.peers
        self._rows = rows_of(sections, self._world)
        self._came: list[dict[int, list[Packet | None]]] = [{} for _ in self._rows]

    def run(self) -> None:
        with self._call.ending(self._sections):
            self._run()

    def _run(self) -> None:
        call = self._call
        for source in self._peers:
            for phase, rank in ((0, self._rank), (1, source)):
                for index, row in enumerate(self._rows):
                    parts = [piece.part(rank) for piece in row.of(rank)]
                    if parts and (phase == 0 or row.sharded):
                        call.expect(source, phase, index, parts)
        call.start(self._accept, [rank for rank in self._peers if any(row.of(rank) for row in self._rows)])
        for section in self._sections:
            section.begin()
        for index, row in enumerate(self._rows):
            (self._scatter if row.sharded else self._spread)(index, row)
        for index, row in enumerate(self._rows):
            mine = row.of(self._rank)
            if mine:
                call.wait_for(0, index, len(self._peers))
                (self._add_and_send if row.sharded else self._add)(index, mine)

    def _accept(self, message: Incoming) -> None:
        if message.phase == 0:
            self._came[message.index][message.source] = message.packets
            return
        for piece, packet in zip(self._rows[message.index].of(message.source), message.packets, strict=True):
            if packet is not None:
                self._store(piece, message.source, packet)

    # ---------------------------------------------------------------------------------------- the first way

    def _spread(self, index: int, row: Row) -> None:
        """Encodes one-shot pieces and sends them to everybody."""
        message = self._encoded(row.pieces, self._rank)
        self._came[index][self._rank] = list(message.packets)
        self._call.send(message, self._peers, 0, index)

    def _scatter(self, index: int, row: Row) -> None:
        """Encodes two-shot pieces, each rank's part, and sends them to it; all first, so that what is not
        finite is known before any of the row is sent.
        """
        messages = [(rank, self._encoded(row.of(rank), rank)) for rank in self._peers if row.of(rank)]
        own = [Part(EXACT, part.numel, part.dtype) for part in self._parts(row.of(self._rank))]
        if own:
            exact = self._call.outgoing(own)
            for piece, packet in zip(row.of(self._rank), exact.packets, strict=True):
                piece.section.encode_exact(piece.spans[self._rank], packet)
                self._tell(piece.section)
            self._came[index][self._rank] = list(exact.packets)
        for rank, message in messages:
            self._call.send(message, [rank], 0, index)

    def _encoded(self, pieces: Sequence[Piece], rank: int) -> Outgoing:
        message = self._call.outgoing(self._parts(pieces, rank))
        for piece, packet in zip(pieces, message.packets, strict=True):
            piece.section.encode(piece.spans[rank], packet)
            self._tell(piece.section)
        return message

    def _tell(self, section: Section) -> None:
        if section.nonfinite_at >= 0:
            self._call.flag(NONFINITE)

    def _parts(self, pieces: Sequence[Piece], rank: int | None = None) -> list[Part]:
        return [piece.part(self._rank if rank is None else rank) for piece in pieces]

    # --------------------------------------------------------------------------------------- the second way

    def _add(self, index: int, pieces: Sequence[Piece]) -> None:
        """Adds up one-shot pieces, in order of rank, into the sections."""
        start_s = time.perf_counter()
        for k, piece in enumerate(pieces):
            packets = self._packets(index, k)
            if len(packets) == self._world:  # else finish raises
                start, stop = piece.spans[self._rank]
                coding.reduce(packets, mean=self._mean, out=piece.section.values[start:stop])
        self._call.decode_s.append(time.perf_counter() - start_s)

    def _add_and_send(self, index: int, pieces: Sequence[Piece]) -> None:
        """Adds up this rank's shards, encodes the sums and sends them to everybody."""
        message = self._call.outgoing(self._parts(pieces))
        start_s = time.perf_counter()
        for k, (piece, out) in enumerate(zip(pieces, message.packets, strict=True)):
            section = piece.section
            start, stop = piece.spans[self._rank]
            codec = section.codec
            seed = section.packet_seed("sum", start)
            residual = None if section.residual is None else section.residual.values[start:stop]
            packets = self._packets(index, k)
            try:
                coding.reduce(packets, codec=codec, out=out, seed=seed, residual=residual)
            except NonFiniteError as error:
                section.found(start + error.index)
                self._call.flag(NONFINITE)
        self._call.decode_s.append(time.perf_counter() - start_s)
        self._call.send(message, self._peers, 1, index)
        for piece, out in zip(pieces, message.packets, strict=True):
            self._store(piece, self._rank, out)

    def _packets(self, index: int, k: int) -> list[Packet]:
        """The packets of a piece in order of rank, without those that were refused."""
        came = self._came[index]
        packets = [came[rank][k] for rank in range(self._world) if came.get(rank)]
        return [packet for packet in packets if packet is not None]

    def _store(self, piece: Piece, rank: int, packet: Packet) -> None:
        start_s = time.perf_counter()
        start, stop = piece.spans[rank]
        weight = 1.0 / self._world if self._mean else 1.0
        coding.decode(packet, out=piece.section.values[start:stop], weight=weight)
        self._call.decode_s.append(time.perf_counter() - start_s)
