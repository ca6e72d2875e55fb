"""The README's uses run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_uses_are_short() -> None:
    assert len(BLOCKS) == 4
    assert all(sum(bool(line.strip()) for line in block.splitlines()) <= 11 for block in BLOCKS)


def torchrun(script: str, ranks: int, folder: Path) -> tuple[int, int]:
    """Returns the bytes sent and the raw bytes that the script prints."""
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    # The processes print unbuffered, into each other's lines: one of them is enough.
    printed = run([*command, "--local-ranks-filter", "0", "script.py"], folder)
    sent, raw = re.findall(r"(\d+) bytes instead of (\d+)", printed)[0]
    return int(sent), int(raw)


def test_collectives_under_torchrun(tmp_path: Path) -> None:
    sent, raw = torchrun(BLOCKS[0], 2, tmp_path)
    assert 0 < sent < raw  # what "auto" decides is its own, the last call is int8


def test_gossip_under_torchrun(tmp_path: Path) -> None:
    sent, raw = torchrun(BLOCKS[1], 4, tmp_path)
    assert raw > 10 * sent > 0


def test_encode_by_hand(tmp_path: Path) -> None:
    (tmp_path / "encode.py").write_text(BLOCKS[2])
    size, lost = run([sys.executable, "encode.py"], tmp_path).splitlines()
    assert size == f"{64 + (1 << 20) + 4 * 4096} bytes for {4 << 20}"
    assert float(lost) <= 1e-6  # one rounding of float32 at values below 8


@pytest.mark.parametrize("rounds", [210])  # models are exchanged every 200
def test_train_from_python(tmp_path: Path, rounds: int) -> None:
    assert "rounds=2000" in BLOCKS[3]
    (tmp_path / "train.py").write_text(BLOCKS[3].replace("rounds=2000", f"rounds={rounds}"))
    printed = run([sys.executable, "train.py"], tmp_path).split()
    assert int(printed[-1]) > 25 * int(printed[-2]) > 0  # one bit, scales and a sketch: 27
    assert (tmp_path / "runs" / "private" / "samples.png").is_file()
