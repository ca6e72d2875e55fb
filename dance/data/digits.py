"""scikit-learn's digits, which come with it: 1,797 real images of 8 x 8 pixels."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dance.data.images import ImageData
from dance.errors import UnavailableError

TITLE = "scikit-learn's digits: 1,797 handwritten digits, 8 x 8 grey; comes with scikit-learn"


def load_digits() -> ImageData:
    """The digits; they have no test part of their own."""
    import torch

    try:
        from sklearn import datasets
    except ImportError as error:
        raise UnavailableError("data 'digits' needs scikit-learn; pip install 'dance-gan[gan]'") from error
    bunch: Any = datasets.load_digits()
    pixels = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))
    images = (pixels / 8.0 - 1.0).unsqueeze(1).contiguous()  # pixels are 0..16
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return ImageData(
        name="digits", images=images, labels=labels, test_images=images, test_labels=labels, num_classes=10
    )


def folder() -> Path | None:
    """Where scikit-learn keeps them; None where it is not installed."""
    spec = find_spec("sklearn")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets"
