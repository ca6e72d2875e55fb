"""Whole models, (G, D), that workers exchange through the hub every H rounds, as compressed differences.

    x_i = P_i - ref;  ref += the average of x with error feedback (dance.gan.acgan.average);  P_i = ref

With block Adam the second moments travel along, so that all workers go on with the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.team import Team
from dance.gan.acgan.wires import Wires
from dance.gan.models import FlatModule
from dance.gan.nodes import GNode


class Delta:
    """`reference` is (w, theta) after the last exchange, `every` so many rounds: equal at all nodes, so one a
    process will do.
    """

    def __init__(
        self, wires: Wires, generator: FlatModule, discriminator: FlatModule, team: Team, every: int
    ) -> None:
        self.team = team
        self.sizes = [generator.theta.numel(), discriminator.theta.numel()]
        self.reference = torch.cat([generator.theta, discriminator.theta])
        self.average = FeedbackAverage(
            wires,
            self.reference.numel(),
            "delta",
            followers=wires.g_ids[1:],
            num_moments=len(discriminator.sizes) if team.shares_moments else 0,
            every=every,
        )

    @property
    def w(self) -> Tensor:
        return self.reference[: self.sizes[0]]

    @property
    def theta(self) -> Tensor:
        return self.reference[self.sizes[0] :]

    def exchange(self, round_index: int, generators: Mapping[int, GNode]) -> None:
        """Closes the round of all workers and sets them to the new reference."""
        solvers = self.team.solvers
        vectors, moments = {}, {}
        for node, d in self.team.nodes.items():
            vectors[node] = torch.cat([generators[node].net.theta, d.net.theta]) - self.reference
            if node in solvers:
                moments[node] = solvers[node].moment_out()
        mean = self.average.mean(vectors, round_index, moments)
        assert mean is not None  # G-Nodes follow
        self.reference += mean.vector
        for node, d in self.team.nodes.items():
            generators[node].net.theta.copy_(self.w)
            d.net.theta.copy_(self.theta)
            if mean.moment is not None:
                solvers[node].moment_in(mean.moment)
            else:
                d.end_round()

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.average.state(node)
        return {"reference": self.reference, **tensors}, meta

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.reference.copy_(tensors["reference"])
        self.average.restore(node, tensors, meta)
