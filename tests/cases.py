"""The cases on which all backends must agree with the oracle: codecs, operations, dtypes, sizes and values.

The codecs are those of dance.codecs.CODECS, so that a new one joins by itself. Run as a program it prints,
for each number of threads among its arguments, a digest of every case as this build of dance computes it;
tests/test_bits.py runs it once per CPU target.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from random import Random
from typing import Any

import numpy as np
import reference
from reference import DTYPES
from texts import block_of, sizes, texts
from values import MISLEADING, VALUES, any_nan

FLT_MAX, FLT_MIN = reference.FLT_MAX, reference.FLT_MIN
OPERATIONS = ("encode", "feedback", "difference")
PRIME = 1009
THREADED = 7 * 4096 + 29  # with small grains enough blocks of every size for seven threads
LARGE = 2**20 + 3  # as grains are, enough for four
WEIGHT, ADD_WEIGHT, STEP = 0.3, -1.7, 0.37

# ---- cases


@dataclass(frozen=True, kw_only=True)
class Case:
    codec: str
    operation: str
    numel: int
    values: str
    dtypes: tuple[str, str, str] = ("float32", "float32", "float32")  # of x, state and output

    @property
    def name(self) -> str:
        return f"{self.codec} {self.operation} {self.numel} {self.values} {'/'.join(self.dtypes)}"

    @property
    def seed(self) -> int:
        return (self.numel + 1) * 0x9E3779B97F4A7C15 % 2**64

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input, state and the array that a decode adds to; bfloat16 as its bits."""
        with np.errstate(all="ignore"):
            x, state, out = (
                reference.store(array, dtype).copy()
                for array, dtype in zip(_drawn(self.numel, self.values), self.dtypes, strict=True)
            )
        if self.values.endswith("nan"):
            rng = np.random.default_rng(self.numel)
            return any_nan(rng, x, self.dtypes[0]), any_nan(rng, state, self.dtypes[1]), out
        return x, state, out


@lru_cache(maxsize=512)
def _drawn(numel: int, values: str) -> tuple[np.ndarray, ...]:
    families = {**VALUES, **MISLEADING}
    rng = np.random.default_rng([numel, list(families).index(values)])
    x = families[values](rng, numel)
    arrays = x, np.roll(x, 7) * np.float32(0.5), rng.standard_normal(numel)
    return tuple(array.astype(np.float32) for array in arrays)


def _dtypes(draw: Random) -> tuple[str, str, str]:
    """All float32, or any."""
    if draw.random() < 0.4:
        return ("float32", "float32", "float32")
    return draw.choice(DTYPES), draw.choice(DTYPES), draw.choice(DTYPES)


def small_cases() -> Iterator[Case]:
    """Every codec on every size with every family of values, with some of them where it is a sparse one whose
    values another codec encodes; the operation and the dtypes are drawn. Then all operations and dtypes, and
    where blocks end.
    """
    for text in texts():
        draw, mixed = Random(text), "values=" in text
        for numel in sizes(text):
            for values in draw.sample(list(VALUES), 3 if mixed else len(VALUES) if numel else 1):
                operation, dtypes = draw.choice(OPERATIONS), _dtypes(draw)
                yield Case(codec=text, operation=operation, numel=numel, values=values, dtypes=dtypes)
        for operation in OPERATIONS:
            for dtype in (draw.choice(DTYPES),) if mixed else DTYPES:
                for values in ("gaussian", "nan"):
                    yield Case(codec=text, operation=operation, numel=517, values=values, dtypes=(dtype,) * 3)
    yield from boundary_cases()


def boundary_cases() -> Iterator[Case]:
    """The examples of every codec, so all its modes, around the end of a block: every operation, with x and
    state of every two dtypes; the values are drawn.
    """
    from dance import codecs

    for text in (str(codecs.codec(example)) for kind in codecs.CODECS for example in kind.examples):
        draw, block = Random(f"boundary {text}"), block_of(text)
        for numel, operation in product((block - 1, block, block + 1), OPERATIONS):
            for (i, dtype), (j, state) in product(enumerate(DTYPES), repeat=2):
                dtypes = dtype, state, DTYPES[(i + j) % len(DTYPES)]  # every two of the three, too
                values = draw.choice(list(VALUES))
                yield Case(codec=text, operation=operation, numel=numel, values=values, dtypes=dtypes)


def threaded_cases() -> Iterator[Case]:
    """Every codec and operation on several threads; the values and the dtypes are drawn."""
    for text, operation in product(texts(), OPERATIONS):
        draw = Random(f"threads {text} {operation}")
        values = draw.choice(list(VALUES))
        yield Case(codec=text, operation=operation, numel=THREADED, values=values, dtypes=_dtypes(draw))


def misled_cases() -> Iterator[Case]:
    """Selectors whose sample is like no other element, on several threads."""
    for text, values in product(
        ("topk:ratio=0.01", "topk:ratio=0.01,values=int8", "dgc:ratio=0.01"), MISLEADING
    ):
        for operation, state in product(OPERATIONS, ("float32", "float16")):
            dtypes = ("float32", state, "float32")
            yield Case(codec=text, operation=operation, numel=THREADED, values=values, dtypes=dtypes)


def large_cases() -> Iterator[Case]:
    """More than 2^20 elements; few, because the oracle is slow."""
    from dance import codecs

    for i, kind in enumerate(codecs.CODECS):
        text, values = str(codecs.codec(kind.examples[0])), ("gaussian", "nan", "mixed")[i % 3]
        dtypes = (
            (DTYPES[0],) * 3 if i % 2 else (DTYPES[1 + i // 2 % 2], DTYPES[i % 3], DTYPES[2 - i // 2 % 2])
        )
        for operation in ("encode", "feedback")[: 2 - i % 2]:
            yield Case(codec=text, operation=operation, numel=LARGE, values=values, dtypes=dtypes)
    for values in ("ties", "zero"):  # selectors among equals
        for name in ("topk", "dgc"):
            yield Case(codec=f"{name}:ratio=0.3", operation="feedback", numel=LARGE, values=values)


def all_cases() -> list[Case]:
    return list(dict.fromkeys((*small_cases(), *threaded_cases(), *misled_cases(), *large_cases())))


# ---- results


Results = dict[str, np.ndarray]  # payload, state, decoded, weighted, added: what must be equal bit for bit


def through_oracle(case: Case) -> Results:
    x, state, out = case.arrays()
    c = reference.codec(case.codec)
    dtype, state_dtype, out_dtype = case.dtypes
    if case.operation == "encode":
        encoded = reference.encode(c, x, dtype=dtype, seed=case.seed)
    else:
        step = reference.encode_feedback if case.operation == "feedback" else reference.encode_difference
        encoded, state = step(c, x, state, dtype=dtype, state_dtype=state_dtype, seed=case.seed)
    return {
        "payload": np.frombuffer(encoded.packet.payload, np.uint8),
        "state": state,
        "decoded": reference.decode(encoded.packet),
        "weighted": reference.decode(encoded.packet, out_dtype=out_dtype, weight=WEIGHT),
        "added": reference.decode_add(encoded.packet, out, out_dtype=out_dtype, weight=ADD_WEIGHT),
    }


def to_torch(raw: np.ndarray, dtype: str) -> Any:
    """A tensor of ``dtype`` on the bits of ``raw``."""
    import torch

    if dtype == "bfloat16":
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(raw)


def to_arrays(raw: np.ndarray, dtype: str) -> Any:
    """NumPy where it has the dtype, else torch."""
    return to_torch(raw, dtype) if dtype == "bfloat16" else raw


def to_raw(array: Any) -> np.ndarray:
    """Arrays of NumPy and CPU tensors of torch as arrays of the oracle."""
    if isinstance(array, np.ndarray):
        return array
    import torch

    if array.dtype == torch.bfloat16:
        return array.view(torch.int16).numpy().view(np.uint16)
    return array.numpy()  # type: ignore[no-any-return]


def through_dance(
    case: Case,
    to: Callable[[np.ndarray, str], Any] = to_arrays,
    back: Callable[[Any], np.ndarray] = to_raw,
) -> Results:
    """The same through the library; ``to`` and ``back`` move arrays to and from another library or device."""
    import dance

    x, state, out = (to(array, dtype) for array, dtype in zip(case.arrays(), case.dtypes, strict=True))
    if case.operation == "encode":
        p = dance.encode(x, case.codec, seed=case.seed, nonfinite="zero")
    elif case.operation == "feedback":
        p = dance.encode_feedback(x, state, case.codec, seed=case.seed, nonfinite="zero")
    else:
        p = dance.encode_difference(x, state, case.codec, seed=case.seed, nonfinite="zero")
    decoded = dance.decode(p)
    weighted = to(np.full(case.numel, 77, out_type(case.dtypes[2])), case.dtypes[2])
    dance.decode(p, out=weighted, weight=WEIGHT)
    dance.decode(p, out=out, add=True, weight=ADD_WEIGHT)
    results = {"payload": p.payload, "state": state, "decoded": decoded, "weighted": weighted, "added": out}
    return {name: back(array) for name, array in results.items()}


def out_type(dtype: str) -> Any:
    return {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]


def digest(results: Results) -> str:
    h = blake2b(digest_size=8)
    for name in sorted(results):
        h.update(np.ascontiguousarray(results[name]).data.cast("B") if results[name].size else b"")
    return h.hexdigest()


def difference(got: Results, expected: Results) -> str:
    """Where two results differ first, in words; empty when all bits are equal."""
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"{name}: {have.dtype}{have.shape} instead of {want.dtype}{want.shape}"
        bits = f"u{want.dtype.itemsize}"
        where = np.flatnonzero(have.view(bits) != want.view(bits))
        if where.size:
            i = int(where[0])
            return (
                f"{name}: {where.size} of {want.size} differ, first [{i}]: {have[i]!r} instead of {want[i]!r}"
            )
    return ""


def main() -> None:
    """Of more than one thread only cases of several blocks, in small grains, and a tenth of the others.
    Beside each digest: how many threads the case has kept busy, in all its loops together.
    """
    import reductions

    import dance
    from dance import _native

    report: dict[int, dict[str, tuple[str, int]]] = {}
    for num_threads in map(int, sys.argv[1:]):
        dance.set_num_threads(num_threads)
        done = report[num_threads] = {}
        for module in (sys.modules["cases"], reductions):
            for i, task in enumerate(module.all_cases()):
                if num_threads == 1 or task.numel >= THREADED or i % 10 == 0:
                    with _native.small_grains() if task.numel < LARGE else nullcontext(lambda: 0) as begun:
                        done[task.name] = digest(module.through_dance(task)), begun()
    json.dump({"target": dance.info()["cpu_target"], "done": report}, sys.stdout)


if __name__ == "__main__":
    sys.modules["cases"] = sys.modules["__main__"]  # what reductions imports
    main()
