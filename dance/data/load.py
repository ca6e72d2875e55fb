"""load: from a name or a path to a data set in memory."""

from __future__ import annotations

from pathlib import Path

from dance.data import dataset, idx, npz
from dance.data.folder import ENDINGS, Fit, holds_images, load_folder
from dance.data.images import ImageData
from dance.data.sources import BUILT_IN, SOURCES, find, names
from dance.errors import DanceError


def load(name_or_path: str | Path, fit: Fit | None = None) -> ImageData:
    """Read a data set: a name (`dance data list`), a folder of image files or of IDX files, or an .npz file.

    fit: size and channels that images of a folder are brought to. Raises DanceError with the places searched
    and the remedy where files are missing or damaged, ValueError for an unknown name.
    """
    text = str(name_or_path)
    fit = fit or Fit()
    if text in BUILT_IN:
        _refuse_fit(text, fit)
        return BUILT_IN[text]()
    source = SOURCES.get(text)
    if source is not None:
        _refuse_fit(text, fit)
        return source.read(text, find(source))
    path = Path(text).expanduser()
    if path.is_dir():
        for folder in (path, path / "data", path / "raw", path / "package" / "data"):
            if idx.holds_training_images(folder):
                _refuse_fit(text, fit)
                return idx.load_idx(path.resolve().name, folder)
        if not holds_images(path):
            raise DanceError(
                f"data {text!r}: no images in this folder; it should hold files {', '.join(ENDINGS)} (flat, "
                "or a sub-folder for each class), or the IDX file train-images-idx3-ubyte[.gz]"
            )
        return load_folder(path, fit)
    if path.is_file() and path.suffix in (".npz", dataset.ENDING):
        _refuse_fit(text, fit)
        return npz.load_npz(path) if path.suffix == ".npz" else dataset.load_saved(path)
    raise ValueError(
        f"unknown data {text!r}; known: {', '.join(names())}, or the path of a folder of images, of a folder "
        "of IDX files, or of an .npz file"
    )


def _refuse_fit(text: str, fit: Fit) -> None:
    if fit != Fit():
        raise ValueError(
            f"data {text!r}: image_size and image_channels are for folders of image files; drop them"
        )
