"""Two-way compressed gossip through a relay: two messages a node and round, however many nodes there are.

    node:   q_i = C(theta_i - theta_hat_i);  theta_hat_i += q_i;  send q_i to the relay
    relay:  m = mean of theta_hat_i;  p = C(m - m_hat);  m_hat += p;  send p to all nodes
    node:   m_hat += p;  theta_i += step_size (m_hat - theta_hat_i)

A node's own weights never take a quantised value, only a force towards the consensus. The mean of theta moves
by step_size (m_hat - m) a round and is preserved but for that: the relay keeps the public copy of every node,
because the rounding errors of a running sum m += mean of q_i would never heal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec
from dance.coding import decode, mix
from dance.gossip.memory import Copies
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

_CHUNK = 1 << 16  # elements whose mean is taken at a time, in cache


class HubNode(Paced):
    """Gossips ``theta`` (flat float32, changed in place) of node ``node`` through a relay.

    ``reference`` is the public copy that all nodes and the relay start from; None takes theta as it is now,
    which must then be equal at all nodes. A round: `out`, exchange, `in_`. Of ``options``, ``order`` is
    "fresh" only; ``memory`` and ``rebuild_every`` have no use.
    """

    def __init__(
        self,
        theta: torch.Tensor,
        node: int,
        options: GossipOptions | None = None,
        *,
        reference: torch.Tensor | None = None,
    ) -> None:
        check_theta(theta)
        self.options = GossipOptions() if options is None else options
        if self.options.order != "fresh":
            raise ValueError(f"gossip: a hub takes order 'fresh' only, got {self.options.order!r}")
        self.theta = theta
        self.node = node
        self.round = 0
        start = check_reference(theta, reference)
        self.reference = start.clone()
        self.relayed = start.clone()  # m_hat, equal at all nodes
        self._packet: Packet | None = None
        self._sent = False
        self.pace = Pace(self.options, node, default_step_size, (node,))

    def out(self) -> Packet:
        """Returns the packet for the relay and adds what it holds to the public copy, in place.

        Raises NonFiniteError, with nothing changed, where theta is not finite.
        """
        if self._sent:
            raise ValueError(f"gossip: round {self.round} is already sent; call in_ before the next out")
        check_finite(self.theta, self.node, self.options.nonfinite)
        self.pace.probe(self.node, self.theta, self.reference)
        stamp = Stamp(
            run_seed=self.options.run_seed, round=self.round, sender=self.node, key=self.options.key
        )
        self._packet = encode_stamped(
            self.theta, self.reference, self.codec, stamp, self.options.nonfinite, self._packet
        )
        self._sent = True
        return self._packet

    def in_(self, packet: Packet) -> None:
        """Takes in the relay's packet and moves theta, in place. Ends the round."""
        if not self._sent:
            raise ValueError(f"gossip: round {self.round} is not sent yet; call out before in_")
        decode(packet, out=self.relayed, add=True)
        with self.pace.mixing(self.theta, (self.node,)):
            mix(self.theta, self.relayed, self.reference, self.step_size)
        self._sent = False
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the node remembers but theta, which is its owner's."""
        if self._sent:
            raise ValueError("gossip: a round is under way; take the state between in_ and out")
        vectors = {name: vector.clone() for name, vector in self._vectors().items()}
        return {"round": self.round, **self.pace.state_dict(), **vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; a round that was under way is dropped."""
        load_vectors(self._vectors(), state)
        self.pace.load_state_dict(state)
        self.round = int(state["round"])
        self._sent = False
        self._packet = None

    def _vectors(self) -> dict[str, torch.Tensor]:
        return {"reference": self.reference, "relayed": self.relayed}


class HubRelay:
    """The relay of a hub with ``num_nodes`` nodes; ``reference`` is what all nodes start from.

    ``node`` is the id of the node at which it lives. A round: `in_` with the packets of all nodes, then
    `out`. It holds a copy for each node.
    """

    def __init__(
        self,
        reference: torch.Tensor,
        node: int,
        num_nodes: int,
        options: GossipOptions | None = None,
    ) -> None:
        check_theta(reference)
        if num_nodes < 1:
            raise ValueError(f"gossip: expected at least 1 node at the hub, got {num_nodes}")
        self.options = GossipOptions() if options is None else options
        self.node = node
        self.num_nodes = num_nodes
        self.round = 0
        start = reference.detach()
        self.copies = Copies(start, range(num_nodes))  # theta_hat of each node, in their order
        self.mean = start.clone()  # m
        self.relayed = start.clone()  # m_hat
        self._codec = to_codec(self.options.codec)
        self._packet: Packet | None = None
        self._received = False

    @property
    def codec(self) -> Codec:
        return self._codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        self._codec = to_codec(codec)

    def in_(self, packets: Sequence[Packet]) -> None:
        """Takes in the packets of all nodes, in the order of the nodes."""
        if self._received:
            raise ValueError(
                f"gossip: the relay has round {self.round} already; call out before the next in_"
            )
        if len(packets) != self.num_nodes:
            raise ValueError(f"gossip: expected packets of {self.num_nodes} nodes, got {len(packets)}")
        self.copies.add(dict(enumerate(packets)))
        for start in range(0, self.mean.numel(), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            # In float64: the mean of equal copies must be that copy, or nodes that agree would go on moving.
            first, *others = self.copies.vectors.values()
            total = first[chunk].double()
            for copy in others:
                total.add_(copy[chunk])
            self.mean[chunk] = total.div_(self.num_nodes)
        self._received = True

    def out(self) -> Packet:
        """Returns the packet for all nodes. Ends the round."""
        if not self._received:
            raise ValueError(f"gossip: the relay has nothing of round {self.round} yet; call in_ before out")
        stamp = Stamp(
            run_seed=self.options.run_seed,
            round=self.round,
            sender=self.node,
            key=f"{self.options.key}/relay",
        )
        self._packet = encode_stamped(
            self.mean, self.relayed, self._codec, stamp, self.options.nonfinite, self._packet
        )
        self._received = False
        self.round += 1
        return self._packet

    def state_dict(self) -> dict[str, Any]:
        if self._received:
            raise ValueError("gossip: a round is under way; take the state between out and in_")
        vectors = {name: vector.clone() for name, vector in self._vectors().items()}
        return {"round": self.round, "codec": str(self._codec), **vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; a round that was under way is dropped."""
        load_vectors(self._vectors(), state)
        self.round = int(state["round"])
        self._codec = to_codec(state["codec"])
        self._received = False
        self._packet = None

    def _vectors(self) -> dict[str, torch.Tensor]:
        copies = {f"received.{k}": vector for k, vector in self.copies.vectors.items()}
        return {**copies, "relayed": self.relayed}
