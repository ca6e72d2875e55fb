"""The rules of the house that no compiler checks: includes, symbols of CPU targets, completeness, imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cases
import pytest
import reference

from dance import _native, codecs

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
# Who may include whom: a room's own headers, and these. codec_api is the front door at the top of csrc/.
ROOMS = {
    "base": set(),
    "codecs": {"base"},
    "cpu": {"base", "codecs", "codec_api"},  # codec_api.h says what is asked for, its .cpp is the front door
    "cuda": {"base", "codecs", "codec_api", "cpu"},
    "frame": {"base", "codecs", "codec_api"},
    "codec_api": {"base", "codecs", "cpu", "cuda"},
    "bindings": {"base", "codecs", "cpu", "cuda", "frame", "codec_api"},
}


def sources() -> list[Path]:
    found = [path for folder in ("csrc", "cuda") for path in sorted((ROOT / folder).rglob("*"))]
    return [path for path in found if path.suffix in (".h", ".cpp", ".cu", ".cuh")]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "cuda" else parts[1].partition(".")[0]


def includes(path: Path) -> Iterator[tuple[str, str]]:
    return ((bracket, name) for bracket, name in INCLUDE.findall(path.read_text()))


def resolve(path: Path, name: str) -> Path:
    for base in (ROOT / "csrc", path.parent):
        if (base / name).exists():
            return (base / name).resolve()
    raise AssertionError(f"{path}: {name} is in none of the rooms")


def test_the_sources_are_there() -> None:
    assert len(sources()) > 20


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_includes_point_one_way(path: Path) -> None:
    room = room_of(path)
    for bracket, name in includes(path):
        low = name.lower()
        assert not low.startswith(("torch/", "aten/", "c10/")), f"{name}: the core is free of torch"
        if low.startswith("pybind11") or low == "python.h":
            assert room == "bindings", f"{name}: only csrc/bindings knows Python"
        elif low.startswith("cuda"):
            assert room == "cuda" or bracket == '"', f"{name}: only cuda/ knows CUDA"
        if bracket == '"':
            other = room_of(resolve(path, name))
            assert other == room or other in ROOMS[room], f"{room} must not include {name}"


def test_what_is_compiled_per_target_includes_no_containers_and_no_other_room() -> None:
    seen: set[Path] = set()
    todo = sorted((ROOT / "csrc" / "cpu").glob("*kernels.cpp"))
    assert len(todo) == 2
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert room_of(path) in ("base", "codecs", "cpu"), path
        for bracket, name in includes(path):
            if bracket == '"':
                todo.append(resolve(path, name))
            else:
                # The functions of the intrinsics' headers are always inlined; they leave no symbol to merge.
                assert name in ("cstdint", "cstring", "cstddef", "immintrin.h", "arm_neon.h"), (
                    f"{path}: <{name}> may bring inline functions"
                )
    assert len(seen) > 8


def build_dir() -> Path | None:
    named = os.environ.get("DANCE_BUILD_DIR")
    candidates = [Path(named)] if named else sorted((ROOT / "build").glob("cp*/"))
    found = [path for path in candidates if any(path.rglob("kernels.cpp.o"))]
    return found[-1] if found else None


def test_objects_of_cpu_targets_have_no_weak_symbols() -> None:
    """The linker keeps one copy of a weak symbol for everybody, be it compiled for AVX-512 (xsimd #1311)."""
    build = build_dir()
    if build is None:
        pytest.skip("no build directory with objects: set DANCE_BUILD_DIR or make an editable install")
    objects = sorted(path for path in build.rglob("*kernels.cpp.o") if "dance_cpu_" in str(path))
    assert len(objects) == 2 * len(_native.info()["cpu_targets"])  # of dense codecs, of selectors
    for path in objects:
        listing = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
        symbols = [line.split(maxsplit=2)[-2:] for line in listing.splitlines()]
        weak = [name for kind, name in symbols if kind in "WwVvu"]
        assert not weak, f"{path}: {weak}"
        defined = [name for kind, name in symbols if kind in "TDBR"]
        assert len(defined) == 1, (
            f"{path}: only the table of the target may be seen from outside, got {defined}"
        )
        undefined = {name for kind, name in symbols if kind == "U"}
        plain = {"memcpy", "memset", "memmove", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_", "__popcountdi2"}
        assert undefined <= plain, undefined


def test_every_codec_is_complete() -> None:
    """A codec of csrc/codecs/list.h needs its Python value, its oracle and its section in docs/format.md."""
    document = (ROOT / "docs" / "format.md").read_text()
    native = {entry["name"]: entry["id"] for entry in _native.codecs()}
    values = {kind.name: kind.id for kind in codecs.CODECS}
    for name in values.keys() | reference.IDS.keys():
        assert name in native, f"{name} is not built: csrc/codecs/list.h"
    headings = " ".join(re.findall(r"^### .*$", document, re.MULTILINE))
    for name, number in native.items():
        assert values.get(name) == number, f"{name} has no value of number {number}: dance/codecs"
        assert reference.IDS.get(name) == number, f"{name} has no oracle of number {number}: tests/reference"
        assert f"`{name}`" in headings, f"{name} has no section: docs/format.md"
        row = f"| {number} | `{name}` |"
        assert row in document, f"{name} has no row {row!r} among the payloads: docs/format.md"


def test_every_codec_is_compared_with_the_oracle() -> None:
    compared = {case.codec.partition(":")[0] for case in cases.all_cases()}
    assert compared == {kind.name for kind in codecs.CODECS}


# ---- documents


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def code_of(text: str) -> Iterator[str]:
    """Lines of code blocks, and what stands between backticks elsewhere."""
    for i, part in enumerate(re.split(r"^```.*$", text, flags=re.MULTILINE)):
        yield from part.splitlines() if i % 2 else re.findall(r"`([^`]+)`", part)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_name_is_there(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets >= {"help", "test"}
    for code in code_of(text):
        for target in re.findall(r"(?:^|[;&|])\s*make +([a-z][a-z-]*)", code):
            assert target in targets, f"{path.name}: `make {target}` is not in the Makefile"
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not re.match(r"[a-z]+:", link):
            name, _, heading = link.partition("#")
            linked = (path.parent / name).resolve() if name else path
            assert linked.exists(), f"{path.name}: {link} leads nowhere"
            if heading:
                lines = re.findall(r"^#+ +(.*?) *$", linked.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines]
                assert heading in anchors, f"{path.name}: {link} names no heading"


def test_documents_name_what_the_makefile_has() -> None:
    """That the test above finds what it looks for."""
    named = {code for path in DOCUMENTS for code in code_of(path.read_text()) if code.startswith("make ")}
    assert len(named) > 5


# ---- importing


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,  # not the root: the installed package is meant, not the source folder
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_needs_numpy_alone() -> None:
    """What it takes is measured where the wheel is checked: benchmarks/wheel.sh."""
    code = """
import sys
before = set(sys.modules)
import dance
third = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(*sorted(name for name in third if not name.startswith("_")))
"""
    assert python(code).split() == ["dance", "numpy"]


def test_everything_but_torch_works_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
import dance
x = np.linspace(-1, 1, 100_000, dtype=np.float32)
for codec in (kind.examples[0] for kind in dance.codecs.CODECS):
    residual = np.zeros_like(x)
    p = dance.encode_feedback(x, residual, codec)
    dance.decode(dance.Packet.from_bytes(p.to_bytes()), out=residual, add=True)
dance.ErrorFeedback("int8").encode(x)
dance.topology, dance.bandwidth, dance.policy
for name in ("gossip", "ChocoGossip"):
    try:
        getattr(dance, name)
    except ImportError as error:
        print(error)
from dance import *
assert encode is dance.encode
assert dance.info()["threads"] >= 1
"""
    assert python(code).count("dance.gossip needs torch") == 2


def test_submodules_are_found_lazily() -> None:
    code = """
import dance
assert "ChocoGossip" in dir(dance)
for name in ("nonsense", "__wrapped__", "_nothing"):
    try:
        getattr(dance, name)
    except AttributeError as error:
        assert name in str(error)
    else:
        raise AssertionError(name)
print(dance.policy.__name__)
"""
    assert python(code) == "dance.policy"


def test_threads_follow_torch_until_they_are_set() -> None:
    code = """
import numpy as np, dance
print(dance.info()["threads"])
import torch
torch.set_num_threads(3)
print(dance.info()["threads"])
dance.set_num_threads(2)
torch.set_num_threads(1)
dance.encode(torch.zeros(1 << 18), "int8")
print(dance.info()["threads"])
try:
    dance.set_num_threads(0)
except ValueError as error:
    print(error)
"""
    out = python(code, DANCE_NUM_THREADS="5").splitlines()
    assert out[:3] == ["5", "3", "2"]
    assert "at least 1, got 0" in out[3]
