"""Standalone GAN: one node holds G, D and all the data; the reference for every other algorithm.

Its batch is as large as all D-Nodes' batches together, so that it sees as many images a round as they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dance.exchange import Exchange
from dance.gan.config import RunConfig
from dance.gan.nodes import Batches, DNode, GNode, build_discriminator, build_generator
from dance.gan.parts import Part


def local_round(g: GNode, d: DNode, round_index: int) -> None:
    """One round of a G and a D in the same place: L local D steps, one G step, no messages."""
    fakes = g.generate(round_index, [d.node])[d.node]
    d.local_update(round_index, fakes)
    d.end_round()
    g.absorb({d.node: d.feedback(fakes)}, len(fakes))


class Standalone:
    """G with node id 0 and D with node id 1, as a G-Node and its only D-Node have; both live on node 0."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> None:
        config = dataclasses.replace(config, batch_size=config.batch_size * config.d_nodes)
        (part,) = parts
        self.g = build_generator(config, part.shape[1:], 0)
        batches = Batches(images=part, size=config.batch_size, seed=config.seed, node=1)
        self.d = build_discriminator(config, config.d_optimizer or "block-adam", batches)

    def round(self, round_index: int) -> None:
        local_round(self.g, self.d, round_index)

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.g.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return self.d.d_loss, self.d.g_loss

    def codecs(self, node: int) -> dict[str, str]:
        return {}

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {**self.g.state_dict(), **self.d.state_dict()}, {}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.g.load_state_dict(tensors)
        self.d.load_state_dict(tensors)
