"""The folder of a run: metrics.jsonl, summary.json, pictures, the live line, full disks."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dance import pictures, report
from dance.errors import DanceError
from dance.report import Progress, RunWriter, megabytes

Image = pytest.importorskip("PIL.Image")


def line(round_: int) -> dict[str, object]:
    return {
        "round": round_,
        "wall_s": 0.5 * round_,
        "bytes_sent": 1000 * round_,
        "raw_bytes": 26_000 * round_,
        "bytes_sent_by_kind": {"image": 400 * round_, "gossip": 500 * round_, "feedback": 100 * round_},
        "d_loss": 1.3 - 0.001 * round_,
        "g_loss": 0.7 + 0.001 * round_,
        "score": 1 + round_ / 100,
        "fid": 500 / (1 + round_),
    }


def test_numbers_are_kept_as_they_are(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {"rounds": 7, "widths": (1, 2), "out": tmp_path})
    big = 2**60 + 1
    writer.metrics({"round": np.int64(3), "bytes_sent": big, "t": torch.tensor(5), "fid": np.float32(0.5)})
    writer.metrics({"round": 4, "nan": math.nan, "list": [math.inf, 1], "vector": np.arange(3)})
    first, second = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert first == f'{{"round": 3, "bytes_sent": {big}, "t": 5, "fid": 0.5}}'
    assert json.loads(second) == {"round": 4, "nan": None, "list": [None, 1], "vector": [0, 1, 2]}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config == {"rounds": 7, "widths": [1, 2], "out": str(tmp_path)}
    writer.summary({"bytes_sent": big})
    assert f"{big}" in (tmp_path / "run" / "summary.json").read_text()
    with pytest.raises(ValueError, match="no JSON value"):
        writer.metrics({"x": object()})


def test_a_new_run_moves_the_old_one_aside(tmp_path: Path) -> None:
    for run in range(3):
        writer = RunWriter(tmp_path, {"run": run})
        writer.metrics({"round": run})
    assert writer.lines() == [{"round": 2}]
    assert [
        json.loads((tmp_path / f"previous-{n}" / "metrics.jsonl").read_text())["round"] for n in (1, 2)
    ] == [0, 1]
    assert json.loads((tmp_path / "config.json").read_text()) == {"run": 2}


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    for round_ in (10, 20, 30):
        writer.metrics(line(round_))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 40, "bytes_s')  # the process died here
    again = RunWriter(tmp_path, {}, resume_round=20)
    again.metrics(line(30))
    assert [entry["round"] for entry in again.lines()] == [10, 20, 30]
    assert not (tmp_path / "previous-1").exists()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\nnonsense\n{"round": 3}\n')
    with pytest.raises(DanceError, match="line 2"):
        report.read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("shape", "mode"), [((100, 1, 8, 8), "L"), ((7, 1, 28, 28), "L"), ((10, 3, 32, 32), "RGB")]
)
def test_samples(tmp_path: Path, shape: tuple[int, ...], mode: str) -> None:
    # Image i is a ramp along its columns that ends at its own grey: cubic interpolation gives ramps back.
    size = shape[3]
    ends = torch.linspace(0.2, 0.9, shape[0])[:, None, None, None]
    images = (ends * torch.linspace(-1, 1, size)).expand(shape)
    path = RunWriter(tmp_path, {}).samples(images)
    picture = Image.open(path)
    assert picture.mode == mode
    scale = -(-56 // shape[2])
    side = shape[2] * scale
    columns = math.ceil(math.sqrt(shape[0]))
    assert picture.size[0] == columns * (side + 4) + 4
    for index in (0, shape[0] - 1):
        row, column = divmod(index, columns)
        top, left = 4 + row * (side + 4), 4 + column * (side + 4)
        tile = np.asarray(picture)[top : top + side, left : left + side].reshape(side, side, -1) / 127.5 - 1
        places = (np.arange(side) + 0.5) / scale - 0.5  # of the enlarged pixels among the image's columns
        expected = np.interp(places, np.arange(size), images[index, 0, 0].numpy())
        inside = slice(2 * scale, side - 2 * scale)  # at its border the kernel is cut
        # One grey of rounding before enlarging, one after.
        assert np.abs(tile[:, inside] - expected[inside][None, :, None]).max() <= 2 / 127.5


def test_samples_that_are_no_pictures() -> None:
    assert (
        Image.open(io.BytesIO(pictures.grid_png(torch.full((2, 1, 8, 8), math.nan)))).getextrema()[1] <= 128
    )
    for shape in ((8, 8), (0, 1, 8, 8), (4, 2, 8, 8)):
        with pytest.raises(ValueError, match="expected images"):
            pictures.grid_png(torch.zeros(shape))


@pytest.mark.parametrize("rounds", [(), (10,), tuple(range(10, 1000, 10))])
def test_curves(tmp_path: Path, rounds: tuple[int, ...]) -> None:
    writer = RunWriter(tmp_path, {})
    for round_ in rounds:
        writer.metrics(line(round_))
    picture = Image.open(writer.curves())
    assert picture.size[0] > 800
    assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_curves_of_lines_with_gaps(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, {})
    writer.metrics(
        {"round": 1, "d_loss": None, "score": None, "fid": math.nan, "bytes_sent": 0, "raw_bytes": 0}
    )
    writer.curves()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(small_disk: Path) -> None:
    writer = RunWriter(small_disk / "run", {})
    for round_ in range(60):  # some 300 bytes each
        writer.metrics(line(round_))
    with pytest.raises(DanceError, match=r"metrics\.jsonl.*disk is full"):
        writer.metrics({"round": 100, "text": "x" * 40_000})
    with pytest.raises(DanceError, match=r"samples\.png.*disk is full.*--out"):
        writer.samples(torch.rand(100, 1, 28, 28))
    assert not (small_disk / "run" / "samples.png").exists()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DanceError, match="choose another --out"):
        RunWriter(tmp_path / "file", {})
    with pytest.raises(DanceError, match="choose another --out"):
        RunWriter(tmp_path / "file" / "run", {})
    with pytest.raises(DanceError, match="/proc"):
        RunWriter(Path("/proc/run"), {})


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2000, title="ac-gan", terminal=False) as progress:
        for done in range(1, 2001):
            fields = {"score": 3.21, "fid": 98.7} if done == 1010 else {}
            progress.update(
                done, g_loss=0.7, d_loss=1.38, bytes_sent=done * 1000, raw_bytes=done * 26_000, **fields
            )
        progress.line("a word")
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 25
    assert lines[0].startswith("ac-gan round 100/2000")
    assert "loss D 1.38 G 0.70" in lines[0]
    assert "sent 100 kB of 2.6 MB" in lines[0]
    assert any("round 1010/2000" in text and "score 3.21  FID 98.7" in text for text in lines)
    assert "round 2000/2000" in lines[-2]
    assert lines[-1] == "a word"


def test_codecs_are_said_when_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4, terminal=False) as progress:
        for done, codec in ((1, "sign"), (2, "sign"), (3, "int8"), (4, "int8")):
            progress.update(done, codecs={"gossip": codec}, link_rate_mbps={"0->1": 9.5, "0->2": 8.25})
    lines = capsys.readouterr().out.splitlines()
    assert ["gossip" in text for text in lines] == [True, False, True, False]
    assert "link 8.25 Mbit/s" in lines[0]


def test_live_line_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(100, start=50, terminal=True) as progress:
        progress.update(75, g_loss=0.5, d_loss=1.0, score=2.0)
        progress.line("a word")
    assert "a word" in capsys.readouterr().out
    with Progress(100, show=False) as progress:
        progress.update(75, g_loss=0.5, d_loss=1.0)
        progress.line("a word")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345, "12.3 kB"),
        (123_456, "123 kB"),
        (4.56e6, "4.56 MB"),
    ],
)
def test_megabytes(num_bytes: float, text: str) -> None:
    assert megabytes(num_bytes) == text
