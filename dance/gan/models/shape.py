"""What a network has to know of the data: noise, image and classes; and how large its smallest map is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NetShape:
    """Sizes that a generator and a discriminator are made for."""

    latent: int
    """Length of a noise vector."""
    image: tuple[int, int, int]
    """(channels, height, width)."""
    classes: int = 0
    """Classes whose labels both are given; 0: they are called without labels."""


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """Maps from (height, width) to the image by `doublings`; what they overshoot is cropped."""

    doublings: int
    height: int
    width: int


def pyramid(model: str, image: tuple[int, int, int]) -> Pyramid:
    """The smallest map has 4 to 7 pixels on its short side. Raises ValueError below 8 x 8 pixels."""
    _, height, width = image
    if min(height, width) < 8:
        raise ValueError(
            f"model {model}: images of {height} x {width} are too small for its convolutions; "
            "use images of 8 x 8 or more, or --model mlp"
        )
    doublings = (min(height, width) // 4).bit_length() - 1
    scale = 2**doublings
    return Pyramid(doublings=doublings, height=-(-height // scale), width=-(-width // scale))


def cropped(images: Tensor, image: tuple[int, int, int]) -> Tensor:
    """The middle of images (n, c, h, w) that may be a few pixels too large."""
    _, height, width = image
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) as float32 rows (n, classes)."""
    return (labels.unsqueeze(-1) == torch.arange(classes)).to(torch.float32)
