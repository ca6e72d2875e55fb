"""MD-GAN (Hardy, Le Merrer and Sericola 2019): a server with the generator, workers with discriminators.

Every round the server makes k batches; worker n trains against batch (n + 1) mod k and answers with the
gradient of the generator's loss at batch n mod k. Every E epochs the discriminators swap places in random
disjoint pairs; the state of their optimizers stays behind and is reset.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dance.exchange import Exchange, Expected
from dance.gan.choice import Choice
from dance.gan.computing import ABSORB, GENERATE
from dance.gan.config import RunConfig
from dance.gan.messages import Post, content
from dance.gan.nodes import Batches, DNode, GNode, build_discriminator, build_generator
from dance.gan.parts import Part
from dance.gan.reports import Reports
from dance.gan.workers import Workers
from dance.packet import derive_seed

SERVER = 0
# Messages that follow each other: images, feedback, and at the end of an epoch a swap.
_PHASES = 3


def swap_pairs(seed: int, round_index: int, nodes: Sequence[int]) -> list[tuple[int, int]]:
    """Random disjoint pairs that cover all nodes (all but one of an odd number); equal at every node."""
    order = list(nodes)
    random.Random(derive_seed(seed, round_index, SERVER, "pairs", "swap")).shuffle(order)
    return list(zip(order[0::2], order[1::2], strict=False))


class Mdgan:
    """The server is node 0, worker n is node 1 + n."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> None:
        self.exchange = exchange
        self.post = Post(exchange=exchange, seed=config.seed)
        self.shape = tuple(parts[0].shape[1:])
        settings = config.mdgan
        self.batch_size = config.batch_size
        self.seed = config.seed
        self.workers = [1 + n for n in range(config.d_nodes)]
        self.num_batches = settings.batches or max(2, int(math.log(config.d_nodes)))
        # m E / b iterations of L batches each, m being the mean number of images a worker holds.
        images = sum(len(part) for part in parts) // config.d_nodes
        self.swap_every = settings.swap_epochs * max(1, images // (config.batch_size * config.local_steps))
        self.server = build_generator(config, self.shape, SERVER) if SERVER in exchange.nodes else None
        self.local = {
            node: build_discriminator(
                config,
                settings.d_optimizer,
                Batches(images=part, size=config.batch_size, seed=config.seed, node=node),
            )
            for node, part in zip(self.workers, parts, strict=True)
            if node in exchange.nodes
        }
        self.team = Workers(config, self.post, self.local)
        texts = {
            "image": config.codec or settings.image_codec,
            "feedback": config.codec or settings.feedback_codec,
            "model": config.codec or settings.swap_codec,
        }
        self.choices = {
            node: Choice(config, exchange, node, math.prod(self.shape), texts, phases=_PHASES)
            for node in exchange.nodes
        }
        self.reports = Reports(self.post, self.choices)

    def round(self, round_index: int) -> None:
        images = self._images(round_index)
        self.team.update(round_index, {node: d_images for node, (_, d_images) in images.items()})
        for d in self.local.values():
            d.end_round()
        self._feedback(round_index, images)
        if self.swap_every and (round_index + 1) % self.swap_every == 0:
            self._swap(round_index)

    def _images(self, round_index: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Server -> worker: (X_g, X_d), as one packet of both batches."""
        outbox = []
        if self.server is not None:
            with self.post.computing(SERVER, GENERATE):
                batches = self.server.generate(round_index, range(self.num_batches))
                for node in self.workers:
                    both = torch.stack([batches[self._batch(node)], batches[self._batch(node + 1)]])
                    codec = self.choices[SERVER].codec("image", both.numel(), round_index, [node])
                    outbox.append(self.post.message(both, codec, SERVER, node, "image", round_index))
        shape = (2, self.batch_size, *self.shape)
        expected = [
            Expected(
                source=SERVER,
                target=node,
                kind="image",
                shape=shape,
                codec=self.choices[node].expected("image"),
                round=round_index,
            )
            for node in self.local
        ]
        inbox = self.reports.deliver(outbox, expected, [(SERVER, node) for node in self.workers], round_index)
        both_of = {message.target: content(message.packet) for message in inbox}
        return {node: (both[0], both[1]) for node, both in both_of.items()}

    def _feedback(self, round_index: int, images: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Worker -> server: gradients at X_g; the server sums those of one batch and takes its step."""
        outbox = []
        at = {node: [g_images] for node, (g_images, _) in images.items()}
        for node, (gradient,) in self.team.feedback(at).items():
            with self.post.computing(node):
                codec = self.choices[node].codec("feedback", gradient.numel(), round_index, [SERVER])
                outbox.append(self.post.message(gradient, codec, node, SERVER, "feedback", round_index))
        shape = (self.batch_size, *self.shape)
        expected = [
            Expected(
                source=node,
                target=SERVER,
                kind="feedback",
                shape=shape,
                codec=self.choices[SERVER].expected("feedback"),
                round=round_index,
            )
            for node in self.workers
            if self.server is not None
        ]
        inbox = self.reports.deliver(outbox, expected, [(node, SERVER) for node in self.workers], round_index)
        if self.server is not None:
            with self.post.computing(SERVER, ABSORB):
                total = {batch: torch.zeros(shape) for batch in range(self.num_batches)}
                for message in inbox:
                    total[self._batch(message.source)] += content(message.packet)
                self.server.absorb(total, len(self.workers) * self.batch_size)

    def _swap(self, round_index: int) -> None:
        outbox, expected = [], []
        for first, second in swap_pairs(self.seed, round_index, self.workers):
            for source, target in ((first, second), (second, first)):
                if source in self.local:
                    theta = self.local[source].net.theta
                    codec = self.choices[source].codec(
                        "model", theta.numel(), round_index, [target], every=self.swap_every
                    )
                    outbox.append(self.post.message(theta, codec, source, target, "model", round_index))
                if target in self.local:
                    shape = tuple(self.local[target].net.theta.shape)
                    expected.append(
                        Expected(
                            source=source,
                            target=target,
                            kind="model",
                            shape=shape,
                            codec=self.choices[target].expected("model"),
                            round=round_index,
                        )
                    )
        # Every theta is decoded before the first is overwritten: a simulated packet may still point into one.
        arrived = [
            (message.target, content(message.packet)) for message in self.exchange.deliver(outbox, expected)
        ]
        for node, theta in arrived:
            self.local[node].net.theta.copy_(theta)
            self.local[node].solver.reset()

    def _batch(self, node: int) -> int:
        return (node - 1) % self.num_batches

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        assert self.server is not None
        return self.server.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return (self.local[node].d_loss, self.local[node].g_loss) if node in self.local else None

    def codecs(self, node: int) -> dict[str, str]:
        return dict(self.choices[node].used)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._state_of(node).state_dict(), {"choice": self.choices[node].state_dict()}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.choices[node].load_state_dict(meta["choice"])
        self._state_of(node).load_state_dict(tensors)

    def _state_of(self, node: int) -> GNode | DNode:
        if node in self.local:
            return self.local[node]
        assert self.server is not None
        return self.server
