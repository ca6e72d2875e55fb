"""One node a process: messages over torch.distributed point to point, a fixed-size header first.

What gloo does (torch 2.13, measured) and this file respects: a message longer than its receive aborts the
receiving process, so the payload is received into exactly what its checked header says; one timed-out
operation closes every pair of the group, so a timeout is the end and never a poll; a send does not complete
before its receive is posted; ``is_completed`` stays False until ``wait``. Every message of a group has
tags of its own: what a faulty peer leaves unreceived is never taken for something later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from dance.codecs import HEADER_NBYTES
from dance.errors import FrameError, PeerError
from dance.exchange.message import CONTROL, Expected, Message, check_boxes, check_source
from dance.exchange.traffic import Meters, Traffic, raw_nbytes
from dance.exchange.waiting import lost, wait_until
from dance.header import parse_header
from dance.packet import Packet

_FIRST_TAG = 1 << 20  # clear of the small tags that other users of the group may take
_TAGS = 1 << 30

# Messages so far by (source, target), shared by all exchanges of a group: their tags must differ too.
_SEQUENCES: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, int], int]] = WeakKeyDictionary()


@dataclass(kw_only=True)
class _Incoming:
    """One expected message on its way in."""

    expect: Expected
    tag: int
    slot: tuple[int, str, int]  # source, kind, how manieth of these in this phase: which buffers it uses
    header: torch.Tensor
    work: Any
    num_bytes: int = 0  # that arrived, whether or not they were accepted
    raw_bytes: int = 0
    message: Message | None = None
    error: Exception | None = None


class ProcessGroupExchange:
    """Delivers over the process group ``group`` (None: the default one); its rank is the id of the node here.

    ``timeout_s`` is how long a phase may take; after a timeout or a lost peer the exchange is of no more use.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, timeout_s: float = 300.0) -> None:
        if not dist.is_initialized():
            raise ValueError(
                "exchange: torch.distributed is not initialised; run under torchrun and call "
                "torch.distributed.init_process_group('gloo')"
            )
        if not timeout_s > 0.0:
            raise ValueError(f"exchange: expected timeout_s above 0, got {timeout_s}")
        if dist.get_rank(group) < 0:
            raise ValueError("exchange: this process is no member of the group; make one in members only")
        if "cpu:" not in (backends := dist.get_backend_config(group)):
            raise ValueError(
                f"exchange: messages go over the CPU, the group has {backends} only; make it with "
                "torch.distributed.init_process_group('cpu:gloo,cuda:nccl') or new_group(backend='gloo')"
            )
        self._group = group
        self._timeout_s = timeout_s
        self._deadline_s = math.inf  # of the phase under way
        self.num_nodes = dist.get_world_size(group)
        self.nodes = (dist.get_rank(group),)
        self._ranks = [
            node if group is None else dist.get_global_rank(group, node) for node in range(self.num_nodes)
        ]
        self.counts = Traffic()
        self._links = Meters()
        key = dist.group.WORLD if group is None else group
        assert key is not None
        self._sequence = _SEQUENCES.setdefault(key, {})
        self._buffers: dict[tuple[int, str, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._broken: str | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._start_s = time.monotonic()

    @property
    def links(self) -> Meters:
        return self._links

    def deliver(self, outbox: Sequence[Message], expected: Sequence[Expected]) -> list[Message]:
        """See `Exchange.deliver`."""
        check_boxes(outbox, expected, self.nodes, self.num_nodes)
        parts = [self._parts(message) for message in outbox]  # may refuse a packet: before anything is posted
        self._begin()
        incoming = self._post_receives(expected)
        sends = self._post_sends(outbox, parts)
        self._receive(incoming)
        for message, works in sends:
            for work in works:
                self._wait(work, f"{message.kind} from node {message.source} to node {message.target}")
        if self._broken is not None:
            raise PeerError(self._broken)
        for each in incoming:
            if each.error is not None:
                raise each.error
        return [each.message for each in incoming if each.message is not None]

    def any(self, flag: bool) -> bool:
        """See `Exchange.any`: one byte from every node to node 0, and one back."""
        self._begin()
        own, raised = self.nodes[0], flag
        others = range(1, self.num_nodes) if own == 0 else (0,)
        gather = self._flags(others, own) if own == 0 else ()
        if own:
            self._send_flag(own, 0, raised)
            gather = self._flags((0,), own)
        for source, buffer, work in gather:
            self._wait(work, f"{CONTROL} from node {source} to node {own}")
            self._check_usable()
            self.counts.received(own, CONTROL, 1, 1)
            raised = (raised or bool(buffer[0])) if own == 0 else bool(buffer[0])
        if own == 0:
            for target in others:
                self._send_flag(0, target, raised)
        return raised

    def elapsed_s(self, node: int) -> float:
        return time.monotonic() - self._start_s

    def compute(self, node: int, seconds: float, share: float = 0.0) -> None:
        """Does nothing: the clock on the wall knows."""

    # ------------------------------------------------------------------------------------------ the way out

    def _parts(self, message: Message) -> tuple[torch.Tensor, torch.Tensor]:
        packet = message.packet
        packet.sender = message.source
        stamp, payload = packet._on_host()  # gloo sends from the host
        header = torch.frombuffer(bytearray(stamp), dtype=torch.uint8)
        if not payload.flags.writeable:  # torch takes no read-only memory
            payload = payload.copy()
        return header, torch.from_numpy(payload)

    def _post_sends(
        self, outbox: Sequence[Message], parts: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> list[tuple[Message, list[Any]]]:
        sends = []
        for k in _canonical_order(outbox):
            message, (header, payload) = outbox[k], parts[k]
            tag = self._tag(message.source, message.target)
            works = [self._isend(header, message.target, tag)]
            if payload.numel():
                works.append(self._isend(payload, message.target, tag + 1))
            num_bytes = header.numel() + payload.numel()
            self.counts.sent(
                message.source,
                message.kind,
                num_bytes,
                raw_nbytes(message.packet.numel, message.packet.dtype),
            )
            sends.append((message, works))
        return sends

    def _send_flag(self, source: int, target: int, flag: bool) -> None:
        buffer = torch.tensor([flag], dtype=torch.uint8)
        work = self._isend(buffer, target, self._tag(source, target))
        self.counts.sent(source, CONTROL, 1, 1)
        self._wait(work, f"{CONTROL} from node {source} to node {target}")
        self._check_usable()

    # ------------------------------------------------------------------------------------------- the way in

    def _post_receives(self, expected: Sequence[Expected]) -> list[_Incoming]:
        incoming: dict[int, _Incoming] = {}
        manieth: dict[tuple[int, str], int] = {}
        for k in _canonical_order(expected):
            expect = expected[k]
            number = manieth.get((expect.source, expect.kind), 0)
            manieth[expect.source, expect.kind] = number + 1
            slot = (expect.source, expect.kind, number)
            if slot not in self._buffers:
                empty = torch.empty(0, dtype=torch.uint8)
                self._buffers[slot] = (torch.empty(HEADER_NBYTES, dtype=torch.uint8), empty)
            header = self._buffers[slot][0]
            tag = self._tag(expect.source, expect.target)
            work = self._irecv(header, expect.source, tag)
            incoming[k] = _Incoming(expect=expect, tag=tag, slot=slot, header=header, work=work)
        return [incoming[k] for k in range(len(expected))]

    def _receive(self, incoming: Sequence[_Incoming]) -> None:
        """Finishes all receives; a thread a source, so that a slow peer delays no other and its meter."""
        by_source: dict[int, list[_Incoming]] = {}
        for each in incoming:
            by_source.setdefault(each.expect.source, []).append(each)
        groups = [sorted(group, key=lambda each: each.tag) for group in by_source.values()]
        if len(groups) > 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.num_nodes, thread_name_prefix="dance-exchange")
            futures: list[Future[None]] = [self._threads.submit(self._receive_all, group) for group in groups]
            for future in futures:
                future.result()
        elif groups:
            self._receive_all(groups[0])
        for each in incoming:  # counted here: the threads share nothing that they write
            if each.num_bytes:
                expect = each.expect
                self.counts.received(expect.target, expect.kind, each.num_bytes, each.raw_bytes)

    def _receive_all(self, group: Sequence[_Incoming]) -> None:
        for each in group:
            self._receive_one(each)

    def _receive_one(self, each: _Incoming) -> None:
        try:
            each.message = self._received(each)
        except Exception as error:  # whatever it is, the other threads must finish with their buffers first
            each.error = error

    def _received(self, each: _Incoming) -> Message | None:
        expect = each.expect
        if not self._wait(each.work, f"header of {expect}"):
            return None
        each.num_bytes = each.raw_bytes = HEADER_NBYTES
        try:
            header = parse_header(each.header)
        except FrameError as error:
            # Its payload, if there is one, is of unknown length: it is left where it is, under a tag never
            # used again.
            raise FrameError(f"{expect}: {error}") from error
        refused: Exception | None = None
        try:
            check_source(expect, header.sender, header.round)
            header.check((expect.codec, expect.shape, expect.dtype))
        except PeerError as error:
            refused = error
        except FrameError as error:
            refused = PeerError(f"{expect}: {error}")
        if refused is not None and not expect.drains(header.payload_nbytes):
            raise refused  # not worth the memory; the sender will run into its timeout
        payload = self._payload_buffer(each.slot, header.payload_nbytes)
        if header.payload_nbytes:
            start_s = time.monotonic()
            work = self._irecv(payload, expect.source, each.tag + 1)
            if not self._wait(work, f"payload of {expect}"):
                return None
            seconds = time.monotonic() - start_s
            self._links.observe(expect.source, expect.target, header.payload_nbytes, seconds)
            each.num_bytes += header.payload_nbytes
            each.raw_bytes = raw_nbytes(header.numel, header.dtype)
        if refused is not None:
            raise refused
        try:
            packet = Packet.from_parts(header, payload, expect=(expect.codec, expect.shape, expect.dtype))
        except FrameError as error:
            raise FrameError(f"{expect}: {error}") from error
        return Message(source=expect.source, target=expect.target, kind=expect.kind, packet=packet)

    def _payload_buffer(self, slot: tuple[int, str, int], num_bytes: int) -> torch.Tensor:
        header, payload = self._buffers[slot]
        if payload.numel() < num_bytes:  # fresh memory costs more than any codec, so buffers only ever grow
            payload = torch.empty(num_bytes, dtype=torch.uint8)
            self._buffers[slot] = (header, payload)
        return payload[:num_bytes]

    def _flags(self, sources: Sequence[int], own: int) -> list[tuple[int, torch.Tensor, Any]]:
        flags = []
        for source in sources:
            buffer = torch.zeros(1, dtype=torch.uint8)
            flags.append((source, buffer, self._irecv(buffer, source, self._tag(source, own))))
        return flags

    # --------------------------------------------------------------------------------- torch.distributed

    def _tag(self, source: int, target: int) -> int:
        """Returns the tag of the next header of this pair, payload: + 1; both ends count alike."""
        number = self._sequence.get((source, target), 0)
        self._sequence[source, target] = number + 1
        return _FIRST_TAG + 2 * number % _TAGS

    def _isend(self, buffer: torch.Tensor, target: int, tag: int) -> Any:
        return self._post(lambda: dist.isend(buffer, self._ranks[target], group=self._group, tag=tag), target)

    def _irecv(self, buffer: torch.Tensor, source: int, tag: int) -> Any:
        return self._post(lambda: dist.irecv(buffer, self._ranks[source], group=self._group, tag=tag), source)

    def _post(self, operation: Callable[[], Any], peer: int) -> Any:
        try:
            return operation()
        except RuntimeError as error:
            self._break(f"node {peer}", error)
            raise PeerError(self._broken) from error

    def _wait(self, work: Any, what: str) -> bool:
        """Waits for ``work``; False, with the exchange broken, after a timeout or when the peer is gone."""
        try:
            wait_until(work, self._deadline_s)
        except RuntimeError as error:
            self._break(what, error)
            return False
        return True

    def _break(self, what: str, error: Exception) -> None:
        if self._broken is None:
            self._broken = lost(f"exchange: {what}", error)

    def _begin(self) -> None:
        self._check_usable()
        self._deadline_s = time.monotonic() + self._timeout_s

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise PeerError(self._broken)


def _canonical_order(items: Sequence[Message] | Sequence[Expected]) -> list[int]:
    """Returns the order in which both ends number a phase: by pair, by kind, then as given."""
    return sorted(range(len(items)), key=lambda k: (items[k].source, items[k].target, items[k].kind))
