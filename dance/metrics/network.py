"""The networks whose features and classes images are judged by: one a data set, trained from a seed.

Those of digits, MNIST, Fashion-MNIST and CIFAR-10 come with the package, in networks/, so that figures of
unlike machines compare: on another CPU, where sums round otherwise, training ends elsewhere, and with the
network every FID moves by up to a tenth. Networks of other data are trained here, once, and cached.
`python -m benchmarks.networks` trains what the package has.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from dance.data import ImageData, cache_dir
from dance.errors import DanceError
from dance.files import write_atomic

# Part of the key: raise it whenever network or training change, and train those of the package again.
_VERSION = 1
SHIPPED = Path(__file__).parent / "networks"
BATCH = 1000
# So many images stay in cache; with the channels innermost, too, features take a fifth of the time.
_TOGETHER = 100


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


class ColourNetwork(FeatureNetwork):
    """For colour images from 24 x 24 pixels, which ask for more: four convolutions; features (n, 64)."""

    def __init__(self, shape: tuple[int, int, int], num_outputs: int) -> None:
        nn.Module.__init__(self)
        layers: list[nn.Module] = []
        width = shape[0]
        for wider, halve in ((32, True), (64, True), (128, False), (128, True)):
            layers += [nn.Conv2d(width, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)] if halve else [nn.ReLU()]
            width = wider
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(width, self.num_features)
        self.output = nn.Linear(self.num_features, num_outputs)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer, (n, 64), for images (n, c, h, w) in [-1, 1]."""
        return F.relu(self.hidden(self.layers(images).mean((2, 3))))


def features_of(network: FeatureNetwork, images: Tensor) -> Tensor:
    """(n, 64) features of images (n, c, h, w) in [-1, 1], by a network that `cached_network` gave."""
    parts = torch.split(images, _TOGETHER)
    return torch.cat([network.features(x.contiguous(memory_format=torch.channels_last)) for x in parts])


def is_colour(data: ImageData) -> bool:
    """Whether the larger network is worth its training: labelled colour images that are not tiny."""
    channels, height, width = data.shape
    return channels == 3 and min(height, width) >= 24 and data.labels is not None


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, no gradient, a generator seeded for torchmetrics' shuffle; all put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def cached_network(
    data: ImageData, seed: int, folder: Path | None, on_training: Callable[[str], None] | None
) -> tuple[FeatureNetwork, float | None]:
    """The network of a data set, in evaluation, channels innermost; and its accuracy, None without labels."""
    network, accuracy = _cached(data, seed, folder, on_training)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub forgets it
    return network, accuracy


def _cached(
    data: ImageData, seed: int, folder: Path | None, on_training: Callable[[str], None] | None
) -> tuple[FeatureNetwork, float | None]:
    from filelock import FileLock, Timeout

    labelled = data.labels is not None
    kind = ColourNetwork if is_colour(data) else FeatureNetwork
    network = kind(data.shape, data.num_classes if labelled else 1)
    name = f"{_key(data, seed)}.safetensors"
    path = (folder or cache_dir() / "classifiers") / name
    known = _read(SHIPPED / name, network) or _read(path, network)
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
            f"the classifier cannot be cached ({error}); set DANCE_CACHE to a writable folder", stacklevel=5
        )
        return network, accuracy if trained else _train(network, data, seed, on_training)


def _key(data: ImageData, seed: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {seed} {data.num_classes} {tuple(data.images.shape)}".encode())
    if is_colour(data):
        digest.update(b"colour")
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
    with reproducible(seed):
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
        for x, y in zip(torch.split(test_images, BATCH), torch.split(test_labels, BATCH), strict=True):
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
    if isinstance(network, ColourNetwork):
        # Mirrored and shifted by up to 4 pixels, an image a pass; more passes, since each is another.
        def loss(x: Tensor, chosen: Tensor) -> Tensor:
            return F.cross_entropy(network(_shifted(x, random)), labels[chosen])

        _fit(network, images, batch, 3 * epochs // 2, random, loss)
        return
    _fit(network, images, batch, epochs, random, lambda x, i: F.cross_entropy(network(x), labels[i]))


def _shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """A batch, half of the time mirrored, and moved by up to 4 pixels; what comes in is grey."""
    if torch.rand(1, generator=random) < 0.5:
        images = images.flip(3)
    top, left = torch.randint(0, 9, (2,), generator=random).tolist()
    height, width = images.shape[2:]
    return F.pad(images, (4, 4, 4, 4))[:, :, top : top + height, left : left + width]


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
