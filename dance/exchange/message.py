"""What an exchange delivers: messages, what receivers expect, and the interface of both exchanges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dance.codecs import Codec
from dance.errors import PeerError
from dance.exchange.traffic import Meters, Traffic
from dance.exchange.waiting import drains
from dance.packet import Packet

CONTROL = "control"  # the kind of the bytes that `Exchange.any` sends


@dataclass(frozen=True, kw_only=True)
class Message:
    """One packet from node ``source`` to node ``target``; ``kind`` says what it is, such as "gossip"."""

    source: int
    target: int
    kind: str
    packet: Packet


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What ``target`` will receive from ``source``; ``codec`` None accepts any, ``round`` None any round."""

    source: int
    target: int
    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    codec: Codec | None = None
    round: int | None = None

    def drains(self, payload_nbytes: int) -> bool:
        """Returns whether a payload that will be refused is received at all."""
        return drains(payload_nbytes, math.prod(self.shape))

    def __str__(self) -> str:
        when = "" if self.round is None else f" of round {self.round}"
        return f"{self.kind}{when} from node {self.source} to node {self.target}"


class Exchange(Protocol):
    """Delivers one phase of messages at a time; the only thing that knows where nodes live."""

    @property
    def nodes(self) -> tuple[int, ...]:
        """The ids of the nodes that live in this process."""

    @property
    def num_nodes(self) -> int:
        """The number of nodes in all processes."""

    @property
    def counts(self) -> Traffic: ...

    @property
    def links(self) -> Meters:
        """A meter for each (source, target) that has delivered something to a node of this process."""

    def deliver(self, outbox: Sequence[Message], expected: Sequence[Expected]) -> list[Message]:
        """Sends ``outbox`` and returns what came in, in the order of ``expected``.

        All nodes call it together. Both lists name only what nodes of this process send and receive; messages
        with equal source, target and kind are matched in order. Received packets are read only and valid
        until the next delivery of the same source, target and kind. The sender's id is stamped on its
        packets. Raises FrameError or PeerError, naming the peer, for a packet that is broken or not as
        expected, after all others of the phase came in, so that the receiver may go on. What came in is
        counted as received, refused or not.
        """

    def any(self, flag: bool) -> bool:
        """Returns whether any node raised ``flag``; all nodes call it together."""

    def elapsed_s(self, node: int) -> float:
        """Returns seconds since the start, by the node's own clock."""

    def compute(self, node: int, seconds: float, share: float = 0.0) -> None:
        """Tells the node's clock that it computed for ``seconds``; a real clock knows.

        ``share``: of the node's training of this round; what a clock goes by that models it.
        """


def check_source(expect: Expected, sender: int, round_: int) -> None:
    """Raises PeerError where a packet is not of the sender or the round that ``expect`` says."""
    if sender != expect.source:
        raise PeerError(f"{expect}: the packet says that it is from node {sender}")
    if expect.round is not None and round_ != expect.round:
        raise PeerError(f"{expect}: the packet is of round {round_}; are all nodes at the same round?")


def check_boxes(
    outbox: Sequence[Message], expected: Sequence[Expected], nodes: Sequence[int], num_nodes: int
) -> None:
    """Raises ValueError for messages that this process cannot send or receive."""
    here = set(nodes)
    for what, own, peer, kind in (
        *(("send", message.source, message.target, message.kind) for message in outbox),
        *(("receive", expect.target, expect.source, expect.kind) for expect in expected),
    ):
        if own not in here:
            raise ValueError(
                f"exchange: node {own} of {what} {kind!r} does not live here; here are {sorted(here)}"
            )
        if not 0 <= peer < num_nodes or peer == own:
            raise ValueError(f"exchange: node {own} cannot {what} {kind!r} with node {peer} of {num_nodes}")
