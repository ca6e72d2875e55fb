"""How many rounds a coarser or rarer message costs: rounds to a target FID for each gossip codec and period.

    python benchmarks/studies/rounds.py          about 15 minutes on an idle core; runs that are done are kept
    python benchmarks/studies/rounds.py 0.5      one-bit gossip with that step; prints and writes no results

Digits, four D-Nodes with three classes each, AC-GAN through the hub. One run alone is a lottery, so the
curves of three seeds are averaged and smoothed, and the geometric mean of the rounds to three targets counts:
coarse ones, some times the FID that uncompressed messages have at the end, which all reach. Writes
benchmarks/results/rounds.json, from which dance/gan/rounds.py was made: what a forecast and `dance calibrate
gan` multiply the seconds of a round with.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, geometric_mean

from dance.compare.folder import state_of
from dance.gan import AcganConfig, RunConfig, run

SEEDS = (0, 1, 2)
ROUNDS = 1200
EVERY = 50
# Targets: so many times the FID that uncompressed messages have at the end.
TIMES = (4.0, 3.2, 2.8)
AROUND = 2  # evaluations to each side that a point of a curve is averaged with
# gossip codec, period H, image codec, feedback codec; the first is the reference.
RECIPES = [
    ("none", 1, "none", "none"),
    ("none", 1, "int8", "sign:block=image"),
    *(("int8", period, "int8", "sign:block=image") for period in (1, 3, 10)),
    ("sign", 1, "int8", "sign:block=image"),
    *(("sign", period, "int4", "sign:block=image") for period in (1, 3, 10, 30)),
]
RUNS = Path("runs/studies/rounds")
RESULTS = Path(__file__).parents[1] / "results" / "rounds.json"


def fids(recipe: tuple[str, int, str, str], seed: int, step: float | None) -> list[tuple[int, float]]:
    """(round, FID) at each evaluation of one run; `step` is that of one-bit gossip, None: the default."""
    gossip, period, image, feedback = recipe
    step = step if gossip == "sign" else None
    name = f"{gossip}-{period}-{image}-{feedback.split(':')[0]}-{seed}"
    folder = RUNS / (name if step is None else f"{name}-step-{step:g}")
    config = RunConfig(
        layout="model-parallel",
        gossip_codec=gossip,
        image_codec=image,
        feedback_codec=feedback,
        acgan=AcganConfig(period=period, step_size=step),
        partition="classes:3",
        seed=seed,
        rounds=ROUNDS,
        d_learning_rate=2e-3,
        simulate=True,
        evaluate_every=EVERY,
        evaluate_images=1000,
        checkpoint_every=0,
        out=str(folder),
    )
    if state_of(folder, config) != "done":
        run(config)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["round"], line["fid"]) for line in lines]


def rounds_to(curve: list[tuple[int, float]], target: float) -> float | None:
    """The first round at which the curve is at or below the target, between two evaluations; None: never."""
    before = None
    for at, fid in curve:
        if fid <= target:
            if before is None:
                return float(at)
            last, above = before
            return last + (at - last) * (above - target) / (above - fid)
        before = at, fid
    return None


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def joint(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """One curve for several seeds: the geometric mean over them and over the evaluations around each."""
    logs = [fmean(math.log(fid) for _, fid in points) for points in zip(*curves, strict=True)]
    means = [fmean(logs[max(0, k - AROUND) : k + AROUND + 1]) for k in range(len(logs))]
    return [(at, math.exp(mean)) for (at, _), mean in zip(curves[0], means, strict=True)]


def main() -> None:
    step = float(sys.argv[1]) if len(sys.argv) > 1 else None
    curves = [joint([fids(recipe, seed, step) for seed in SEEDS]) for recipe in RECIPES]
    end = curves[0][-1][1]
    rows = []
    for recipe, curve in zip(RECIPES, curves, strict=True):
        needed = [rounds_to(curve, times * end) for times in TIMES]
        known = [each for each in needed if each is not None]
        mean = geometric_mean(known) if len(known) == len(TIMES) else None
        keys = ("gossip", "period", "image", "feedback")
        values = {"rounds": needed, "mean": mean, "last_fid": curve[-1][1]}
        rows.append({**dict(zip(keys, recipe, strict=True)), **values})
    entry = {"machine": cpu(), "seeds": SEEDS, "targets": [times * end for times in TIMES], "rows": rows}
    if step is None:
        RESULTS.write_text(json.dumps(entry, indent=1) + "\n")
    print("| gossip | H | images | feedback | rounds to the targets | times the reference | FID at the end |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        needed = ["never" if each is None else f"{each:.0f}" for each in row["rounds"]]
        times = "" if row["mean"] is None else f"{row['mean'] / rows[0]['mean']:.2f}"
        cells = [row["gossip"], row["period"], row["image"], row["feedback"].partition(":")[0]]
        print(
            "| " + " | ".join(map(str, [*cells, ", ".join(needed), times, f"{row['last_fid']:.1f}"])) + " |"
        )


if __name__ == "__main__":
    main()
