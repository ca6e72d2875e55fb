"""How far do data parallel workers disagree for good? The threshold of AC-GAN's adaptive layout.

    python benchmarks/studies/skew.py             everything, about 40 minutes; done runs are kept
    python benchmarks/studies/skew.py digits 4    only some runs: one data set, one number of nodes
    python benchmarks/studies/skew.py table       the runs that are done, and nothing else

Phase 1 alone until it decides, settings as by default, on iid and on skewed data. Writes
benchmarks/results/skew.json and prints the table of docs/results.md.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from dance.data import load
from dance.exchange import SimulatedExchange
from dance.gan import AcganConfig, RunConfig
from dance.gan.acgan import DataParallel
from dance.gan.acgan.adaptive import WINDOW, decides_after
from dance.gan.acgan.skew import SIZE
from dance.gan.parts import parts_of

SEEDS = (0, 1)
# Four nodes of two classes each cannot hold ten classes.
PARTITIONS = {4: ("iid", "dirichlet:0.2", "classes:3"), 8: ("iid", "dirichlet:0.2", "classes:2")}
DATA = ("digits", "fashion-mnist", "mnist")
SETTINGS = AcganConfig()
# What a figure depends on: runs with others are done anew.
MADE_WITH: dict[str, Any] = {
    "rounds": decides_after(SETTINGS),
    "period": SETTINGS.sync_period,
    "codec": SETTINGS.sync_codec,
    "sketch": SIZE,
    "of": "two exchanges",
    "beta1": RunConfig().beta1,
}
RUNS = Path("runs/studies/skew")
RESULTS = Path(__file__).parents[1] / "results" / "skew.json"


def file_of(data: str, nodes: int, partition: str, seed: int) -> Path:
    return RUNS / f"{data}-{nodes}-{partition.replace(':', '-')}-{seed}.json"


def one(data: str, nodes: int, partition: str, seed: int) -> dict[str, Any]:
    """The skew at every exchange of one run."""
    file = file_of(data, nodes, partition, seed)
    if not is_done((data, nodes, partition, seed)):
        config = RunConfig(
            layout="data-parallel",
            data=data,
            partition=partition,
            d_nodes=nodes,
            seed=seed,
            simulate=True,
        )
        workers = DataParallel(config, SimulatedExchange(config.num_nodes), parts_of(config, load(data)))
        assert workers.delta is not None
        average = workers.delta.average
        average.measures = True
        skews = []
        for round_index in range(MADE_WITH["rounds"]):
            workers.round(round_index)
            if workers.exchanges(round_index) and average.skew is not None:
                skews.append(average.skew)
        case = {"data": data, "nodes": nodes, "partition": partition, "seed": seed}
        row = case | {"made_with": MADE_WITH, "skews": skews}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row))
    row = json.loads(file.read_text())
    return row | {"skew": statistics.mean(row["skews"][-WINDOW:])}


def is_done(case: tuple[str, int, str, int]) -> bool:
    file = file_of(*case)
    return file.exists() and json.loads(file.read_text()).get("made_with") == MADE_WITH


def restore(rows: list[dict[str, Any]]) -> None:
    """Puts the runs that the results have where this script looks for those that are done."""
    for row in rows:
        file = file_of(row["data"], row["nodes"], row["partition"], row["seed"])
        if not file.exists() and "made_with" in row:
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = ("data", "nodes", "partition", "seed", "made_with", "skews")
            file.write_text(json.dumps({name: row[name] for name in kept}))


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def main() -> None:
    torch.set_num_threads(1)
    only = set(sys.argv[1:])
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": cpu(), "rows": []}
    restore(before["rows"])
    cases = [
        (data, nodes, partition, seed)
        for seed in SEEDS
        for nodes, partitions in PARTITIONS.items()
        for data in DATA
        for partition in partitions
        if only <= {data, str(nodes)} or only == {"table"}
    ]
    rows = [one(*case) for case in cases if only != {"table"} or is_done(case)]
    machines = before["machine"] if cpu() in before["machine"] else f"{before['machine']}; {cpu()}"
    if not only or only == {"table"}:
        RESULTS.write_text(json.dumps({"machine": machines, "rows": rows}, indent=1) + "\n")
    print("| data | nodes | partition | skew, each seed |\n|---|---|---|---|")
    for case in sorted({case[:3] for case in cases}):
        own = [row for row in rows if (row["data"], row["nodes"], row["partition"]) == case]
        skews = " ".join(f"{row['skew']:.2f}" for row in own)
        print("| " + " | ".join(map(str, case)) + f" | {skews} |")


if __name__ == "__main__":
    main()
