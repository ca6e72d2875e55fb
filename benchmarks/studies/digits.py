"""Does one-bit gossip cost quality? Digits, four D-Nodes, three seeds: standalone and two AC-GANs.

    python benchmarks/studies/digits.py      about 8 minutes on 2 cores; runs that are done are kept

Writes benchmarks/results/digits.json and prints the table of docs/results.md.
"""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path

from dance.compare.folder import state_of
from dance.gan import RunConfig, run

SEEDS = (0, 1, 2)
VARIANTS = {"standalone": ("standalone", "sign"), "sign": ("ac-gan", "sign"), "none": ("ac-gan", "none")}
RUNS = Path("runs/studies/digits")
RESULTS = Path(__file__).parents[1] / "results" / "digits.json"


def one(name: str, seed: int) -> dict[str, object]:
    algorithm, codec = VARIANTS[name]
    folder = RUNS / f"{name}-{seed}"
    config = RunConfig(
        algorithm=algorithm,
        layout="model-parallel",
        gossip_codec=codec,
        image_codec="int8",
        seed=seed,
        rounds=3000,
        d_nodes=4,
        d_learning_rate=2e-3,
        simulate=True,
        evaluate_every=0,
        checkpoint_every=0,
        out=str(folder),
    )
    if state_of(folder, config) != "done":
        run(config)
    summary = json.loads((folder / "summary.json").read_text())
    kept = ("score", "fid", "class_histogram", "bytes_sent", "raw_bytes", "bytes_sent_by_kind")
    return {"variant": name, "seed": seed, **{key: summary.get(key) for key in kept}}


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def main() -> None:
    rows = [one(name, seed) for name in VARIANTS for seed in SEEDS]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": cpu(), "rows": rows}, indent=1) + "\n")
    print("| | score | FID | classes drawn | gossip MB | all MB |\n|---|---|---|---|---|---|")
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        cells = [name]
        for key in ("score", "fid"):
            values = [row[key] for row in own]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        cells.append(str(min(sum(share > 0.02 for share in row["class_histogram"]) for row in own)))
        cells.append(f"{own[0]['bytes_sent_by_kind'].get('gossip', 0) / 1e6:.1f}")
        cells.append(f"{own[0]['bytes_sent'] / 1e6:.1f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
