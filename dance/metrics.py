"""How good generated images are: score, FID and class histogram, all with one small seeded classifier.

Published scores and FIDs use another network; these numbers compare only with each other, on the same data.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from dance.data import ImageData, cache_dir
from dance.errors import DanceError, NonFiniteError
from dance.files import write_atomic

# Part of the cache key: raise it whenever network or training change.
_VERSION = 1
_BATCH = 1000
# A class counts as drawn above this share of the images.
_DRAWN_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation; score, class_histogram and entropy are None for images without labels.

    score: inception score with our classifier, from 1 to the number of classes; fid: on its penultimate
    features; class_histogram: the share of each class among the generated images; entropy: of it, in nats.
    """

    score: float | None
    fid: float
    class_histogram: list[float] | None
    entropy: float | None
    num_images: int
    num_real: int

    @property
    def classes_drawn(self) -> int | None:
        """How many classes make up over 2 % of the generated images."""
        if self.class_histogram is None:
            return None
        return sum(share > _DRAWN_SHARE for share in self.class_histogram)


class FeatureNetwork(nn.Module):
    """A small convolutional network: `features` gives (n, 64), `forward` the logits of the classes."""

    num_features = 64

    def __init__(self, shape: tuple[int, int, int], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.shrink = 2 if min(height, width) >= 16 else 1
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        last = 32 * (height // self.shrink // 2) * (width // self.shrink // 2)
        self.hidden = nn.Linear(last, self.num_features)
        self.output = nn.Linear(self.num_features, num_outputs)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer, (n, 64), for images (n, c, h, w) in [-1, 1]."""
        x = self.conv1(images)
        if self.shrink > 1:
            x = F.max_pool2d(x, self.shrink)
        x = F.relu(self.norm1(x))
        x = F.relu(self.norm2(F.max_pool2d(self.conv2(x), 2)))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes; in training with dropout on the features."""
        logits: Tensor = self.output(F.dropout(self.features(images), 0.3, self.training))
        return logits


class _Identity(nn.Module):
    """What torchmetrics takes for its feature network: ours has run already, once for both metrics."""

    num_features = FeatureNetwork.num_features

    def forward(self, values: Tensor) -> Tensor:
        return values


class Evaluator:
    """Evaluates a generator against the real images of `data`.

    The classifier is trained on the first use of a data set (digits: seconds; MNIST: a minute or two) and
    cached under `cache_dir` (default: $DANCE_CACHE or the platform's cache folder); processes that ask at
    once wait for one of them. Images without labels: the network is an autoencoder's encoder, and only the
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
        if min(data.shape[1:]) < 4:
            raise ValueError(
                f"Evaluator: images of {data.shape[1:]} are too small for its network; use 4 x 4 or more"
            )
        self.num_images = num_images
        self._data = data
        self._seed = seed
        self._network, self.accuracy = _cached_network(data, seed, cache_dir, on_training)
        with _reproducible(seed):
            self._fid = _frechet()
            for images in torch.split(data.test_images, _BATCH):
                self._fid.update(self._network.features(images), real=True)
        self.num_real = len(data.test_images)

    def evaluate(self, sample: Callable[[int], Tensor]) -> Evaluation:
        """Draw `num_images` images by calls of `sample(n)` -> (n, c, h, w) in [-1, 1] and evaluate them.

        Equal images give equal results, whatever torch's threads and global generator: both are set for the
        time of the call (one thread) and put back. Raises NonFiniteError for NaN or infinite pixels.
        """
        features, logits = [], []
        with _reproducible(self._seed):
            for start in range(0, self.num_images, _BATCH):
                images = sample(min(_BATCH, self.num_images - start)).detach().to("cpu", torch.float32)
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
                features.append(self._network.features(images))
                logits.append(self._network.output(features[-1]))
            return self._measure(torch.cat(features), torch.cat(logits))

    def evaluate_real(self) -> Evaluation:
        """The same measures for the real images: the score to be hoped for, and an FID of about 0."""
        with _reproducible(self._seed):
            features = torch.cat(
                [self._network.features(x) for x in torch.split(self._data.test_images, _BATCH)]
            )
            return self._measure(features, self._network.output(features))

    def _measure(self, features: Tensor, logits: Tensor) -> Evaluation:
        self._fid.reset()  # keeps the real images' statistics
        self._fid.update(features, real=False)
        fid = max(0.0, float(self._fid.compute()))
        score, shares, entropy = None, None, None
        if self._data.test_labels is not None:
            score = _inception_score(logits)
            counts = torch.bincount(logits.argmax(1), minlength=self._data.num_classes).tolist()
            shares = [count / len(logits) for count in counts]
            entropy = sum(share * math.log(1 / share) for share in shares if share > 0)
        return Evaluation(
            score=score,
            fid=fid,
            class_histogram=shares,
            entropy=entropy,
            num_images=len(features),
            num_real=self.num_real,
        )


def _frechet() -> Any:
    # torchmetrics.image exports it only where torch-fidelity is installed, which we do not need.
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Under torch.distributed a metric would wait for all ranks, and only the generator's rank evaluates.
    return FrechetInceptionDistance(feature=_Identity(), reset_real_features=False, sync_on_compute=False)


def _inception_score(logits: Tensor) -> float:
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # that it keeps the features, which here are 10 numbers an image
        splits = min(10, max(1, len(logits) // 100))
        metric: Any = InceptionScore(feature=_Identity(), splits=splits, sync_on_compute=False)
    metric.update(logits)
    return float(metric.compute()[0])


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread, no gradient, a generator seeded for torchmetrics' shuffle; all put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _cached_network(
    data: ImageData, seed: int, folder: Path | None, on_training: Callable[[str], None] | None
) -> tuple[FeatureNetwork, float | None]:
    from filelock import FileLock, Timeout

    labelled = data.labels is not None
    network = FeatureNetwork(data.shape, data.num_classes if labelled else 1)
    path = (folder or cache_dir() / "classifiers") / f"{_key(data, seed)}.safetensors"
    known = _read(path, network)
    if known is not None:
        return network, known.accuracy
    accuracy, trained = None, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        with lock.acquire(timeout=1800):
            known = _read(path, network)  # another process may have trained it meanwhile
            if known is None:
                accuracy, trained = _train(network, data, seed, on_training), True
                _write(path, network, accuracy)
                return network, accuracy
            return network, known.accuracy
    except (OSError, DanceError, Timeout) as error:
        warnings.warn(
            f"the classifier cannot be cached ({error}); set DANCE_CACHE to a writable folder", stacklevel=4
        )
        return network, accuracy if trained else _train(network, data, seed, on_training)


def _key(data: ImageData, seed: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {seed} {data.num_classes} {tuple(data.images.shape)}".encode())
    for tensor in (data.images, data.labels, data.test_images, data.test_labels):
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().data)
    name = "".join(c if c.isalnum() or c == "-" else "_" for c in data.name)[:40]
    return f"{name}-{digest.hexdigest()[:24]}"


@dataclass(frozen=True, kw_only=True)
class _Known:
    accuracy: float | None


def _read(path: Path, network: FeatureNetwork) -> _Known | None:
    """Load the cached weights into `network`; None where there are none or they are damaged."""
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        payload = path.read_bytes()
        length = int.from_bytes(payload[:8], "little")
        about = json.loads(payload[8 : 8 + length])["__metadata__"]
        tensors = load(payload)
        if about["sha256"] != _digest(tensors):
            return None
        network.load_state_dict(tensors)
        network.eval().requires_grad_(False)
        return _Known(accuracy=None if about["accuracy"] == "" else float(about["accuracy"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _write(path: Path, network: FeatureNetwork, accuracy: float | None) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    about = {"accuracy": "" if accuracy is None else repr(accuracy), "sha256": _digest(tensors)}
    write_atomic(path, save(tensors, metadata=about))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _train(
    network: FeatureNetwork, data: ImageData, seed: int, on_training: Callable[[str], None] | None
) -> float | None:
    """Train in place; equal weights for equal data and seed on the same torch and CPU; gives the accuracy."""
    say = on_training or (lambda _: None)
    with _reproducible(seed):
        random = torch.Generator().manual_seed(seed)
        images, labels, test_images, test_labels = (
            data.images,
            data.labels,
            data.test_images,
            data.test_labels,
        )
        if test_images is images:  # no test part of its own: hold a fifth back
            order = torch.randperm(len(images), generator=random)
            held, rest = order[: len(images) // 5], order[len(images) // 5 :]
            images, test_images = images[rest], images[held]
            if labels is not None:
                labels, test_labels = labels[rest], labels[held]
        _reset(network, seed)
        if labels is None or test_labels is None:
            say(f"training a feature network for {data.name} (once; it is cached)")
            _fit_autoencoder(network, images, random)
            network.eval().requires_grad_(False)
            return None
        say(f"training the classifier of {data.name} that scores the images (once; it is cached)")
        _fit_classifier(network, images, labels, random)
        network.eval().requires_grad_(False)
        right = 0
        for x, y in zip(torch.split(test_images, _BATCH), torch.split(test_labels, _BATCH), strict=True):
            right += int((network(x).argmax(1) == y).sum())
        accuracy = right / max(1, len(test_images))
        say(f"the classifier is right on {accuracy:.2%} of {len(test_images)} images it has not seen")
        return accuracy


def _reset(network: FeatureNetwork, seed: int) -> None:
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    network.train().requires_grad_(True)


def _fit_classifier(network: FeatureNetwork, images: Tensor, labels: Tensor, random: torch.Generator) -> None:
    # Small sets need many passes, large ones few: about 450 steps on digits, 1,900 on 60,000 images.
    batch = 64 if len(images) < 10_000 else 128
    epochs = 20 if len(images) < 10_000 else 4
    _fit(network, images, batch, epochs, random, lambda x, i: F.cross_entropy(network(x), labels[i]))


def _fit_autoencoder(network: FeatureNetwork, images: Tensor, random: torch.Generator) -> None:
    pixels = images[0].numel()
    decoder = nn.Sequential(
        nn.Linear(network.num_features, 256), nn.ReLU(), nn.Linear(256, pixels), nn.Tanh()
    )
    both = nn.ModuleList([network, decoder])

    def loss(x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(decoder(network.features(x)), x.flatten(1))

    _fit(both, images, 64, 20 if len(images) < 10_000 else 4, random, loss)


def _fit(
    network: nn.Module,
    images: Tensor,
    batch: int,
    epochs: int,
    random: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    batch = min(batch, len(images))
    steps = max(1, len(images) // batch)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * steps)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=random)
            for step in range(steps):
                chosen = order[step * batch : (step + 1) * batch]
                optimizer.zero_grad()
                torch.autograd.backward(loss(images[chosen], chosen))
                optimizer.step()
                schedule.step()
