"""IDX files, the format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist), plain or gzipped."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dance.data.images import ImageData, from_pixels
from dance.errors import DanceError

# The four files of a set, and how many dimensions each has.
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
# More than any set read here; a longer header is a damaged file, not a reason to allocate.
_MAX_BYTES = 1 << 31


def holds_training_images(folder: Path) -> bool:
    """Whether there is at least the part that `load_idx` cannot do without."""
    return path_of(folder, "train-images-idx3-ubyte") is not None


def complete(folder: Path) -> bool:
    """Whether all four files are there."""
    return all(path_of(folder, file) is not None for file in FILES)


def path_of(folder: Path, file: str) -> Path | None:
    """Where a file of the set is, under the names that archives give it."""
    dotted = file.replace("-idx", ".idx")
    for name in (file, f"{file}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def load_idx(name: str, folder: Path) -> ImageData:
    """Read a folder of IDX files; labels and the test part may be missing."""
    arrays: dict[str, NDArray[np.uint8] | None] = {}
    for file, dimensions in FILES.items():
        path = path_of(folder, file)
        arrays[file] = None if path is None else read_idx(path, dimensions)
    train, train_labels, test, test_labels = arrays.values()
    assert train is not None
    return from_pixels(
        name,
        (train[:, None], train_labels),
        None if test is None else (test[:, None], test_labels),
        folder,
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes; `.gz` is unpacked on the way."""
    remedy = "delete it and get it again (`dance data fetch`)"
    header_size = 4 + 4 * dimensions
    try:
        opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes((0, 0, 8, dimensions)):
                raise DanceError(f"{path}: not an IDX file of {dimensions}-dimensional bytes; {remedy}")
            sizes = struct.unpack(f">{dimensions}I", header[4:])
            num_bytes = 1
            for size in sizes:  # Python integers: no overflow
                num_bytes *= size
            if num_bytes > _MAX_BYTES:
                raise DanceError(
                    f"{path}: the header says {num_bytes} bytes, more than this reader takes; {remedy}"
                )
            body = file.read(num_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DanceError(f"{path}: damaged gzip file ({error}); {remedy}") from error
    except OSError as error:
        raise DanceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(body) != num_bytes:
        found = "more" if len(body) > num_bytes else str(len(body))
        raise DanceError(f"{path}: the header says {num_bytes} bytes of data, found {found}; {remedy}")
    return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(sizes)
