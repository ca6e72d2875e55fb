"""AC-GAN: generators and discriminators on different nodes, or both at every worker, or first so and then so.

A reconstruction from what the DANCE paper publishes openly (its phases: local update, discriminators
aggregation, iterative training; model and data parallel), with a recipe of our own; the paper's code and
tables are not to be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dance.exchange import Exchange
from dance.gan.acgan.adaptive import Adaptive
from dance.gan.acgan.data_parallel import DataParallel
from dance.gan.acgan.model_parallel import ModelParallel
from dance.gan.config import RunConfig
from dance.gan.parts import Part

__all__ = ["Adaptive", "DataParallel", "ModelParallel", "acgan"]


def acgan(
    config: RunConfig, exchange: Exchange, parts: Sequence[Part]
) -> Adaptive | DataParallel | ModelParallel:
    """The nodes of this process, in the layout that the config names."""
    layouts: dict[str, Any] = {
        "adaptive": Adaptive,
        "data-parallel": DataParallel,
        "model-parallel": ModelParallel,
    }
    layout: Adaptive | DataParallel | ModelParallel = layouts[config.layout](config, exchange, parts)
    return layout
