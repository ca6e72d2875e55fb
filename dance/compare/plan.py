"""The runs of a comparison: methods x seeds in one order, each with its config and its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dance.compare.method import Method
from dance.gan.config import RunConfig, validate

# Evaluations of a run whose common settings do not say when: so many, at growing distances.
_NUM_POINTS = 16
_GROWTH = 1.3


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run to be done; `config.out` is its folder."""

    method: Method
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.out or "")

    @property
    def name(self) -> str:
        return f"{self.method.label}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs, seed by seed, so that every method has a first result early."""

    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]


def plan(methods: Sequence[Method], seeds: Sequence[int], base: RunConfig, out: Path) -> Plan:
    """The runs of `methods` x `seeds` with the common settings `base`, below `out`.

    Raises ValueError for a config that cannot run, before the first run takes its time.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"compare: --seeds: expected different seeds, got {list(seeds)}")
    runs = []
    for seed in seeds:
        for method in methods:
            config = method.config(base, seed=seed, out=str(out / method.slug / f"seed-{seed}"))
            if config.algorithm == "standalone":  # it has no bytes to be limited by
                config = dataclasses.replace(config, megabytes=None, evaluate_megabytes=())
            validate(config)
            runs.append(PlannedRun(method=method, seed=seed, config=config))
    return Plan(methods=tuple(methods), seeds=tuple(seeds), runs=tuple(runs))


def growing(last: int, *, first: int | None = None, growth: float = _GROWTH) -> tuple[int, ...]:
    """Rounds at growing distances up to `last`: early ones too, since curves have logarithmic axes."""
    at = float(first or max(1, round(last / growth**_NUM_POINTS)))
    rounds = [last]
    while round(at) < last:
        rounds.append(round(at))
        at = max(at * growth, at + 1)
    return tuple(sorted(set(rounds)))
