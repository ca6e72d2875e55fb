"""Checkpoints: bits kept, corruption found and named, atomic replacement, a full disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dance import checkpoint, files
from dance.errors import DanceError


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(100, generator=generator)
    return {
        "theta": flat,
        "view": flat[10:20].view(2, 5),  # shares memory with theta
        "slanted": torch.randn(6, 4, generator=generator).t(),
        "nothing": torch.empty(0),
        "step": torch.tensor(7),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "mask": torch.tensor([True, False]),
    }


def save(folder: Path, round_: int, *, nodes: int = 2, keep: int = 3, only: int | None = None) -> Path:
    for node in range(nodes) if only is None else [only]:
        meta = {"seed": 2**63, "losses": [0.1, None], "node": node}
        path = checkpoint.save(folder, node, state(node), meta, round=round_, num_nodes=nodes, keep=keep)
    return path


def test_bits_survive(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 40)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.name == "round-00000040"
    assert checkpoint.latest(tmp_path / "checkpoints") == found
    assert checkpoint.latest(found) == found
    assert checkpoint.round_of(found) == 40
    for node in range(2):
        loaded = checkpoint.load(found, node)
        assert loaded.round == 40
        assert loaded.num_nodes == 2
        assert loaded.meta == {"seed": 2**63, "losses": [0.1, None], "node": node}
        for name, tensor in state(node).items():
            same = loaded.tensors[name]
            assert same.dtype == tensor.dtype
            assert same.shape == tensor.shape
            assert same.contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_an_incomplete_round_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20, only=0)
    assert checkpoint.find(tmp_path).name == "round-00000010"
    save(tmp_path, 20, only=1)
    assert checkpoint.find(tmp_path).name == "round-00000020"


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for round_ in range(10, 70, 10):
        save(tmp_path, round_, keep=2)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found[-2:] == ["round-00000050", "round-00000060"]
    # Nodes are not in step: one may still hold its part of the round before, no complete one any more.
    assert len(found) <= 3
    assert all(len(list((tmp_path / name).iterdir())) == 2 for name in found[:-2])


def test_a_resume_from_an_earlier_round_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    for round_ in (40, 60, 80):
        save(tmp_path, round_)
    path = save(tmp_path, 45)
    assert checkpoint.find(tmp_path) == path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000040", "round-00000045"]


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(DanceError, match="holds no complete checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(DanceError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["node-001.safetensors", "node-001.json"])
def test_every_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 5)
    whole = (path / name).read_bytes()
    if name.endswith(".json"):
        positions = [i for i, byte in enumerate(whole) if byte not in b" \n"]  # white space means nothing
    else:
        positions = [*range(0, len(whole), 7), len(whole) - 1]
    for position in positions:
        (path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DanceError, match=name) as error:
            checkpoint.load(path, 1)
        assert "--resume" in str(error.value) or "resume with" in str(error.value)
    (path / name).write_bytes(whole)
    checkpoint.load(path, 1)


@pytest.mark.parametrize("name", ["node-001.safetensors", "node-001.json"])
@pytest.mark.parametrize("kept", [0, 1, 8, 50, -1])
def test_truncated_and_missing_files_are_named(tmp_path: Path, name: str, kept: int) -> None:
    path = save(tmp_path, 5)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:kept])
    with pytest.raises(DanceError, match=f"{name} is corrupt"):
        checkpoint.load(path, 1)
    (path / name).unlink()
    with pytest.raises(DanceError, match=f"{name} is missing"):
        checkpoint.load(path, 1)


def test_another_nodes_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    for end in ("json", "safetensors"):
        (path / f"node-001.{end}").write_bytes((path / f"node-000.{end}").read_bytes())
    with pytest.raises(DanceError, match="belongs to node 0"):
        checkpoint.load(path, 1)


def test_corrupt_newest_round_is_an_error_not_a_silent_step_back(tmp_path: Path) -> None:
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    for node in range(2):
        (path / f"node-{node:03d}.json").write_bytes(b"{")
    with pytest.raises(DanceError, match=r"round-00000020/node-000\.json is corrupt"):
        checkpoint.load(checkpoint.find(tmp_path), 0)


def test_meta_must_be_finite_json(tmp_path: Path) -> None:
    for bad in ({"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(ValueError, match="finite JSON"):
            checkpoint.save(tmp_path, 0, {}, bad, round=1)
    with pytest.raises(ValueError, match="at least 1"):
        checkpoint.save(tmp_path, 0, {}, {}, round=1, keep=0)


def _save_for_ever(folder: str) -> None:
    round_ = 0
    while True:
        round_ += 1
        tensors = {"x": torch.full((200_000,), float(round_))}
        checkpoint.save(Path(folder), 0, tensors, {"round": round_}, round=round_, keep=2)


def test_killed_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_save_for_ever, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while checkpoint.latest(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    loaded = checkpoint.load(checkpoint.find(tmp_path), 0)
    assert loaded.meta["round"] == loaded.round
    assert bool((loaded.tensors["x"] == loaded.round).all())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_old_checkpoint(small_disk: Path) -> None:
    first = checkpoint.save(small_disk, 0, {"x": torch.zeros(1000)}, {}, round=1)
    with pytest.raises(DanceError, match="disk is full") as error:
        checkpoint.save(small_disk, 0, {"x": torch.zeros(100_000)}, {}, round=2)
    assert "node-000.safetensors" in str(error.value)
    assert "--out" in str(error.value)
    assert checkpoint.find(small_disk) == first
    checkpoint.load(first, 0)
    assert not list(small_disk.rglob("*.tmp"))


def test_full_disk_error_of_any_writer() -> None:
    expected = pytest.raises(DanceError, match=r"/dev/full.*disk is full")
    with expected, files.writing(Path("/dev/full")), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x" * 10)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DanceError, match="a file stands where a folder is needed"):
        checkpoint.save(tmp_path / "out" / "checkpoints", 0, {}, {}, round=1)
    assert (tmp_path / "out").read_text() == "mine"


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    head = json.loads((path / "node-000.json").read_text())
    assert head["round"] == 5
    assert head["meta"]["seed"] == 2**63
