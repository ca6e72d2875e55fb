"""A folder of image files: sub-folders are classes, or it is flat and has no labels.

PATH/train and PATH/test, if both are there, are the two parts. Under `--partition folders` each D-Node has a
folder of its own, PATH/node-1, PATH/node-2 and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dance.data.images import ImageData, Pixels, from_pixels
from dance.errors import DanceError, UnavailableError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is done to files: `size`: resize and centre-crop to size x size; `channels`: 1 grey, 3 colour.

    None leaves an image's size as it is; channels None: grey if all files are, else colour.
    """

    size: int | None = None
    channels: int | None = None


def load_folder(path: Path, fit: Fit | None = None) -> ImageData:
    """Read every image below `path`. Raises DanceError naming the file at fault and the remedy."""
    fit = fit or Fit()
    parts = [path / "train", path / "test"]
    if all(part.is_dir() for part in parts):
        names = sorted(set(_classes(parts[0])) | set(_classes(parts[1])))
        (train, labels), (test, test_labels) = (_read(part, names, fit) for part in parts)
        if train.shape[1] != test.shape[1]:
            raise DanceError(
                f"{path}: train has {train.shape[1]} channels, test {test.shape[1]}; "
                "add --image-channels 1 (grey) or 3 (colour)"
            )
        data = from_pixels(path.resolve().name, (train, labels), (test, test_labels), path)
    else:
        names = _classes(path)
        data = from_pixels(path.resolve().name, _read(path, names, fit), None, path)
    classes = len(names) if data.labels is not None else 0
    return dataclasses.replace(data, num_classes=classes, class_names=tuple(names))


def holds_images(path: Path) -> bool:
    """Whether any file below looks like an image."""
    return next((file for file in path.rglob("*") if _is_image(file)), None) is not None


def node_folder(path: Path, number: int, alone: bool) -> Path:
    """The folder of D-Node `number` (from 1): PATH/node-NUMBER, or PATH for the only D-Node of a machine.

    Raises DanceError where there is none.
    """
    folder = path / f"node-{number}"
    if folder.is_dir():
        return folder
    if alone and path.is_dir() and not any(path.glob("node-*")):
        return path
    raise DanceError(f"partition folders: D-Node {number} has no folder {folder}; put its images there")


def _classes(path: Path) -> list[str]:
    """Names of the sub-folders, in order; hidden ones are none."""
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise DanceError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read(path: Path, classes: Sequence[str], fit: Fit) -> tuple[Pixels, NDArray[np.int64] | None]:
    flat = sorted(file for file in path.iterdir() if _is_image(file))
    sorted_in = [(file, k) for k, name in enumerate(classes) for file in _below(path / name)]
    if flat and sorted_in:
        raise DanceError(
            f"{path}: {flat[0].name} stands beside sub-folders with images ({sorted_in[0][0].parent.name}); "
            "put every image into a sub-folder (its class), or all of them into one folder without any"
        )
    files = flat or [file for file, _ in sorted_in]
    if not files:
        raise DanceError(f"{path}: no images in this folder; it should hold files {', '.join(ENDINGS)}")
    labels = None if flat else np.array([k for _, k in sorted_in], dtype=np.int64)
    arrays = [_pixels(file, fit) for file in files]
    if fit.channels is None:
        channels = max(array.shape[2] for array in arrays)
        arrays = [np.repeat(a, channels, 2) if a.shape[2] < channels else a for a in arrays]
    for file, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape:
            (height, width), (h, w) = array.shape[:2], arrays[0].shape[:2]
            raise DanceError(
                f"{file}: {width} x {height} pixels, but {files[0].name} has {w} x {h}; add --image-size "
                f"{min(h, w, height, width)} to resize and centre-crop all images to one square size"
            )
    return np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2)), labels


def _below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_image(file)) if folder.is_dir() else []


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.name[0] != "." and path.is_file()


def _pixels(path: Path, fit: Fit) -> NDArray[np.uint8]:
    """uint8, (height, width, 1 or 3)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnavailableError("folders of images need pillow; pip install 'dance-gan[gan]'") from error
    try:
        with Image.open(path) as file:
            image: Any = ImageOps.exif_transpose(file)  # as a viewer shows it
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DanceError(f"{path}: not a readable image ({error}); repair it or take it away") from error
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = image.convert("RGBA")  # what is transparent becomes white
        grey = image.mode == "LA"
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert(
            "L" if grey else "RGB"
        )
    grey = image.mode in ("1", "L", "F") if fit.channels is None else fit.channels == 1
    image = image.convert("L" if grey else "RGB")
    if fit.size is not None and image.size != (fit.size, fit.size):
        image = ImageOps.fit(image, (fit.size, fit.size), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
