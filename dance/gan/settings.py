"""What only one algorithm has: a group of settings for each, nested in RunConfig, with its own checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Optimizer = Literal["block-adam", "adam", "sgd"]

OPTIMIZERS = ("block-adam", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class AcganConfig:
    """What only ac-gan has."""

    period: int = 1
    """Rounds between two gossip exchanges (H)."""
    step_size: float | None = None
    """Consensus step of the gossip; None: the known good one of the codec (sign 0.5, int8 0.9, none 1.0)."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        at_least("acgan.period", self.period, 1)
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise ValueError(f"acgan.step_size: {self.step_size} must be in (0, 1], for example 0.5")


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
    """Codec of the images that go down."""
    feedback_codec: str = "none"
    """Codec of the feedback that goes up."""
    swap_codec: str = "none"
    """Codec of a discriminator that moves to another node."""

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
    codec: str = "none"
    """Codec of the models that go up and down."""

    def validate(self) -> None:
        """Raises ValueError naming value and remedy."""
        one_of("flgan.d_optimizer", self.d_optimizer, OPTIMIZERS)
        at_least("flgan.epochs", self.epochs, 1)

    @property
    def codec_texts(self) -> Mapping[str, str]:
        """Its codecs by the names they have on the command line."""
        return {"flgan.codec": self.codec}


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: unknown {value!r}; choose from {', '.join(choices)}")


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError, with the flag that mends it, if `value` is below `least`."""
    if value < least:
        flag = name.replace("_", "-")
        raise ValueError(f"{name}: {value} must be at least {least}; for example --{flag} {max(least, 1)}")
