"""Two ways to remember what the neighbours sent.

`Copies`, the public copy of each: what one end of an edge gains is what the other loses, to the bit, and the
mean drifts by no more than the rounding of theta. `Sums`, only s = sum_j w_ij theta_hat_j, three vectors a
node whatever its degree; but what is lost in rounding s is lost for good and pulls theta in every round from
then on, so s is built anew now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from dance.coding import decode, mix
from dance.packet import Packet
from dance.topology import Matrix

_CHUNK = 1 << 16  # elements whose force is summed at a time, in cache


class Copies:
    """A public copy for each of ``positions``."""

    def __init__(self, start: torch.Tensor, positions: Iterable[int]) -> None:
        self.vectors = {position: start.clone() for position in positions}
        self._force, self._zero = start.new_zeros(2, min(_CHUNK, start.numel())).unbind()

    def add(self, packets: Mapping[int, Packet]) -> None:
        for position, packet in packets.items():
            decode(packet, out=self.vectors[position], add=True)

    def mix(
        self, theta: torch.Tensor, own: Mapping[int, torch.Tensor], row: Matrix, step_size: float
    ) -> None:
        """theta += step_size sum_j w_ij (theta_hat_j - theta_hat), the sum first: theta is rounded once a
        round. ``own``: this node's copy at each neighbour j.
        """
        for start in range(0, theta.numel(), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            moved = theta[chunk]
            force, zero = self._force[: moved.numel()].zero_(), self._zero[: moved.numel()]
            for j, copy in own.items():
                mix(force, self.vectors[j][chunk], copy[chunk], float(row[j]))
            mix(moved, force, zero, step_size)


class Sums:
    """The weighted sum s of ``position`` on a graph that stays as it is; ``row`` are its weights."""

    def __init__(self, start: torch.Tensor, position: int, row: Matrix) -> None:
        self.vectors = {position: start.clone()}
        self._sum = self.vectors[position]
        self._row = _fixed_point(row, position)

    def add(self, packets: Mapping[int, Packet], *, anew: bool) -> None:
        """Adds what came in and the own packet; ``anew``: these are whole copies, their sum is s."""
        if anew:
            self._sum.zero_()
        for position, packet in packets.items():
            decode(packet, out=self._sum, add=True, weight=float(self._row[position]))

    def mix(self, theta: torch.Tensor, own: torch.Tensor, step_size: float) -> None:
        mix(theta, self._sum, own, step_size)


def _fixed_point(row: Matrix, position: int) -> Matrix:
    """Returns a row of weights in multiples of 2^-24, which float32 holds exactly, and which still sum to 1.

    1/3 in float32 is 3e-8 too large; three of them would let theta grow by so much in every round.
    """
    weights = np.round(row * 2.0**24) / 2.0**24
    weights[position] = 0.0
    weights[position] = 1.0 - weights.sum()
    return weights
