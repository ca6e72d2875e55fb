"""How good generated images are: score, FID, KID and class histogram, all with one seeded classifier.

Published scores and FIDs use another network; these numbers compare only with each other, on the same data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dance.data import ImageData
from dance.errors import NonFiniteError
from dance.metrics.network import BATCH, cached_network, features_of, reproducible

# A class, or a mode, counts as drawn above this share of the images.
_DRAWN_SHARE = 0.02
# A point is a mode's within so many deviations.
_NEAR = 4.0
# KID is a mean over random subsets (Binkowski et al. 2018, section 4), of all images where there are fewer.
_KID_SUBSET, _KID_SUBSETS = 1000, 20


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation; score, class_histogram and entropy are None for images without labels.

    score: inception score with our classifier, from 1 to the number of classes; fid, kid: on its penultimate
    features, None where there are no real images to compare with; class_histogram: the share of each class
    among the generated images; entropy: of it, in nats.
    Of points drawn from modes: fid and kid on the points themselves, class_histogram by the nearest mode;
    modes: modes that have over 2 % of all points within 4 deviations; near: the share of points within 4
    deviations of any. None for images.
    """

    score: float | None
    fid: float | None
    class_histogram: list[float] | None
    entropy: float | None
    num_images: int
    num_real: int
    kid: float | None = None
    modes: int | None = None
    near: float | None = None

    @property
    def classes_drawn(self) -> int | None:
        """How many classes make up over 2 % of the generated images."""
        if self.class_histogram is None:
            return None
        return sum(share > _DRAWN_SHARE for share in self.class_histogram)


NOT_MEASURED = Evaluation(score=None, fid=None, class_histogram=None, entropy=None, num_images=0, num_real=0)


class _Identity(nn.Module):
    """What torchmetrics takes for its feature network: ours has run already, once for all metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, values: Tensor) -> Tensor:
        return values


class Evaluator:
    """Evaluates a generator against the real images of `data`.

    The classifier of digits, MNIST, Fashion-MNIST and CIFAR-10 comes with the package, so that their figures
    compare between machines. That of other data is trained on their first use (a minute or two) and cached
    under `cache_dir` (default: $DANCE_CACHE or the platform's cache folder); processes that ask at once wait
    for one of them. Images without labels: the network is an autoencoder's encoder, and only the
    FID is given.
    accuracy: the classifier's share of right answers on images it has not seen; None without labels.
    """

    accuracy: float | None

    def __init__(
        self,
        data: ImageData,
        *,
        seed: int = 0,
        cache_dir: Path | None = None,
        num_images: int = 10_000,
        on_training: Callable[[str], None] | None = None,
    ) -> None:
        if num_images < 2:
            raise ValueError(f"Evaluator: expected num_images of at least 2, got {num_images}; use 10,000")
        if data.centres is None and min(data.shape[1:]) < 4:
            raise ValueError(
                f"Evaluator: images of {data.shape[1:]} are too small for its network; use 4 x 4 or more"
            )
        self.num_images = num_images
        self._data = data
        self._seed = seed
        self.accuracy = None
        if data.centres is None:
            self._network, self.accuracy = cached_network(data, seed, cache_dir, on_training)
        with reproducible(seed):
            self._real = torch.cat([self._features(x) for x in torch.split(data.test_images, BATCH)])
            self._fid = _frechet(self._real.shape[1])
            self._fid.update(self._real, real=True)
        self.num_real = len(data.test_images)

    def evaluate(self, sample: Callable[[int], Tensor]) -> Evaluation:
        """Draw `num_images` images by calls of `sample(n)` -> (n, c, h, w) in [-1, 1] and evaluate them.

        Equal images give equal results, whatever torch's threads and global generator: both are set for the
        time of the call (one thread) and put back. Raises NonFiniteError for NaN or infinite pixels.
        """
        features = []
        with reproducible(self._seed):
            for start in range(0, self.num_images, BATCH):
                images = sample(min(BATCH, self.num_images - start)).detach().to("cpu", torch.float32)
                if images.shape[1:] != self._data.test_images.shape[1:]:
                    raise ValueError(
                        f"Evaluator: expected images of {tuple(self._data.test_images.shape[1:])}, "
                        f"got {tuple(images.shape[1:])}; the generator must make the data's shape"
                    )
                if not bool(torch.isfinite(images).all()):
                    raise NonFiniteError(
                        "the generated images hold NaN or infinity: training has diverged; use a smaller "
                        "learning rate or gossip step size, or resume from an earlier checkpoint"
                    )
                features.append(self._features(images))
            return self._measure(torch.cat(features))

    def evaluate_real(self) -> Evaluation:
        """The same measures for the real images: the score to be hoped for, and an FID of about 0."""
        with reproducible(self._seed):
            return self._measure(self._real)

    def _features(self, images: Tensor) -> Tensor:
        """What images are compared by; points by themselves."""
        if self._data.centres is not None:
            return images.flatten(1)
        return features_of(self._network, images)

    def _measure(self, features: Tensor) -> Evaluation:
        self._fid.reset()  # keeps the real images' statistics
        self._fid.update(features, real=False)
        fid = max(0.0, float(self._fid.compute()))
        score, classes, modes, near = None, None, None, None
        if self._data.centres is not None:
            distances = torch.cdist(features, self._data.centres)
            smallest, classes = distances.min(1)
            hit = smallest <= _NEAR * self._data.deviation
            near = float(hit.double().mean())
            counts = torch.bincount(classes[hit], minlength=len(self._data.centres))
            modes = int((counts > _DRAWN_SHARE * len(features)).sum())
        elif self._data.test_labels is not None:
            logits = self._network.output(features)
            score, classes = _inception_score(logits), logits.argmax(1)
        shares, entropy = None, None
        if classes is not None:
            counts = torch.bincount(classes, minlength=self._data.num_classes)
            shares = [count / len(features) for count in counts.tolist()]
            entropy = sum(share * math.log(1 / share) for share in shares if share > 0)
        return Evaluation(
            score=score,
            fid=fid,
            class_histogram=shares,
            entropy=entropy,
            num_images=len(features),
            num_real=self.num_real,
            kid=_kernel_distance(self._real, features),
            modes=modes,
            near=near,
        )


def _frechet(num_features: int) -> Any:
    # torchmetrics.image exports it only where torch-fidelity is installed, which we do not need.
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Under torch.distributed a metric would wait for all ranks, and only the generator's rank evaluates.
    return FrechetInceptionDistance(
        feature=_Identity(num_features), reset_real_features=False, sync_on_compute=False
    )


def _kernel_distance(real: Tensor, fake: Tensor) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features: here 64 an image
        metric: Any = KernelInceptionDistance(
            feature=_Identity(real.shape[1]),
            subsets=_KID_SUBSETS,
            subset_size=min(_KID_SUBSET, len(real), len(fake)),
            sync_on_compute=False,
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute()[0])


def _inception_score(logits: Tensor) -> float:
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        # That it keeps the features, here 10 numbers an image, and that one split has no deviation.
        warnings.simplefilter("ignore", UserWarning)
        splits = min(10, max(1, len(logits) // 100))
        metric: Any = InceptionScore(feature=_Identity(logits.shape[1]), splits=splits, sync_on_compute=False)
        metric.update(logits)
        return float(metric.compute()[0])
