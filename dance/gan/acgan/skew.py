"""How far workers' vectors differ for good, from short sketches of them, whatever codec they travel in.

A sketch sums the vector's elements, each with a random sign, into `SIZE` buckets of random elements, so that
it is linear and keeps energies in the mean: E |sketch(x)|^2 = |x|^2, with a relative standard deviation of
sqrt(2 / SIZE), 4 %, where no few elements hold all of x, and less where they do (Charikar, Chen,
Farach-Colton 2002). A coarse codec's own packets would not do: what they round, and the feedback of what was
rounded before, look like disagreement.
"""

from __future__ import annotations

import math

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


def skew(before: Tensor, now: Tensor) -> float:
    """The energy in which workers' vectors differ in the same way at two exchanges, over what they share.

    `before` and `now`: sketches (N, SIZE) of one draw, in one order of workers. With x_i = shared + own_i,
    all orthogonal, it is the mean of <own_i before, own_i now> over the geometric mean of both |shared|^2.
    Data of its own pull a worker the same way again and again; what minibatches and a game that circles do to
    it is something else each time and drops out. So it is about 0, on either side, for equal data, however
    much workers differ by chance, and free of their number. Infinite where nothing is shared.
    """
    count = len(now)
    if count < 2:  # one worker alone always agrees with itself
        return 0.0
    before, now = before.double(), now.double()
    own_before, own_now = before - before.mean(0), now - now.mean(0)
    lasting = float((own_before * own_now).sum()) / (count - 1)
    shared = math.sqrt(_shared(before, own_before) * _shared(now, own_now))
    if lasting == 0:
        return 0.0
    return lasting / shared if shared else math.copysign(math.inf, lasting)


def _shared(vectors: Tensor, own: Tensor) -> float:
    """The energy of what all share: that of the mean less what is left in it of workers' own."""
    count = len(vectors)
    energy = vectors.mean(0).square().sum() - own.square().sum() / (count * (count - 1))
    return max(0.0, float(energy))
