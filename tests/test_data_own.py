"""Data of one's own and CIFAR-10: folders, .npz, torch Datasets, points; errors that name their file."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dance import data
from dance.data import cifar, dataset
from dance.data.gaussians import DEVIATION
from dance.errors import DanceError


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DANCE_DATA", str(tmp_path / "data"))


def picture(path: Path, *, size: tuple[int, int] = (6, 5), mode: str = "L", seed: int = 0) -> np.ndarray:
    """Write random pixels; returns them as (height, width) or (height, width, channels)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def in_range(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 127.5 - 1


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    first = picture(tmp_path / "mine" / "a.png", seed=1)
    picture(tmp_path / "mine" / "b.PNG", seed=2)
    (tmp_path / "mine" / "notes.txt").write_text("not an image")
    (tmp_path / "mine" / ".hidden.png").write_text("neither")
    mine = data.load(tmp_path / "mine")
    assert mine.images.shape == (2, 1, 5, 6)
    np.testing.assert_allclose(mine.images[0, 0].numpy(), in_range(first), atol=1e-6)
    assert (mine.labels, mine.test_labels, mine.num_classes, mine.class_names) == (None, None, 0, ())
    assert mine.test_images is mine.images
    assert mine.name == "mine"


def test_sub_folders_are_classes_in_order_of_their_names(tmp_path: Path) -> None:
    colour = picture(tmp_path / "cat" / "deep" / "1.png", mode="RGB")
    picture(tmp_path / "ape" / "2.jpg", mode="RGB")
    grey = picture(tmp_path / "dog" / "3.png")
    (tmp_path / "bee").mkdir()  # a class without images keeps its number
    mine = data.load(tmp_path)
    assert mine.labels is not None
    assert mine.labels.tolist() == [0, 2, 3]
    assert (mine.num_classes, mine.class_names) == (4, ("ape", "bee", "cat", "dog"))
    assert mine.shape == (3, 5, 6)
    np.testing.assert_allclose(mine.images[1].permute(1, 2, 0).numpy(), in_range(colour), atol=1e-6)
    np.testing.assert_allclose(mine.images[2].numpy(), np.stack([in_range(grey)] * 3), atol=1e-6)


def test_train_and_test_folders_are_the_two_parts(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "b" / "1.png")
    picture(tmp_path / "test" / "a" / "2.png")
    mine = data.load(tmp_path)
    assert mine.labels is not None
    assert mine.test_labels is not None
    assert (mine.labels.tolist(), mine.test_labels.tolist(), mine.num_classes) == ([1], [0], 2)


def test_transparency_becomes_white_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 0x80FF, np.uint16)).save(tmp_path / "b.png")
    first, second = data.load(tmp_path).images
    np.testing.assert_allclose(first[:, 0, 0].numpy(), in_range(np.array([10, 20, 30])), atol=1e-6)
    assert bool((first[:, 1] == 1).all())
    np.testing.assert_allclose(second.numpy(), in_range(np.array(0x80)), atol=1e-6)


def test_images_are_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255  # what a centre crop keeps
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture(tmp_path / "small.png", size=(3, 5))
    mine = data.load(tmp_path, data.Fit(size=8, channels=1))
    assert mine.images.shape == (2, 1, 8, 8)
    assert bool((mine.images[1] == 1).all())  # "small" comes first


def empty(folder: Path) -> str:
    folder.mkdir()
    return r"mine.*no images in this folder.*\.png"


def mixed_sizes(folder: Path) -> str:
    picture(folder / "a.png")
    picture(folder / "b.png", size=(9, 5))
    return r"b\.png: 9 x 5 pixels, but a\.png has 6 x 5; add --image-size 5"


def corrupt(folder: Path) -> str:
    picture(folder / "a.png", size=(64, 64))
    path = folder / "b.png"
    path.write_bytes((folder / "a.png").read_bytes()[:-200])
    return r"b\.png: not a readable image.*repair it or take it away"


def no_image_at_all(folder: Path) -> str:
    folder.mkdir()
    (folder / "b.jpg").write_text("<html>")
    return r"b\.jpg: not a readable image"


def beside_classes(folder: Path) -> str:
    picture(folder / "stray.png")
    picture(folder / "cat" / "a.png")
    return r"stray\.png stands beside sub-folders with images \(cat\)"


def empty_train(folder: Path) -> str:
    (folder / "train").mkdir(parents=True)
    picture(folder / "test" / "a.png")
    return r"train: no images in this folder"


@pytest.mark.parametrize(
    "break_it", [empty, mixed_sizes, corrupt, no_image_at_all, beside_classes, empty_train]
)
def test_a_bad_folder_names_the_file_and_the_remedy(tmp_path: Path, break_it: object) -> None:
    message = break_it(tmp_path / "mine")  # type: ignore[operator]
    with pytest.raises(DanceError, match=message):
        data.load(tmp_path / "mine")


def test_folders_of_nodes(tmp_path: Path) -> None:
    assert data.node_folder(tmp_path, 1, alone=True) == tmp_path
    with pytest.raises(DanceError, match=r"D-Node 1 has no folder .*node-1; put its images there"):
        data.node_folder(tmp_path, 1, alone=False)
    (tmp_path / "node-2").mkdir()
    assert data.node_folder(tmp_path, 2, alone=True) == tmp_path / "node-2"
    with pytest.raises(DanceError, match="D-Node 1 has no folder"):  # PATH holds folders of nodes by now
        data.node_folder(tmp_path, 1, alone=True)


def test_npz(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(5), test_images=pixels[:2] / 255)
    mine = data.load(tmp_path / "a.npz")
    assert mine.images.shape == (5, 3, 4, 6)
    np.testing.assert_allclose(mine.images.permute(0, 2, 3, 1).numpy(), in_range(pixels), atol=1e-6)
    assert torch.equal(mine.test_images, mine.images[:2])
    assert (mine.num_classes, mine.test_labels, mine.name) == (5, None, "a")
    np.savez(tmp_path / "grey.npz", images=pixels[..., 0])
    assert data.load(tmp_path / "grey.npz").shape == (1, 4, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no key 'images', found pictures"),
        ({"images": np.zeros((2, 4), np.uint8)}, r"images has shape \(2, 4\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"images has shape \(2, 3, 4, 4\)"),
        ({"images": np.full((2, 4, 4), -1.0)}, "from -1.0 to -1.0; floats must be in"),
        ({"images": np.full((2, 4, 4), np.nan)}, "floats must be in"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, "images is int64"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "train images are empty"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)},
            "2 train images but 3 labels",
        ),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "integers from 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros((2, 1), int)}, r"shape \(2, 1\)"),
        ({"images": np.array([None, 3])}, "not a readable .npz"),
    ],
)
def test_a_bad_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DanceError, match=f"a.npz.*{message}"):
        data.load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    with pytest.raises(DanceError, match="not a readable"):
        data.load(tmp_path / "b.npz")


def test_a_torch_dataset_and_its_way_to_other_processes(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 4, 5, generator=random)
    mine = data.from_dataset(torch.utils.data.TensorDataset(images, torch.arange(6)), name="mine")
    torch.testing.assert_close(mine.images, images * 2 - 1)
    assert mine.num_classes == 6
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    pair = data.from_dataset([array, Image.fromarray(array)], [array], name="pair")
    assert torch.equal(pair.images[0], pair.images[1])
    assert torch.equal(pair.images[:1], pair.test_images)
    for one in (mine, pair, data.load("gaussians")):
        dataset.save(one, tmp_path / "a.safetensors")
        back = data.load(tmp_path / "a.safetensors")
        assert (back.test_images is back.images) == (one.test_images is one.images)
        for field in fields(one):
            here, there = getattr(one, field.name), getattr(back, field.name)
            assert torch.equal(here, there) if isinstance(here, torch.Tensor) else here == there
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(DanceError, match="not a data set saved by dance"):
        data.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "empty"),
        ([torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)], r"item 1: \(1, 4, 5\)"),
        ([torch.full((1, 4, 4), -0.5)], r"item 0: values from -0.5.*value_range"),
        ([torch.zeros(4, 4)], r"item 0: shape \(4, 4\)"),
        ([np.zeros((4, 4))], "item 0: .*float64; give uint8"),
        ([(torch.zeros(1, 4, 4), 0), torch.zeros(1, 4, 4)], "every item must have a label"),
    ],
)
def test_a_bad_dataset_names_its_item(items: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.from_dataset(items)


def test_gaussians() -> None:
    points = data.load("gaussians")
    assert points.shape == (1, 1, 2)
    assert points.centres is not None
    assert points.labels is not None
    offsets = points.images.view(-1, 2) - points.centres[points.labels]
    assert offsets.std().item() == pytest.approx(DEVIATION, rel=0.02)
    assert offsets.mean(0).abs().max() < 4 * DEVIATION / len(offsets) ** 0.5
    assert points.images.abs().max() < 1
    assert torch.equal(data.load("gaussians").images, points.images)
    assert torch.bincount(points.labels).tolist() == [2000] * 8


COUNT = 7


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Six batches in the rows of the binary version, of a few images each."""
    monkeypatch.setattr(cifar, "_BATCH", COUNT)
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    made = {name: random.integers(0, 256, (COUNT, 3073), dtype=np.uint8) for name in names}
    for rows in made.values():
        rows[:, 0] %= 10
    return made


def write_binary(folder: Path, batches: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, rows in batches.items():
        (folder / f"{name}.bin").write_bytes(rows.tobytes())


def write_archive(folder: Path, batches: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / cifar.ARCHIVE, "w:gz") as archive:
        for name, rows in {"readme": np.zeros(3, np.uint8), **batches}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = rows.nbytes
            archive.addfile(member, io.BytesIO(rows.tobytes()))


def write_sheets(folder: Path, batches: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, rows in batches.items():
        sheet = rows[:, 1:].reshape(COUNT, 3, 1024).transpose(0, 2, 1)
        Image.fromarray(np.ascontiguousarray(sheet)).save(folder / f"{name}.png")
    labels = [int(v) for name in list(batches)[:5] for v in batches[name][:, 0]]
    (folder / "train_lables.json").write_text(json.dumps(labels))
    (folder / "test_lables.json").write_text(json.dumps(batches["test_batch"][:, 0].tolist()))


@pytest.mark.parametrize("write", [write_binary, write_archive, write_sheets])
def test_cifar_in_its_three_forms(tmp_path: Path, batches: dict[str, np.ndarray], write: object) -> None:
    write(tmp_path / "data" / "cifar10", batches)  # type: ignore[operator]
    found = data.load("cifar10")
    train = np.concatenate(list(batches.values())[:5])
    assert found.labels is not None
    assert found.labels.tolist() == train[:, 0].tolist()
    np.testing.assert_allclose(found.images.flatten(1).numpy(), in_range(train[:, 1:]), atol=1e-6)
    expected = in_range(batches["test_batch"][:, 1:])
    np.testing.assert_allclose(found.test_images.flatten(1).numpy(), expected, atol=1e-6)
    assert (found.num_classes, found.class_names[3], found.shape) == (10, "cat", (3, 32, 32))


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (write_binary, "data_batch_3.bin"),
        (write_archive, cifar.ARCHIVE),
        (write_sheets, "data_batch_3.png"),
        (write_sheets, "test_lables.json"),
    ],
)
def test_damaged_cifar_is_named(
    tmp_path: Path, batches: dict[str, np.ndarray], write: object, file: str
) -> None:
    folder = tmp_path / "data" / "cifar10"
    write(folder, batches)  # type: ignore[operator]
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DanceError, match=f"{file}.*dance data fetch cifar10"):
        data.load("cifar10")
    batches["data_batch_2"][3, 0] = 10
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write(folder, batches)  # type: ignore[operator]
    with pytest.raises(DanceError, match="labels must be 0 to 9, found"):
        data.load("cifar10")


def test_size_and_channels_are_for_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"digits.*folders of image files"):
        data.load("digits", data.Fit(size=16))
