#!/usr/bin/env bash
# coverage.sh TEST...: line coverage of the core by these tests, the fuzz corpus and the thread pool's test; needs gcovr.
set -euo pipefail
cd "$(dirname "$0")/../.."
gcovr=$(realpath -s "${GCOVR:-.venv/bin/gcovr}")
tests/sanitize/extension.sh coverage
cmake -S tests --preset coverage-native >build/coverage-native.log
cmake --build build/coverage-native >>build/coverage-native.log || { tail -50 build/coverage-native.log; exit 1; }
find build/coverage build/coverage-native -name '*.gcda' -delete
tests/sanitize/pytest.sh coverage "$@"
for target in frame decode round_trip targets; do
  build/coverage-native/fuzz_$target tests/fuzz/corpus/$target
done
build/coverage-native/threads
# A line counts once, in however many CPU targets and instantiations it was compiled.
"$gcovr" --root . --filter csrc/ --exclude csrc/bindings/ --merge-mode-functions=merge-use-line-0 --merge-lines \
  --json-summary build/coverage.json --html-details build/coverage/ build/coverage build/coverage-native
"${PYTHON:-.venv/bin/python}" tests/sanitize/coverage.py build/coverage.json
