"""Gossip GAN (Hardy, Le Merrer and Sericola 2018): whole GANs that move between peers, without a server.

Every node trains a G and a D of its own on its own images. After every T rounds each node sends its model to
a random peer, and a node averages what arrives with what it has, in the order of the senders:
    variant A: G and D go to one peer together
    variant B: G and D go to peers that are drawn independently
All nodes send what they had before the exchange; a node that nobody chose keeps its model, one that several
chose averages several times, w = (w + w_j) / 2. The states of the optimizers stay. There is no server whose
average could be evaluated, and the mean over nodes is nowhere: what is evaluated is the generator of node 0.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dance.exchange import Exchange, Expected
from dance.gan.choice import Choice
from dance.gan.computing import WHOLE
from dance.gan.config import RunConfig
from dance.gan.messages import Post, content
from dance.gan.models import FlatModule
from dance.gan.nodes import Batches, DNode, GNode, build_discriminator, build_generator
from dance.gan.parts import Part
from dance.gan.standalone import local_round
from dance.packet import derive_seed

# What travels in one packet, in each variant: the kind of the message, and whose parameters it holds.
_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "a": {"model": ("g", "d")},
    "b": {"generator": ("g",), "discriminator": ("d",)},
}


def peer_of(seed: int, round_index: int, node: int, kind: str, num_nodes: int) -> int:
    """The peer that `node` sends its `kind` to after this round; the same at every node that asks."""
    drawn = random.Random(derive_seed(seed, round_index, node, kind, "peer")).randrange(num_nodes - 1)
    return drawn + (drawn >= node)


class Gossipgan:
    """Nodes 0..N-1 are the workers; `local` holds the G and the D of those in this process."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> None:
        self.exchange = exchange
        self.post = Post(exchange=exchange, seed=config.seed)
        self.seed = config.seed
        self.num_nodes = config.d_nodes
        settings = config.gossipgan
        # T: an epoch of L batches a round, m being the mean number of images a worker holds.
        epoch = max(1, sum(map(len, parts)) // config.d_nodes // (config.batch_size * config.local_steps))
        self.period = epoch if settings.period is None else settings.period
        self.kinds = _KINDS[settings.variant]
        shape = tuple(parts[0].shape[1:])
        self.local: dict[int, tuple[GNode, DNode]] = {}
        for node, part in enumerate(parts):
            if node in exchange.nodes:
                # Numbered as a G-Node and its D-Node: a worker alone is a standalone GAN, bit for bit.
                batches = Batches(images=part, size=config.batch_size, seed=config.seed, node=node + 1)
                d = build_discriminator(config, settings.d_optimizer, batches)
                self.local[node] = (build_generator(config, shape, node), d)
        text = config.codec or settings.codec
        texts = dict.fromkeys(self.kinds, text)
        self.choices = {
            node: Choice(config, exchange, node, parts[0][0].numel(), texts, phases=1) for node in self.local
        }

    def round(self, round_index: int) -> None:
        for node, (g, d) in self.local.items():
            with self.post.computing(node, WHOLE):
                local_round(g, d, round_index)
        if self.num_nodes > 1 and (round_index + 1) % self.period == 0:
            self._gossip(round_index)

    def _gossip(self, round_index: int) -> None:
        """Worker -> the peer it drew: its model; the peer averages."""
        outbox, expected = [], []
        for kind in self.kinds:
            for source in range(self.num_nodes):
                target = peer_of(self.seed, round_index, source, kind, self.num_nodes)
                if source in self.local:
                    with self.post.computing(source):
                        model = self._flat(source, kind)
                        codec = self.choices[source].codec(
                            kind, model.numel(), round_index, [target], every=self.period
                        )
                        outbox.append(self.post.message(model, codec, source, target, kind, round_index))
                if target in self.local:
                    expected.append(
                        Expected(
                            source=source,
                            target=target,
                            kind=kind,
                            shape=tuple(self._flat(target, kind).shape),
                            codec=self.choices[target].expected(kind),
                            round=round_index,
                        )
                    )
        for message in self.exchange.deliver(outbox, expected):
            with self.post.computing(message.target):
                self._average(message.target, message.kind, content(message.packet))

    def _flat(self, node: int, kind: str) -> Tensor:
        """What a message of that kind holds, in memory of its own: nodes average before peers have read."""
        return torch.cat([net.theta for net in self._nets(node, kind)])

    def _average(self, node: int, kind: str, arrived: Tensor) -> None:
        nets = self._nets(node, kind)
        for net, theirs in zip(nets, torch.split(arrived, [net.theta.numel() for net in nets]), strict=True):
            net.theta.lerp_(theirs, 0.5)

    def _nets(self, node: int, kind: str) -> list[FlatModule]:
        g, d = self.local[node]
        return [{"g": g.net, "d": d.net}[part] for part in self.kinds[kind]]

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.local[0][0].sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return self.local[node][1].d_loss, self.local[node][1].g_loss

    def codecs(self, node: int) -> dict[str, str]:
        return dict(self.choices[node].used)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        g, d = self.local[node]
        return {**g.state_dict(), **d.state_dict()}, {"choice": self.choices[node].state_dict()}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.choices[node].load_state_dict(meta["choice"])
        for part in self.local[node]:
            part.load_state_dict(tensors)
