"""Image data sets: known by name, or the user's own folders, .npz files and torch Datasets."""

from dance.data.dataset import from_dataset
from dance.data.fetch import fetch
from dance.data.folder import Fit, load_folder, node_folder
from dance.data.idx import read_idx
from dance.data.images import ImageData
from dance.data.load import load
from dance.data.sources import SOURCES, Available, Source, available, cache_dir
from dance.partition import partition

__all__ = [
    "SOURCES",
    "Available",
    "Fit",
    "ImageData",
    "Source",
    "available",
    "cache_dir",
    "fetch",
    "from_dataset",
    "load",
    "load_folder",
    "node_folder",
    "partition",
    "read_idx",
]
