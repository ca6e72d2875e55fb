"""What a run's folder says of it: done, to be resumed, diverged or not begun; and its figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dance import checkpoint
from dance.errors import DanceError
from dance.files import write_atomic, writing
from dance.gan.config import RunConfig
from dance.gan.settings import WHERE_AND_WHEN
from dance.report import read_metrics

State = Literal["done", "diverged", "begun", "new", "changed"]
_DIVERGED = "diverged.json"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run as its folder has it: summary.json, the lines of metrics.jsonl, and what it was called."""

    label: str
    seed: int
    folder: Path
    config: RunConfig
    summary: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]
    diverged: str | None = None

    @property
    def has_clock(self) -> bool:
        """Whether links or compute were given, so that seconds of the virtual clock say something."""
        return self.config.links is not None or self.config.compute is not None


def state_of(folder: Path, config: RunConfig) -> State:
    """How far the run of `config` is in `folder`."""
    saved = saved_config(folder)
    if saved is None:
        return "new"
    if _bare(saved) != _bare(config):
        return "changed"
    if (folder / _DIVERGED).exists():
        return "diverged"
    summary = _summary(folder)
    if summary and not summary.get("interrupted") and _is_enough(summary, config):
        return "done"
    return "begun" if checkpoint.latest(folder) is not None else "new"


def saved_config(folder: Path) -> RunConfig | None:
    """The config of the run in `folder`; None where there is none that can be read."""
    try:
        return RunConfig.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def read_run(folder: Path, label: str | None = None) -> Finished:
    """The run in `folder`. Raises DanceError where it holds none that has ended."""
    config = saved_config(folder)
    if config is None:
        raise DanceError(
            f"compare: {folder} holds no run (no config.json that can be read); give the --out folder of "
            "`dance train`"
        )
    summary, diverged = _summary(folder), _diverged(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    if summary is None and diverged is None and not lines:
        raise DanceError(f"compare: the run in {folder} has no result; go on: dance train --resume {folder}")
    return Finished(
        label=label or config.algorithm,
        seed=config.seed,
        folder=folder,
        config=config,
        summary=summary or (lines[-1] if lines else {}),
        lines=tuple(lines),
        diverged=diverged,
    )


def mark_diverged(folder: Path, error: str) -> None:
    """Remember that the run came to no end of its own: with equal settings it would not the next time."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _DIVERGED, (json.dumps({"error": error}) + "\n").encode())


def clear_marks(folder: Path) -> None:
    """Forget an earlier end; before a run with other settings begins."""
    (folder / _DIVERGED).unlink(missing_ok=True)


def _bare(config: RunConfig) -> dict[str, Any]:
    values = config.to_json()
    return {name: value for name, value in values.items() if name not in WHERE_AND_WHEN}


def _is_enough(summary: Mapping[str, Any], config: RunConfig) -> bool:
    if summary.get("rounds", 0) >= config.rounds:
        return True
    if config.megabytes is not None and summary.get("bytes_per_node", 0) >= config.megabytes * 1e6:
        return True
    seconds = config.virtual_seconds
    return seconds is not None and summary.get("virtual_s", 0) >= seconds


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        values = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _diverged(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _DIVERGED).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def without_limits(config: RunConfig) -> RunConfig:
    """The config with everything at its default that does not change what a round does."""
    default = RunConfig()
    return dataclasses.replace(config, **{name: getattr(default, name) for name in WHERE_AND_WHEN})
