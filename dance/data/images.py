"""ImageData: a data set in memory, in the one form that training and evaluation know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dance.errors import DanceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set in memory.

    images: float32, (n, channels, height, width), values in [-1, 1]; labels: int64, (n,), or None.
    test_images, test_labels: the real images that generated ones are compared with. A set without a test
    part of its own (digits, most folders) has the same tensors in both places.
    class_names: of the labels 0, 1, ..., where they have names. centres: of a set of points (n, 1, 1, 2), the
    modes that it is drawn from, (modes, 2); deviation: theirs.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor | None
    test_images: torch.Tensor
    test_labels: torch.Tensor | None
    num_classes: int
    class_names: tuple[str, ...] = ()
    centres: torch.Tensor | None = None
    deviation: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)


Pixels = NDArray[np.uint8]
"""uint8, (n, channels, height, width)."""


def from_pixels(
    name: str, train: tuple[Pixels, Any], test: tuple[Pixels, Any] | None, where: Path
) -> ImageData:
    """The data set of uint8 pixels and labels (or None) of its two parts, which are from `where`.

    Raises DanceError for empty parts, labels that do not fit and sizes that differ.
    """
    for part, both in (("train", train), ("test", test)):
        if both is None:
            continue
        pixels, labels = both
        if pixels.size == 0:
            raise DanceError(f"{where}: the {part} images are empty; get the files again")
        if labels is not None and len(pixels) != len(labels):
            raise DanceError(
                f"{where}: {len(pixels)} {part} images but {len(labels)} labels; "
                "the files do not belong together"
            )
    if test is not None and test[0].shape[1:] != train[0].shape[1:]:
        raise DanceError(
            f"{where}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]} "
            "(channels, height, width); sizes must agree"
        )
    images, labels = as_images(train[0]), as_labels(train[1])
    known = [part[1] for part in (train, test) if part is not None and part[1] is not None]
    return ImageData(
        name=name,
        images=images,
        labels=labels,
        test_images=images if test is None else as_images(test[0]),
        test_labels=labels if test is None else as_labels(test[1]),
        num_classes=max((int(values.max()) + 1 for values in known), default=0),
    )


def as_images(pixels: Pixels) -> torch.Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(pixels.astype(np.float32)).div_(127.5).sub_(1.0)


def as_labels(labels: NDArray[Any] | None) -> torch.Tensor | None:
    """Labels as int64."""
    import torch

    return None if labels is None else torch.from_numpy(labels.astype(np.int64))
