"""Two-way compressed gossip through a relay: two messages a node and round, however many nodes there are.

    node:   q_i = C(theta_i - theta_hat_i);  theta_hat_i += q_i;  send q_i to the relay
    relay:  m += mean of q_i;  p = C(m - m_hat);  m_hat += p;  send p to all nodes
    node:   m_hat += p;  theta_i += step_size (m_hat - theta_hat_i)

A node's own weights never take a quantised value, only a force towards the consensus. The mean of theta is
preserved up to step_size (m_hat - m) a round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec
from dance.gossip.guard import DivergenceGuard
from dance.gossip.node import GossipOptions, Stamp, check_reference, check_theta, encode_stamped
from dance.gossip.step_size import default_step_size
from dance.packet import Packet, decode, mix


class HubNode:
    """Gossips ``theta`` (flat float32, changed in place) of node ``node`` through a relay.

    ``reference`` is the public copy that all nodes and the relay start from; None takes theta as it is now,
    which must then be equal at all nodes. A round: `out`, exchange, `in_`. Of ``options``, ``order`` is
    "fresh" only and ``rebuild_every`` has no use: there is no sum to drift, m and m_hat are the relay's
    alone.
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
        self._codec = to_codec(self.options.codec)
        self._auto = self.options.step_size == "auto"
        self.step_size = self._initial_step_size()
        self._packet: Packet | None = None
        self._sent = False
        self._guard = (
            DivergenceGuard(theta.numel(), f"node {node}, {self.options.key}") if self.options.guard else None
        )

    @property
    def codec(self) -> Codec:
        """The codec of the next packet; may be set before any round, and changes an automatic step size."""
        return self._codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        c = to_codec(codec)
        if c == self._codec:
            return
        self._codec = c
        if self._auto:
            self.step_size = self._initial_step_size()
        if self._guard is not None:
            self._guard.reset()

    def out(self) -> Packet:
        """Returns the packet for the relay and adds what it holds to the public copy, in place."""
        if self._sent:
            raise ValueError(f"gossip: round {self.round} is already sent; call in_ before the next out")
        if self._guard is not None:
            self._guard.before_encode(self.theta, self.reference)
        stamp = Stamp(
            run_seed=self.options.run_seed, round=self.round, sender=self.node, key=self.options.key
        )
        self._packet = encode_stamped(
            self.theta, self.reference, self._codec, stamp, self.options.nonfinite, self._packet
        )
        self._sent = True
        return self._packet

    def in_(self, packet: Packet) -> None:
        """Takes in the relay's packet and moves theta, in place. Ends the round."""
        if not self._sent:
            raise ValueError(f"gossip: round {self.round} is not sent yet; call out before in_")
        decode(packet, out=self.relayed, add=True)
        if self._guard is not None:
            self._guard.before_mix(self.theta)
        mix(self.theta, self.relayed, self.reference, self.step_size)
        if self._guard is not None and self._guard.after_mix(self.theta, self.step_size):
            self.step_size /= 2.0
        self._sent = False
        self.round += 1

    def _initial_step_size(self) -> float:
        return default_step_size(self._codec) if self._auto else float(self.options.step_size)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the node remembers but theta, which is its owner's."""
        if self._sent:
            raise ValueError("gossip: a round is under way; take the state between in_ and out")
        state: dict[str, Any] = {
            "round": self.round,
            "step_size": self.step_size,
            "codec": str(self._codec),
            "reference": self.reference.clone(),
            "relayed": self.relayed.clone(),
        }
        if self._guard is not None:
            state.update({f"guard.{key}": value for key, value in self._guard.state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference.copy_(state["reference"])
        self.relayed.copy_(state["relayed"])
        if self._guard is not None:
            self._guard.load_state_dict(
                {key[len("guard.") :]: value for key, value in state.items() if key.startswith("guard.")}
            )
        self.round = int(state["round"])
        self._codec = to_codec(state["codec"])
        self.step_size = float(state["step_size"])
        self._packet = None


class HubRelay:
    """The relay of a hub with ``num_nodes`` nodes; ``reference`` is what all nodes start from.

    ``node`` is the id of the node at which it lives. A round: `in_` with the packets of all nodes, then
    `out`.
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
        self.mean = reference.detach().clone()  # m, the mean of the nodes' public copies
        self.relayed = reference.detach().clone()  # m_hat
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
        """Takes in the packets of all nodes, in the order of the nodes: sums depend on it."""
        if self._received:
            raise ValueError(
                f"gossip: the relay has round {self.round} already; call out before the next in_"
            )
        if len(packets) != self.num_nodes:
            raise ValueError(f"gossip: expected packets of {self.num_nodes} nodes, got {len(packets)}")
        for packet in packets:
            decode(packet, out=self.mean, add=True, weight=1.0 / self.num_nodes)
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
        return {
            "round": self.round,
            "codec": str(self._codec),
            "mean": self.mean.clone(),
            "relayed": self.relayed.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self.relayed.copy_(state["relayed"])
        self.round = int(state["round"])
        self._codec = to_codec(state["codec"])
        self._packet = None
