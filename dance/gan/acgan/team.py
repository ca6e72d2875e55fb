"""The D-Nodes of a run: their local steps, and how they stay one discriminator (discriminators aggregation).

"parameters": local steps, and every H rounds a compressed gossip of the weights. "gradient": before each step
the gradients are averaged through the hub, compressed both ways with error feedback, so that all D-Nodes take
the same step and hold equal bits. "low-rank": the same, with each matrix as two thin factors. Where nobody
aggregates (one D-Node, or an exchange of whole models does it), the team only trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dance.exchange import Expected, Message
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.gossip import Gossip, Members
from dance.gan.acgan.low_rank import LowRankAverage
from dance.gan.acgan.wires import Wires
from dance.gan.computing import UPDATE
from dance.gan.config import RunConfig
from dance.gan.models import FlatModule
from dance.gan.nodes import Batches, DNode, build_discriminator, under
from dance.gan.optimizers import BlockAdam
from dance.gan.parts import Part
from dance.gan.settings import Optimizer
from dance.gan.workers import Workers


class Team:
    """`nodes` are the D-Nodes of this process; `start` is the discriminator that all of the run now have."""

    def __init__(
        self,
        config: RunConfig,
        wires: Wires,
        nodes: Mapping[int, DNode],
        start: FlatModule,
        *,
        aggregates: bool = True,
    ) -> None:
        self.wires = wires
        self.nodes = dict(nodes)
        self.local_steps = config.local_steps
        self.shares_moments = d_solver(config, aggregates=aggregates) == "block-adam"
        self.workers = Workers(config, wires.post, nodes)
        self.gossip: Gossip | None = None
        self.average: FeedbackAverage | LowRankAverage | None = None
        # One D-Node has nobody to agree with: it sends nothing and is a standalone GAN's discriminator.
        if not aggregates or config.d_nodes == 1:
            return
        if config.aggregation == "gradient":
            self.average = FeedbackAverage(wires, start.theta.numel(), "d-gradient")
            return
        if config.aggregation == "low-rank":
            self.average = LowRankAverage(wires, start, config.acgan.rank)
            return
        members = Members(
            thetas={node: d.net.theta for node, d in self.nodes.items()},
            start=start.theta,
            period=config.acgan.period,
            solvers=self.solvers,
            num_moments=len(start.sizes) if self.shares_moments else 0,
        )
        self.gossip = Gossip(config, wires, members)

    @property
    def solvers(self) -> dict[int, BlockAdam]:
        """The optimizers that share their second moments, if these do."""
        return {node: d.solver for node, d in self.nodes.items() if isinstance(d.solver, BlockAdam)}

    def update(self, round_index: int, fakes: Mapping[int, Tensor]) -> None:
        """The local steps of a round, each node's against its own fakes."""
        if self.average is None:
            self.workers.update(round_index, fakes)
            return
        for step in range(self.local_steps):
            for node, d in self.nodes.items():
                with self.wires.post.computing(node, UPDATE / self.local_steps):
                    d.differentiate(round_index, step, fakes[node])
            gradients = {node: d.net.gradient for node, d in self.nodes.items()}
            mean = self.average.mean(gradients, round_index * self.local_steps + step)
            if mean is None:
                continue
            for node, d in self.nodes.items():
                with self.wires.post.computing(node):
                    d.net.gradient.copy_(mean.vector)
                    d.step(round_index)

    def begin(self, round_index: int) -> tuple[list[Message], list[Expected]]:
        """The first messages of this round's gossip; none in a round without, which closes here."""
        if self.gossip is None or not self.gossip.due(round_index):
            for d in self.nodes.values():
                d.end_round()
            return [], []
        return self.gossip.begin(round_index)

    def end(self, inbox: Sequence[Message], round_index: int) -> None:
        """Takes in what arrived of the messages of `begin`."""
        if self.gossip is not None and self.gossip.due(round_index):
            self.gossip.end(inbox, round_index)

    def aggregate(self, round_index: int) -> None:
        """`begin`, deliver and `end` in one."""
        outbox, expected = self.begin(round_index)
        if self.gossip is not None and self.gossip.due(round_index):
            inbox = self.wires.reports.deliver(outbox, expected, self.gossip.ways(), round_index)
            self.gossip.end(inbox, round_index)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a node's aggregation remembers."""
        if self.average is not None:
            tensors, meta = self.average.state(node)
            return {f"d-gradient.{name}": tensor for name, tensor in tensors.items()}, meta
        if self.gossip is None:
            return {}, {}
        return self.gossip.state(node)

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if self.average is not None:
            self.average.restore(node, under("d-gradient.", tensors), meta)
        if self.gossip is not None:
            self.gossip.restore(node, tensors, meta)


def d_solver(config: RunConfig, *, aggregates: bool = True) -> Optimizer:
    """The name of the D-Nodes' optimizer, in a layout in which they aggregate by themselves or not."""
    averages = aggregates and config.aggregation != "parameters"
    return config.d_optimizer or ("adam" if averages else "block-adam")


def d_nodes(
    config: RunConfig, wires: Wires, parts: Sequence[Part], *, aggregates: bool = True
) -> dict[int, DNode]:
    """The D-Nodes of this process, each with its part of the data."""
    solver = d_solver(config, aggregates=aggregates)
    nodes = {}
    for node, part in zip(wires.d_ids, parts, strict=True):
        if node in wires.here:
            batches = Batches(images=part, size=config.batch_size, seed=config.seed, node=node)
            nodes[node] = build_discriminator(config, solver, batches)
    return nodes
