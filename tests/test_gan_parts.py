"""Folders of nodes: each reads its own, real processes agree on shapes; own data and models reach runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks
from torch import nn

from dance.data import load
from dance.errors import DanceError
from dance.gan import RunConfig, run
from dance.gan.engine import _everyone
from dance.gan.models import Models, NetShape
from dance.gan.parts import parts_of, run_data

CONFIG = RunConfig(
    layout="model-parallel",
    partition="folders",
    d_nodes=2,
    batch_size=4,
    latent=4,
    g_widths=(8,),
    d_widths=(6,),
    rounds=3,
    evaluate_images=20,
    simulate=True,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path_factory.mktemp("cache")))


def fill(folder: Path, count: int, *, size: int = 8, seed: int = 0, mode: str = "L") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        shape = (size, size) if mode == "L" else (size, size, 3)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")


def test_each_node_gets_its_own_folder_and_nothing_is_compared_without_test_images(tmp_path: Path) -> None:
    fill(tmp_path / "node-1", 5, seed=1)
    fill(tmp_path / "node-2", 7, seed=2)
    config = replace(CONFIG, data=str(tmp_path), out=str(tmp_path / "run"))
    found = run_data(config)
    assert [len(part) for part in found.parts] == [5, 7]
    assert torch.equal(found.parts[1].images, load(tmp_path / "node-2").images)
    assert found.real is None
    result = run(config)
    assert (result.fid, result.score) == (None, None)
    assert (tmp_path / "run" / "samples.png").exists()
    fill(tmp_path / "test", 6)
    assert run(replace(config, rounds=1)).fid is not None


def test_standalone_pools_the_folders_and_is_measured_by_the_same_images(tmp_path: Path) -> None:
    fill(tmp_path / "node-1" / "a", 6, seed=1)
    fill(tmp_path / "node-2" / "a", 7, seed=2)
    fill(tmp_path / "test", 6, seed=3)
    config = replace(CONFIG, algorithm="standalone", data=str(tmp_path), out=str(tmp_path / "run"))
    apart, pooled = run_data(replace(config, algorithm="ac-gan")), run_data(config)
    (part,) = pooled.parts
    assert torch.equal(part.images, torch.cat([each.images for each in apart.parts]))
    assert part.labels is not None
    assert len(part.labels) == 13
    assert pooled.real is not None
    assert torch.equal(pooled.real.images, load(tmp_path / "test").images)
    assert run(config).fid is not None
    with pytest.raises(ValueError, match=r"7 images a batch.*D-Node 1 of 2 holds only 6"):
        run_data(replace(config, batch_size=7))


def too_few(root: Path) -> str:
    fill(root / "node-1", 5)
    fill(root / "node-2", 3)
    return r"4 images a batch.*D-Node 2 of 2 holds only 3.*--batch-size"


def missing(root: Path) -> str:
    fill(root / "node-1", 5)
    return r"D-Node 2 has no folder .*node-2; put its images there"


def other_size(root: Path) -> str:
    fill(root / "node-1", 5)
    fill(root / "node-2", 5, size=9)
    return r"node-2 are 9 x 9 pixels, grey, of node-1 8 x 8 pixels, grey; add --image-size"


def other_test(root: Path) -> str:
    fill(root / "node-1", 5)
    fill(root / "node-2", 5)
    fill(root / "test", 5, mode="RGB")
    return r"test: images are 8 x 8 pixels, colour, of node-1 8 x 8 pixels, grey"


@pytest.mark.parametrize("break_it", [too_few, missing, other_size, other_test])
def test_folders_that_cannot_be_are_named(tmp_path: Path, break_it: Any) -> None:
    message = break_it(tmp_path)
    with pytest.raises((DanceError, ValueError), match=message):
        run(replace(CONFIG, data=str(tmp_path)))


def test_too_few_images_for_the_nodes(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    with pytest.raises(ValueError, match=r"5 images cannot be divided over 6 nodes; use fewer nodes"):
        run(replace(CONFIG, data=str(tmp_path), partition="iid", d_nodes=6))


def _seen(rank: int, root: str) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "3"}
    # A machine for each rank, at which the path means something else.
    config = replace(CONFIG, data=f"{root}/machine-{rank}", simulate=False)
    try:
        found = run_data(config, None, _everyone)
    except (DanceError, ValueError) as error:
        return str(error)
    return [
        (len(part), part.images.device.type, tuple(part.shape)) for part in found.parts
    ], found.real is None


def test_machines_read_only_their_own_folder_and_hear_of_the_others_counts(tmp_path: Path) -> None:
    fill(tmp_path / "machine-1", 5)
    fill(tmp_path / "machine-2", 7)
    first, second = (5, "meta", (5, 1, 8, 8)), (7, "meta", (7, 1, 8, 8))
    here = [(count, "cpu", shape) for count, _, shape in (first, second)]
    expected = [([first, second], True), ([here[0], second], True), ([first, here[1]], True)]
    assert run_ranks(_seen, 3, str(tmp_path)) == expected


def test_machines_with_unlike_images_all_say_so(tmp_path: Path) -> None:
    fill(tmp_path / "machine-1", 5)
    fill(tmp_path / "machine-2", 5, mode="RGB")
    for message in run_ranks(_seen, 3, str(tmp_path)):
        assert "node-2 are 8 x 8 pixels, colour" in message


def test_a_process_keeps_only_the_images_of_its_own_node() -> None:
    digits = load("digits")
    config = replace(CONFIG, partition="classes:3", d_nodes=4)
    everywhere = parts_of(config, digits)
    here = parts_of(config, digits, {2})
    for number, (part, whole) in enumerate(zip(here, everywhere, strict=True)):
        assert part.shape == whole.shape
        assert part.images.is_meta == (number != 1)
    assert torch.equal(here[1].images, everywhere[1].images)


def linear_generator(shape: NetShape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape.latent, 64), nn.Unflatten(1, shape.image), nn.Tanh())


class Squares(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(index))


def test_own_data_and_models_from_python(tmp_path: Path) -> None:
    config = replace(CONFIG, partition="iid", out=str(tmp_path / "run"), rounds=2)
    inner = Models(generator=lambda shape: linear_generator(shape))
    result = run(config, data=Squares(), models=inner)
    assert result.rounds == 2
    assert result.summary["data"] == "dataset"
    with pytest.raises(ValueError, match=r"cannot import a lambda.*simulate=True"):
        run(
            replace(config, simulate=False),
            data=Squares(),
            models=inner,
        )
    with pytest.raises(ValueError, match="drop data="):
        run(CONFIG, data=Squares())


def test_own_data_and_models_reach_local_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights as in one process: data and functions arrived as they are."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    config = replace(CONFIG, partition="iid", d_nodes=1, rounds=2, simulate=False, out=str(tmp_path / "real"))
    models = Models(generator=linear_generator)
    run(config, data=Squares(), models=models)
    run(replace(config, simulate=True, out=str(tmp_path / "simulated")), data=Squares(), models=models)
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("real", "simulated")
    ]
    assert lines[0]["fid"] == lines[1]["fid"]
    saved = json.loads((tmp_path / "real" / "config.json").read_text())
    assert saved["generator"] == "test_gan_parts:linear_generator"
