"""What only one algorithm has: a group of settings for each, nested in RunConfig, with its own checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Optimizer = Literal["block-adam", "adam", "sgd"]
Order = Literal["fresh", "overlap"]
Aggregation = Literal["parameters", "gradient", "low-rank"]
Attachment = Literal["all", "partition"]
GSync = Literal["delta", "choco", "gradient", "exact"]

OPTIMIZERS = ("block-adam", "adam", "sgd")
# Fields of RunConfig that say where a run writes, and when it ends, evaluates and saves, not how it trains.
WHERE_AND_WHEN = (
    "out",
    "resume",
    "rounds",
    "megabytes",
    "virtual_seconds",
    "evaluate_every",
    "evaluate_at",
    "evaluate_megabytes",
    "evaluate_images",
    "checkpoint_every",
)
# How feedback is joined (dance.gan.weighting).
SCHEMES = ("mean", "f2u", "f2a", "gman", "ua")
NEED_ODDS = ("f2a", "ua")  # these read a logit as the log of the odds that an image is real


@dataclass(frozen=True, kw_only=True)
class AcganConfig:
    """What only ac-gan has."""

    period: int = 1
    """Rounds between two gossip exchanges (H); gradients are averaged every round. With codec auto through
    the hub it is chosen."""
    step_size: float | None = None
    """Consensus step of the gossip; None: the known good one of the codec (sign 0.5, and through a hub 0.95;
    int8 0.9, none 1.0)."""
    order: Order = "fresh"
    """When D-Nodes gossip: fresh (before they answer the generators) or overlap (while answers travel)."""
    aggregation: Aggregation | None = None
    """What D-Nodes average: parameters (gossip every H rounds), or every step, at the hub, the gradient, or
    that as low-rank: each of its matrices as two thin factors. None: low-rank in the adaptive layout,
    unless there is a gossip_codec or no hub, elsewhere parameters."""
    rank: int = 2
    """Directions that low-rank keeps of each matrix."""
    factor_codec: str = "int8"
    """Codec of the factors of low-rank, both ways, or auto."""
    gradient_codec: str = "int4"
    """Codec of averaged gradients, both ways, or auto."""
    attachment: Attachment = "all"
    """Which G-Nodes a D-Node serves: all, or by partition one of them, in turn."""
    rotate_every: int = 100
    """With attachment partition: rounds until D-Nodes serve the next G-Node (R); 0: never."""
    fake_batch_size: int | None = None
    """Images a G-Node sends a D-Node a round; None: as many as the D-Node's own batch has."""
    feedback_weights: Literal["mean", "f2u", "f2a", "gman", "ua"] = "mean"
    """How a G-Node joins what its D-Nodes say (docs/algorithms.md); all but mean let them judge one batch."""
    weight_sharpness: float = 1.0
    """Lambda of the weights f2a and gman: 0 counts all alike, large ones only the most extreme."""
    g_sync: GSync = "delta"
    """Data parallel: how workers keep their generators together: delta (G and D every sync_period rounds),
    choco (gossip every sync_period rounds), gradient (averaged every step, compressed) or exact (not)."""
    sync_period: int = 200
    """Data parallel and adaptive: rounds between two exchanges of models."""
    sync_codec: str = "sign"
    """Data parallel and adaptive: codec of exchanged models, or auto."""
    switch_above: float = 0.24
    """Adaptive layout: go model parallel where workers' changes differ, in the same way from one exchange to
    the next, by more than so many times what they share."""
    switch_after: int = 800
    """Adaptive layout: the first exchange after so many rounds, at the earliest the third, decides whether
    the run switches."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        for name in ("period", "sync_period"):
            at_least(f"acgan.{name}", getattr(self, name), 1)
        at_least("acgan.rank", self.rank, 1)
        at_least("acgan.rotate_every", self.rotate_every, 0)
        if self.fake_batch_size is not None:
            at_least("acgan.fake_batch_size", self.fake_batch_size, 1)
        one_of("acgan.order", self.order, get_args(Order))
        if self.aggregation is not None:
            one_of("acgan.aggregation", self.aggregation, get_args(Aggregation))
        one_of("acgan.attachment", self.attachment, get_args(Attachment))
        one_of("acgan.g_sync", self.g_sync, get_args(GSync))
        one_of("acgan.feedback_weights", self.feedback_weights, SCHEMES)
        if not 0 <= self.weight_sharpness < float("inf"):
            raise ValueError(
                f"acgan.weight_sharpness: {self.weight_sharpness} must be 0 or more, for example 1"
            )
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise ValueError(f"acgan.step_size: {self.step_size} must be in (0, 1], for example 0.5")
        if math.isnan(self.switch_above):
            raise ValueError("acgan.switch_above: nan is no threshold; take a number, for example 0.24")
        at_least("acgan.switch_after", self.switch_after, 0)

    @property
    def codec_texts(self) -> Mapping[str, str]:
        """Its codecs by the names they have on the command line."""
        return {
            "acgan.gradient_codec": self.gradient_codec,
            "acgan.factor_codec": self.factor_codec,
            "acgan.sync_codec": self.sync_codec,
        }


@dataclass(frozen=True, kw_only=True)
class MdganConfig:
    """What only md-gan has (Hardy et al. 2019)."""

    batches: int | None = None
    """Batches the server makes a round (k); None: max(2, floor(ln N))."""
    swap_epochs: int = 1
    """Epochs between two swaps of discriminators (E); 0: never swap."""
    d_optimizer: Optimizer = "adam"
    """Optimizer of the discriminators; its state is reset when discriminators swap."""
    image_codec: str = "none"
    """Codec of the images that go down, or auto."""
    feedback_codec: str = "none"
    """Codec of the feedback that goes up, or auto."""
    swap_codec: str = "none"
    """Codec of a discriminator that moves to another node, or auto."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        one_of("mdgan.d_optimizer", self.d_optimizer, OPTIMIZERS)
        at_least("mdgan.swap_epochs", self.swap_epochs, 0)
        if self.batches is not None:
            at_least("mdgan.batches", self.batches, 1)

    @property
    def codec_texts(self) -> Mapping[str, str]:
        """Its codecs by the names they have on the command line."""
        return {
            "mdgan.image_codec": self.image_codec,
            "mdgan.feedback_codec": self.feedback_codec,
            "mdgan.swap_codec": self.swap_codec,
        }


@dataclass(frozen=True, kw_only=True)
class FlganConfig:
    """What only fl-gan has (federated averaging of whole GANs)."""

    epochs: int = 1
    """Local epochs between two averages (E); what is evaluated is the last average."""
    d_optimizer: Optimizer = "adam"
    """Optimizer of the workers' discriminators; its state stays at the worker."""
    up_codec: str = "none"
    """Codec of the models that workers send, or auto."""
    down_codec: str = "none"
    """Codec of the average that the server sends, or auto."""
    deltas: bool = False
    """Send differences to the last average, with error feedback both ways: they bear codecs such as int4."""
    participation: float = 1.0
    """Share of the workers, drawn anew after each average, that trains and sends (FedAvg)."""
    weights: Literal["images", "fegan"] = "images"
    """What a worker counts in the average: its number of images, or fegan, exp of its label skew, for which
    every worker tells the server how many images of each class it holds."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        one_of("flgan.d_optimizer", self.d_optimizer, OPTIMIZERS)
        one_of("flgan.weights", self.weights, ("images", "fegan"))
        at_least("flgan.epochs", self.epochs, 1)
        if not 0 < self.participation <= 1:
            raise ValueError(f"flgan.participation: {self.participation} must be in (0, 1], for example 0.5")
        if self.deltas and self.participation < 1:
            raise ValueError(
                f"flgan.participation: {self.participation} with deltas, but a worker that skips an average "
                "does not know what the next difference is to; drop --flgan.deltas or take part always"
            )

    @property
    def codec_texts(self) -> Mapping[str, str]:
        """Its codecs by the names they have on the command line."""
        return {"flgan.up_codec": self.up_codec, "flgan.down_codec": self.down_codec}


@dataclass(frozen=True, kw_only=True)
class GossipganConfig:
    """What only gossip-gan has (Hardy et al. 2018)."""

    variant: Literal["a", "b"] = "a"
    """a: G and D go to one random peer together; b: to peers that are drawn independently."""
    period: int | None = None
    """Rounds between two exchanges (T); None: an epoch of the mean worker."""
    d_optimizer: Optimizer = "adam"
    """Optimizer of the discriminators; its state stays at the node."""
    codec: str = "none"
    """Codec of the models that travel, or auto."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        one_of("gossipgan.variant", self.variant, ("a", "b"))
        one_of("gossipgan.d_optimizer", self.d_optimizer, OPTIMIZERS)
        if self.period is not None:
            at_least("gossipgan.period", self.period, 1)

    @property
    def codec_texts(self) -> Mapping[str, str]:
        """Its codecs by the names they have on the command line."""
        return {"gossipgan.codec": self.codec}


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: unknown {value!r}; choose from {', '.join(choices)}")


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError, with the flag that mends it, if `value` is below `least`."""
    if value < least:
        flag = name.replace("_", "-")
        raise ValueError(f"{name}: {value} must be at least {least}; for example --{flag} {max(least, 1)}")
