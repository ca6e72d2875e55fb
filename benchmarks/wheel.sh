#!/usr/bin/env bash
# Builds the wheel for every CUDA architecture and checks it in an environment that holds nothing but NumPy.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf dist
# A build folder of its own, or the next editable build would find objects of all architectures.
.venv/bin/python -m pip wheel . --quiet --no-deps --wheel-dir dist --config-settings build-dir=build/wheel \
  --config-settings cmake.define.DANCE_CUDA=ON --config-settings cmake.define.DANCE_CUDA_ARCHITECTURES=all
wheel=$(ls dist/*.whl)
size=$(stat -c %s "$wheel")
echo "$wheel: $size bytes"
# Nine tenths of it are kernels: every codec, operation and dtype for seven architectures and PTX.
[ "$size" -lt 12000000 ] || { echo "the wheel exceeds 12 MB" >&2; exit 1; }

alone=$(mktemp -d)
trap 'rm -rf "$alone"' EXIT
.venv/bin/python -m venv "$alone/venv"
"$alone/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy
"$alone/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel"
cd "$alone"
"$alone/venv/bin/python" - <<'PYTHON'
import sys
import time

start = time.perf_counter()
import dance  # and with it NumPy

seconds = time.perf_counter() - start
import numpy as np

assert "torch" not in sys.modules
x = np.random.default_rng(0).standard_normal(100_003, dtype=np.float32)
for text in ("none", "fp16", "bf16", "int8", "sign", "topk:ratio=0.01"):
    packet = dance.Packet.from_bytes(dance.encode(x, text).to_bytes(), expect=(dance.codec(text), x.shape, "float32"))
    y = dance.decode(packet)
    print(f"{text:18s} {packet.nbytes:8d} bytes  relative error {np.linalg.norm(y - x) / np.linalg.norm(x):.4f}")
print(f"import dance: {seconds:.3f} s with only NumPy installed")
print(dance.info())
assert seconds < 0.3, "the import takes longer than 0.3 s"
assert dance.info()["cuda_architectures"] == [75, 80, 86, 89, 90, 100, 120]
PYTHON
