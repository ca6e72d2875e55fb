"""Trains the networks by which images of the built-in data sets are judged, into dance/metrics/networks.

    python -m benchmarks.networks      those that are not there

Those that are there were trained with torch 2.13.0 and MKL's code for Intel CPUs with AVX-512; every FID
in docs/results.md is by them. Another CPU trains others: whoever replaces one, for another architecture
say, measures again what is to be compared. All data sets must be on disk (dance data fetch).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from dance.data import load
from dance.metrics import Evaluator
from dance.metrics.network import SHIPPED

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for name in NAMES:
        data = load(name)
        with tempfile.TemporaryDirectory() as folder:
            accuracy = Evaluator(data, cache_dir=Path(folder), on_training=print).accuracy
            fresh = list(Path(folder).glob("*.safetensors"))
            for old in SHIPPED.glob(f"{name}-*.safetensors") if fresh else ():
                old.unlink()
            for path in fresh:
                shutil.copy(path, SHIPPED)
        print(f"{name}: right on {accuracy:.2%} of images that it was not trained on")


if __name__ == "__main__":
    main()
