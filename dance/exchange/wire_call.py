"""The packets of one call of a collective, point to point over a gloo group.

A phase of a call is a row of messages from each source. A message is one or more packets, one behind the
other. The first message of a phase from a source is announced: its first header comes alone. Only when the
first of all has been checked are the receives of the rest posted, with the exact sizes that this rank
expects: so a peer that disagrees is noticed before it can send too much (gloo aborts the receiver of an
over-long message). Time on the wire is measured from an announcement on, or from this rank's own if that is
later: who computes or sleeps before it sends changes nothing. A message whose size varies is announced, too.
Everything else streams without waiting for anybody.

Tags follow from the number of the call, so whatever a faulty peer leaves behind is never taken for something
later. The first message of a phase has the same tags whatever the call is, and the `round` of all headers
says which call it is (`stamp`), with two flags, so that all ranks learn of trouble at one. Where a rank has
nothing to say to another at first, a header of no elements, a greeting, takes its place: so of any two ranks
that mean to make different calls both find out at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dance.codecs import HEADER_NBYTES, Uncompressed
from dance.errors import FrameError, PeerError
from dance.exchange.parts import Incoming, Outgoing, Part, layout
from dance.exchange.stamp import FLAGS, NONFINITE, REFUSED, Stamp, differs, is_same_call
from dance.exchange.waiting import drains
from dance.exchange.wire import Wire
from dance.exchange.wire_time import union_s
from dance.header import Header, parse_header
from dance.packet import Packet

_FIRST_TAG = (1 << 30) + (1 << 21)  # clear of ProcessGroupExchange and of the small tags of other users
_TAGS_A_CALL = 1 << 11
_TAGS_A_PHASE = 1 << 10
_CALLS = 1 << 18
MAX_MESSAGES = _TAGS_A_PHASE // 2  # of one phase from one source
_GREETING = Part(Uncompressed(), 0)


class WireCall:
    """The messages of one call, both ways; its collective encodes, sends, and takes what `accept` hands on.

    Own packets are sent by the calling thread; a thread for each source receives, so that a slow peer delays
    no other. ``accept(message)`` runs there, as soon as a message is in and checked: its packets in order,
    None for one that was refused.
    """

    def __init__(self, wire: Wire, stamp: Stamp) -> None:
        self._wire = wire
        self._name = stamp.verb
        self.rank, self.world = wire.rank, wire.world
        # Tried beginning with the next rank, so that not all begin with rank 0: no gain at 100 Mbit/s.
        self.peers = [rank for rank in range(wire.world) if rank != wire.rank]
        self._receiving_memory = wire.receiving
        self._sending_memory = wire.sending
        if wire.broken is not None:
            raise PeerError(wire.broken)
        self._receiving_memory.reset()
        self._sending_memory.reset()
        self._number = stamp.number
        self._stamp = stamp.bits()
        self._tag = _FIRST_TAG + self._number % _CALLS * _TAGS_A_CALL
        self._deadline_s = time.monotonic() + wire.timeout_s
        self.flags = 0  # NONFINITE, REFUSED: of this rank and of all that it has heard
        self.nonfinite_at: list[int] = []  # ranks whose packets said so
        self._errors: dict[int, Exception] = {}  # by source; the first of each
        self._hearsay: dict[int, Exception] = {}  # the same of what others refused
        self._strangers: set[int] = set()  # sources that make another call, as it seems
        self._failure: Exception | None = None  # the group is of no more use
        self._under_way = False  # from `start` until nothing is to be received or sent any more
        self._sends: list[tuple[Any, int]] = []
        self._announced: set[tuple[int, int]] = set()  # (phase, target)
        self._expected: dict[int, list[Incoming]] = {}
        self._gates: dict[int, list[tuple[torch.Tensor, int]]] = {}  # by target: what may not be sent yet
        self._arrived: dict[tuple[int, int], int] = {}
        self._condition = threading.Condition()
        self._receiving = 0
        self._inline: list[Callable[[], None]] = []
        self._intervals: list[tuple[float, float]] = []  # when payloads were on the wire, in seconds
        self._deliveries: list[tuple[int, int, float]] = []  # for the meters: source, bytes, seconds
        self._called_s: dict[int, float] = {}  # by target: when it could know that it may send its payload
        self.bytes_sent = 0
        self.bytes_received = 0
        self.decode_s: list[float] = []  # in several threads
        self.check_s: list[float] = []  # of checking what came, in several threads
        self.seal_s = 0.0  # of checksums and headers

    # --------------------------------------------------------------------------------------------- way in

    def expect(self, source: int, phase: int, index: int, parts: Sequence[Part]) -> None:
        """Says what will come; to be called for all sources and phases, in order, before `start`."""
        if index >= MAX_MESSAGES:
            raise ValueError(f"{self._name}: more than {MAX_MESSAGES} messages a phase; send fewer at once")
        messages = self._expected.setdefault(source, [])
        first = not messages or messages[-1].phase != phase
        varies = not parts[0].codec.fixed_size
        messages.append(Incoming(source, phase, index, parts, announced=first or varies, first=first))

    def start(self, accept: Callable[[Incoming], None], targets: Sequence[int] | None) -> None:
        """Posts what may be posted and starts to receive; `finish` or `leave` has to follow.

        ``targets`` are the ranks that this one has a message of phase 0 for. All others get a greeting, and
        one is expected of those that no message of phase 0 is; None: greetings are no part of this call.
        """
        self._under_way = True
        if targets is not None:
            for source in self.peers:
                messages = self._expected.setdefault(source, [])
                if not messages or messages[0].phase:
                    greeting = Incoming(source, 0, 0, [_GREETING], announced=True, first=True, greeting=True)
                    messages.insert(0, greeting)
        for source, messages in self._expected.items():
            # Later phases may wait for what we send, and a greeting needs no receive that a payload delays.
            if messages[0].phase == 0 and not messages[0].greeting:
                self._gates[source] = []
            for message in messages:
                if message.announced:
                    # Memory of its own: a receive that a faulty peer leaves open outlives the call.
                    message.header = torch.empty(HEADER_NBYTES, dtype=torch.uint8)
                    message.header_work = self._wire.receive(message.header, source, self._tag_of(message))
                message.buffer = self._receiving_memory.take(layout(message.parts)[1])
        if targets is not None:
            self._greet([rank for rank in self.peers if rank not in targets])
        greetings, tasks = [], []
        for source, messages in self._expected.items():
            task = self._receiving_task(source, messages, accept)
            if messages[-1].greeting:
                greetings.append(task)
            else:
                tasks.append((source, task, len(messages)))
        self._receiving = len(greetings) + len(tasks)
        self._inline = greetings  # nothing can be gained from a thread
        if len(tasks) == 1 and tasks[0][2] == 1:
            self._inline = [tasks[0][1], *greetings]
            return
        for source, task, _ in tasks:
            self._wire.receiver(source).submit(task)

    def wait_for(self, phase: int, index: int, count: int) -> None:
        """Waits until message ``index`` of ``phase`` came from ``count`` sources, refused or not."""
        self._run_inline()
        with self._condition:
            while self._arrived.get((phase, index), 0) < count and self._failure is None:
                self._condition.wait()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Waits until all is received and sent; raises what went wrong, after all of it."""
        self._run_inline()
        with self._condition:
            while self._receiving:
                self._condition.wait()
        refused = []
        for work, target in self._sends:
            if target in self._strangers or target in self._hearsay:  # it may never take this
                refused.append(work)
            elif self._failure is None:
                try:
                    self._wire.wait(work, self._deadline_s, f"{self._name}: message to rank {target}")
                except PeerError as error:
                    self._failure = error
        if refused or self._failure is not None:
            self._keep([*refused, *self._sends, *self._sending_memory.abandon()])
        if self._failure is not None:
            raise self._failure
        self._under_way = False
        for errors in (self._errors, self._hearsay):
            for source in sorted(errors):
                raise errors[source]

    def leave(self, error: BaseException) -> None:
        """Gives up what was started and not finished: nothing more is accepted, the group is of no more use.

        Threads may still receive and send until the timeout, so all memory is kept for them.
        """
        if not self._under_way:
            return
        broken = self._wire.breaks(f"{self._name}: call {self._number}", error)
        with self._condition:
            self._failure = self._failure or broken
            self._condition.notify_all()
        self._keep([self, *self._receiving_memory.abandon(), *self._sending_memory.abandon()])

    def observe(self) -> float:
        """Feeds the meters and returns the seconds in which anything was on the wire to this rank."""
        for delivery in self._deliveries:
            self._wire.observe(*delivery)
        return union_s(self._intervals)

    def _run_inline(self) -> None:
        tasks, self._inline = self._inline, []
        for task in tasks:
            task()

    def _receiving_task(
        self, source: int, messages: list[Incoming], accept: Callable[[Incoming], None]
    ) -> Callable[[], None]:
        def task() -> None:
            try:
                self._receive(source, messages, accept)
            except Exception as error:  # from a lost peer: the call cannot go on
                with self._condition:
                    self._failure = self._failure or error
            with self._condition:
                self._receiving -= 1
                self._condition.notify_all()

        return task

    def _receive(self, source: int, messages: list[Incoming], accept: Callable[[Incoming], None]) -> None:
        start_s, num_bytes = 0.0, 0
        for k, message in enumerate(messages):
            head: Header | None = None
            if message.announced:
                what = f"{self._name}: message from rank {source}"
                self._wire.wait(message.header_work, self._deadline_s, what)
                self._count(HEADER_NBYTES)
                start_s, num_bytes = time.monotonic(), 0
                if message.work is None:
                    head, known = self._open(message)
                    if not known:
                        self._strangers.add(source)
                        self._drain(message)
                        self._skip(messages[k:], accept, posted=k > 0)
                        return
                    if message.greeting:
                        if head is not None:
                            self._hear(head)
                        self._post(messages[1:])
                        continue
                    self._post_rest(message, head)
                if head is None:
                    _memory(message)[:HEADER_NBYTES] = message.header  # type: ignore[assignment]
                if k == 0:
                    self._post(messages[1:])
                    self._open_gate(source)
            if message.work is not None:
                self._wire.wait(message.work, self._deadline_s, f"{self._name}: payload from rank {source}")
            end_s = time.monotonic()
            num_bytes += self._check(message, head)
            if message.phase == 0:  # an early peer holds its payload back until this rank has sent a header
                start_s = min(max(start_s, self._called_s.get(source, 0.0)), end_s)
            last = k + 1 == len(messages) or messages[k + 1].announced
            if last and num_bytes:
                self._intervals.append((start_s, end_s))
            # Of a later phase the meter sees the first message alone: the next may wait for a third rank.
            if num_bytes and (last if message.phase == 0 else message.announced):
                self._deliveries.append((source, num_bytes, end_s - start_s))
            if self._failure is not None:
                return  # the results belong to the caller again
            accept(message)
            self._arrive(message)

    def _post(self, messages: Sequence[Incoming]) -> None:
        """Posts the receives of what has a known size, once the first header was found to be right."""
        for message in messages:
            if message.parts[0].codec.fixed_size:
                skip = HEADER_NBYTES if message.announced else 0
                tag = self._tag_of(message) + (1 if message.announced else 0)
                message.work = self._wire.receive(_memory(message)[skip:], message.source, tag)

    def _open(self, message: Incoming) -> tuple[Header | None, bool]:
        """Returns the header that announces ``message``, None if it is refused, with the error kept; and
        whether the sizes of what follows are known: they are where the peer means what we expect, and where
        its header was garbled on the way.
        """
        source, part = message.source, message.parts[0]
        assert message.header is not None
        who = f"{self._name}: message from rank {source}"
        try:
            header = parse_header(message.header.numpy())
        except FrameError as error:
            self._refuse(source, FrameError(f"{who}: {error}"))
            return None, part.codec.fixed_size
        other = differs(self._stamp, header.round)
        if other:
            self._refuse(source, PeerError(f"{who}: {other}"))
            return None, False
        try:
            part.check(header)
        except FrameError as error:
            self._refuse(source, PeerError(f"{who}: {error}"))
            return None, False
        try:
            self._check_stamp(header, source)
        except PeerError as error:
            self._refuse(source, PeerError(f"{who}: {error}"))
            return None, part.codec.fixed_size
        return header, True

    def _check_stamp(self, header: Header, source: int) -> None:
        if header.sender != source:
            raise PeerError(f"the packet says that it is from rank {header.sender}")
        if not is_same_call(self._stamp, header.round):
            raise PeerError(
                f"the packet is of another call than this one, number {self._number} of the group; "
                "do all ranks make the same calls?"
            )

    def _drain(self, message: Incoming) -> None:
        """Takes what was announced in vain, so that its sender may go on, if its size is credible. Who makes
        another call finds out by itself, and its message may hold more than the header says.
        """
        work, announced = None, 0
        with contextlib.suppress(FrameError):
            header = parse_header(message.header)
            if not differs(self._stamp, header.round):
                announced = header.payload_nbytes
        if len(message.parts) == 1 and announced > 0 and drains(announced, message.parts[0].numel):
            buffer = torch.empty(announced, dtype=torch.uint8)
            work = self._wire.receive(buffer, message.source, self._tag_of(message) + 1)
        self._open_gate(message.source)
        if work is not None:
            what = f"{self._name}: payload from rank {message.source}"
            self._wire.wait(work, self._deadline_s, what)
            self._count(announced)

    def _post_rest(self, message: Incoming, head: Header | None) -> None:
        memory = _memory(message)
        end = memory.numel() if head is None else HEADER_NBYTES + head.payload_nbytes
        if len(message.parts) > 1:
            end = memory.numel()
        rest = memory[HEADER_NBYTES:end]
        message.buffer = memory[:end]
        if rest.numel():
            message.work = self._wire.receive(rest, message.source, self._tag_of(message) + 1)

    def _check(self, message: Incoming, head: Header | None) -> int:
        """Opens the packets of a message that is in; returns its bytes without an announcing header."""
        start_s = time.perf_counter()
        memory = _memory(message)
        places, _ = layout(message.parts)
        for k, (part, (offset, _)) in enumerate(zip(message.parts, places, strict=True)):
            packet: Packet | None = None
            start = offset + HEADER_NBYTES
            try:
                header = head if k == 0 and head is not None else None
                if header is None:
                    header = parse_header(memory[offset:start].numpy())
                    self._check_stamp(header, message.source)
                    try:
                        part.check(header)
                    except FrameError as error:
                        self._strangers.add(message.source)
                        raise PeerError(str(error)) from error
                payload = memory[start : start + header.payload_nbytes]
                packet = Packet.of_header(header, payload, part.codec, (part.numel,))
                self._hear(header)
            except (FrameError, PeerError) as error:
                kind = type(error)
                self._refuse(
                    message.source, kind(f"{self._name}: message from rank {message.source}: {error}")
                )
            message.packets.append(packet)
        self.check_s.append(time.perf_counter() - start_s)
        num_bytes = memory.numel() - (HEADER_NBYTES if message.announced else 0)
        self._count(num_bytes)
        return num_bytes

    def _count(self, num_bytes: int) -> None:
        with self._condition:
            self.bytes_received += num_bytes

    def _hear(self, header: Header) -> None:
        if header.round & FLAGS:
            with self._condition:
                self.flags |= header.round & FLAGS
                if header.round & NONFINITE:
                    self.nonfinite_at.append(header.sender)
            if header.round & REFUSED:
                what = f"{self._name}: rank {header.sender} had to refuse what a peer sent it"
                self._hearsay.setdefault(header.sender, PeerError(what))

    def _refuse(self, source: int, error: Exception) -> None:
        with self._condition:
            self._errors.setdefault(source, error)
            self.flags |= REFUSED

    def _skip(
        self, messages: Sequence[Incoming], accept: Callable[[Incoming], None], *, posted: bool
    ) -> None:
        if posted:
            self._keep(self._receiving_memory.abandon())
        works = [work for message in messages for work in (message.header_work, message.work)]
        self._keep([work for work in works if work is not None])
        for message in messages:
            if not message.greeting:
                message.packets = [None] * len(message.parts)
                accept(message)
                self._arrive(message)

    def _keep(self, what: Sequence[Any]) -> None:
        if what:
            with self._condition:
                self._wire.keep(self._number, what)

    def _arrive(self, message: Incoming) -> None:
        with self._condition:
            at = (message.phase, message.index)
            self._arrived[at] = self._arrived.get(at, 0) + 1
            self._condition.notify_all()

    # -------------------------------------------------------------------------------------------- way out

    def outgoing(self, parts: Sequence[Part]) -> Outgoing:
        """Returns a message to encode into."""
        return Outgoing(parts, self._sending_memory)

    def flag(self, bit: int) -> None:
        """Sets `NONFINITE` or `REFUSED` in all that is sent from now on."""
        with self._condition:
            self.flags |= bit

    def send(self, message: Outgoing, targets: Sequence[int], phase: int, index: int) -> None:
        """Stamps ``message`` with the flags so far and sends it to ``targets``; nothing waits."""
        start_s = time.perf_counter()
        buffer = message.seal(self.rank, self._stamp | self.flags)
        self.seal_s += time.perf_counter() - start_s
        varies = not message.parts[0].codec.fixed_size
        for target in targets:
            first = (phase, target) not in self._announced
            tag = self._tag_at(phase, index, first)
            if varies or first:
                self._announced.add((phase, target))
                if phase == 0:
                    self._called_s[target] = time.monotonic()
                self._sends.append((self._wire.send(buffer[:HEADER_NBYTES], target, tag), target))
                if buffer.numel() > HEADER_NBYTES:
                    self._send_in_turn(buffer[HEADER_NBYTES:], target, tag + 1)
            else:
                self._send_in_turn(buffer, target, tag)
            self.bytes_sent += buffer.numel()

    def _greet(self, targets: Sequence[int]) -> None:
        if targets:
            greeting = self.outgoing([_GREETING]).seal(self.rank, self._stamp | self.flags)
            for target in targets:
                self._announced.add((0, target))
                self._sends.append((self._wire.send(greeting, target, self._tag), target))
                self.bytes_sent += greeting.numel()

    def _send_in_turn(self, buffer: torch.Tensor, target: int, tag: int) -> None:
        """Sends now, or when the receives from this rank are posted.

        A pair of ranks has one connection. If a payload went first, the word that a receive is posted would
        queue behind it, and the peer could only begin when all of it has gone: half of duplex.
        """
        with self._condition:
            waiting = self._gates.get(target)
            if waiting is not None:
                waiting.append((buffer, tag))
                return
        self._sends.append((self._wire.send(buffer, target, tag), target))

    def _open_gate(self, target: int) -> None:
        with self._condition:  # what is sent meanwhile goes behind
            for buffer, tag in self._gates.pop(target, ()):
                self._sends.append((self._wire.send(buffer, target, tag), target))

    def _tag_of(self, message: Incoming) -> int:
        return self._tag_at(message.phase, message.index, message.first)

    def _tag_at(self, phase: int, index: int, first: bool) -> int:
        return self._tag + phase * _TAGS_A_PHASE + (0 if first else 2 * index)


def _memory(message: Incoming) -> torch.Tensor:
    assert message.buffer is not None
    return message.buffer
