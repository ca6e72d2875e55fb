"""Milliseconds a round of simulated AC-GAN and peak memory: stacked or not, by numbers of D-Nodes.

    python -m benchmarks.simulation                       about 3 minutes, on an idle machine; --help for less
    python -m benchmarks.simulation --baseline FOLDER     beside another checkout of this repository

Every variant is a process of its own which trains a few rounds when it is its turn, so that ratios compare
neighbours in time; each repeat begins with another variant. Images are random, as many and as large as those
of Fashion-MNIST; all settings are the defaults of `dance train`. docs/simulation.md has the tables.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dance.gan import RunConfig

_HERE = Path(__file__).resolve().parent.parent
_IMAGES, _SHAPE = 60_000, (1, 28, 28)
_WARM_UP = 4  # rounds
PRODUCTS = "products"


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
    config = RunConfig(layout="model-parallel", d_nodes=variant.nodes, simulate=True)
    train = products(config) if variant.stack == PRODUCTS else None
    if train is None:
        if variant.stack != "off":  # a baseline may not know the field
            config = replace(config, stack=variant.stack)  # type: ignore[arg-type]
        random = torch.Generator().manual_seed(0)
        count = _IMAGES // variant.nodes
        parts = [torch.rand(count, *_SHAPE, generator=random) * 2 - 1 for _ in range(variant.nodes)]
        train = build(config, SimulatedExchange(config.num_nodes), parts).round
    done = 0
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            train(done)
            done += 1
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        print(json.dumps([seconds, peak]), flush=True)


def products(config: RunConfig) -> Callable[[int], None]:
    """A round's matrix products and nothing else: what no order of computing the same can save.

    Of a D-Node, with b real and b generated images: forward and for the weights on 2b images, for the inputs
    of all layers but the first; for its feedback forward and for all inputs on b; with R1 forward, for the
    inputs, and both again for the weights' second derivatives, on b. Of the G-Node: forward, for the weights,
    and for the inputs of all layers but the first, on b images for each D-Node.
    """
    import torch

    b, n = config.batch_size, config.d_nodes
    random = torch.Generator().manual_seed(0)

    def layers(widths: Sequence[int], images: int) -> list[list[torch.Tensor]]:
        """Weight (out, in), input (images, in) and output (images, out) of each layer."""
        return [
            [torch.randn(shape, generator=random) for shape in ((o, i), (images, i), (images, o))]
            for i, o in pairwise(widths)
        ]

    d_widths = (math.prod(_SHAPE), *config.d_widths, 1)
    d_nodes = [layers(d_widths, 2 * b) for _ in range(n)]
    g_node = layers((config.latent, *config.g_widths, math.prod(_SHAPE)), n * b)

    def run(net: list[list[torch.Tensor]], kinds: str, images: int) -> None:
        for k, (w, x, y) in enumerate(net):
            if "f" in kinds:
                torch.mm(x[:images], w.t())
            if "w" in kinds:
                torch.mm(y[:images].t(), x[:images])
            if "i" in kinds or ("h" in kinds and k > 0):
                torch.mm(y[:images], w)

    def round_(index: int) -> None:
        for net in d_nodes:
            run(net, "fwh", 2 * b)
            run(net, "fi", b)
            if index % config.r1_every == 0:
                run(net, "fiw", b)
                run(net, "f", b)
        run(g_node, "fwh", n * b)

    return round_


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
        for name, stack in (("one by one", "off"), ("stacked", "on"), ("products alone", PRODUCTS)):
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
    columns = ("N", "discriminators", "threads", "ms a round", "x of the first", "peak GiB")
    for nodes in config.nodes:
        processes = measured(config, nodes)
        first = statistics.median(processes[0].ms)
        rows = []
        for process in processes:
            v = process.variant
            factor = first / statistics.median(process.ms)
            cells = (spread(process.ms, ".1f"), f"{factor:.2f}", f"{process.peak_gib:.2f}")
            rows.append([str(nodes), v.name, str(v.threads), *cells])
        print(table(columns, rows, 2), end="\n\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
