"""Nodes that stay together by gossip: one flat vector each, through a relay at the hub or along a graph.

With block Adam the nodes' second moments travel along, a few floats. Every 8 gossips all nodes ask each other
whether a guard wants half the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dance import topology
from dance.exchange import Expected, Message
from dance.gan.acgan.wires import HUB, NONE, Wires
from dance.gan.config import RunConfig
from dance.gan.messages import content
from dance.gan.nodes import under
from dance.gan.optimizers import BlockAdam
from dance.gossip import AGREE_EVERY, GossipNode, GossipOptions, HubNode, HubRelay, default_step_size

MOMENT = "moment"


@dataclass(frozen=True, kw_only=True)
class Members:
    """What gossips: the vectors of this process's nodes, all equal to `start` now, and how often (H).

    `solvers`: where optimizers share their second moments, those of the same nodes.
    """

    thetas: Mapping[int, Tensor]
    start: Tensor
    period: int
    kind: str = "gossip"
    solvers: Mapping[int, BlockAdam] = field(default_factory=dict)
    num_moments: int = 0


class Gossip:
    """A gossip of all D-Nodes; in a round that is `due`: `begin`, deliver, `end`."""

    def __init__(self, config: RunConfig, wires: Wires, members: Members) -> None:
        self.wires = wires
        self.members = members
        self.hub = config.topology == "hub"
        self.period = members.period  # equal at all nodes, who change it together
        self.turn = 0  # gossips so far, equal at all nodes; packets are numbered by it
        self.relay: HubRelay | None = None
        self.nodes: dict[int, HubNode | GossipNode] = {}
        kind, ids = members.kind, wires.d_ids
        graph = None if self.hub else topology.named(config.topology, len(ids), seed=config.seed)
        self.graph = graph
        step_size: float | str = "auto" if config.acgan.step_size is None else config.acgan.step_size
        choice = next(iter(wires.choices.values()))
        if step_size == "auto" and choice.expected(kind) is None:
            # Nodes may choose different codecs, and steps that differ would not preserve the mean.
            step_size = min(default_step_size(each, graph) for each in choice.candidates[kind])
        for position, node in enumerate(ids):
            if node not in members.thetas:
                continue
            # With auto the first packets are the smallest; the codec is set again before every packet.
            codec = wires.choices[node].expected(kind) or "sign"
            options = GossipOptions(codec=codec, step_size=step_size, run_seed=config.seed, key=kind)
            theta = members.thetas[node]
            self.nodes[node] = (
                HubNode(theta, node, options)
                if graph is None
                else GossipNode(theta, graph, position, options, ids=ids)
            )
        if self.hub and HUB in wires.here:
            codec = wires.choices[HUB].expected(kind) or "sign"
            options = GossipOptions(codec=codec, run_seed=config.seed, key=kind)
            self.relay = HubRelay(members.start, HUB, len(ids), options)

    def due(self, round_index: int) -> bool:
        return (round_index + 1) % self.period == 0

    def ways(self) -> list[tuple[int, int]]:
        """(source, target) of this turn's messages, in any process, along which links are reported.

        With a hub none: the generators' messages report the same links.
        """
        ids = self.wires.d_ids
        if self.graph is None:
            return []
        return [
            (node, ids[peer])
            for position, node in enumerate(ids)
            for peer in self.graph.neighbors(position, self.turn)
        ]

    def begin(self, round_index: int) -> tuple[list[Message], list[Expected]]:
        """What nodes send first, and expect: with a hub to the relay, on a graph to their neighbours."""
        if self.hub:
            return self._up(round_index)
        outbox: list[Message] = []
        expected: list[Expected] = []
        for node, gossip in self.nodes.items():
            assert isinstance(gossip, GossipNode)
            peers = gossip.peers
            with self.wires.post.computing(node):
                gossip.codec = self._codec(node, round_index, peers)
                outbox += gossip.messages(self.members.kind)
                outbox += self._moments_to(peers, node, round_index)
            expected += gossip.expected(self.members.kind)
            expected += self._expected_moments([(peer, node) for peer in peers], round_index)
        return outbox, expected

    def end(self, inbox: Sequence[Message], round_index: int) -> None:
        """Takes in what arrived of the messages of `begin`, and moves all nodes' vectors."""
        inbox = [message for message in inbox if message.kind in (self.members.kind, MOMENT)]
        if self.hub:
            self._down(inbox, round_index)
        else:
            self._mix(inbox)
        self.turn += 1
        if self.turn % AGREE_EVERY == 0:
            self._agree()

    def aggregate(self, round_index: int) -> None:
        """`begin`, deliver and `end` in one, where a round is due."""
        if self.due(round_index):
            outbox, expected = self.begin(round_index)
            inbox = self.wires.reports.deliver(outbox, expected, self.ways(), round_index)
            self.end(inbox, round_index)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a node remembers of the gossip: tensors, and plain values."""
        part = self._part(node)
        values = {} if part is None else part.state_dict()
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in values.items() if name not in tensors}
        return {f"{self.members.kind}.{name}": tensor for name, tensor in tensors.items()}, {
            "turn": self.turn,
            **plain,
        }

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.turn = int(meta["turn"])
        part = self._part(node)
        if part is not None:
            part.load_state_dict({**meta, **under(f"{self.members.kind}.", tensors)})

    def _up(self, round_index: int) -> tuple[list[Message], list[Expected]]:
        """D-Node -> relay: q_i and its second moment."""
        outbox: list[Message] = []
        for node, gossip in self.nodes.items():
            assert isinstance(gossip, HubNode)
            with self.wires.post.computing(node):
                gossip.codec = self._codec(node, round_index, [HUB])
                outbox.append(Message(source=node, target=HUB, kind=self.members.kind, packet=gossip.out()))
                outbox += self._moments_to([HUB], node, round_index)
        edges = [(node, HUB) for node in self.wires.d_ids if self.relay is not None]
        return outbox, self._expected(edges, round_index)

    def _down(self, inbox: Sequence[Message], round_index: int) -> None:
        """Relay -> all: p and the mean moment; all move."""
        outbox: list[Message] = []
        if self.relay is not None:
            with self.wires.post.computing(HUB):
                outbox = self._relayed(self.relay, inbox, round_index)
        expected = self._expected([(HUB, node) for node in self.nodes], round_index)
        for message in self.wires.exchange.deliver(outbox, expected):
            with self.wires.post.computing(message.target):
                gossip = self.nodes[message.target]
                if message.kind == MOMENT:
                    self.members.solvers[message.target].moment_in(content(message.packet))
                else:
                    assert isinstance(gossip, HubNode)
                    gossip.in_(message.packet)

    def _relayed(self, relay: HubRelay, inbox: Sequence[Message], round_index: int) -> list[Message]:
        relay.in_([message.packet for message in inbox if message.kind != MOMENT])
        relay.codec = self._codec(HUB, round_index, self.wires.d_ids)
        packets = {self.members.kind: relay.out()}
        moments = [content(message.packet) for message in inbox if message.kind == MOMENT]
        if moments:
            mean = torch.stack(moments).mean(0)
            packets[MOMENT] = self.wires.post.packet(mean, NONE, HUB, MOMENT, round_index)
        return [
            Message(source=HUB, target=node, kind=kind, packet=packet)
            for node in self.wires.d_ids
            for kind, packet in packets.items()
        ]

    def _mix(self, inbox: Sequence[Message]) -> None:
        """Each node mixes its neighbours' packets and second moments with the graph's weights."""
        for node, gossip in self.nodes.items():
            assert isinstance(gossip, GossipNode)
            arrived = [message for message in inbox if message.target == node]
            with self.wires.post.computing(node):
                weights = gossip.topology.weights(gossip.round)[gossip.position]
                moments = {m.source: content(m.packet) for m in arrived if m.kind == MOMENT}
                gossip.in_({m.source: m.packet for m in arrived if m.kind != MOMENT})
                if self.members.solvers:
                    solver = self.members.solvers[node]
                    mixed = solver.moment_out() * float(weights[gossip.position])
                    for peer, moment in moments.items():
                        mixed += moment * float(weights[self.wires.d_ids.index(peer)])
                    solver.moment_in(mixed)

    def _agree(self) -> None:
        """All nodes halve their gossip's step if the guard of one asks for it."""
        if self.wires.exchange.any(any(gossip.alarm for gossip in self.nodes.values())):
            for gossip in self.nodes.values():
                gossip.halve()

    def _codec(self, node: int, round_index: int, peers: Sequence[int]) -> Any:
        kind, numel = self.members.kind, self.members.start.numel()
        return self.wires.choices[node].codec(kind, numel, round_index, peers, every=self.period)

    def _expected(self, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        expected = []
        for source, target in edges:
            expected.append(
                Expected(
                    source=source,
                    target=target,
                    kind=self.members.kind,
                    shape=tuple(self.members.start.shape),
                    codec=self.wires.choices[target].expected(self.members.kind),
                    round=self.turn,
                )
            )
            expected += self._expected_moments([(source, target)], round_index)
        return expected

    def _expected_moments(self, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        return [
            Expected(
                source=source,
                target=target,
                kind=MOMENT,
                shape=(self.members.num_moments,),
                codec=NONE,
                round=round_index,
            )
            for source, target in edges
            if self.members.num_moments
        ]

    def _moments_to(self, peers: Sequence[int], node: int, round_index: int) -> list[Message]:
        if not self.members.num_moments:
            return []
        moment = self.members.solvers[node].moment_out()
        packet = self.wires.post.packet(moment, NONE, node, MOMENT, round_index)
        return [Message(source=node, target=peer, kind=MOMENT, packet=packet) for peer in peers]

    def _part(self, node: int) -> HubNode | GossipNode | HubRelay | None:
        return self.relay if node == HUB and self.hub else self.nodes.get(node)
