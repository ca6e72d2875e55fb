"""One node of compressed gossip on a graph: a state machine on one flat tensor (Koloskova et al. 2019).

    q = C(theta - theta_hat);  theta_hat += q;  send q to the neighbours
    theta += step_size sum_j w_ij (theta_hat_j - theta_hat)

Two ways to remember the neighbours. "copies": the public copy of each, so what one end of an edge gains is
what the other loses, to the bit, and the mean drifts by no more than the rounding of theta. "sum": only s =
sum_j w_ij theta_hat_j, three vectors a node whatever its degree; but what is lost in rounding s is lost for
good and pulls theta in every round from then on, so s is built anew now and then. Seen on a ring of 8 with
int8, 600 rounds from unit disagreement: the mean moved by 1e-4 of its size with sums. Along a periodic
sequence of graphs (matchings) each edge has public copies of its own and a packet goes to one peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dance.codecs import Codec, Like, Uncompressed
from dance.codecs import codec as to_codec
from dance.exchange import Expected, Message
from dance.gossip.guard import DivergenceGuard
from dance.gossip.step_size import default_step_size
from dance.packet import Packet, decode, derive_seed, encode, encode_difference, mix
from dance.topology import Matrix, Topology

ORDERS = ("fresh", "overlap")
MEMORIES = ("auto", "copies", "sum")
_COPIES_NBYTES = 1 << 30
_CHUNK = 1 << 16  # elements whose force is summed at a time, in cache


@dataclass(frozen=True, kw_only=True)
class GossipOptions:
    """How a node gossips; equal at all nodes but for ``codec``, which is each node's own.

    ``order``: "fresh" exchanges and then moves, "overlap" moves with the copies of the round before, so that
    the exchange may run while the node computes. ``memory``: "copies", "sum" (fixed graphs only), or "auto":
    copies while they take no more than 1 GiB. ``rebuild_every``: after so many rounds sums are built anew
    from uncompressed packets (0: never). ``guard``: watch for divergence; the guard halves the step of this
    node, or, if ``agree``, only raises `GossipNode.alarm`, for all nodes to call `GossipNode.halve` in the
    same round: step sizes that differ do not preserve the mean. ``key`` and ``run_seed`` go into the packets'
    seeds.
    """

    codec: Like = "sign"
    step_size: float | str = "auto"
    order: str = "fresh"
    memory: str = "auto"
    rebuild_every: int = 1000
    guard: bool = True
    agree: bool = False
    nonfinite: str = "raise"
    run_seed: int = 0
    key: str = "gossip"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"gossip: expected order {' or '.join(ORDERS)}, got {self.order!r}")
        if self.memory not in MEMORIES:
            raise ValueError(f"gossip: expected memory {', '.join(MEMORIES)}, got {self.memory!r}")
        if self.rebuild_every < 0:
            raise ValueError(f"gossip: expected rebuild_every of at least 0, got {self.rebuild_every}")
        check_step_size(self.step_size)


class GossipNode:
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
        self._sums = self._choose_sums()
        edges = topology.distinct_neighbors(position)
        # What this node sent, by own key: one public copy on a fixed graph, one an edge along a sequence.
        self._own = {key: start.clone() for key in ((position,) if self._fixed else edges)}
        # What came in: s under the own position, or the public copy of each neighbour.
        self._theirs = {key: start.clone() for key in ((position,) if self._sums else edges)}
        self._force, self._zero = torch.zeros(2, min(_CHUNK, theta.numel())).unbind()
        self._weights = fixed_point(topology.weights()[position], position)
        self._packets: dict[int, Packet] = {}
        self._sent: dict[int, Packet] | None = None
        self._codec = to_codec(self.options.codec)
        self._auto = self.options.step_size == "auto"
        self.step_size = self._initial_step_size()
        name = f"node {self.ids[position]}, {self.options.key}"
        self.alarm = False
        self._guards = {
            edge: DivergenceGuard(theta.numel(), name) for edge in self._own if self.options.guard
        }

    @property
    def codec(self) -> Codec:
        """The codec of the next packet; may be set before any round, and changes an automatic step."""
        return self._codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        c = to_codec(codec)
        if c == self._codec:
            return
        self._codec = c
        if self._auto:
            self.step_size = self._initial_step_size()
        for guard in self._guards.values():
            guard.reset()

    @property
    def packet_codec(self) -> Codec:
        """The codec that the packets of this round have: `codec`, or none in a round that builds s anew."""
        return Uncompressed() if self._rebuilds() else self._codec

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
        if self._sums:
            raise ValueError(
                "gossip: with memory='sum' a node keeps no copies of others; use memory='copies'"
            )
        return self._theirs[self.ids.index(peer)]

    def halve(self) -> None:
        """Halves the step size and lowers the alarm."""
        self.step_size /= 2.0
        self.alarm = False

    @property
    def peers(self) -> tuple[int, ...]:
        """The ids of the nodes that packets go to and come from in this round."""
        return tuple(self.ids[j] for j in self.topology.neighbors(self.position, self.round))

    def out(self) -> dict[int, Packet]:
        """Returns the packet for each peer (its id) and adds what it holds to the public copy, in place.

        On a fixed graph it is the same packet for all. Its memory is used again in the next round.
        """
        if self._sent is not None:
            raise ValueError(f"gossip: round {self.round} is already sent; call in_ before the next out")
        if self.options.order == "overlap" and self.round > 0:
            self._mix(self.round - 1)
        neighbors = self.topology.neighbors(self.position, self.round)
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
        neighbors = self.topology.neighbors(self.position, self.round)
        if self._sums:
            neighbour_sum = self._theirs[self.position]
            if self._rebuilds():
                neighbour_sum.zero_()
            own, row = self._sent[self.position], self._weights
            decode(own, out=neighbour_sum, add=True, weight=float(row[self.position]))
            for j in neighbors:
                decode(packets[self.ids[j]], out=neighbour_sum, add=True, weight=float(row[j]))
        else:
            for j in neighbors:
                decode(packets[self.ids[j]], out=self._theirs[j], add=True)
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

    def _choose_sums(self) -> bool:
        memory = self.options.memory
        if memory == "auto":
            copies = 1 + len(self.topology.distinct_neighbors(self.position))
            return self._fixed and 4 * self.theta.numel() * copies > _COPIES_NBYTES
        if memory == "sum" and not self._fixed:
            raise ValueError(f"gossip: sums need a fixed graph, {self.topology} changes; use memory='copies'")
        return memory == "sum"

    def _own_key(self, edge: int) -> int:
        return self.position if self._fixed else edge

    def _initial_step_size(self) -> float:
        if self._auto:
            return default_step_size(self._codec, self.topology)
        return float(self.options.step_size)

    def _rebuilds(self) -> bool:
        every = self.options.rebuild_every
        return self._sums and every > 0 and self.round > 0 and self.round % every == 0

    def _encode(self, edge: int) -> Packet:
        reference = self._own[edge]
        if edge in self._guards:
            self._guards[edge].before_encode(self.theta, reference)
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
            self.theta, reference, self._codec, stamp, self.options.nonfinite, self._packets.get(edge)
        )
        self._packets[edge] = packet
        return packet

    def _mix(self, round_: int) -> None:
        neighbors = self.topology.neighbors(self.position, round_)
        guarded = [self._guards[key] for key in self._own if key in self._guards]
        if not self._fixed:
            guarded = [self._guards[j] for j in neighbors if j in self._guards]
        for guard in guarded:
            guard.before_mix(self.theta)
        if self._sums:
            mix(self.theta, self._theirs[self.position], self._own[self.position], self.step_size)
        else:
            self._mix_copies(neighbors, self.topology.weights(round_)[self.position])
        fired = [guard.after_mix(self.theta, self.step_size) for guard in guarded]
        if any(fired):
            self.alarm = True
            if not self.options.agree:
                self.halve()

    def _mix_copies(self, neighbors: Sequence[int], weights: Matrix) -> None:
        """theta += step_size sum_j w_ij (theta_hat_j - theta_hat), the sum first: theta is rounded once a
        round.
        """
        for start in range(0, self.theta.numel(), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            theta = self.theta[chunk]
            force, zero = self._force[: theta.numel()].zero_(), self._zero[: theta.numel()]
            for j in neighbors:
                own = self._own[self._own_key(j)]
                mix(force, self._theirs[j][chunk], own[chunk], float(weights[j]))
            mix(theta, force, zero, self.step_size)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the node remembers but theta, its owner's: tensors, numbers, texts, lists."""
        if self._sent is not None:
            raise ValueError("gossip: a round is under way; take the state between in_ and out")
        state: dict[str, Any] = {
            "round": self.round,
            "step_size": self.step_size,
            "codec": str(self._codec),
            "alarm": self.alarm,
        }
        state.update({name: vector.clone() for name, vector in self._vectors().items()})
        for key, guard in self._guards.items():
            state.update({f"guard.{key}.{name}": value for name, value in guard.state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, vector in self._vectors().items():
            if name not in state or state[name].shape != vector.shape:
                raise ValueError(
                    f"gossip: the state has no {name} of {tuple(vector.shape)}; is it another graph or model?"
                )
            vector.copy_(state[name])
        for key, guard in self._guards.items():
            prefix = f"guard.{key}."
            guard.load_state_dict(
                {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            )
        self.round = int(state["round"])
        self._codec = to_codec(state["codec"])
        self.step_size = float(state["step_size"])
        self.alarm = bool(state["alarm"])
        self._packets.clear()

    def _vectors(self) -> dict[str, torch.Tensor]:
        sent = {f"sent.{self.ids[key]}": vector for key, vector in self._own.items()}
        received = {f"received.{self.ids[key]}": vector for key, vector in self._theirs.items()}
        return {**sent, **received}


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What the seed and the header of a packet are made of."""

    run_seed: int
    round: int
    sender: int
    key: str

    @property
    def seed(self) -> int:
        return derive_seed(self.run_seed, self.round, self.sender, self.key, "gossip")


def encode_stamped(
    x: torch.Tensor, reference: torch.Tensor, codec: Codec, stamp: Stamp, nonfinite: str, out: Packet | None
) -> Packet:
    """Returns `encode_difference` with what ``stamp`` says, in the memory of ``out`` if it fits."""
    fits = out is not None and out.codec == codec and out.shape == tuple(x.shape)
    packet = encode_difference(
        x, reference, codec, seed=stamp.seed, nonfinite=nonfinite, out=out if fits else None
    )
    packet.round, packet.sender = stamp.round, stamp.sender
    return packet


def fixed_point(row: Matrix, position: int) -> Matrix:
    """Returns a row of weights in multiples of 2^-24, which float32 holds exactly, and which still sum to 1.

    1/3 in float32 is 3e-8 too large; three of them would let theta grow by so much in every round.
    """
    weights = np.round(row * 2.0**24) / 2.0**24
    weights[position] = 0.0
    weights[position] = 1.0 - weights.sum()
    return weights


def check_theta(theta: torch.Tensor) -> None:
    if theta.dtype != torch.float32 or theta.dim() != 1 or not theta.is_contiguous():
        raise ValueError(
            "gossip: expected one flat contiguous float32 tensor, "
            f"got {theta.dtype} of shape {tuple(theta.shape)}"
        )


def check_reference(theta: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    if reference is None:
        return theta.detach()
    check_theta(reference)
    if reference.shape != theta.shape or reference.device != theta.device:
        raise ValueError(
            f"gossip: expected a reference like theta {tuple(theta.shape)}, got {tuple(reference.shape)}"
        )
    return reference.detach()


def check_step_size(step_size: float | str) -> None:
    if step_size == "auto":
        return
    if isinstance(step_size, str) or not 0.0 < step_size <= 1.0:
        raise ValueError(f"gossip: expected a step size in (0, 1] or 'auto', got {step_size!r}")
