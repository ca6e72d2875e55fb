#!/usr/bin/env bash
# run.sh TEST...: runs these tests of pytest with AddressSanitizer and UndefinedBehaviorSanitizer in the extension.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/sanitize/extension.sh sanitize
# The sanitizer's library comes first in the process, and libstdc++ with it, or exceptions would end it. Leaks would be those of
# Python; modules of torch define some symbols twice.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:strict_string_checks=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
exec tests/sanitize/pytest.sh sanitize "$@"
