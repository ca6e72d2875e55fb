"""The CUDA kernels run without a GPU: compiled for the host against an emulated device (emulated_cuda/), they
give the CPU driver's bits, touch nothing outside their arrays and wait at no barrier alone.

DANCE_EMULATED_ROUNDS=n compares n times as many cases.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# emulated_cuda comes first: its cuda_runtime.h stands in for the toolkit's.
INCLUDES = ("-Itests/emulated_cuda", "-Icsrc", "-Icuda")
FLAGS = (
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-DDANCE_TARGET=baseline",
    "-pthread",
    "-Wno-unknown-pragmas",
)
# A vector access that is not aligned is an error on a GPU.
ALIGNMENT = ("-fsanitize=alignment", "-fno-sanitize-recover=all")


def sources() -> list[str]:
    """The kernels, the comparison, and the core without what needs Python."""
    found = [*ROOT.glob("cuda/*.cu"), *ROOT.glob("csrc/cpu/*.cpp"), *ROOT.glob("csrc/*.cpp")]
    return ["tests/emulated_cuda/compare.cpp", *sorted(str(path.relative_to(ROOT)) for path in found)]


def build(compiler: str, folder: Path) -> Path:
    def compile_one(source: str) -> Path:
        made = folder / (source.replace("/", "_") + ".o")
        command = [compiler, *FLAGS, *ALIGNMENT, *INCLUDES, "-x", "c++", "-c", source, "-o", str(made)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return made

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources()))
    program = folder / "compare"
    linked = subprocess.run(
        [compiler, *ALIGNMENT, "-pthread", *map(str, objects), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linked.returncode == 0, linked.stderr
    return program


def test_kernels_on_an_emulated_device_equal_the_cpu(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++) on PATH")
    program = build(compiler, tmp_path)
    environment = {**os.environ, "DANCE_CPU": "baseline"}
    command = [program, os.environ.get("DANCE_EMULATED_ROUNDS", "1")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counted = re.fullmatch(r"(\d+) comparisons, no difference\n", ran.stdout)
    assert counted, ran.stdout
    assert int(counted[1]) > 20_000
