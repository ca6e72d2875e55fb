"""One node of compressed gossip on a graph: a state machine on one flat tensor (Koloskova et al. 2019).

    q = C(theta - theta_hat);  theta_hat += q;  send q to the neighbours
    theta += step_size sum_j w_ij (theta_hat_j - theta_hat)

Along a periodic sequence of graphs (matchings) each edge has public copies of its own and a packet goes to
one peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dance.codecs import Codec, Uncompressed
from dance.coding import encode
from dance.exchange import Expected, Message
from dance.gossip.memory import Copies, Sums
from dance.gossip.options import GossipOptions
from dance.gossip.pace import Pace, Paced
from dance.gossip.step_size import default_step_size
from dance.gossip.vectors import (
    Stamp,
    check_finite,
    check_reference,
    check_theta,
    encode_stamped,
    load_vectors,
)
from dance.packet import Packet
from dance.topology import Topology

_COPIES_NBYTES = 1 << 30


class GossipNode(Paced):
    """Gossips ``theta`` (flat float32, changed in place) as ``position`` of ``topology``.

    ``reference`` is the public copy that all nodes start from; None takes theta as it is now, which must then
    be equal at all nodes (zeros always are). ``ids`` are the node ids of the positions, where they are not
    0..n-1. A round: `out`, exchange, `in_`. `messages` and `expected` are the same for an `Exchange`.
    """

    def __init__(
        self,
        theta: torch.Tensor,
        topology: Topology,
        position: int,
        options: GossipOptions | None = None,
        *,
        reference: torch.Tensor | None = None,
        ids: Sequence[int] | None = None,
    ) -> None:
        check_theta(theta)
        if not topology.symmetric:
            raise ValueError(
                f"gossip: {topology} is directed, which does not preserve the mean of public copies; "
                "use a symmetric matrix or sequence"
            )
        self.options = GossipOptions() if options is None else options
        self.theta = theta
        self.topology = topology
        self.position = position
        self.ids = tuple(range(topology.num_nodes)) if ids is None else tuple(ids)
        if len(self.ids) != topology.num_nodes:
            raise ValueError(f"gossip: expected {topology.num_nodes} ids for {topology}, got {len(self.ids)}")
        self.round = 0
        start = check_reference(theta, reference)
        self._fixed = topology.period == 1
        edges = topology.distinct_neighbors(position)
        # What this node sent, by own key: one public copy on a fixed graph, one an edge along a sequence.
        self._own = {key: start.clone() for key in ((position,) if self._fixed else edges)}
        self._theirs: Copies | Sums = (
            Sums(start, position, topology.weights()[position])
            if self._chooses_sums()
            else Copies(start, edges)
        )
        self._packets: dict[int, Packet] = {}
        self._sent: dict[int, Packet] | None = None
        self.pace = Pace(
            self.options, self.ids[position], lambda codec: default_step_size(codec, topology), self._own
        )

    @property
    def packet_codec(self) -> Codec:
        """The codec that the packets of this round have: `codec`, or none in a round that builds s anew."""
        return Uncompressed() if self._rebuilds() else self.codec

    @property
    def reference(self) -> torch.Tensor:
        """The public copy theta_hat, of a node on a fixed graph."""
        if not self._fixed:
            raise ValueError(f"gossip: along {self.topology} every edge has a copy of its own; use sent_to")
        return self._own[self.position]

    def sent_to(self, peer: int) -> torch.Tensor:
        """Returns this node's public copy as ``peer`` (its id) holds it."""
        return self._own[self._own_key(self.ids.index(peer))]

    def received_from(self, peer: int) -> torch.Tensor:
        """Returns the public copy of ``peer`` (its id); with sums there is none."""
        if isinstance(self._theirs, Sums):
            raise ValueError(
                "gossip: with memory='sum' a node keeps no copies of others; use memory='copies'"
            )
        return self._theirs.vectors[self.ids.index(peer)]

    @property
    def peers(self) -> tuple[int, ...]:
        """The ids of the nodes that packets go to and come from in this round."""
        return tuple(self.ids[j] for j in self._neighbors())

    def out(self) -> dict[int, Packet]:
        """Returns the packet for each peer (its id) and adds what it holds to the public copy, in place.

        On a fixed graph it is the same packet for all. Its memory is used again in the next round. Raises
        NonFiniteError, with nothing changed, where theta is not finite.
        """
        if self._sent is not None:
            raise ValueError(f"gossip: round {self.round} is already sent; call in_ before the next out")
        check_finite(self.theta, self.ids[self.position], self.options.nonfinite)
        if self.options.order == "overlap" and self.round > 0:
            self._mix(self.round - 1)
        neighbors = self._neighbors()
        self._sent = {key: self._encode(key) for key in ((self.position,) if self._fixed else neighbors)}
        return {self.ids[j]: self._sent[self._own_key(j)] for j in neighbors}

    def in_(self, packets: Mapping[int, Packet]) -> None:
        """Takes in the packets of all `peers` by id, and moves theta, in place. Ends the round."""
        if self._sent is None:
            raise ValueError(f"gossip: round {self.round} is not sent yet; call out before in_")
        if set(packets) != set(self.peers):
            raise ValueError(
                f"gossip: expected packets from nodes {list(self.peers)} in round {self.round}, "
                f"got {sorted(packets)}"
            )
        for peer, packet in packets.items():
            if packet.numel != self.theta.numel():
                raise ValueError(
                    f"gossip: expected {self.theta.numel()} elements from node {peer}, got {packet.numel}"
                )
        arrived = {j: packets[self.ids[j]] for j in self._neighbors()}
        if isinstance(self._theirs, Sums):
            self._theirs.add({**self._sent, **arrived}, anew=self._rebuilds())
        else:
            self._theirs.add(arrived)
        self._sent = None
        if self.options.order == "fresh":
            self._mix(self.round)
        self.round += 1

    def messages(self, kind: str = "gossip") -> list[Message]:
        """Returns `out` as messages."""
        own = self.ids[self.position]
        return [
            Message(source=own, target=peer, kind=kind, packet=packet) for peer, packet in self.out().items()
        ]

    def expected(self, kind: str = "gossip") -> list[Expected]:
        """Returns what an exchange must deliver for `in_`; any codec may come: each node chooses its own."""
        own, shape = self.ids[self.position], tuple(self.theta.shape)
        codec = Uncompressed() if self._rebuilds() else None
        return [
            Expected(source=peer, target=own, kind=kind, shape=shape, codec=codec, round=self.round)
            for peer in self.peers
        ]

    def _chooses_sums(self) -> bool:
        memory = self.options.memory
        if memory == "auto":
            # Of the node with the most neighbours: all must choose alike, or a rebuild fits only some.
            positions = range(self.topology.num_nodes)
            copies = 1 + max(len(self.topology.distinct_neighbors(position)) for position in positions)
            return self._fixed and 4 * self.theta.numel() * copies > _COPIES_NBYTES
        if memory == "sum" and not self._fixed:
            raise ValueError(f"gossip: sums need a fixed graph, {self.topology} changes; use memory='copies'")
        return memory == "sum"

    def _neighbors(self) -> tuple[int, ...]:
        return self.topology.neighbors(self.position, self.round)

    def _own_key(self, edge: int) -> int:
        return self.position if self._fixed else edge

    def _rebuilds(self) -> bool:
        every = self.options.rebuild_every
        return isinstance(self._theirs, Sums) and every > 0 and self.round > 0 and self.round % every == 0

    def _encode(self, edge: int) -> Packet:
        reference = self._own[edge]
        self.pace.probe(edge, self.theta, reference)
        key = self.options.key if self._fixed else f"{self.options.key}/{self.ids[edge]}"
        stamp = Stamp(
            run_seed=self.options.run_seed, round=self.round, sender=self.ids[self.position], key=key
        )
        if self._rebuilds():
            # The public copy itself, as it is. Sending theta and starting the copies from it was tried: sign
            # then diverged at its usual step, as what is left to send is sparse and sign spreads it over the
            # block.
            packet = encode(reference, Uncompressed(), seed=stamp.seed)
            packet.round, packet.sender = stamp.round, stamp.sender
            return packet
        packet = encode_stamped(
            self.theta, reference, self.codec, stamp, self.options.nonfinite, self._packets.get(edge)
        )
        self._packets[edge] = packet
        return packet

    def _mix(self, round_: int) -> None:
        neighbors = self.topology.neighbors(self.position, round_)
        with self.pace.mixing(self.theta, self._own if self._fixed else neighbors):
            if isinstance(self._theirs, Sums):
                self._theirs.mix(self.theta, self.reference, self.step_size)
            else:
                own = {j: self._own[self._own_key(j)] for j in neighbors}
                row = self.topology.weights(round_)[self.position]
                self._theirs.mix(self.theta, own, row, self.step_size)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the node remembers but theta, its owner's: tensors, numbers, texts, lists."""
        if self._sent is not None:
            raise ValueError("gossip: a round is under way; take the state between in_ and out")
        vectors = {name: vector.clone() for name, vector in self._vectors().items()}
        return {"round": self.round, **self.pace.state_dict(), **vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; a round that was under way is dropped."""
        load_vectors(self._vectors(), state)
        self.pace.load_state_dict(state)
        self.round = int(state["round"])
        self._sent = None
        self._packets.clear()

    def _vectors(self) -> dict[str, torch.Tensor]:
        sent = {f"sent.{self.ids[key]}": vector for key, vector in self._own.items()}
        received = {f"received.{self.ids[key]}": vector for key, vector in self._theirs.vectors.items()}
        return {**sent, **received}
