#!/usr/bin/env bash
# Everything that needs a GPU: builds dance for it, runs the CUDA tests, compute-sanitizer and the benchmark.
#   benchmarks/gpu_check.sh prepare   with a network: fetches what the check needs into wheels/, for PYTHON_VERSION (3.12)
#   benchmarks/gpu_check.sh           on a machine with nvcc, torch and a GPU, with or without a network; uses wheels/ if it is
#                                     there, takes PYTHON (python3) and writes benchmarks/results/gpu-<name of the GPU>.*
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
# The tests need torch: that of the machine, else that of the project's environment.
if [ -z "${PYTHON:-}" ] && ! python3 -c 'import torch' 2>/dev/null && [ -x .venv/bin/python ]; then
  python=$root/.venv/bin/python
fi
needs=(scikit-build-core pybind11 cmake ninja pytest hypothesis tyro rich)

"$python" -c 'import numpy' 2>/dev/null || needs+=(numpy)

if [ "${1:-}" = prepare ]; then
  "$python" -m pip download --quiet --only-binary=:all: --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
    --dest wheels "${needs[@]}"
  echo "gpu-check: wheels/ holds $(ls wheels/*.whl | wc -l) wheels, $(du -sh wheels | cut -f1)"
  exit
fi

if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "gpu-check: $python has no torch, which the CUDA tests need; install it, set PYTHON, or run \`make test\` first" >&2
  exit 1
fi
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .) || capability=
cuda=AUTO architectures="90-real;90-virtual"
if [ -n "$capability" ]; then cuda=ON architectures="$capability-real"; fi

# Folders of its own beside what the machine's Python already has: torch and CuPy stay as they are.
work=$root/build/gpu-check
rm -rf "$work"
mkdir -p "$work" benchmarks/results
export PYTHONPATH=$work/dance:$work/tools PATH=$work/tools/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
offline=()
if compgen -G "wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --find-links wheels --target "$work/tools" "${needs[@]}"
  offline=(--no-index --no-build-isolation)
else
  "$python" -m pip install --quiet --target "$work/tools" "${needs[@]}"
fi
"$python" -m pip install --quiet --no-deps "${offline[@]}" --target "$work/dance" . --config-settings build-dir="$work/native" \
  --config-settings cmake.define.DANCE_CUDA="$cuda" --config-settings cmake.define.DANCE_CUDA_ARCHITECTURES="$architectures"

# Not from the source tree, whose dance/ has no extension module, nor what an editable install of it (make test) points to.
echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]' \
  >"$work/tools/sitecustomize.py"
cd "$work"
"$python" -c 'import dance, sys; assert dance.__file__.startswith(sys.argv[1]), dance.__file__' "$work"
tests=("$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q -m cuda "$root/tests/test_cuda.py")
"$python" -m dance info
if [ -z "$capability" ]; then
  selected=$("${tests[@]}" --collect-only | grep -c "::")
  echo "gpu-check: no CUDA device here: dance was built and $selected CUDA tests were selected, but none was run"
  exit
fi

name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr -cs '[:alnum:]\n' -)
results=$root/benchmarks/results/gpu-$name
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
{
  "${tests[@]}"
  # Each tensor an allocation of its own, or torch's cache would hide what lies outside.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck synccheck; do
    "$sanitizer" --tool "$tool" --error-exitcode 9 "${tests[@]}" -k "slices or packets_travel or hostile or mix_equals"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
} 2>&1 | tee "$results.txt"
"$python" -m dance bench --device cuda --numel 64Ki 1Mi 64Mi --json >"$results.json"
echo "gpu-check: $results.txt, $results.json"
