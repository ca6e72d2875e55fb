"""FL-GAN: every worker trains a whole GAN on its own images; every E epochs a server averages them (FedAvg).

The rival of MD-GAN in Hardy et al. 2019. The average is weighted by the workers' numbers of images and goes
back to all; the states of the optimizers stay at the workers. The server's generator is evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import dance
from dance.exchange import Exchange, Expected, Message
from dance.gan.computing import WHOLE
from dance.gan.config import RunConfig
from dance.gan.messages import Post, content, resolve
from dance.gan.models.build import seeded_discriminator, seeded_generator
from dance.gan.nodes import Batches, DNode, GNode, build_discriminator, build_generator
from dance.gan.standalone import local_round

SERVER = 0
_LOG = logging.getLogger("dance.gan")


class Flgan:
    """The server is node 0, worker n is node 1 + n and holds a G-Node and a D-Node of that id."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Tensor]) -> None:
        self.exchange = exchange
        self.post = Post(exchange=exchange, seed=config.seed)
        shape = tuple(parts[0].shape[1:])
        self.codec = resolve(config.codec or config.flgan.codec, parts[0][0].numel())
        self.workers = [1 + n for n in range(config.d_nodes)]
        total = sum(len(part) for part in parts)
        self.shares = {node: len(part) / total for node, part in zip(self.workers, parts, strict=True)}
        # E m / b rounds of L batches each, m being the mean number of images a worker holds.
        epoch = max(1, total // config.d_nodes // (config.batch_size * config.local_steps))
        self.period = config.flgan.epochs * epoch
        self.server: GNode | None = None
        if SERVER in exchange.nodes:
            if config.rounds < self.period:
                _LOG.warning(
                    "fl-gan: %d rounds are less than the %d between two averages, so the generator that is "
                    "evaluated is never trained; take more --rounds",
                    config.rounds,
                    self.period,
                )
            self.server = build_generator(config, shape, SERVER)
        self.local: dict[int, tuple[GNode, DNode]] = {}
        for node, part in zip(self.workers, parts, strict=True):
            if node in exchange.nodes:
                batches = Batches(images=part, size=config.batch_size, seed=config.seed, node=node)
                d = build_discriminator(config, config.flgan.d_optimizer, batches)
                self.local[node] = (build_generator(config, shape, node), d)
        self.sizes = model_sizes(config, shape)
        self.numel = sum(self.sizes)

    def round(self, round_index: int) -> None:
        for node, (g, d) in self.local.items():
            with self.post.computing(node, WHOLE):
                local_round(g, d, round_index)
        if (round_index + 1) % self.period == 0:
            self._average(round_index)

    def _average(self, round_index: int) -> None:
        # Up: every worker's model, (w, theta) as one packet.
        outbox = []
        for node, (g, d) in self.local.items():
            with self.post.computing(node):
                outbox.append(
                    self.post.message(model_of(g, d), self.codec, node, SERVER, "model", round_index)
                )
        arrived = self.exchange.deliver(
            outbox, self._expected([(node, SERVER) for node in self.workers], round_index)
        )
        # Down: their average; the server keeps what the workers will decode.
        outbox = []
        if self.server is not None:
            with self.post.computing(SERVER):
                outbox = self._mean(arrived, round_index)
        arrived = self.exchange.deliver(
            outbox, self._expected([(SERVER, node) for node in self.workers], round_index)
        )
        for message in arrived:
            g, d = self.local[message.target]
            w, theta = torch.split(content(message.packet), self.sizes)
            g.net.theta.copy_(w)
            d.net.theta.copy_(theta)

    def _mean(self, arrived: Sequence[Message], round_index: int) -> list[Message]:
        assert self.server is not None
        mean = torch.zeros(self.numel)
        for message in arrived:
            dance.decode(message.packet, out=mean, add=True, weight=self.shares[message.source])
        packet = self.post.packet(mean, self.codec, SERVER, "model", round_index)
        w = self.server.net.theta
        w.copy_(content(packet)[: w.numel()])
        # The server's generator changes once a period; its running average weighs it as so many rounds.
        self.server.ema.update(w, self.period)
        return [Message(source=SERVER, target=node, kind="model", packet=packet) for node in self.workers]

    def _expected(self, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        return [
            Expected(
                source=source,
                target=target,
                kind="model",
                shape=(self.numel,),
                codec=self.codec,
                round=round_index,
            )
            for source, target in edges
            if target in self.exchange.nodes
        ]

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        assert self.server is not None
        return self.server.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return (self.local[node][1].d_loss, self.local[node][1].g_loss) if node in self.local else None

    def codecs(self, node: int) -> dict[str, str]:
        return {"model": str(self.codec)}

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if node in self.local:
            g, d = self.local[node]
            return {**g.state_dict(), **d.state_dict()}, {}
        assert self.server is not None
        return self.server.state_dict(), {}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if node in self.local:
            for part in self.local[node]:
                part.load_state_dict(tensors)
            return
        assert self.server is not None
        self.server.load_state_dict(tensors)


def model_of(g: GNode, d: DNode) -> Tensor:
    """(w, theta) as one flat vector."""
    return torch.cat([g.net.theta, d.net.theta])


def model_sizes(config: RunConfig, image_shape: Sequence[int]) -> list[int]:
    """Parameters of the generator and of the discriminator."""
    nets = (seeded_generator(0, config, image_shape), seeded_discriminator(0, config, image_shape))
    return [net.theta.numel() for net in nets]
