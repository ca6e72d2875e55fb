"""The cases of reduce, sums of packets of one codec and of several, stored or encoded again; and of mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import cases
import numpy as np
import reference
from cases import DTYPES, Results
from values import VALUES

SIZES = (0, 1, 33, 255, cases.PRIME, 4097)  # a reduce works in chunks of a few thousand


@dataclass(frozen=True, kw_only=True)
class Reduction:
    codecs: tuple[str, ...]  # of the packets
    into: str  # codec of what is encoded again; "" where the sum is stored
    residual: bool
    mean: bool
    numel: int
    values: str
    dtypes: tuple[str, str, str]  # of the packets, of the residual, of the output

    @property
    def name(self) -> str:
        flags = f"{'mean ' if self.mean else ''}{'residual ' if self.residual else ''}"
        return (
            f"reduce {' + '.join(self.codecs)} -> {self.into or 'sum'} {flags}"
            f"{self.numel} {self.values} {'/'.join(self.dtypes)}"
        )

    @property
    def seed(self) -> int:
        return (self.numel + 7) * 0xBF58476D1CE4E5B9 % 2**64

    def inputs(self) -> list[np.ndarray]:
        """What each packet is made of, then the residual."""
        rng = np.random.default_rng([self.numel, list(VALUES).index(self.values)])
        x = VALUES[self.values](rng, self.numel)
        with np.errstate(all="ignore"):
            parts = [np.roll(x, 11 * k) * np.float32(1.0 - 0.5 * k) for k in range(len(self.codecs))]
            stored = [reference.store(part.astype(np.float32), self.dtypes[0]) for part in parts]
            return [*stored, reference.store(x * np.float32(0.25), self.dtypes[1])]


@dataclass(frozen=True, kw_only=True)
class Mix:
    numel: int
    values: str
    dtype: str

    @property
    def name(self) -> str:
        return f"mix {self.numel} {self.values} {self.dtype}"

    def inputs(self) -> list[np.ndarray]:
        """x, the neighbours' sum and the reference."""
        rng = np.random.default_rng([self.numel, list(VALUES).index(self.values)])
        drawn = [VALUES[self.values](rng, self.numel) for _ in range(3)]
        with np.errstate(all="ignore"):
            return [reference.store(array.astype(np.float32), self.dtype).copy() for array in drawn]


def all_cases() -> list[Reduction | Mix]:
    return list(dict.fromkeys((*reductions(), *mixes())))


def mixes() -> Iterator[Mix]:
    """Of finite values: which of two NaN a sum returns is the machine's choice."""
    finite = [name for name in VALUES if name not in ("inf", "nan")]
    for dtype in DTYPES:
        for numel in (0, 1, 33, cases.PRIME, cases.THREADED):
            for values in finite:
                yield Mix(numel=numel, values=values, dtype=dtype)
        yield Mix(numel=cases.LARGE, values="mixed", dtype=dtype)


def reductions() -> Iterator[Reduction]:
    """Every codec summed with itself, encoded again by itself, and summed with another; the rest is drawn."""
    texts = cases.texts()
    for text in texts:
        draw = Random(f"reduce {text}")
        for numel in (*draw.sample(SIZES, 2), cases.THREADED):
            yield _drawn(draw, (text,) * draw.choice((1, 2, 3)), "", numel)
            yield _drawn(draw, (text, text), text, numel)
            yield _drawn(draw, (draw.choice(texts), text, draw.choice(texts)), draw.choice(texts), numel)


def _drawn(draw: Random, codecs: tuple[str, ...], into: str, numel: int) -> Reduction:
    dtypes = draw.choice(DTYPES), draw.choice(DTYPES), draw.choice(DTYPES)
    return Reduction(
        codecs=codecs,
        into=into,
        residual=bool(into) and draw.random() < 0.5,
        mean=draw.random() < 0.5,
        numel=numel,
        values=draw.choice(("gaussian", "mixed", "ties", "half", "huge", "smallest", "nan")),
        dtypes=dtypes if draw.random() < 0.6 else (DTYPES[0],) * 3,
    )


def through_oracle(case: Reduction | Mix) -> Results:
    if isinstance(case, Mix):
        return {"mixed": reference.mix(*case.inputs(), cases.STEP, dtype=case.dtype)}
    *inputs, residual = case.inputs()
    packets = [
        reference.encode(reference.codec(text), x, dtype=case.dtypes[0], seed=case.seed + k).packet
        for k, (text, x) in enumerate(zip(case.codecs, inputs, strict=True))
    ]
    weight = float(np.float32(1.0 / len(packets))) if case.mean else 1.0
    if not case.into:
        return {"sum": reference.reduce(packets, out_dtype=case.dtypes[2], weight=weight)}
    encoded, moved = reference.reduce_encode(
        reference.codec(case.into),
        packets,
        residual=residual if case.residual else None,
        dtype=case.dtypes[0],
        state_dtype=case.dtypes[1],
        seed=case.seed,
        weight=weight,
    )
    results = {
        "payload": np.frombuffer(encoded.payload, np.uint8),
        "decoded": reference.decode(encoded.packet),
    }
    return {**results, "residual": moved} if moved is not None else results


def through_dance(
    case: Reduction | Mix,
    to: Callable[[np.ndarray, str], Any] = cases.to_arrays,
    back: Callable[[Any], np.ndarray] = cases.to_raw,
) -> Results:
    import dance

    if isinstance(case, Mix):
        x, neighbour_sum, ref = (to(array, case.dtype) for array in case.inputs())
        dance.mix(x, neighbour_sum, ref, cases.STEP)
        return {"mixed": back(x)}
    *inputs, state = case.inputs()
    packets = [
        dance.encode(to(x, case.dtypes[0]), text, seed=case.seed + k, nonfinite="zero")
        for k, (text, x) in enumerate(zip(case.codecs, inputs, strict=True))
    ]
    if not case.into:
        out = to(np.full(case.numel, 77, cases.out_type(case.dtypes[2])), case.dtypes[2])
        dance.reduce(packets, mean=case.mean, out=out)
        return {"sum": back(out)}
    residual = to(state, case.dtypes[1]) if case.residual else None
    p = dance.reduce(
        packets, codec=case.into, mean=case.mean, seed=case.seed, nonfinite="zero", residual=residual
    )
    results = {"payload": back(p.payload), "decoded": back(dance.decode(p))}
    return {**results, "residual": back(residual)} if case.residual else results
