"""AC-GAN: generators and discriminators on different nodes, discriminators that gossip in compressed packets.

A reconstruction from what the DANCE paper publishes openly (its phases: local update, discriminators
aggregation, iterative training), with a recipe of our own; the paper's code and tables are not to be had.
One round, in the order "fresh":
    1. every G-Node sends every D-Node a batch of images of its own (attachment "all")
    2. D-Nodes take L local steps against them and their private images
    3. every H rounds D-Nodes gossip: through a relay at G-Node 0 (topology "hub", CHOCO both ways) or with
       their neighbours in a graph; with block Adam the second moments travel along, a few floats; every 8
       gossips all nodes ask each other whether a guard wants half the step
    4. every D-Node answers every G-Node with the gradient of its loss at the images; G-Nodes take one step
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import dance
from dance import topology
from dance.exchange import Exchange, Expected, Message
from dance.gan.choice import Choice
from dance.gan.config import RunConfig
from dance.gan.messages import Post, content
from dance.gan.nodes import Batches, DNode, build_discriminator, build_generator, discriminator_net, under
from dance.gan.optimizers import BlockAdam
from dance.gossip import AGREE_EVERY, GossipNode, GossipOptions, HubNode, HubRelay, default_step_size

RELAY = 0
_NONE = dance.codec("none")


class Acgan:
    """G-Nodes are 0..M-1, D-Nodes M..M+N-1; `generators` and `discriminators` hold those of this process."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Tensor]) -> None:
        self.exchange = exchange
        self.post = Post(exchange=exchange, seed=config.seed)
        self.g_ids = list(range(config.g_nodes))
        self.d_ids = list(range(config.g_nodes, config.g_nodes + config.d_nodes))
        shape = tuple(parts[0].shape[1:])
        self.batch_shape = (config.batch_size, *shape)
        self.choices = {node: Choice(config, exchange, node, math.prod(shape)) for node in exchange.nodes}
        self.generators = {
            node: build_generator(config, shape, node) for node in self.g_ids if node in exchange.nodes
        }
        self.discriminators: dict[int, DNode] = {}
        for node, part in zip(self.d_ids, parts, strict=True):
            if node in exchange.nodes:
                batches = Batches(images=part, size=config.batch_size, seed=config.seed, node=node)
                self.discriminators[node] = build_discriminator(config, config.d_optimizer, batches)
        # One D-Node has nobody to agree with: it sends no gossip and is a standalone GAN's discriminator.
        self.period = config.acgan.period if config.d_nodes > 1 else 0
        self.shares_moments = config.d_optimizer == "block-adam"
        self.hub = config.topology == "hub"
        self.relay: HubRelay | None = None
        self.gossips: dict[int, HubNode | GossipNode] = {}
        first = discriminator_net(config, shape)
        self.theta_shape, self.num_tensors = tuple(first.theta.shape), len(first.sizes)
        if self.period:
            self._build_gossip(config, first.theta)

    def _build_gossip(self, config: RunConfig, theta_0: Tensor) -> None:
        graph = None if self.hub else topology.named(config.topology, config.d_nodes, seed=config.seed)
        step_size: float | str = "auto" if config.acgan.step_size is None else config.acgan.step_size
        choice = next(iter(self.choices.values()))
        if step_size == "auto" and choice.expected("gossip") is None:
            # Nodes may choose different codecs, and steps that differ would not preserve the mean.
            step_size = min(default_step_size(each, graph) for each in choice.candidates["gossip"])
        for position, node in enumerate(self.d_ids):
            if node not in self.discriminators:
                continue
            # With auto the first packets are the smallest; the codec is set again before every packet.
            codec = self.choices[node].expected("gossip") or "sign"
            options = GossipOptions(codec=codec, step_size=step_size, run_seed=config.seed)
            theta = self.discriminators[node].net.theta
            self.gossips[node] = (
                HubNode(theta, node, options)
                if graph is None
                else GossipNode(theta, graph, position, options, ids=self.d_ids)
            )
        if self.hub and RELAY in self.generators:
            codec = self.choices[RELAY].expected("gossip") or "sign"
            options = GossipOptions(codec=codec, run_seed=config.seed)
            self.relay = HubRelay(theta_0, RELAY, config.d_nodes, options)

    def round(self, round_index: int) -> None:
        images = self._images(round_index)
        for node, d in self.discriminators.items():
            with self.post.computing(node):
                d.local_update(round_index, torch.cat([images[g, node] for g in self.g_ids]))
        if self.period and (round_index + 1) % self.period == 0:
            if self.hub:
                self._gossip_through_hub(round_index)
            else:
                self._gossip_with_neighbours(round_index)
            if (round_index + 1) // self.period % AGREE_EVERY == 0:
                self._agree()
        else:
            for d in self.discriminators.values():
                d.end_round()
        self._feedback(round_index, images)

    def _images(self, round_index: int) -> dict[tuple[int, int], Tensor]:
        """G-Node -> every D-Node: a batch of its own; returns (G-Node, D-Node) -> images as they arrived."""
        outbox = []
        for g_id, g in self.generators.items():
            with self.post.computing(g_id):
                for d_id, batch in g.generate(round_index, self.d_ids).items():
                    codec = self.choices[g_id].codec("image", batch.numel(), round_index, [d_id])
                    outbox.append(self.post.message(batch, codec, g_id, d_id, "image", round_index))
        edges = [(g_id, d_id) for d_id in self.discriminators for g_id in self.g_ids]
        inbox = self.exchange.deliver(outbox, self._expected("image", edges, round_index))
        return {(message.source, message.target): content(message.packet) for message in inbox}

    def _gossip_through_hub(self, round_index: int) -> None:
        """D-Node -> relay: q_i and its second moment; relay -> all: p and the mean moment; all move."""
        up: list[Message] = []
        for node, gossip in self.gossips.items():
            assert isinstance(gossip, HubNode)
            with self.post.computing(node):
                gossip.codec = self.choices[node].codec("gossip", gossip.theta.numel(), round_index, [RELAY])
                up.append(Message(source=node, target=RELAY, kind="gossip", packet=gossip.out()))
                up += self._moments_to([RELAY], node, round_index)
        edges = [(node, RELAY) for node in self.d_ids if self.relay is not None]
        inbox = self.exchange.deliver(up, self._expected_gossip(edges, round_index))
        down: list[Message] = []
        if self.relay is not None:
            with self.post.computing(RELAY):
                down = self._relayed(self.relay, inbox, round_index)
        edges = [(RELAY, node) for node in self.discriminators]
        for message in self.exchange.deliver(down, self._expected_gossip(edges, round_index)):
            with self.post.computing(message.target):
                gossip = self.gossips[message.target]
                if message.kind == "gossip":
                    assert isinstance(gossip, HubNode)
                    gossip.in_(message.packet)
                else:
                    self._solver(message.target).moment_in(content(message.packet))

    def _relayed(self, relay: HubRelay, inbox: Sequence[Message], round_index: int) -> list[Message]:
        relay.in_([message.packet for message in inbox if message.kind == "gossip"])
        relay.codec = self.choices[RELAY].codec("gossip", relay.mean.numel(), round_index, self.d_ids)
        packets = {"gossip": relay.out()}
        moments = [content(message.packet) for message in inbox if message.kind == "moment"]
        if moments:
            mean = torch.stack(moments).mean(0)
            packets["moment"] = self.post.packet(mean, _NONE, RELAY, "moment", round_index)
        return [
            Message(source=RELAY, target=node, kind=kind, packet=packet)
            for node in self.d_ids
            for kind, packet in packets.items()
        ]

    def _gossip_with_neighbours(self, round_index: int) -> None:
        """D-Node -> its neighbours: q_i and its second moment; each mixes them with the graph's weights."""
        outbox: list[Message] = []
        expected: list[Expected] = []
        for node, gossip in self.gossips.items():
            assert isinstance(gossip, GossipNode)
            peers = gossip.peers
            with self.post.computing(node):
                gossip.codec = self.choices[node].codec("gossip", gossip.theta.numel(), round_index, peers)
                outbox += gossip.messages()
                outbox += self._moments_to(peers, node, round_index)
            expected += gossip.expected()
            expected += self._expected_moments([(peer, node) for peer in peers], round_index)
        inbox = self.exchange.deliver(outbox, expected)
        for node, gossip in self.gossips.items():
            assert isinstance(gossip, GossipNode)
            arrived = [message for message in inbox if message.target == node]
            with self.post.computing(node):
                weights = gossip.topology.weights(gossip.round)[gossip.position]
                moments = {m.source: content(m.packet) for m in arrived if m.kind == "moment"}
                gossip.in_({m.source: m.packet for m in arrived if m.kind == "gossip"})
                if self.shares_moments:
                    mixed = self._solver(node).moment_out() * float(weights[gossip.position])
                    for peer, moment in moments.items():
                        mixed += moment * float(weights[self.d_ids.index(peer)])
                    self._solver(node).moment_in(mixed)

    def _agree(self) -> None:
        """All nodes halve their gossip's step if the guard of one asks for it."""
        if self.exchange.any(any(gossip.alarm for gossip in self.gossips.values())):
            for gossip in self.gossips.values():
                gossip.halve()

    def _feedback(self, round_index: int, images: Mapping[tuple[int, int], Tensor]) -> None:
        """D-Node -> every G-Node: the gradient of its loss at the images; all G-Nodes step together."""
        outbox = []
        for d_id, d in self.discriminators.items():
            with self.post.computing(d_id):
                for g_id in self.g_ids:
                    gradient = d.feedback(images[g_id, d_id])
                    codec = self.choices[d_id].codec("feedback", gradient.numel(), round_index, [g_id])
                    outbox.append(self.post.message(gradient, codec, d_id, g_id, "feedback", round_index))
        edges = [(d_id, g_id) for g_id in self.generators for d_id in self.d_ids]
        inbox = self.exchange.deliver(outbox, self._expected("feedback", edges, round_index))
        for g_id, g in self.generators.items():
            with self.post.computing(g_id):
                feedback = {m.source: content(m.packet) for m in inbox if m.target == g_id}
                g.absorb(feedback, len(self.d_ids) * self.batch_shape[0])

    def _expected(self, kind: str, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        return [
            Expected(
                source=source,
                target=target,
                kind=kind,
                shape=self.batch_shape,
                codec=self.choices[target].expected(kind),
                round=round_index,
            )
            for source, target in edges
        ]

    def _expected_gossip(self, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        turn = (round_index + 1) // self.period - 1  # packets of gossip are numbered by gossip rounds
        expected = []
        for source, target in edges:
            codec = self.choices[target].expected("gossip")
            expected.append(
                Expected(
                    source=source,
                    target=target,
                    kind="gossip",
                    shape=self.theta_shape,
                    codec=codec,
                    round=turn,
                )
            )
            expected += self._expected_moments([(source, target)], round_index)
        return expected

    def _expected_moments(self, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        return [
            Expected(
                source=source,
                target=target,
                kind="moment",
                shape=(self.num_tensors,),
                codec=_NONE,
                round=round_index,
            )
            for source, target in edges
            if self.shares_moments
        ]

    def _moments_to(self, peers: Sequence[int], node: int, round_index: int) -> list[Message]:
        if not self.shares_moments:
            return []
        packet = self.post.packet(self._solver(node).moment_out(), _NONE, node, "moment", round_index)
        return [Message(source=node, target=peer, kind="moment", packet=packet) for peer in peers]

    def _solver(self, node: int) -> BlockAdam:
        solver = self.discriminators[node].solver
        assert isinstance(solver, BlockAdam)
        return solver

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.generators[0].sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        d = self.discriminators.get(node)
        return None if d is None else (d.d_loss, d.g_loss)

    def codecs(self, node: int) -> dict[str, str]:
        return dict(self.choices[node].used)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {"choice": self.choices[node].state_dict(), "gossip": {}}
        owner = self.discriminators.get(node) or self.generators[node]
        tensors |= owner.state_dict()
        for name, value in self._gossip_state(node).items():
            if isinstance(value, Tensor):
                tensors[f"gossip.{name}"] = value
            else:
                meta["gossip"][name] = value
        return tensors, meta

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.choices[node].load_state_dict(meta["choice"])
        owner = self.discriminators.get(node) or self.generators[node]
        owner.load_state_dict(tensors)
        gossip = self._gossip_of(node)
        if gossip is not None:
            gossip.load_state_dict({**meta["gossip"], **under("gossip.", tensors)})

    def _gossip_of(self, node: int) -> HubNode | GossipNode | HubRelay | None:
        return self.relay if node == RELAY else self.gossips.get(node)

    def _gossip_state(self, node: int) -> dict[str, Any]:
        gossip = self._gossip_of(node)
        return {} if gossip is None else gossip.state_dict()
