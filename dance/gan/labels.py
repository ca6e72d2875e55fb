"""The labels of a conditional run's generated images: drawn from the run's seed, the same at every node.

Every node knows seed and round, so the labels of a batch need not travel: G-Nodes and D-Nodes derive them, at
no bytes and exactly. They say nothing of anybody's data: their shares are those the user states, or equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dance.gan.config import RunConfig
from dance.packet import derive_seed


def drawn_labels(config: RunConfig, round_index: int, num_images: int) -> Tensor:
    """The labels of every batch of `num_images` in a round, int64 (num_images,), in random order.

    Their counts are within one of num_images times the shares (systematic sampling).
    """
    seed = derive_seed(config.seed, round_index, 0, "label", "noise")
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor(config.label_shares or [1.0] * config.num_classes, dtype=torch.float64)
    bounds = shares.cumsum(0) / shares.sum()
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    places = (torch.arange(num_images, dtype=torch.float64) + offset) / num_images
    labels = torch.searchsorted(bounds, places, right=True).clamp_(max=config.num_classes - 1)
    return labels[torch.randperm(num_images, generator=generator)]


def repeated(labels: Tensor, num_images: int) -> Tensor:
    """The labels of several batches, one after the other: (num_images,), a multiple of a batch."""
    assert num_images % len(labels) == 0
    return labels.repeat(num_images // len(labels))


def shown_labels(num_images: int, num_classes: int) -> Tensor:
    """Labels of a sample to look at or to evaluate: 0, 1, ..., 0, 1, ...: all classes equally."""
    return torch.arange(num_images) % num_classes
