"""The cases on which all backends must agree with the oracle: codecs, operations, awkward sizes and values.

Run as a program it prints, for each number of threads among its arguments, a digest of every case as this
build of dance computes it; tests/test_bits.py runs it once per CPU target.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import reference

FLT_MAX, FLT_MIN = reference.FLT_MAX, reference.FLT_MIN
OPERATIONS = ("encode", "feedback", "difference")
BLOCKS = (32, 100, 256, 784, 4096)
PRIME = 1009
LARGE = 2**20 + 3
WEIGHT, ADD_WEIGHT, STEP = 0.3, -1.7, 0.37


def _magnitudes(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    x = np.exp2(rng.uniform(low, high, n)) * rng.choice([-1.0, 1.0], n)
    return np.clip(x, -FLT_MAX, FLT_MAX).astype(np.float32)


def _sprinkle(rng: np.random.Generator, n: int, *values: float) -> np.ndarray:
    """Gaussian with a bad value about every 400 elements, so that some blocks are clean and some are not."""
    x = rng.standard_normal(n).astype(np.float32)
    for i in np.flatnonzero(rng.random(n) < 1 / 400).tolist():
        x[i] = rng.choice(values)
    if n:
        x[n // 2] = values[0]
    return x


VALUES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gaussian": lambda rng, n: rng.standard_normal(n).astype(np.float32),
    "zero": lambda rng, n: np.zeros(n, np.float32),
    "negative_zero": lambda rng, n: np.where(rng.random(n) < 0.5, np.float32(-0.0), np.float32(0.0)),
    "denormal": lambda rng, n: _magnitudes(rng, n, -149, -126),
    "smallest": lambda rng, n: _magnitudes(
        rng, n, -128, -115
    ),  # around the scales that are too small to be sent
    "huge": lambda rng, n: np.where(rng.random(n) < 0.5, FLT_MAX, -FLT_MAX).astype(np.float32),
    "half": lambda rng, n: _magnitudes(
        rng, n, -26, 18
    ),  # from below float16's subnormals to above its largest
    "mixed": lambda rng, n: _magnitudes(rng, n, -149, 128),
    "ties": lambda rng, n: rng.integers(-3, 4, n).astype(np.float32) * np.float32(0.5),
    "inf": lambda rng, n: _sprinkle(rng, n, np.inf, -np.inf),
    "nan": lambda rng, n: _sprinkle(rng, n, np.nan, np.inf),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    codec: str
    operation: str
    numel: int
    values: str

    @property
    def name(self) -> str:
        return f"{self.codec} {self.operation} {self.numel} {self.values}"

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input, state and the array that a decode adds to."""
        rng = np.random.default_rng([self.numel, list(VALUES).index(self.values)])
        x = VALUES[self.values](rng, self.numel)
        state = (np.roll(x, 7) * np.float32(0.5)).astype(np.float32)
        return x, state, rng.standard_normal(self.numel).astype(np.float32)


def small_cases() -> Iterator[Case]:
    for values in VALUES:
        for operation in OPERATIONS:
            for codec in ("none", "fp16", "bf16", "topk:ratio=0.01", "topk:ratio=0.3", "topk:ratio=1.0"):
                for numel in (0, 1, 31, 32, 33, PRIME, 1023, 1024, 1025):
                    yield Case(codec=codec, operation=operation, numel=numel, values=values)
            for block in BLOCKS:
                for name in ("int8", "sign"):
                    for numel in sorted({0, 1, 31, 32, 33, block - 1, block, block + 1, PRIME}):
                        yield Case(
                            codec=f"{name}:block={block}", operation=operation, numel=numel, values=values
                        )


def large_cases() -> Iterator[Case]:
    """Large enough for several threads; few, because the oracle is slow."""
    for codec in ("none", "fp16", "bf16", "int8:block=256", "sign:block=256", "topk:ratio=0.01"):
        yield Case(codec=codec, operation="feedback", numel=LARGE, values="nan")
        yield Case(codec=codec, operation="difference", numel=LARGE, values="gaussian")
    yield Case(codec="int8:block=100", operation="encode", numel=LARGE, values="mixed")
    yield Case(codec="sign:block=784", operation="encode", numel=LARGE, values="mixed")
    yield Case(codec="topk:ratio=0.01", operation="encode", numel=LARGE, values="ties")
    yield Case(codec="topk:ratio=0.3", operation="feedback", numel=LARGE, values="mixed")


def all_cases() -> list[Case]:
    return [*small_cases(), *large_cases()]


Results = dict[str, np.ndarray]  # payload, state, decoded, weighted, added: what must be equal bit for bit


def through_oracle(case: Case) -> Results:
    x, state, out = case.arrays()
    c = reference.codec(case.codec)
    with np.errstate(all="ignore"):
        if case.operation == "encode":
            encoded = reference.encode(c, x)
        elif case.operation == "feedback":
            encoded, state = reference.encode_feedback(c, x, state)
        else:
            encoded, state = reference.encode_difference(c, x, state)
        return {
            "payload": np.frombuffer(encoded.payload, np.uint8),
            "state": state,
            "decoded": reference.decode(c, encoded.payload, x.size),
            "weighted": reference.decode(c, encoded.payload, x.size, WEIGHT),
            "added": reference.decode_add(c, encoded.payload, out, ADD_WEIGHT),
        }


def through_dance(
    case: Case,
    to: Callable[[np.ndarray], Any] = lambda array: array,
    back: Callable[[Any], np.ndarray] = lambda array: array,
) -> Results:
    """The same through the library; ``to`` and ``back`` move arrays to and from another library or device."""
    import dance

    x, state, out = (to(array) for array in case.arrays())
    if case.operation == "encode":
        p = dance.encode(x, case.codec, nonfinite="zero")
    elif case.operation == "feedback":
        p = dance.encode_feedback(x, state, case.codec, nonfinite="zero")
    else:
        p = dance.encode_difference(x, state, case.codec, nonfinite="zero")
    decoded = dance.decode(p)
    weighted = dance.decode(p, weight=WEIGHT)
    dance.decode(p, out=out, add=True, weight=ADD_WEIGHT)
    results = {"payload": p.payload, "state": state, "decoded": decoded, "weighted": weighted, "added": out}
    return {name: back(array) for name, array in results.items()}


def digest(results: Results) -> str:
    h = blake2b(digest_size=8)
    for name in sorted(results):
        h.update(np.ascontiguousarray(results[name]).tobytes())
    return h.hexdigest()


def difference(got: Results, expected: Results) -> str:
    """Where two results differ first, in words; empty when all bits are equal."""
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            return f"{name}: {have.dtype}{have.shape} instead of {want.dtype}{want.shape}"
        bits = np.uint8 if want.dtype == np.uint8 else np.uint32
        where = np.flatnonzero(have.view(bits) != want.view(bits))
        if where.size:
            i = int(where[0])
            return (
                f"{name}: {where.size} of {want.size} differ, first [{i}]: {have[i]!r} instead of {want[i]!r}"
            )
    return ""


def main() -> None:
    import dance

    cases = all_cases()
    report = {}
    for num_threads in map(int, sys.argv[1:]):
        dance.set_num_threads(num_threads)
        report[num_threads] = {case.name: digest(through_dance(case)) for case in cases}
    json.dump({"target": dance.info()["cpu_target"], "digests": report}, sys.stdout)


if __name__ == "__main__":
    main()
