"""The mean of one gradient a worker, through the hub, as thin factors (PowerSGD, Vogels et al. 2019).

Of every matrix V_i (gradient plus what was not sent before), with the directions Q of the last average:
    worker:  P_i = Q V_i';  send C(P_i) to the hub, which sends back P = C(mean of C(P_i))
    all:     make the rows of P orthonormal
    worker:  Q_i = P V_i;  send C(Q_i) and what is no matrix; get back Q = C(mean of C(Q_i)), likewise
    all:     take P' Q for the mean; worker: keep V_i - P' C(Q_i)
A worker keeps what its own message lacks, not what the mean lacks: residuals of workers whose data differ
would otherwise grow for ever, and with them the rounding of their factors. What the hub's second rounding of
Q loses is lost. All that must be equal everywhere is computed from packets by elementwise operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dance.gan.acgan.average import FeedbackAverage, Mean
from dance.gan.acgan.wires import HUB, Wires
from dance.gan.models import FlatModule
from dance.packet import derive_seed
from dance.powersgd import PowerSGD, make_orthonormal

LEFT, RIGHT = "d-factor-p", "d-factor-q"


class LowRankAverage:
    """Averages gradients of `start`'s shapes as `mean` of `FeedbackAverage` does, by two messages each way.

    A tensor goes whole where `rank` factors would not be at most half as large.
    """

    def __init__(self, wires: Wires, start: FlatModule, rank: int) -> None:
        self.wires = wires
        settings = PowerSGD(rank=rank)
        tensors = [tensor for _, tensor in sorted(start.module.named_parameters())]
        # (rows, columns, rank) of each, rank 0: it goes whole.
        self.shapes = [
            (len(each) if each.dim() else 1, math.prod(each.shape[1:]), settings.rank_of(each.shape))
            for each in tensors
        ]
        self.sizes = start.sizes
        self.residuals = {node: torch.zeros(sum(start.sizes)) for node in wires.d_ids if node in wires.here}
        seed = derive_seed(wires.post.seed, 0, 0, "directions", "init")
        generator = torch.Generator().manual_seed(seed >> 1)
        # Uniform, for these bits are the same on every CPU.
        self._noise = [torch.rand(r, m, generator=generator) - 0.5 for _, m, r in self.shapes]
        self.directions = [noise.clone() for noise in self._noise]
        # Elements of a message of either kind.
        self.numels = (
            sum(r * n for n, _, r in self.shapes),
            sum(r * m if r else n * m for n, m, r in self.shapes),
        )
        self._left = FeedbackAverage(wires, self.numels[0], LEFT, feedback=False)
        self._right = FeedbackAverage(wires, self.numels[1], RIGHT, feedback=False)

    def mean(self, vectors: Mapping[int, Tensor], turn: int) -> Mean | None:
        """The approximate mean of all workers' gradients, as `FeedbackAverage.mean` has it."""
        values: dict[int, list[Tensor]] = {}
        for node, vector in vectors.items():
            with self.wires.post.computing(node):
                values[node] = self._matrices(vector + self.residuals[node])
        left = self._bases(values, turn)
        if left is None:
            return None
        rights: dict[int, Tensor] = {}
        for node, matrices in values.items():
            with self.wires.post.computing(node):
                rights[node] = _flat(p @ v if len(p) else v for p, v in zip(left, matrices, strict=True))
        reduced = self._right.mean(rights, turn)
        if reduced is None:
            return None
        right = self._split(reduced.vector, whole=True)
        for node, matrices in values.items():
            with self.wires.post.computing(node):
                sent = self._product(left, self._split(self._right.sent[node], whole=True))
                torch.sub(_flat(matrices), sent, out=self.residuals[node])
        for r, (q, noise, kept) in enumerate(zip(right, self._noise, self.directions, strict=True)):
            if len(kept):  # a direction of which nothing was left would stay zero for ever
                self.directions[r] = torch.where(q.any(1, keepdim=True), q, noise)
        return Mean(vector=self._product(left, right), moment=None)

    def _bases(self, values: Mapping[int, list[Tensor]], turn: int) -> list[Tensor] | None:
        """P of every matrix, its rows orthonormal; None where `FeedbackAverage.mean` has none."""
        if not self.numels[0]:  # every tensor goes whole
            return self._split(torch.empty(0), whole=False)
        lefts: dict[int, Tensor] = {}
        for node, matrices in values.items():
            with self.wires.post.computing(node):
                lefts[node] = _flat(q @ v.T for q, v in zip(self.directions, matrices, strict=True) if len(q))
        reduced = self._left.mean(lefts, turn)
        if reduced is None:
            return None
        left = self._split(reduced.vector, whole=False)
        make_orthonormal([p for p in left if len(p)])
        return left

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a node remembers: its residual, and the directions, which hub and workers hold alike."""
        if not self._takes_part(node):
            return {}, {}
        tensors = {f"direction.{k}": q for k, q in enumerate(self.directions) if len(q)}
        if node in self.residuals:
            tensors["residual"] = self.residuals[node]
        return tensors, {}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if not self._takes_part(node):
            return
        for k, q in enumerate(self.directions):
            if len(q):
                self.directions[k] = tensors[f"direction.{k}"].clone()
        if node in self.residuals:
            self.residuals[node].copy_(tensors["residual"])

    def _takes_part(self, node: int) -> bool:
        return node == HUB or node in self.wires.d_ids

    def _matrices(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, self.sizes)
        return [part.view(n, m) for part, (n, m, _) in zip(parts, self.shapes, strict=True)]

    def _split(self, message: Tensor, *, whole: bool) -> list[Tensor]:
        """The factors in a message; of a tensor that goes whole, itself or, in a left message, nothing."""
        shapes = [
            ((r, m) if whole else (r, n)) if r else (n, m) if whole else (0, n) for n, m, r in self.shapes
        ]
        parts = torch.split(message, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _product(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """P' Q of every matrix, by elementwise operations, and what went whole, as one vector."""
        out = []
        for p, q in zip(left, right, strict=True):
            if not len(p):
                out.append(q)
                continue
            total = p[0][:, None] * q[0]
            for p_row, q_row in zip(p[1:], q[1:], strict=True):
                total += p_row[:, None] * q_row
            out.append(total)
        return _flat(out)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
