"""FL-GAN: every worker trains a whole GAN on its own images; every E epochs a server averages them (FedAvg).

The rival of MD-GAN in Hardy et al. 2019. The average is weighted by the workers' numbers of images and goes
back to all; the states of the optimizers stay at the workers. The server's generator is evaluated. Settings:
    participation   the share of workers that trains, drawn anew for every E epochs (McMahan et al. 2017)
    weights         "images", or "fegan": exp(share of the images * KL(own labels || all labels)), as in the
                    authors' code of FeGAN (Guerraoui et al. 2020). Only then do workers tell the server how
                    many images of each class they hold, once, before the first round
    deltas          what AC-GAN does in its data-parallel phase and FL-GAN could copy: differences to the last
                    average, with error feedback both ways, which bear coarse codecs (dance.gan.deltas)
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import dance
from dance.codecs import Codec
from dance.exchange import Exchange, Expected, Message
from dance.gan.choice import Choice
from dance.gan.computing import WHOLE
from dance.gan.config import RunConfig
from dance.gan.deltas import Deltas
from dance.gan.messages import Post, content, stamped
from dance.gan.nodes import (
    Batches,
    DNode,
    GNode,
    build_discriminator,
    build_generator,
    discriminator_net,
    under,
)
from dance.gan.parts import Part
from dance.gan.reports import Reports
from dance.gan.standalone import local_round
from dance.packet import Packet, derive_seed

SERVER = 0
_NONE = dance.codec("none")
_LOG = logging.getLogger("dance.gan")


def participants(seed: int, turn: int, workers: Sequence[int], share: float) -> list[int]:
    """The workers that train in period `turn`, in order: a share of them, at least one; all nodes know."""
    count = max(1, round(share * len(workers)))
    drawn = random.Random(derive_seed(seed, turn, SERVER, "participants", "model"))
    return sorted(drawn.sample(list(workers), count))


class Flgan:
    """The server is node 0; worker n is node 1 + n and holds a G-Node n and a D-Node 1 + n."""

    def __init__(
        self,
        config: RunConfig,
        exchange: Exchange,
        parts: Sequence[Part],
        labels: Sequence[Tensor] | None = None,
    ) -> None:
        self.exchange = exchange
        self.post = Post(exchange=exchange, seed=config.seed)
        self.seed = config.seed
        settings = config.flgan
        shape = tuple(parts[0].shape[1:])
        self.workers = [1 + n for n in range(config.d_nodes)]
        total = sum(len(part) for part in parts)
        self.shares = {node: len(part) / total for node, part in zip(self.workers, parts, strict=True)}
        # What a worker tells the server of its labels, and only where weights "fegan" ask for it.
        self.histograms: dict[int, Tensor] = {}
        self.num_classes = 0
        if settings.weights == "fegan":
            assert labels is not None, "dance.gan.engine.labels_of has seen to that"
            self.num_classes = 1 + max(int(own.max()) for own in labels)
            self.histograms = {
                node: torch.bincount(own.long(), minlength=self.num_classes).float()
                for node, own in zip(self.workers, labels, strict=True)
                if node in exchange.nodes
            }
        # E m / b rounds of L batches each, m being the mean number of images a worker holds.
        epoch = max(1, total // config.d_nodes // (config.batch_size * config.local_steps))
        self.period = settings.epochs * epoch
        self.participation = settings.participation
        first = [build_generator(config, shape, SERVER).net.theta, discriminator_net(config, shape).theta]
        self.sizes = [theta.numel() for theta in first]
        self.numel = sum(self.sizes)
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
                d = build_discriminator(config, settings.d_optimizer, batches)
                # The noise of a G-Node n: a worker alone is a standalone GAN, bit for bit.
                self.local[node] = (build_generator(config, shape, node - 1), d)
        self.up, self.down = ("delta", "step") if settings.deltas else ("model", "average")
        texts = {
            self.up: config.codec or settings.up_codec,
            self.down: config.codec or settings.down_codec,
        }
        self.choices = {
            node: Choice(config, exchange, node, parts[0][0].numel(), texts, phases=2)
            for node in exchange.nodes
        }
        self.reports = Reports(self.post, self.choices)
        self.deltas: dict[int, Deltas] = {}
        if settings.deltas:
            self.deltas = {node: Deltas(torch.cat(first)) for node in exchange.nodes}

    def round(self, round_index: int) -> None:
        if round_index == 0 and self.num_classes:
            self._tell_labels()
        turn = round_index // self.period
        now = participants(self.seed, turn, self.workers, self.participation)
        for node, (g, d) in self.local.items():
            if node in now:
                with self.post.computing(node, WHOLE):
                    local_round(g, d, round_index)
        if (round_index + 1) % self.period == 0:
            after = participants(self.seed, turn + 1, self.workers, self.participation)
            self._average(round_index, now, after)

    def _tell_labels(self) -> None:
        """Worker -> server: how many images of each class it holds; the server's weights follow from them."""
        outbox = [
            self.post.message(histogram, _NONE, node, SERVER, "histogram", 0)
            for node, histogram in self.histograms.items()
        ]
        shape = (self.num_classes,)
        expected = [
            Expected(source=node, target=SERVER, kind="histogram", shape=shape, codec=_NONE, round=0)
            for node in self.workers
            if self.server is not None
        ]
        inbox = self.exchange.deliver(outbox, expected)
        if self.server is not None:
            weights = fegan_weights(torch.stack([content(message.packet) for message in inbox]))
            self.shares = dict(zip(self.workers, weights.tolist(), strict=True))

    def _average(self, round_index: int, now: Sequence[int], after: Sequence[int]) -> None:
        """Models of those that trained -> server; their average -> those that train next."""
        outbox = []
        for node in now:
            if node in self.local:
                with self.post.computing(node):
                    outbox.append(self._model(node, round_index))
        inbox = self._delivered(outbox, self.up, [(node, SERVER) for node in now], round_index)
        outbox = []
        if self.server is not None:
            with self.post.computing(SERVER):
                packet = self._mean(self.server, inbox, after, round_index)
            outbox = [Message(source=SERVER, target=node, kind=self.down, packet=packet) for node in after]
        for message in self._delivered(outbox, self.down, [(SERVER, node) for node in after], round_index):
            with self.post.computing(message.target):
                g, d = self.local[message.target]
                model = self._taken(message.target, message.packet)
                w, theta = torch.split(model, self.sizes)
                g.net.theta.copy_(w)
                d.net.theta.copy_(theta)

    def _model(self, node: int, round_index: int) -> Message:
        model = model_of(*self.local[node])
        codec = self.choices[node].codec(self.up, self.numel, round_index, [SERVER], every=self.period)
        if not self.deltas:
            return self.post.message(model, codec, node, SERVER, self.up, round_index)
        deltas = self.deltas[node]
        packet = self._delta(node, model.sub_(deltas.reference), codec, round_index)
        return Message(source=node, target=SERVER, kind=self.up, packet=packet)

    def _mean(
        self, server: GNode, inbox: Sequence[Message], after: Sequence[int], round_index: int
    ) -> Packet:
        """The packet of the weighted average; the server keeps what the workers will decode."""
        mean = torch.zeros(self.numel)
        whole = sum(self.shares[message.source] for message in inbox)
        for message in inbox:
            dance.decode(message.packet, out=mean, add=True, weight=self.shares[message.source] / whole)
        codec = self.choices[SERVER].codec(self.down, self.numel, round_index, after, every=self.period)
        packet = (
            self._delta(SERVER, mean, codec, round_index)
            if self.deltas
            else self.post.packet(mean, codec, SERVER, self.down, round_index)
        )
        server.net.theta.copy_(self._taken(SERVER, packet)[: self.sizes[0]])
        # The server's generator changes once a period; its running average weighs it as so many rounds.
        server.ema.update(server.net.theta, self.period)
        return packet

    def _delta(self, node: int, difference: Tensor, codec: Codec, round_index: int) -> Packet:
        seed = derive_seed(self.seed, round_index, node, "delta", "packet")
        return stamped(self.deltas[node].out(difference, codec, seed), node, round_index)

    def _taken(self, node: int, packet: Packet) -> Tensor:
        """The average that a packet of the server tells a node of."""
        return self.deltas[node].in_(packet) if self.deltas else content(packet)

    def _delivered(
        self, outbox: Sequence[Message], kind: str, ways: Sequence[tuple[int, int]], round_index: int
    ) -> list[Message]:
        expected = [
            Expected(
                source=source,
                target=target,
                kind=kind,
                shape=(self.numel,),
                codec=self.choices[target].expected(kind),
                round=round_index,
            )
            for source, target in ways
            if target in self.exchange.nodes
        ]
        return self.reports.deliver(outbox, expected, ways, round_index, due=self.reports.wanted)

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        assert self.server is not None
        return self.server.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return (self.local[node][1].d_loss, self.local[node][1].g_loss) if node in self.local else None

    def codecs(self, node: int) -> dict[str, str]:
        return dict(self.choices[node].used)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for part in self._parts_of(node):
            tensors |= part.state_dict()
        if node == SERVER:
            tensors["weights"] = torch.tensor(list(self.shares.values()), dtype=torch.float64)
        if self.deltas:
            tensors |= {f"deltas.{name}": t for name, t in self.deltas[node].state_dict().items()}
        return tensors, {"choice": self.choices[node].state_dict()}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.choices[node].load_state_dict(meta["choice"])
        for part in self._parts_of(node):
            part.load_state_dict(tensors)
        if node == SERVER:
            self.shares = dict(zip(self.workers, tensors["weights"].tolist(), strict=True))
        if self.deltas:
            self.deltas[node].load_state_dict(under("deltas.", tensors))

    def _parts_of(self, node: int) -> Sequence[GNode | DNode]:
        if node in self.local:
            return self.local[node]
        assert self.server is not None
        return (self.server,)


def fegan_weights(histograms: Tensor) -> Tensor:
    """exp(share of the images * KL(own labels || all labels)) of each node's row of counts, over their sum.

    histograms: (nodes, classes); returns float64.
    """
    counts = histograms.double()
    own = counts / counts.sum(1, keepdim=True)
    union = counts.sum(0) / counts.sum()
    divergence = torch.where(own > 0, own * (own / union).log(), 0.0).sum(1)
    return torch.softmax(counts.sum(1) / counts.sum() * divergence, 0)


def model_of(g: GNode, d: DNode) -> Tensor:
    """(w, theta) as one flat vector."""
    return torch.cat([g.net.theta, d.net.theta])
