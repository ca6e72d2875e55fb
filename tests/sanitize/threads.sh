#!/usr/bin/env bash
# The thread pool under ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v clang++ >/dev/null || { echo "ThreadSanitizer is clang's here: apt-get install clang libclang-rt-14-dev" >&2; exit 2; }
mkdir -p build
cmake -S tests --preset threads >build/threads.log || { cat build/threads.log; exit 1; }
cmake --build build/threads --target threads >>build/threads.log || { tail -50 build/threads.log; exit 1; }
# The test forks while threads run, which is what a data loader does.
TSAN_OPTIONS=halt_on_error=1:die_after_fork=0 build/threads/threads
