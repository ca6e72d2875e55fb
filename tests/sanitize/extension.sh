#!/usr/bin/env bash
# extension.sh PRESET: builds the extension with a preset of CMakePresets.json and a light virtual environment that imports it
# instead of the installed one: build/PRESET/venv. PYTHON is an interpreter that has the project's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset=$1
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=$PWD/build/$preset
mkdir -p "$build"
cmake --preset "$preset" -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$build.log" ||
  { cat "$build.log"; exit 1; }
cmake --build "$build" >>"$build.log" || { tail -50 "$build.log"; exit 1; }

# The package as links, beside the module built here: not the editable install, whose import hook would come first.
rm -rf "$build/tree" && mkdir "$build/tree"
cp -rs "$PWD/dance" "$build/tree/dance"
find "$build/tree" -name '*.so' -delete
ln -s "$build"/_core*.so "$build/tree/dance/"
[[ -d $build/venv ]] || "$python" -m venv --without-pip "$build/venv"
site=$("$build/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
packages=$("$python" -c 'import pytest, pathlib; print(pathlib.Path(pytest.__file__).parents[1])')
printf '%s\n%s\n' "$build/tree" "$packages" >"$site/dance.pth"
