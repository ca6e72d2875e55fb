"""How far workers' vectors differ, from short sketches of them, whatever codec the vectors travel in.

A sketch sums the vector's elements, each with a random sign, into `SIZE` buckets of random elements, so that
it is linear and keeps energies in the mean: E |sketch(x)|^2 = |x|^2, with a relative standard deviation of
sqrt(2 / SIZE), 4 %, where no few elements hold all of x, and less where they do (Charikar, Chen,
Farach-Colton 2002). A coarse codec's own packets would not do: what they round, and the feedback of what was
rounded before, look like disagreement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SIZE = 1024


class Sketcher:
    """Sketches of vectors of `numel` elements; all with one `seed` draw equal buckets and signs."""

    def __init__(self, numel: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed >> 1)
        self._order = torch.randperm(numel, generator=generator)
        self._signs = torch.randint(0, 2, (numel,), generator=generator, dtype=torch.int8)

    def __call__(self, vector: Tensor) -> Tensor:
        """The sketch, (SIZE,) float32, of a float32 vector (numel,), which stays as it is."""
        signed = torch.where(self._signs.bool(), vector, -vector)[self._order]
        return functional.pad(signed, (0, -len(signed) % SIZE)).view(-1, SIZE).sum(0)


def skew(sketches: Sequence[Tensor]) -> float:
    """mean |x_i|^2 / |mean x_i|^2 of the sketched vectors: 1 where all agree, N where they are orthogonal and
    equally long, infinite where they cancel.
    """
    stacked = torch.stack(list(sketches)).double()
    energy = float(stacked.square().sum(1).mean())
    shared = float(stacked.mean(0).square().sum())
    if energy == 0:  # nothing moved: nobody disagrees
        return 1.0
    return energy / shared if shared else math.inf


def disagreement(skew: float, num_workers: int) -> float:
    """The energy in which workers' vectors differ over what they share, free of the number of workers.

    With x_i = shared + own_i, all orthogonal, skew is (shared + own) / (shared + own / N) in energies, and
    this is own / shared: 0 where all agree, infinite where nothing is shared.
    """
    if not skew > 1:  # one worker alone always agrees with itself
        return 0.0
    rest = 1 - skew / num_workers
    return (skew - 1) / rest if rest > 0 else math.inf
