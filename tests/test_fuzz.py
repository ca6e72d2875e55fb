"""The fuzz targets build, and their corpus holds no finding; `make fuzz` searches for new ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = ("frame", "decode", "round_trip", "targets")


def program(name: str) -> str:
    """An installed program: beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def run(*command: str, timeout: int = 900) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the targets, built with libFuzzer and sanitizers as `make fuzz` builds them."""
    clang, cmake, ninja = program("clang++"), program("cmake"), program("ninja")
    probe = [clang, "-fsanitize=fuzzer,address,undefined", "-x", "c++", "-", "-o", "/dev/null"]
    source = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    if subprocess.run(probe, input=source, text=True, capture_output=True, check=False).returncode != 0:
        pytest.skip("this clang++ lacks libFuzzer: apt-get install libclang-rt-14-dev")
    run(cmake, "-S", "tests", "--preset", "fuzz", f"-DCMAKE_MAKE_PROGRAM={ninja}")
    run(cmake, "--build", "build/fuzz", "--target", "fuzz")
    return ROOT / "build" / "fuzz"


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_has_no_finding(built: Path, target: str) -> None:
    corpus = sorted((ROOT / "tests" / "fuzz" / "corpus" / target).iterdir())
    assert corpus, f"tests/fuzz/corpus/{target} is empty"
    run(str(built / f"fuzz_{target}"), *map(str, corpus))


def test_the_corpus_is_small() -> None:
    files = [path for path in (ROOT / "tests" / "fuzz" / "corpus").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2 << 20
