"""Trains the networks by which images of the built-in data sets are judged, into dance/metrics/networks.

    python -m benchmarks.networks                  those that are not there
    python -m benchmarks.networks --check          what they get right of the test images; trains nothing

Every figure in docs/results.md is by the networks that are there: whoever trains them again, for another
architecture say, measures again what is to be compared. All data sets must be on disk (dance data fetch).
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="train nothing")
    only_there = parser.parse_args().check
    for name in NAMES:
        if only_there and not list(SHIPPED.glob(f"{name}-*.safetensors")):
            print(f"{name}: none")
            continue
        data = load(name)
        with tempfile.TemporaryDirectory() as folder:
            accuracy = Evaluator(data, cache_dir=Path(folder), on_training=print).accuracy
            for path in Path(folder).glob("*.safetensors"):
                shutil.copy(path, SHIPPED)
        print(f"{name}: right on {accuracy:.2%} of {len(data.test_images)} images")


if __name__ == "__main__":
    main()
