"""How many rounds a coarser or rarer message costs: rounds to a target FID for each gossip codec and period.

    python benchmarks/studies/rounds.py      about 5 minutes on 2 idle cores; runs that are done are kept

Digits, four D-Nodes with three classes each, AC-GAN through the hub. The target is 2.8 times the FID that
uncompressed messages have at the end: a coarse one, which all but the rarest gossip reach. Writes
benchmarks/results/rounds.json, from which dance/gan/rounds.py was made: what `dance calibrate gan` multiplies
the seconds of a round with.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

from dance.gan import AcganConfig, RunConfig, run

SEEDS = (0,)
ROUNDS = 1200
EVERY = 50
SLACK = 2.8
# gossip codec, period H, image codec, feedback codec; the first is the reference.
RECIPES = [
    ("none", 1, "none", "none"),
    *(("none", period, "int8", "sign:block=image") for period in (1, 10)),
    *(("int8", period, "int8", "sign:block=image") for period in (1, 3, 10)),
    *(("sign", period, "int8", "sign:block=image") for period in (1, 3, 10, 30)),
]
RUNS = Path("runs/studies/rounds")
RESULTS = Path(__file__).parents[1] / "results" / "rounds.json"


def fids(recipe: tuple[str, int, str, str], seed: int) -> list[tuple[int, float]]:
    """(round, FID) at each evaluation of one run."""
    gossip, period, image, feedback = recipe
    folder = RUNS / f"{gossip}-{period}-{image}-{feedback.split(':')[0]}-{seed}"
    if not (folder / "summary.json").exists():
        run(
            RunConfig(
                layout="model-parallel",
                gossip_codec=gossip,
                image_codec=image,
                feedback_codec=feedback,
                acgan=AcganConfig(period=period),
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
        )
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


def main() -> None:
    targets = {seed: SLACK * fids(RECIPES[0], seed)[-1][1] for seed in SEEDS}
    rows = []
    for recipe in RECIPES:
        curves = [fids(recipe, seed) for seed in SEEDS]
        needed = [rounds_to(curve, targets[seed]) for curve, seed in zip(curves, SEEDS, strict=True)]
        known = [each for each in needed if each is not None]
        mean = sum(known) / len(known) if len(known) == len(SEEDS) else None
        last = sum(curve[-1][1] for curve in curves) / len(SEEDS)
        keys = ("gossip", "period", "image", "feedback")
        rows.append(
            {**dict(zip(keys, recipe, strict=True)), "rounds": needed, "mean": mean, "last_fid": last}
        )
    RESULTS.write_text(json.dumps({"machine": cpu(), "targets": targets, "rows": rows}, indent=1) + "\n")
    print("| gossip | H | images | feedback | rounds to target | times the reference | FID at the end |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        mean = row["mean"]
        cells = [row["gossip"], row["period"], row["image"], row["feedback"]]
        cells += ["never" if mean is None else f"{mean:.0f}"]
        cells += ["" if mean is None else f"{mean / rows[0]['mean']:.2f}", f"{row['last_fid']:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
