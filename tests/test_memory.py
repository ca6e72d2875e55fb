"""Where memory runs out in the middle of an encode, the sender's state is what it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import re, resource, sys
import numpy as np
import dance

codec, dtype = sys.argv[1], sys.argv[2]
rng = np.random.default_rng(0)
x = rng.standard_normal(1 << 20).astype(dtype)
before = rng.standard_normal(1 << 20).astype(dtype)
x[[0, 777_777]] = np.nan, np.inf

def run(residual, free=None):
    if free is not None:
        used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
        resource.setrlimit(resource.RLIMIT_AS, (used + free, -1))
    try:
        return dance.encode_feedback(x, residual, codec, nonfinite="zero", seed=7)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

failures = 0
residual = before.copy()
dance.set_num_threads(1)
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
    done = subprocess.run(
        [sys.executable, "-c", CODE, codec, dtype],
        cwd=Path(__file__).parent,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # no holes of the heap to use instead
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
