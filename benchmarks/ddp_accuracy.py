"""DDP on a small CNN: accuracy after equal steps, with codecs and without.

    python -m benchmarks.ddp_accuracy          about 4 minutes; measures no time; --help for less

Digits, a quarter of them kept for the test; every codec from the same weights and on the same batches, with
several seeds. Writes benchmarks/results/ddp_accuracy.json and the table of docs/collective_results.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import collective_tables
from benchmarks.collective_tables import NO_HOOK
from benchmarks.ddp_trainer import CODECS, Trainer
from benchmarks.findings import RESULTS, findings, say
from benchmarks.testbed.ranks import end_on_sigterm
from benchmarks.testbed.trial import LOOPBACK, Parent, at_rank, bed_of, trial

MODULE = "benchmarks.ddp_accuracy"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained; the defaults are those of docs/collective_results.md."""

    ranks: int = 2
    """Group size."""
    codecs: tuple[str, ...] = CODECS
    """What dance.ddp.attach is given, beside no hook."""
    steps: int = 250
    """Training steps before accuracy is measured."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each hook whose accuracies are averaged."""
    quick: bool = False
    """20 steps, one seed: to see that everything runs; writes no document."""
    out: Path | None = None
    """Where the JSON goes; by default to benchmarks/results, and with --quick nowhere."""


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=f"python -m {MODULE}", description=__doc__)
    end_on_sigterm()
    path = config.out or (None if config.quick else RESULTS / "ddp_accuracy.json")
    steps, seeds = (20, (0,)) if config.quick else (config.steps, config.seeds)
    work = {"hooks": [NO_HOOK, *config.codecs], "steps": steps, "seeds": seeds}
    with findings(MODULE, path) as found:
        try:
            with (
                bed_of(LOOPBACK, config.ranks) as bed,
                trial(MODULE, bed, work, timeout_s=3600.0) as records,
            ):
                for record in records:
                    say(f"{record['hook']}, seed {record['seed']}: {record['accuracy']:.2%}")
                    found.records.append({"ranks": config.ranks, **record})
        except (RuntimeError, TimeoutError) as error:
            found.failures.append(str(error))
    if found.records:
        print(collective_tables.accuracy(found))
    if not config.quick:
        collective_tables.write_document()
    return 0 if found.complete else 1


def measure(work: dict[str, Any], parent: Parent) -> None:
    """At every rank."""
    for seed in work["seeds"]:
        for name in work["hooks"]:
            trainer = Trainer(name, seed=seed)
            for step in range(work["steps"]):
                loss = trainer.step(*trainer.batch(step))
            record = {"hook": name, "seed": seed, "steps": work["steps"], "loss": loss}
            parent.tell({**record, "accuracy": trainer.accuracy()})


if __name__ == "__main__":
    sys.exit(0 if at_rank(measure) else main())
