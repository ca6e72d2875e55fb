"""Data parallel AC-GAN: every worker holds a generator and a discriminator, so that no images travel.

One round, at every worker: L local steps of D, one step of G against it, on noise and images of its own.
What keeps the workers one GAN (`g_sync`):
    delta     every H rounds the hub averages what (G, D) have moved since the last exchange, compressed with
              error feedback both ways, and all workers go on from the same average:
                  x_i = P_i - ref;  ref += the average of x (dance.gan.acgan.average);  P_i = ref
    choco     generators gossip, every H rounds
    gradient  generators' gradients are averaged every step, compressed with error feedback both ways
    exact     the same, uncompressed: workers with equal first weights are one GAN with N times the batch
With all but delta the discriminators aggregate as in the model parallel layout. With block Adam the shared
second moments travel with the exchanges; Adam's own stay where they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dance.exchange import Exchange
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.delta import Delta
from dance.gan.acgan.gossip import Gossip, Members
from dance.gan.acgan.team import Team, d_nodes
from dance.gan.acgan.wires import HUB, wires
from dance.gan.computing import ABSORB, GENERATE
from dance.gan.config import RunConfig
from dance.gan.nodes import DNode, GNode, build_generator, discriminator_net, under
from dance.gan.parts import Part

_LOG = logging.getLogger("dance.gan")


class DataParallel:
    """Workers are `wires.d_ids`; `generators` and `discriminators` are those of this process, by worker.

    `server` is the generator at the hub, which is evaluated: with delta, choco and gradient it is what the
    workers' have in common. Where there is no hub, the first worker's is evaluated.
    """

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> None:
        shape = tuple(parts[0].shape[1:])
        self.wires = wires(config, exchange, math.prod(shape))
        self.sync = config.acgan.g_sync
        self.period = config.acgan.sync_period
        aggregates = self.sync != "delta"
        self.discriminators = d_nodes(config, self.wires, parts, aggregates=aggregates)
        self.generators = {node: build_generator(config, shape, node) for node in self.discriminators}
        self.servers = {
            node: build_generator(config, shape, node) for node in self.wires.g_ids if node in exchange.nodes
        }
        if self.servers and self.sync in ("delta", "choco") and config.rounds < self.period:
            _LOG.warning(
                "ac-gan: %d rounds are less than the %d between two exchanges of the %s layout, so the "
                "generator that is evaluated is never trained; take more --rounds, a smaller "
                "--acgan.sync-period or --layout model-parallel",
                config.rounds,
                self.period,
                config.layout,
            )
        first_d, first_g = discriminator_net(config, shape), build_generator(config, shape, HUB).net
        self.team = Team(config, self.wires, self.discriminators, first_d, aggregates=aggregates)
        self.delta: Delta | None = None
        self.average: FeedbackAverage | None = None
        self.gossip: Gossip | None = None
        if self.sync == "delta":
            self.delta = Delta(self.wires, first_g, first_d, self.team, self.period)
        elif self.sync == "choco":
            thetas = {node: g.net.theta for node, g in self.generators.items()}
            members = Members(thetas=thetas, start=first_g.theta, period=self.period, kind="g-gossip")
            self.gossip = Gossip(config, self.wires, members)
        else:
            numel = first_g.theta.numel()
            self.average = FeedbackAverage(self.wires, numel, "g-gradient", followers=self.wires.g_ids[1:])

    def round(self, round_index: int) -> None:
        fakes = {}
        for node, g in self.generators.items():
            with self.wires.post.computing(node, GENERATE):
                fakes[node] = g.generate(round_index, [node])[node]
        self.team.update(round_index, fakes)
        exchanges = self.exchanges(round_index)
        if self.delta is None or not exchanges:
            self.team.aggregate(round_index)
        answers = self.team.workers.feedback({node: [batch] for node, batch in fakes.items()})
        for node, g in self.generators.items():
            with self.wires.post.computing(node, ABSORB):
                g.differentiate({node: answers[node][0]}, len(fakes[node]))
                if self.average is None:
                    g.step(round_index)
        if self.average is not None:
            self._step_together(self.average, round_index)
        elif self.delta is not None and exchanges:
            self.delta.exchange(round_index, self.generators)
            self._serve(self.delta.w)
        elif self.gossip is not None and exchanges:
            self.gossip.aggregate(round_index)
            if self.gossip.relay is not None:
                self._serve(self.gossip.relay.relayed)

    def exchanges(self, round_index: int) -> bool:
        """Whether models, or their gossip, travel at the end of this round."""
        return (round_index + 1) % self.period == 0

    def _step_together(self, average: FeedbackAverage, round_index: int) -> None:
        """One step of all generators, the server's among them, along the mean of their gradients."""
        gradients = {node: g.net.gradient for node, g in self.generators.items()}
        mean = average.mean(gradients, round_index)
        assert mean is not None  # G-Nodes follow
        for node, g in {**self.servers, **self.generators}.items():
            with self.wires.post.computing(node):
                g.net.gradient.copy_(mean.vector)
                g.step(round_index)

    def _serve(self, w: Tensor) -> None:
        """The server's generator changes once a period; its running average weighs it as so many rounds."""
        for g in self.servers.values():
            g.net.theta.copy_(w)
            g.ema.update(w, self.period)

    @property
    def evaluated(self) -> GNode:
        return next(iter((self.servers or self.generators).values()))

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.evaluated.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        d = self.discriminators.get(node)
        return None if d is None else (d.d_loss, d.g_loss)

    def codecs(self, node: int) -> dict[str, str]:
        return dict(self.wires.choices[node].used)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {"choice": self.wires.choices[node].state_dict()}
        for owner in self._owners(node):
            tensors |= owner.state_dict()
        for name, part in self._syncs().items():
            named, meta[name] = part.state(node)
            tensors |= {f"{name}.{key}": tensor for key, tensor in named.items()}
        return tensors, meta

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.wires.choices[node].load_state_dict(meta["choice"])
        for owner in self._owners(node):
            owner.load_state_dict(tensors)
        for name, part in self._syncs().items():
            part.restore(node, under(f"{name}.", tensors), meta[name])

    def _owners(self, node: int) -> list[GNode | DNode]:
        if node in self.servers:
            return [self.servers[node]]
        return [self.generators[node], self.discriminators[node]]

    def _syncs(self) -> dict[str, Team | Delta | FeedbackAverage | Gossip]:
        parts = {"team": self.team, "delta": self.delta, "average": self.average, "gossip": self.gossip}
        return {name: part for name, part in parts.items() if part is not None}
