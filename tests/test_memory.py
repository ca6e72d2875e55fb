"""Where memory runs out in the middle of an encode, the sender's state is what it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import re, resource, sys
import numpy as np
import dance

dance.set_num_threads(1)

def with_memory(free, call):
    used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
    resource.setrlimit(resource.RLIMIT_AS, (-1 if free is None else used + free, -1))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""
CODE = """
codec, dtype = sys.argv[1], sys.argv[2]
rng = np.random.default_rng(0)
x = rng.standard_normal(1 << 20).astype(dtype)
before = rng.standard_normal(1 << 20).astype(dtype)
x[[0, 777_777]] = np.nan, np.inf

def run(residual, free=None):
    return with_memory(
        free, lambda: dance.encode_feedback(x, residual, codec, nonfinite="zero", seed=7)
    )

failures = 0
residual = before.copy()
for free in range(0, 256 << 20, 256 << 10):  # a little more each time, until it is enough
    try:
        sent = run(residual, free)
        break
    except MemoryError:
        failures += 1
        assert residual.tobytes() == before.tobytes(), free
expected = before.copy()
assert sent.to_bytes() == run(expected).to_bytes() and residual.tobytes() == expected.tobytes()
print(failures)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        cwd=Path(__file__).parent,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # no holes of the heap to use instead
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "codec",
    [
        "topk:ratio=0.3",
        "topk:ratio=0.3,scope=block",
        "randk:ratio=0.3",
        "threshold:value=0.1",
        "dgc:ratio=0.2",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_residual_survives_running_out_of_memory(codec: str, dtype: str) -> None:
    assert int(run(CODE, codec, dtype)) > 3


MOMENTUM = """
numel = 1 << 19
rng = np.random.default_rng(0)
first, x = (rng.standard_normal(numel).astype(np.float32) for _ in range(2))
x[777] = np.nan

def run(feedback, free=None):
    return with_memory(free, lambda: feedback.encode(x, "w", nonfinite="zero"))

def state(feedback):
    return [feedback.residual("w").tobytes(), feedback.velocity("w").tobytes(), feedback.step("w")]

starved, fed = (dance.ErrorFeedback(sys.argv[1], momentum=0.9) for _ in range(2))
for feedback in (starved, fed):
    feedback.encode(first, "w")
before, failures = state(starved), 0
for free in range(0, 256 << 20, 128 << 10):
    try:
        sent = run(starved, free)
        break
    except MemoryError:
        failures += 1
        assert state(starved) == before, free
assert sent.to_bytes() == run(fed).to_bytes() and state(starved) == state(fed)
print(failures)
"""


@pytest.mark.parametrize("codec", ["topk:ratio=0.3", "randk:ratio=0.3", "dgc:ratio=0.2"])
def test_momentum_survives_running_out_of_memory(codec: str) -> None:
    """Residual, velocity and step change together, when no more memory is asked for."""
    assert int(run(MOMENTUM, codec)) > 10
