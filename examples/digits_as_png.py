"""Write scikit-learn's digits as PNG files into one folder a node: data to try docs/tutorial.md with.

    python examples/digits_as_png.py runs/photos --nodes 4

node-1 ... node-4 in that folder are private, test may be seen by all; each has a sub-folder for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    arguments = parser.parse_args()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    # A fifth for all to see, the rest in equal shares.
    places = ["test", *(f"node-{number}" for number in range(1, arguments.nodes + 1))]
    cuts = np.linspace(len(order) // 5, len(order), arguments.nodes + 1).astype(int)
    for place, indices in zip(places, np.split(order, cuts[:-1]), strict=True):
        for index in indices:
            folder = arguments.folder / place / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:04}.png")
        print(f"{arguments.folder / place}: {len(indices)} images")


if __name__ == "__main__":
    main()
