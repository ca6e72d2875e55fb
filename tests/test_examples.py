"""Every example runs as its own docstring says, and is short enough to read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from processes import run_ranks

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RANKS = "--nproc-per-node"


def command(example: Path) -> list[str]:
    """The line of the docstring that runs it."""
    name = example.relative_to(ROOT)
    found = re.findall(
        rf"^ +((?:torchrun|python) .*{re.escape(str(name))}.*)$", example.read_text(), re.MULTILINE
    )
    assert found, f"{name}: the docstring lacks the command that runs it"
    return shlex.split(found[0])


def run_rank(rank: int, example: str, world: int, port: int, arguments: list[str]) -> str:
    """What torchrun starts at each rank, in a process that has torch already: its import takes seconds."""
    import torch.distributed as dist

    dist.destroy_process_group()  # the test bed's; the example makes its own
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [example, *arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(example, run_name="__main__")
    return printed.getvalue()


def run(example: Path) -> list[str]:
    """Returns what each rank printed."""
    words = command(example)
    if words[0] == "python":
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return [done.stdout]
    world = int(words[words.index(RANKS) + 1])
    arguments = words[words.index(str(example.relative_to(ROOT))) + 1 :]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return run_ranks(run_rank, world, str(example), world, port, arguments)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_is_short_and_runs(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= 60
    if example.stem.startswith("fsdp") and tuple(map(int, version("torch").split(".")[:2])) < (2, 9):
        pytest.skip("this torch has no custom collectives in FSDP")
    printed = run(example)
    assert printed[0].strip()
    CHECKS.get(example.stem, lambda printed: None)(printed)


def gossip_classifier(printed: list[str]) -> None:
    for line in printed:
        accuracy, sent, raw = re.findall(r"accuracy ([\d.]+), (\d+) bytes sent instead of (\d+)", line)[0]
        # A rank has seen at most four of the ten kinds of digits.
        assert float(accuracy) > 0.6
        assert int(raw) > 20 * int(sent)


def all_reduce_by_hand(printed: list[str]) -> None:
    lines = printed[0].splitlines()
    assert len(lines) == 4
    assert len({re.findall(r"checksum (\w+)", line)[0] for line in lines}) == 1
    for line in lines:
        # Each of two roundings of normal data to int8 loses half a step of max / 127 at most; max < 6.
        assert 0.0 < float(re.findall(r"error ([\d.]+)", line)[0]) < 2 * 6 / 254
        assert int(re.findall(r"(\d+) bytes", line)[0]) < 2 * 3 / 4 * 1_000_003 * 1.02 + 6 * 64


def which_codec(printed: list[str]) -> None:
    rows = [line.split() for line in printed[0].splitlines()]
    assert {"none", "int8:block=256"} <= {row[0] for row in rows}
    chosen = [row for row in rows if row[-1] == "chosen"]
    assert len(chosen) == 1
    assert chosen[0][0] != "none"  # at 100 Mbit/s


def saved(line: str) -> float:
    return float(re.findall(r"\(([\d.]+)x less\)", line)[0])


def ddp_cnn(printed: list[str]) -> None:
    *_, last = printed[0].splitlines()
    assert float(re.findall(r"accuracy ([\d.]+)", last)[0]) > 0.8
    assert saved(last) > 3.0


def gan_two_ddp(printed: list[str]) -> None:
    *steps, last = printed[0].splitlines()
    assert len(steps) == 3
    assert "nan" not in printed[0]
    assert saved(last) > 2.0


def fsdp_mlp(printed: list[str]) -> None:
    *steps, last = printed[0].splitlines()
    assert len(steps) == 3
    assert float(re.findall(r"accuracy ([\d.]+)", last)[0]) > 0.8
    assert saved(last) > 3.0  # int8 both ways, but for the last layer, which is below min_bytes


def local_sgd_mlp(printed: list[str]) -> None:
    *steps, last = printed[0].splitlines()
    assert len(steps) == 12
    assert float(re.findall(r"accuracy ([\d.]+)", last)[0]) > 0.8
    assert saved(last) > 30.0  # ten times by fewer messages, three to four times by int8


CHECKS = {
    each.__name__: each
    for each in (
        gossip_classifier,
        all_reduce_by_hand,
        which_codec,
        ddp_cnn,
        gan_two_ddp,
        fsdp_mlp,
        local_sgd_mlp,
    )
}


@pytest.mark.parametrize(
    ("example", "arguments", "says"),
    [
        ("all_reduce_by_hand", ["--codec", "int9"], "unknown codec 'int9'; did you mean int8"),
        ("which_codec", ["--mbps", "0"], "--mbps: expected a rate above 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_told(example: str, arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stderr


def test_there_are_examples_of_each_kind() -> None:
    assert set(CHECKS) <= {example.stem for example in EXAMPLES}
