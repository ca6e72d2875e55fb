"""All nodes in one process: the same messages over modelled access links, on a virtual clock.

The model, deterministic: a message needs both ends ready (gloo's rendezvous), goes up the sender's access
link after the messages before it, takes both delays, and comes down the receiver's link after the ones that
began to arrive before it. Up and down overlap: a message does not wait to be complete before it is passed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dance.bandwidth import Links
from dance.codecs import HEADER_NBYTES
from dance.errors import FrameError, PeerError
from dance.exchange.message import CONTROL, Expected, Message, check_boxes, check_source
from dance.exchange.traffic import Meters, Traffic, raw_nbytes
from dance.header import Header, parse_header
from dance.packet import Packet

_BACKLOG = 64  # deliveries of a link that its meter remembers when it is asked; it fits the last 24


class SimulatedExchange:
    """Delivers between ``num_nodes`` nodes of this process over ``links`` (None: without limit).

    Payloads are passed by reference: receivers must not write into them. ``computing`` (node, round) says
    how many seconds a node trains in a round: then the clocks are the same in every run. Without it they take
    the seconds that were measured.
    """

    def __init__(
        self, num_nodes: int, links: Links | None = None, computing: Callable[[int, int], float] | None = None
    ) -> None:
        if num_nodes < 1:
            raise ValueError(f"exchange: expected at least 1 node, got {num_nodes}")
        self.num_nodes = num_nodes
        self.nodes = tuple(range(num_nodes))
        self.counts = Traffic()
        self._access = Links() if links is None else links
        self._computing = computing
        self.round = 0  # which one nodes compute in; for whoever runs them to set
        self._links = Meters(_BACKLOG)
        self._clock_s = [0.0] * num_nodes
        self._up_free_s = [0.0] * num_nodes  # until when the access link is busy with earlier messages
        self._down_free_s = [0.0] * num_nodes

    @property
    def links(self) -> Meters:
        return self._links

    def deliver(self, outbox: Sequence[Message], expected: Sequence[Expected]) -> list[Message]:
        """See `Exchange.deliver`. Raises ValueError where what is sent and what is expected do not match."""
        check_boxes(outbox, expected, self.nodes, self.num_nodes)
        sent: dict[tuple[int, int, str], deque[Message]] = {}
        for message in outbox:
            message.packet.sender = message.source
            sent.setdefault((message.source, message.target, message.kind), deque()).append(message)
        # Refuses what could not be sent. One packet may go to many: its checksums are computed once.
        packets = {id(message.packet): message.packet for message in outbox}
        headers = {key: parse_header(packet.header()) for key, packet in packets.items()}
        pairs = []
        for expect in expected:
            queue = sent.get((expect.source, expect.target, expect.kind))
            if not queue:
                raise ValueError(
                    f"exchange: nobody sends the {expect}; over a process group it would wait for ever"
                )
            pairs.append((queue.popleft(), expect))
        left = next((message for queue in sent.values() for message in queue), None)
        if left is not None:
            raise ValueError(
                f"exchange: nobody expects the {left.kind} from node {left.source} to node {left.target}; "
                "over a process group it would wait for ever"
            )
        for message in outbox:
            packet = message.packet
            self.counts.sent(
                message.source, message.kind, packet.nbytes, raw_nbytes(packet.numel, packet.dtype)
            )
        self._move([(message.source, message.target, message.packet.nbytes) for message in outbox])
        received, error = [], None
        for message, expect in pairs:
            packet = message.packet
            num_bytes, raw_bytes = packet.nbytes, raw_nbytes(packet.numel, packet.dtype)
            try:
                packet = _accepted(packet, headers[id(packet)], expect)
            except (FrameError, PeerError) as refused:
                error = error or refused
                if not expect.drains(num_bytes - HEADER_NBYTES):
                    num_bytes = raw_bytes = HEADER_NBYTES
            self.counts.received(expect.target, expect.kind, num_bytes, raw_bytes)
            received.append(
                Message(source=expect.source, target=expect.target, kind=expect.kind, packet=packet)
            )
        if error is not None:
            raise error
        return received

    def any(self, flag: bool) -> bool:
        """See `Exchange.any`; the one call speaks for all nodes. Counted as over a process group."""
        for source, target in (
            *((node, 0) for node in range(1, self.num_nodes)),
            *((0, node) for node in range(1, self.num_nodes)),
        ):
            self.counts.sent(source, CONTROL, 1, 1)
            self.counts.received(target, CONTROL, 1, 1)
        self._move([(node, 0, 1) for node in range(1, self.num_nodes)], metered=False)
        self._move([(0, node, 1) for node in range(1, self.num_nodes)], metered=False)
        return flag

    def elapsed_s(self, node: int) -> float:
        return self._clock_s[node]

    def compute(self, node: int, seconds: float, share: float = 0.0) -> None:
        for what, value in (("seconds", seconds), ("a share", share)):
            if not value >= 0.0:
                raise ValueError(f"exchange: expected {what} of at least 0, got {value}")
        if self._computing is not None:
            seconds = share * self._computing(node, self.round) if share else 0.0
        self._clock_s[node] += seconds

    def state_dict(self) -> dict[str, Any]:
        """Returns the clocks; counts and meters have a `state_dict` of their own."""
        return {
            "clock_s": list(self._clock_s),
            "up_free_s": list(self._up_free_s),
            "down_free_s": list(self._down_free_s),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["clock_s"]) != self.num_nodes:
            raise ValueError(
                f"exchange: expected clocks of {self.num_nodes} nodes, got {len(state['clock_s'])}"
            )
        self._clock_s = [float(seconds) for seconds in state["clock_s"]]
        self._up_free_s = [float(seconds) for seconds in state["up_free_s"]]
        self._down_free_s = [float(seconds) for seconds in state["down_free_s"]]

    def _move(self, flows: Sequence[tuple[int, int, int]], *, metered: bool = True) -> None:
        """Moves messages (source, target, bytes) posted together, and the clocks of all who take part."""
        up_start = list(self._up_free_s)
        arrivals = []
        ready_s = [max(self._clock_s[source], self._clock_s[target]) for source, target, _ in flows]
        # A message to a target that is late does not hold up those to others.
        for ready, order in sorted(zip(ready_s, range(len(flows)), strict=True)):
            source, target, num_bytes = flows[order]
            start = max(ready, up_start[source])
            up_start[source] = self._access.of(source).sent_s(start, num_bytes)
            delay = self._access.of(source).delay_s + self._access.of(target).delay_s
            arrivals.append((start + delay, order, up_start[source] + delay, delay))
        ends = list(self._clock_s)
        # Down links serve in the order in which messages begin to arrive; the wait for a slow sender is not
        # theirs.
        for first, order, last, delay in sorted(arrivals):
            source, target, num_bytes = flows[order]
            begun = max(first, self._down_free_s[target])
            served = self._access.of(target).received_s(begun, num_bytes)
            self._down_free_s[target] = served
            end = max(served, last)
            ends[target] = max(ends[target], end)
            ends[source] = max(ends[source], up_start[source])
            if metered and num_bytes > HEADER_NBYTES:
                # The payload's way alone, as a process group measures it: not the header, and no queue.
                up_s = last - delay - self._access.of(source).sent_s(first - delay, HEADER_NBYTES)
                down_s = served - self._access.of(target).received_s(begun, HEADER_NBYTES)
                self._links.observe(source, target, num_bytes - HEADER_NBYTES, delay + max(up_s, down_s, 0.0))
        self._up_free_s = up_start
        self._clock_s = ends


def _accepted(packet: Packet, header: Header, expect: Expected) -> Packet:
    """Returns the packet as its receiver sees it, after the checks that a process group makes."""
    check_source(expect, packet.sender, packet.round)
    try:
        header.check((expect.codec, expect.shape, expect.dtype))
    except FrameError as error:
        raise PeerError(f"{expect}: {error}") from error
    if packet.shape == tuple(expect.shape):
        return packet
    return Packet.from_parts(header, packet.payload, expect=(expect.codec, expect.shape, expect.dtype))
