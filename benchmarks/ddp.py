"""DDP on a small CNN: seconds a step with several hooks over a slow link.

    python -m benchmarks.ddp          about 4 minutes, as root, on an idle machine; --help for less

One DDP module a hook, all in one process, which step by turns, in an order that each round draws anew, so
that ratios compare neighbours in time; what is shown is the median over steps, of the slowest rank. Writes
benchmarks/results/ddp.json and the tables of docs/collective_results.md.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import collective_tables
from benchmarks.collective_tables import NO_HOOK
from benchmarks.ddp_trainer import (
    CODECS,
    TORCH_FP16,
    TORCH_POWERSGD,
    TORCH_POWERSGD_ONE_BUCKET,
    Trainer,
)
from benchmarks.findings import RESULTS, Findings, findings, say
from benchmarks.testbed.ranks import end_on_sigterm
from benchmarks.testbed.trial import Parent, at_rank, bed_of, trial

MODULE = "benchmarks.ddp"
_WARM_UP = 4  # steps: buckets are rebuilt after the first, PowerSGD starts at the third, auto has settled
_ALONE_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured; the defaults are those of docs/collective_results.md."""

    rate: str = "100mbit"
    """The link whose step times are measured."""
    ranks: tuple[int, ...] = (2, 4)
    """Group sizes."""
    codecs: tuple[str, ...] = CODECS
    """What dance.ddp.attach is given, beside no hook and torch's own hooks."""
    rounds: int = 15
    """Steps of each hook that are timed."""
    quick: bool = False
    """Three steps timed, two ranks: to see that everything runs; writes no document."""
    out: Path | None = None
    """Where the JSON goes; by default to benchmarks/results, and with --quick nowhere."""


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=f"python -m {MODULE}", description=__doc__)
    end_on_sigterm()
    path = config.out or (None if config.quick else RESULTS / "ddp.json")
    rounds = 3 if config.quick else config.rounds
    with findings(MODULE, path) as found:
        for ranks in config.ranks[:1] if config.quick else config.ranks:
            hooks = [NO_HOOK, TORCH_FP16, TORCH_POWERSGD_ONE_BUCKET, *config.codecs]
            failure = _run(found, config.rate, ranks, {"what": "time", "hooks": hooks, "rounds": rounds})
            if failure is not None:
                found.failures.append(f"time, {config.rate}, {ranks} ranks: {failure}")
            # It may never come back: alone, and if it fails, that is what was found.
            alone = {"what": "time alone", "hooks": [NO_HOOK, TORCH_POWERSGD], "rounds": rounds}
            failure = _run(found, config.rate, ranks, alone, _ALONE_TIMEOUT_S)
            if failure is not None:
                found.records.append(
                    {"what": "failure", "ranks": ranks, "hook": TORCH_POWERSGD, "how": failure}
                )
    print(collective_tables.ddp(found))
    if not config.quick:
        collective_tables.write_document()
    return 0 if found.complete else 1


def _run(
    found: Findings, link: str, ranks: int, work: dict[str, Any], timeout_s: float = 600.0
) -> str | None:
    """Adds what a trial measures to ``found``; returns what went wrong."""
    name = f"{work['what']}, {link}, {ranks} ranks"
    say(f"{name}: {', '.join(work['hooks'])}")
    try:
        with bed_of(link, ranks) as bed, trial(MODULE, bed, work, timeout_s=timeout_s) as records:
            for record in records:
                found.records.append({"link": link, "ranks": ranks, "what": work["what"], **record})
    except (RuntimeError, TimeoutError) as error:
        say(f"{name}: {error}")
        return str(error)
    return None


def measure(work: dict[str, Any], parent: Parent) -> None:
    """At every rank."""
    import torch
    import torch.distributed as dist

    trainers = {name: Trainer(name, seed=0) for name in work["hooks"]}
    x, y = trainers[NO_HOOK].batch(0)
    measured = torch.zeros(len(trainers), work["rounds"], dtype=torch.float64)
    num_bytes = dict.fromkeys(trainers, 0)
    names = list(trainers)
    for number in range(-_WARM_UP, work["rounds"]):
        for k in random.Random(number).sample(range(len(names)), len(names)):
            name, trainer = names[k], trainers[names[k]]
            sent = trainer.bytes_sent()
            dist.barrier()
            start = time.perf_counter()
            trainer.step(x, y)
            seconds = time.perf_counter() - start
            if number >= 0:
                measured[k, number] = seconds
                num_bytes[name] = trainer.bytes_sent() - sent
    dist.all_reduce(measured, dist.ReduceOp.MAX)
    for k, name in enumerate(trainers):
        record = {"hook": name, "seconds": measured[k].tolist(), "parameters": trainers[name].num_parameters}
        parent.tell({**record, "bytes_a_step": num_bytes[name] or None})


if __name__ == "__main__":
    sys.exit(0 if at_rank(measure) else main())
