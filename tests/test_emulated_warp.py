"""The CUDA kernels run without a GPU: compiled for the host against an emulated device (emulated_cuda/), they
give the CPU driver's bits, touch nothing outside their arrays and wait at no barrier alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "cuda/kernels.cu",
    "cuda/select.cu",
    "tests/emulated_cuda/compare.cpp",
    "csrc/codec_api.cpp",
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/kernels.cpp",
    "csrc/cpu/parallel.cpp",
    "csrc/cpu/select.cpp",
)
# emulated_cuda comes first: its cuda_runtime.h stands in for the toolkit's.
INCLUDES = ("-Itests/emulated_cuda", "-Icsrc", "-Icuda")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-DDANCE_TARGET=baseline", "-pthread", "-x", "c++")


def test_kernels_on_an_emulated_device_equal_the_cpu(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++) on PATH")
    program = tmp_path / "compare"
    build = [compiler, *FLAGS, *INCLUDES, *SOURCES, "-o", str(program)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "DANCE_CPU": "baseline"}
    ran = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("comparisons, no difference\n")
