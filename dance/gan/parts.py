"""What each D-Node trains on: its part of a data set, or the one folder that it alone can read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dance.data import Fit, ImageData, load, load_folder, node_folder
from dance.errors import DanceError
from dance.gan.config import RunConfig, under_torchrun
from dance.partition import partition

FOLDERS = "folders"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One D-Node's private images, (n, c, h, w), and their labels, (n,), or None.

    Of a node in another process the images are a meta tensor: a shape without values.
    """

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tensor:
        return self.images[index]

    @property
    def shape(self) -> torch.Size:
        return self.images.shape


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The parts of all D-Nodes, in order, and the real images that node 0 compares with, if there are any."""

    parts: Sequence[Part]
    real: ImageData | None
    num_classes: int


class Everyone(Protocol):
    """Gathers a vector of int64 of equal length from every node, as rows in the order of nodes."""

    def __call__(self, values: Tensor) -> Tensor: ...


def run_data(config: RunConfig, data: ImageData | None = None, gather: Everyone | None = None) -> RunData:
    """Read and divide the data of a run. `data`: in place of what `config.data` names.

    gather: in a run over processes, how this one hears of the others' folders; None: all nodes are here.
    Raises ValueError or DanceError naming what is wrong and the remedy.
    """
    if config.partition == FOLDERS:
        if data is not None:
            raise ValueError("partition folders: the data is read from folders; drop data=, give their path")
        if config.algorithm == "standalone":  # has the folders of all D-Nodes
            found = _pooled(_from_folders(replace(config, algorithm="md-gan"), None))
        else:
            found = _from_folders(config, gather)
    else:
        data = data or load(config.data, fit_of(config))
        here = None if gather is None else {int(os.environ["RANK"])}
        parts = parts_of(config, data, here)
        found = RunData(parts=parts, real=data, num_classes=data.num_classes)
    name = config.data if data is None else data.name
    labelled = all(part.labels is not None for part in found.parts)
    fegan = config.algorithm == "fl-gan" and config.flgan.weights == "fegan"
    if fegan and not labelled:
        raise ValueError(
            f"flgan.weights: fegan needs labelled data, {name} has none; use --flgan.weights images"
        )
    if fegan and config.partition == FOLDERS:
        raise ValueError(
            "flgan.weights: fegan's histograms need classes that all nodes number alike, which folders of "
            "their own do not promise; use --flgan.weights images"
        )
    if config.conditional and not labelled:
        raise ValueError(
            f"conditional: the images of {name} have no labels; use a folder with a sub-folder for "
            "each class, or drop --conditional"
        )
    if config.conditional and config.num_classes not in (0, found.num_classes):
        raise ValueError(
            f"num_classes: the data has {found.num_classes} classes, got {config.num_classes}; drop "
            "--num-classes"
        )
    return found


def fit_of(config: RunConfig) -> Fit:
    """What images of a folder are brought to."""
    return Fit(size=config.image_size, channels=config.image_channels)


def with_classes(config: RunConfig, data: RunData) -> RunConfig:
    """The config of a conditional run with the number of classes of its data."""
    if not config.conditional:
        return config
    if config.label_shares and len(config.label_shares) != data.num_classes:
        raise ValueError(
            f"label_shares: {len(config.label_shares)} shares for {data.num_classes} classes; give one each"
        )
    return replace(config, num_classes=data.num_classes)


def parts_of(config: RunConfig, data: ImageData, here: Container[int] | None = None) -> list[Part]:
    """Each D-Node's private images (standalone: all in one part). Raises ValueError when one has too few.

    here: the nodes whose images are wanted; None: all.
    """
    alone = config.algorithm == "standalone"
    labels: Any = data.labels if data.labels is not None else len(data.images)
    num_parts, spec = (1, "iid") if alone else (config.d_nodes, config.partition)
    indices = partition(labels, spec, num_parts, config.seed)
    _check_sizes(config, [len(index) for index in indices], f"{data.name} ({spec})")
    parts = []
    for number, index in enumerate(indices):
        chosen = torch.from_numpy(np.asarray(index))
        own = None if data.labels is None else data.labels[chosen]
        if here is None or alone or _first_d(config) + number in here:
            parts.append(Part(images=data.images[chosen], labels=own))
        else:
            parts.append(Part(images=torch.empty(len(index), *data.shape, device="meta"), labels=own))
    return parts


def _first_d(config: RunConfig) -> int:
    """The id of the first D-Node: G-Nodes come before, if there are any."""
    return config.num_nodes - config.d_nodes


def _check_sizes(config: RunConfig, counts: Sequence[int], what: str) -> None:
    batch = config.batch_size * (config.d_nodes if config.algorithm == "standalone" else 1)
    smallest = min(range(len(counts)), key=lambda n: counts[n])
    if counts[smallest] < batch:
        raise ValueError(
            f"batch_size: {batch} images a batch, but D-Node {smallest + 1} of {len(counts)} holds only "
            f"{counts[smallest]} of {what}; use a smaller --batch-size or fewer --d-nodes"
        )


def _elsewhere(count: int, shape: Sequence[int], labelled: bool) -> Part:
    labels = torch.empty(count, dtype=torch.int64, device="meta") if labelled else None
    return Part(images=torch.empty(count, *shape, device="meta"), labels=labels)


def _from_folders(config: RunConfig, gather: Everyone | None) -> RunData:
    """Each D-Node reads its own folder; of the others it hears how many images of what shape they have."""
    root = Path(config.data).expanduser()
    own: dict[int, ImageData] = {}
    for number in range(1, config.d_nodes + 1):
        node = _first_d(config) + number - 1
        if gather is None or node == int(os.environ["RANK"]):
            folder = node_folder(root, number, alone=_alone_on_machine(config))
            own[node] = load_folder(folder, fit_of(config))
    real = _public_images(config, root) if gather is None or int(os.environ["RANK"]) == 0 else None
    mine = torch.stack([_described(own.get(node)) for node in range(config.num_nodes)])
    # Every process has filled in its own rows; the others' are zero.
    rows = mine if gather is None else gather(mine.flatten()).view(-1, *mine.shape).sum(0)
    described = [[int(value) for value in row] for row in rows[_first_d(config) :]]
    first = described[0]
    for number, row in enumerate(described, start=1):
        if row[1:4] != first[1:4]:
            raise DanceError(
                f"partition folders: images of node-{number} are {_shape_text(row)}, of node-1 "
                f"{_shape_text(first)}; add --image-size and --image-channels, the same at every node"
            )
        if config.conditional and row[4:] != first[4:]:
            raise DanceError(
                f"partition folders: the classes (sub-folders) of node-{number} are not those of node-1; a "
                "conditional run needs the same names at every node, empty folders where a class is missing"
            )
    _check_sizes(config, [row[0] for row in described], f"the images in its folder below {root}")
    shape = first[1:4]
    if real is not None and list(real.shape) != shape:
        raise DanceError(
            f"{root / 'test'}: images are {_shape_text([0, *real.shape])}, of node-1 {_shape_text(first)}; "
            "add --image-size and --image-channels"
        )
    parts = []
    for number, row in enumerate(described):
        data = own.get(_first_d(config) + number)
        if data is None:
            parts.append(_elsewhere(row[0], shape, labelled=row[4] > 0))
        else:
            parts.append(Part(images=data.images, labels=data.labels))
    return RunData(parts=parts, real=real, num_classes=first[4])


def _pooled(data: RunData) -> RunData:
    """All parts as one."""
    labels = [part.labels for part in data.parts if part.labels is not None]
    images = torch.cat([part.images for part in data.parts])
    whole = Part(images=images, labels=torch.cat(labels) if len(labels) == len(data.parts) else None)
    return replace(data, parts=[whole])


def _described(data: ImageData | None) -> Tensor:
    """What a node tells of its folder: images, channels, height, width, classes, hash of their names."""
    if data is None:
        return torch.zeros(6, dtype=torch.int64)
    names = "\0".join(data.class_names).encode()
    digest = int.from_bytes(hashlib.sha256(names).digest()[:7], "little")
    return torch.tensor([len(data.images), *data.shape, data.num_classes, digest])


def _public_images(config: RunConfig, root: Path) -> ImageData | None:
    """PATH/test, images that may be seen at the G-Node; None: there are none, and nothing is measured."""
    folder = root / "test"
    return load_folder(folder, fit_of(config)) if folder.is_dir() else None


def _alone_on_machine(config: RunConfig) -> bool:
    """Whether this process is the only D-Node that torchrun started on its machine."""
    if not under_torchrun() or config.simulate:
        return config.d_nodes == 1
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    first = rank - local
    ranks = range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return sum(number >= _first_d(config) for number in ranks) == 1


def _shape_text(row: Sequence[int]) -> str:
    return f"{row[3]} x {row[2]} pixels, {'grey' if row[1] == 1 else 'colour'}"
