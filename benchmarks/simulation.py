"""Milliseconds a round of simulated AC-GAN and peak memory: stacked or not, by numbers of D-Nodes.

    python -m benchmarks.simulation                       about 3 minutes, on an idle machine; --help for less
    python -m benchmarks.simulation --baseline FOLDER     beside another checkout of this repository

Every variant is a process of its own which trains a few rounds when it is its turn, so that ratios compare
neighbours in time; each repeat begins with another variant. Images are random, as many and as large as those
of Fashion-MNIST; all settings are the defaults of `dance train`. docs/simulation.md has the tables.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

_HERE = Path(__file__).resolve().parent.parent
_IMAGES, _SHAPE = 60_000, (1, 28, 28)
_WARM_UP = 4  # rounds


@dataclass(frozen=True, kw_only=True)
class Config:
    nodes: tuple[int, ...] = (8, 64, 200)
    """Numbers of D-Nodes."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of torch threads."""
    repeats: int = 3
    """Turns of every variant."""
    rounds: int = 4
    """Rounds in a turn; every fourth has the R1 penalty."""
    baseline: str | None = None
    """Folder of another checkout, with its core, to be measured beside this one without --stack."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One process: which code, whether stacked, with how many threads and D-Nodes."""

    name: str
    folder: str
    stack: str
    threads: int
    nodes: int


def worker(variant: Variant) -> None:
    """Trains as many rounds as a line of stdin says and answers with their seconds and the peak memory."""
    import torch

    from dance.exchange import SimulatedExchange
    from dance.gan import RunConfig
    from dance.gan.engine import build

    torch.set_num_threads(variant.threads)
    config = RunConfig(d_nodes=variant.nodes, simulate=True)
    if variant.stack != "off":  # a baseline may not know the field
        config = replace(config, stack=variant.stack)  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(0)
    parts = [
        torch.rand(_IMAGES // variant.nodes, *_SHAPE, generator=random) * 2 - 1 for _ in range(variant.nodes)
    ]
    algorithm = build(config, SimulatedExchange(config.num_nodes), parts)
    done = 0
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            algorithm.round(done)
            done += 1
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        print(json.dumps([seconds, peak]), flush=True)


class Process:
    """A worker, started."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.ms: list[float] = []
        self.peak_gib = 0.0
        environment = {**os.environ, "PYTHONPATH": variant.folder}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(asdict(variant))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=variant.folder,
        )

    def train(self, rounds: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{rounds}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.variant}: ended with {self.process.wait()}")
        seconds, peak = json.loads(answer)
        self.ms.append(1e3 * seconds / rounds)
        self.peak_gib = peak / 2**20

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(config: Config, nodes: int) -> list[Process]:
    variants = []
    for threads in config.threads:
        if config.baseline is not None:
            folder = str(Path(config.baseline).resolve())
            variants.append(
                Variant(name="baseline", folder=folder, stack="off", threads=threads, nodes=nodes)
            )
        for name, stack in (("one by one", "off"), ("stacked", "on")):
            variants.append(Variant(name=name, folder=str(_HERE), stack=stack, threads=threads, nodes=nodes))
    processes = [Process(variant) for variant in variants]
    for process in processes:
        process.train(_WARM_UP)
        process.ms.clear()
    for repeat in range(config.repeats):
        for k in range(len(processes)):
            processes[(repeat + k) % len(processes)].train(config.rounds)
    for process in processes:
        process.end()
    return processes


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--worker"]:
        worker(Variant(**json.loads(arguments[1])))
        return
    import tyro

    from benchmarks.markdown import spread, table

    config = tyro.cli(Config, prog="python -m benchmarks.simulation", description=__doc__, args=arguments)
    rows = []
    for nodes in config.nodes:
        processes = measured(config, nodes)
        first = statistics.median(processes[0].ms)
        for process in processes:
            v = process.variant
            median = statistics.median(process.ms)
            rows.append(
                [
                    str(nodes),
                    v.name,
                    str(v.threads),
                    spread(process.ms, ".1f"),
                    f"{first / median:.2f}",
                    f"{process.peak_gib:.2f}",
                ]
            )
        print(f"N = {nodes} is done", file=sys.stderr, flush=True)
    columns = ("N", "discriminators", "threads", "ms a round", "x of the first", "peak GiB")
    print(table(columns, rows, 2))


if __name__ == "__main__":
    main(sys.argv[1:])
