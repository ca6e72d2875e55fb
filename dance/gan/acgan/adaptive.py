"""Adaptive AC-GAN: begins data parallel and goes model parallel, at an exchange, where the data is skewed.

Per byte the data parallel layout is the better one while it teaches all that the workers' models have in
common; under skewed data it then stops at a poor average, where the model parallel one goes on. So the hub
measures at every exchange how far the workers disagree in the same way as at the one before
(dance.gan.acgan.skew, 4 kB a worker), and decides once, after enough rounds: the run switches if the mean of
the last measurements is above a threshold that was found by experiment (docs/results.md). A switch sends
nothing but one byte a node and way: after an exchange all nodes hold the same reference, and G-Nodes and
D-Nodes go on from it, with a fresh Adam at the G-Nodes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dance.exchange import Exchange
from dance.gan.acgan.data_parallel import DataParallel
from dance.gan.acgan.model_parallel import ModelParallel, Nodes
from dance.gan.acgan.team import d_solver
from dance.gan.acgan.wires import HUB
from dance.gan.config import RunConfig
from dance.gan.nodes import discriminator_net, discriminator_solver
from dance.gan.parts import Part
from dance.gan.settings import AcganConfig

_LOG = logging.getLogger("dance.gan")

# The indicator of two exchanges is noisy; so many of the last ones are averaged.
WINDOW = 2


class Adaptive:
    """`layout` is the one in use; `switched` the round after which it became the model parallel one."""

    def __init__(self, config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> None:
        self.config = config
        self.exchange = exchange
        self.parts = parts
        self.layout: DataParallel | ModelParallel = DataParallel(config, exchange, parts)
        self.decides_after = decides_after(config.acgan)
        if HUB in exchange.nodes:
            _warn_of_idle_settings(config)
        self.skews: list[float] = []
        self.switched: int | None = None

    def round(self, round_index: int) -> None:
        layout, done = self.layout, round_index + 1
        if not isinstance(layout, DataParallel):
            layout.round(round_index)
            return
        assert layout.delta is not None
        average = layout.delta.average
        average.measures = done <= self.decides_after
        layout.round(round_index)
        if not average.measures or not layout.exchanges(round_index):
            return
        if average.skew is not None:  # here is the hub
            self.skews = [*self.skews, average.skew][-WINDOW:]
        # One byte each way, as all nodes must agree.
        if done == self.decides_after and self.exchange.any(self._wants_to_switch()):
            self._switch(layout)
            self.switched = done

    def _wants_to_switch(self) -> bool:
        """Asked of the hub; elsewhere no."""
        skew = self._skew()
        return skew is not None and skew > self.config.acgan.switch_above

    def _skew(self) -> float | None:
        """The mean of the last measurements, at the hub."""
        return sum(self.skews) / len(self.skews) if self.skews else None

    def _switch(self, layout: DataParallel) -> None:
        """theta_i, its public copy and the hub's all begin as the reference, which all nodes hold."""
        assert layout.delta is not None
        discriminator = discriminator_net(self.config, tuple(self.parts[0].shape[1:]))
        discriminator.theta.copy_(layout.delta.theta)
        nodes = Nodes(
            generators=layout.servers,
            discriminators=layout.discriminators,
            discriminator=discriminator,
        )
        if self.config.aggregation != "parameters":
            # All D-Nodes take equal steps from here on, for which what they remember must be equal, too.
            for d in layout.discriminators.values():
                d.solver = discriminator_solver(self.config, d_solver(self.config), d.net)
        self.layout = ModelParallel(self.config, self.exchange, self.parts, nodes=nodes, ways=layout.wires)

    def measured(self) -> dict[str, Any]:
        """What the report adds: the skew that is or was judged, and after which round the run switched."""
        return {"skew": self._skew(), "switched": self.switched}

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.layout.sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        return self.layout.losses(node)

    def codecs(self, node: int) -> dict[str, str]:
        return self.layout.codecs(node)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.layout.state(node)
        return tensors, {"layout": meta, "skews": self.skews, "switched": self.switched}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if meta["switched"] is not None and isinstance(self.layout, DataParallel):
            self._switch(self.layout)
        self.switched = meta["switched"]
        self.skews = list(meta["skews"]) or self.skews
        self.layout.restore(node, tensors, meta["layout"])


def decides_after(settings: AcganConfig) -> int:
    """Rounds until the run decides, at an exchange; the first, of models that know little, is not judged."""
    exchanges = max(math.ceil(settings.switch_after / settings.sync_period), 1 + WINDOW)
    return exchanges * settings.sync_period


def _warn_of_idle_settings(config: RunConfig) -> None:
    """A run may end before it decides, and one that never switches has no use for some settings."""
    settings, default = config.acgan, AcganConfig()
    if config.d_nodes > 1 and config.rounds <= decides_after(settings):
        _LOG.warning(
            "ac-gan: the adaptive layout decides after %d rounds whether it goes model parallel, and this "
            "run has %d; take more --rounds, a smaller --acgan.switch-after and --acgan.sync-period, or "
            "--layout model-parallel where the nodes' data are unlike",
            decides_after(settings),
            config.rounds,
        )
    names = ("order", "attachment", "fake_batch_size", "feedback_weights")
    late = [name for name in names if getattr(settings, name) != getattr(default, name)]
    flags = [f"--acgan.{name.replace('_', '-')}" for name in late]
    if config.g_nodes > 1:
        flags.insert(0, "--g-nodes")
    if flags:
        _LOG.warning(
            "ac-gan: %s: of use only once the adaptive layout has gone model parallel, as it does on skewed "
            "data; to have it from the start use --layout model-parallel",
            ", ".join(flags),
        )
