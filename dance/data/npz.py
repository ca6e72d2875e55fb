"""A NumPy .npz file as a data set.

Keys: `images`, uint8 (n, height, width) or (n, height, width, 1 or 3), or float in [0, 1] of these shapes;
`labels`, integers (n,), optional; `test_images` and `test_labels`, likewise, optional.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dance.data.images import ImageData, Pixels, from_pixels
from dance.errors import DanceError


def load_npz(path: Path) -> ImageData:
    """Read it. Raises DanceError naming file, key and remedy."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DanceError(f"{path}: a single array; save it with numpy.savez(file, images=...)")
            arrays = {
                key: np.asarray(file[key])
                for key in ("images", "labels", "test_images", "test_labels")
                if key in file.files
            }
            keys = ", ".join(file.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DanceError(
            f"{path}: not a readable .npz file ({error}); save it anew with numpy.savez"
        ) from error
    if "images" not in arrays:
        raise DanceError(
            f"{path}: no key 'images', found {keys or 'none'}; save it with numpy.savez(file, images=..., "
            "labels=...)"
        )
    train = (_pixels(path, "images", arrays["images"]), _labels(path, "labels", arrays.get("labels")))
    test = None
    if "test_images" in arrays:
        test = (
            _pixels(path, "test_images", arrays["test_images"]),
            _labels(path, "test_labels", arrays.get("test_labels")),
        )
    return from_pixels(path.stem, train, test, path)


def _pixels(path: Path, key: str, values: NDArray[Any]) -> Pixels:
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3):
        raise DanceError(
            f"{path}: {key} has shape {values.shape}; expected (n, height, width) or "
            "(n, height, width, 1 or 3)"
        )
    if values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise DanceError(f"{path}: {key} goes from {low} to {high}; floats must be in [0, 1]")
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DanceError(f"{path}: {key} is {values.dtype}; expected uint8, or float in [0, 1]")
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _labels(path: Path, key: str, values: NDArray[Any] | None) -> NDArray[Any] | None:
    if values is None:
        return None
    if values.ndim != 1 or values.dtype.kind not in "iu" or (len(values) and values.min() < 0):
        raise DanceError(
            f"{path}: {key} is {values.dtype} of shape {values.shape}; expected integers from 0, shape (n,)"
        )
    return values
