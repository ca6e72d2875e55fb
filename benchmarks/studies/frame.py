"""What a study is, and its results: a small JSON file that grows by a run at a time and says what is done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dance.compare import Method, PlannedRun, read_run
from dance.compare.report import machine
from dance.files import write_atomic
from dance.gan.config import RunConfig, validate
from dance.gossip import default_step_size

RESULTS = Path(__file__).parents[1] / "results"
RUNS = Path("runs/studies")
# Of a line of metrics.jsonl; what is not there yet (fid_raw, skew) is left out.
_POINT = ("round", "bytes_per_node", "virtual_s", "fid", "fid_raw", "score", "skew")
_SUMMARY = (
    "rounds", "seconds", "virtual_s", "bytes_per_node", "bytes_sent", "raw_bytes", "bytes_sent_by_kind",
    "codecs", "fid", "fid_raw", "score", "score_raw", "class_histogram", "modes", "near",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run that a study asks for. `group` is its place in the tables, as "classes:2".

    common: settings that are not the method's; only what a study names is compared when it asks again.
    """

    group: str
    method: Method
    seed: int
    common: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its name among the results: what differs within the study must be in group or label."""
        return f"{self.group} | {self.method.label} | {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """One question. `wanted` is asked again after each batch: what comes next may follow from results.

    It gives runs by falling importance. `tables` makes the Markdown; `cut` says what was left out.
    """

    name: str
    question: str
    wanted: Callable[[Results], Sequence[Wanted]]
    tables: Callable[[Results], str]
    cut: str = ""
    extra: Callable[[PlannedRun], dict[str, float]] | None = None  # figures from the run's folder


class Results:
    """benchmarks/results/study_NAME.json: runs by key, and the machines that did them."""

    def __init__(self, name: str, folder: Path = RESULTS, *, quick: bool = False) -> None:
        self.name = name
        self.quick = quick
        self.path = (RUNS / "quick" if quick else folder) / f"study_{name}.json"
        self.runs: dict[str, dict[str, Any]] = {}
        self.machines: list[dict[str, str]] = []
        if self.path.exists():
            values = json.loads(self.path.read_text(encoding="utf-8"))
            self.runs, self.machines = values["runs"], values["machines"]

    def has(self, wanted: Wanted) -> bool:
        """Whether the run is there, with the settings that are wanted now."""
        found = self.runs.get(wanted.key)
        return found is not None and found["settings"] == _settings(wanted, self.quick)

    def add(self, wanted: Wanted, run: PlannedRun, extra: Mapping[str, float] | None = None) -> None:
        """Take in what the run's folder has, and write the file."""
        done = read_run(run.folder, wanted.method.label)
        here = machine()
        if here not in self.machines:
            self.machines.append(here)
        self.runs[wanted.key] = {
            "group": wanted.group,
            "label": wanted.method.label,
            "seed": wanted.seed,
            "settings": _settings(wanted, self.quick),
            "machine": self.machines.index(here),
            "diverged": done.diverged,
            "summary": {name: _short(done.summary[name]) for name in _SUMMARY if name in done.summary},
            **({"extra": _short(extra)} if extra else {}),
            "curve": [{name: _short(line[name]) for name in _POINT if name in line} for line in done.lines],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {"study": self.name, "machines": self.machines, "runs": self.runs}
        write_atomic(self.path, (json.dumps(values, indent=None, separators=(",", ":")) + "\n").encode())

    def of(self, group: str, label: str) -> list[dict[str, Any]]:
        """The runs of one method that came to an end, by seed."""
        own = [run for run in self.runs.values() if (run["group"], run["label"]) == (group, label)]
        return sorted(own, key=lambda run: run["seed"])

    def labels(self, group: str) -> list[str]:
        """The methods of a group, in the order in which they came."""
        return list(dict.fromkeys(run["label"] for run in self.runs.values() if run["group"] == group))


def planned(wanted: Wanted, results: Results) -> PlannedRun:
    """The run in its folder. Raises ValueError for a config that cannot run."""
    place = Path("quick" if results.quick else "full") / results.name / _slug(wanted.group)
    folder = RUNS / place / wanted.method.slug / f"seed-{wanted.seed}"
    both = replace(wanted.method, changes={**wanted.common, **wanted.method.changes})
    config = both.config(RunConfig(simulate=True), seed=wanted.seed, out=str(folder))
    if results.quick:
        config = quick(config)
    validate(config)
    return PlannedRun(method=wanted.method, seed=wanted.seed, config=config)


def quick(config: RunConfig) -> RunConfig:
    """So short that it only shows that the run begins and ends."""
    return replace(
        config,
        rounds=min(config.rounds, 12),
        megabytes=None,
        virtual_seconds=None,
        evaluate_at=(),
        evaluate_megabytes=(),
        evaluate_every=6,
        evaluate_images=200,
    )


def best_rate(results: Results, group: str, labels: Mapping[float, str]) -> float | None:
    """The learning rate whose run on seed 0 ended with the least FID; None while one is not there."""
    found: dict[float, float] = {}
    for rate, label in labels.items():
        fid = last_fid(results, group, label)
        if fid is None:
            return None
        found[rate] = fid
    return min(found, key=lambda rate: found[rate])


def last_fid(results: Results, group: str, label: str) -> float | None:
    """What seed 0 ended with, of a method: the last evaluations' mean, for one alone is a lottery."""
    runs = [run for run in results.of(group, label) if run["seed"] == 0]
    if not runs:
        return None
    tail = [point["fid"] for point in runs[0]["curve"][-3:] if point.get("fid") is not None]
    return float("inf") if runs[0]["diverged"] or not tail else statistics.fmean(tail)


def _settings(wanted: Wanted, is_quick: bool) -> dict[str, Any]:
    """What the study names, and defaults that decide; JSON values, which compare equal after a file."""
    values = {"algorithm": wanted.method.algorithm, "beta1": RunConfig().beta1}
    if wanted.method.algorithm == "ac-gan":
        values["sign_step"] = default_step_size("sign")
    values |= {**wanted.common, **wanted.method.changes}
    values |= {"quick": True} if is_quick else {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
