"""Optimizers of nodes that are computed together: a row of state for each node, and one step for many rows.

A node keeps its own optimizer, whose state becomes a row here: what reads or writes it sees the same numbers.
Steps are those of dance.gan.optimizers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dance.gan.optimizers import Adam, BlockAdam, Optimizer, Sgd


class StackedOptimizer(Protocol):
    """Moves rows ``first`` to ``first + n`` of theta (N, P), in place, along the gradient of each tensor.

    A gradient has shape (n, ...), tensors being in the order of their elements in a row.
    """

    def step(self, theta: Tensor, first: int, gradients: Sequence[Tensor], scale: float = 1.0) -> None: ...


def stacked_optimizer(solvers: Sequence[Optimizer]) -> StackedOptimizer:
    """One optimizer for the nodes of ``solvers``, which are of one kind; their state moves into its rows."""
    if all(isinstance(solver, BlockAdam) for solver in solvers):
        return StackedBlockAdam([solver for solver in solvers if isinstance(solver, BlockAdam)])
    if all(isinstance(solver, Adam) for solver in solvers):
        return StackedAdam([solver for solver in solvers if isinstance(solver, Adam)])
    if all(isinstance(solver, Sgd) for solver in solvers):
        return StackedSgd([solver for solver in solvers if isinstance(solver, Sgd)])
    raise ValueError(
        f"stack: cannot step {sorted({type(s).__name__ for s in solvers})} together; use --stack off"
    )


class StackedBlockAdam:
    """`BlockAdam` by rows; all nodes are at the same step and round."""

    def __init__(self, solvers: Sequence[BlockAdam]) -> None:
        self.rates = solvers[0].rates
        self.rows = _moved(solvers)

    def step(self, theta: Tensor, first: int, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        rates = self.rates
        rows = slice(first, first + len(gradients[0]))
        counts, squares, v = self.rows["counts"][rows], self.rows["squares"][rows], self.rows["v"][rows]
        counts += torch.tensor([1, 0, 1])
        num_steps, num_rounds, in_round = counts[0].tolist()
        flat = [gradient.flatten(1) for gradient in gradients]
        squares += torch.stack([torch.linalg.vector_norm(g, dim=1).square() / g.shape[1] for g in flat], 1)
        # In round 0 a node's own squares stand in for v, as in `BlockAdam`.
        vhat = v / (1 - rates.beta2**num_rounds) if num_rounds else squares / in_round
        scales = scale * rates.learning_rate / (1 - rates.beta1**num_steps) / (vhat.sqrt() + rates.epsilon)
        start = 0
        for j, g in enumerate(flat):
            part = slice(start, start + g.shape[1])
            m = self.rows["m"][rows, part]
            m.mul_(rates.beta1).add_(g, alpha=1 - rates.beta1)
            theta[rows, part].addcmul_(m, scales[:, j : j + 1], value=-1)
            start = part.stop


class StackedAdam:
    """`Adam` by rows; all nodes are at the same step."""

    def __init__(self, solvers: Sequence[Adam]) -> None:
        self.rates = solvers[0].rates
        self.rows = _moved(solvers)

    def step(self, theta: Tensor, first: int, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        rates = self.rates
        rows = slice(first, first + len(gradients[0]))
        count = self.rows["count"][rows]
        count += 1
        num_steps = int(count[0])
        start = 0
        for g in (gradient.flatten(1) for gradient in gradients):
            part = slice(start, start + g.shape[1])
            m, v = self.rows["m"][rows, part], self.rows["v"][rows, part]
            m.mul_(rates.beta1).add_(g, alpha=1 - rates.beta1)
            v.mul_(rates.beta2).addcmul_(g, g, value=1 - rates.beta2)
            root = v.sqrt().div_(math.sqrt(1 - rates.beta2**num_steps)).add_(rates.epsilon)
            theta[rows, part].addcdiv_(
                m, root, value=-scale * rates.learning_rate / (1 - rates.beta1**num_steps)
            )
            start = part.stop


class StackedSgd:
    """`Sgd` by rows."""

    def __init__(self, solvers: Sequence[Sgd]) -> None:
        self.rates = solvers[0].rates
        self.rows = _moved(solvers)

    def step(self, theta: Tensor, first: int, gradients: Sequence[Tensor], scale: float = 1.0) -> None:
        rows = slice(first, first + len(gradients[0]))
        start = 0
        for g in (gradient.flatten(1) for gradient in gradients):
            part = slice(start, start + g.shape[1])
            m = self.rows["m"][rows, part]
            m.mul_(self.rates.beta1).add_(g)
            theta[rows, part].sub_(m, alpha=scale * self.rates.learning_rate)
            start = part.stop


def _moved(solvers: Sequence[BlockAdam] | Sequence[Adam] | Sequence[Sgd]) -> dict[str, Tensor]:
    """Stacks the state of all solvers and makes each of them work on its row."""
    states = [solver.state_dict() for solver in solvers]
    rows = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    for k, solver in enumerate(solvers):
        solver.move_to({name: matrix[k] for name, matrix in rows.items()})
    return rows
