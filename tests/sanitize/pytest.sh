#!/usr/bin/env bash
# pytest.sh PRESET TEST...: pytest with the extension of this preset (extension.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
preset=$1
shift
# Not python -m pytest: that puts this folder first on the path, whose dance/ has no module.
exec "build/$preset/venv/bin/python" -c 'import sys; sys.path.remove(""); import pytest; sys.exit(pytest.main())' \
  -q -p no:cacheprovider "$@"
