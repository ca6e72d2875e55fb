"""Eight Gaussians on a ring: points in the plane whose modes a generator finds or loses, for all to see.

The usual test of mode collapse (Metz et al. 2017, appendix), scaled to the range of images. A point is an
image of shape (1, 1, 2); its label is its mode: `--partition classes:1` gives each of eight nodes one.
"""

from __future__ import annotations

import math

from dance.data.images import ImageData

TITLE = "8 Gaussians on a ring: 16,000 + 10,000 points in the plane; drawn here, nothing to fetch"
NUM_MODES = 8
RADIUS = 0.8
DEVIATION = 0.02
_TRAIN, _TEST = 16_000, 10_000
# The data set is one and the same for all runs; what follows from a run's seed is how it is divided.
_SEED = 8


def load_gaussians() -> ImageData:
    """The points, as many of each mode."""
    import torch

    angles = torch.arange(NUM_MODES, dtype=torch.float64) * (2 * math.pi / NUM_MODES)
    centres = (RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)).to(torch.float32)
    labels = torch.arange(_TRAIN + _TEST) % NUM_MODES
    noise = torch.randn(_TRAIN + _TEST, 2, generator=torch.Generator().manual_seed(_SEED))
    points = (centres[labels] + DEVIATION * noise).view(-1, 1, 1, 2)
    return ImageData(
        name="gaussians",
        images=points[:_TRAIN],
        labels=labels[:_TRAIN],
        test_images=points[_TRAIN:],
        test_labels=labels[_TRAIN:],
        num_classes=NUM_MODES,
        centres=centres,
        deviation=DEVIATION,
    )
