"""What a benchmark found, as JSON: its command, the machine, and records, written however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dance
from benchmarks.command import command_of
from benchmarks.performance import cpu_name

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class Findings:
    """Records in the order in which they were made; ``complete`` once all that was asked for is there."""

    command: str
    machine: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    def of(self, **wanted: object) -> list[dict[str, Any]]:
        """Returns the records that have these values."""
        return [r for r in self.records if all(r.get(name) == value for name, value in wanted.items())]

    def values(self, name: str) -> list[Any]:
        """Returns the different values of a field, in the order of their first record."""
        return list(dict.fromkeys(r[name] for r in self.records if name in r))


@contextlib.contextmanager
def findings(module: str, path: Path | None) -> Iterator[Findings]:
    """Findings that are written to ``path`` when the context is left, also after Ctrl-C, which ends here, and
    after an error, which goes on."""
    found = Findings(command=command_of(["python", "-m", module, *sys.argv[1:]]), machine=machine())
    start = time.monotonic()
    try:
        yield found
        found.complete = not found.failures
    except KeyboardInterrupt:
        print("interrupted; what was measured until now is kept", file=sys.stderr)
    finally:
        found.seconds = round(time.monotonic() - start, 1)
        if path is not None and found.records:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_json(found))
            print(f"wrote {path.name}", file=sys.stderr)


def _json(found: Findings) -> str:
    """One line for each record: they hold long lists."""
    records = ",\n  ".join(json.dumps(record) for record in found.records)
    rest = json.dumps({**vars(found), "records": []}, indent=1)
    return rest.replace('"records": []', f'"records": [\n  {records}\n ]') + "\n"


def load(path: Path) -> Findings | None:
    """Returns what was found, or None if nothing was."""
    return Findings(**json.loads(path.read_text())) if path.exists() else None


def machine() -> dict[str, Any]:
    """What figures depend on; nothing that names the machine."""
    import torch

    info = dance.info()
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_target": info["cpu_target"],
        "linux": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dance": info["version"],
        "date": time.strftime("%Y-%m-%d"),
    }


def say(text: str) -> None:
    """Says on stderr which part has begun."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
