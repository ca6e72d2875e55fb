"""Optimizers over a flat vector: block Adam with a shared second moment, Adam, SGD; and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rate and decays; SGD takes beta1 as its momentum."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float = 1e-8


class Optimizer(Protocol):
    """Moves a flat vector along a flat gradient; all state is a dict of tensors, changed in place."""

    def step(self, theta: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        """One step, with `scale` times the learning rate."""

    def reset(self) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class _State:
    """Named tensors that an optimizer keeps; steps are counted in one too, so that checkpoints hold them."""

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def reset(self) -> None:
        for tensor in self._tensors.values():
            tensor.zero_()

    def move_to(self, places: Mapping[str, Tensor]) -> None:
        """Go on with the state in other memory, which holds it already: rows of a matrix of many nodes."""
        for name in self._tensors:
            self._tensors[name] = places[name]
            setattr(self, name, places[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if set(state) != set(self._tensors):
            raise ValueError(f"optimizer state: expected {sorted(self._tensors)}, got {sorted(state)}")
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])


class BlockAdam(_State):
    """Adam with ONE second moment a parameter tensor, shared by all nodes.

    The fixed point of local Adam under skewed data is not a stationary point of the joint loss; with a shared
    second moment it is.

    With g the gradient, j a tensor, t the local step and r the round:
        m = b1 m + (1 - b1) g;   theta_j -= lr * m_j / (1 - b1^t) / (sqrt(v_j / (1 - b2^r)) + eps)
    and, once a round, u_j = b2 v_j + (1 - b2) mean(g_j^2) over its local steps; v_j = mean of u_j over nodes.
    v lags one round: round r uses the v that was shared after round r - 1, and round 0 the node's own u, so
    that sharing costs no phase of its own.

    A round is: `step` once or more, `moment_out`, then `moment_in` with the mean over nodes (or the own one).
    """

    def __init__(self, sizes: Sequence[int], rates: Rates) -> None:
        self.sizes = list(sizes)
        self.rates = rates
        self.m = torch.zeros(sum(sizes))
        self.v = torch.zeros(len(sizes))
        self.squares = torch.zeros(len(sizes))
        self.counts = torch.zeros(3, dtype=torch.int64)  # steps, rounds, steps in this round
        self._a_step = torch.tensor([1, 0, 1])
        self._square = torch.empty_like(self.m)  # fresh memory in every step costs as much as the step
        super().__init__(m=self.m, v=self.v, squares=self.squares, counts=self.counts)

    def step(self, theta: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        rates = self.rates
        self.counts += self._a_step
        num_steps, num_rounds, _ = self.counts.tolist()
        self.m.mul_(rates.beta1).add_(gradient, alpha=1 - rates.beta1)
        square = torch.mul(gradient, gradient, out=self._square)
        self.squares += torch.stack([g.mean() for g in torch.split(square, self.sizes)])
        v, age = (self.v, num_rounds) if num_rounds else (self.moment_out(), 1)
        root = (v / (1 - rates.beta2**age)).sqrt() + rates.epsilon
        scales = (scale * rates.learning_rate / (1 - rates.beta1**num_steps) / root).tolist()
        for part, m, scale in zip(
            torch.split(theta, self.sizes), torch.split(self.m, self.sizes), scales, strict=True
        ):
            part.sub_(m, alpha=scale)

    def moment_out(self) -> Tensor:
        """This node's next second moment u, one float32 a parameter tensor, to be averaged over nodes."""
        mean_square = self.squares / max(1, int(self.counts[2]))
        return self.rates.beta2 * self.v + (1 - self.rates.beta2) * mean_square

    def moment_in(self, mean: Tensor) -> None:
        """End the round: from here on every step uses `mean`."""
        self.v.copy_(mean)
        self.squares.zero_()
        self.counts[1] += 1
        self.counts[2] = 0


class Adam(_State):
    """Adam (Kingma and Ba 2015) over one flat vector, equal to torch.optim.Adam up to rounding."""

    def __init__(self, numel: int, rates: Rates) -> None:
        self.rates = rates
        self.m = torch.zeros(numel)
        self.v = torch.zeros(numel)
        self.count = torch.zeros(1, dtype=torch.int64)
        self._root = torch.empty(numel)  # fresh memory in every step costs as much as the step
        super().__init__(m=self.m, v=self.v, count=self.count)

    def step(self, theta: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        rates = self.rates
        self.count += 1
        num_steps = int(self.count)
        self.m.mul_(rates.beta1).add_(gradient, alpha=1 - rates.beta1)
        self.v.mul_(rates.beta2).addcmul_(gradient, gradient, value=1 - rates.beta2)
        root = torch.sqrt(self.v, out=self._root)
        root.div_(math.sqrt(1 - rates.beta2**num_steps)).add_(rates.epsilon)
        theta.addcdiv_(self.m, root, value=-scale * rates.learning_rate / (1 - rates.beta1**num_steps))


class Sgd(_State):
    """Gradient descent with momentum beta1 (0: plain)."""

    def __init__(self, numel: int, rates: Rates) -> None:
        self.rates = rates
        self.m = torch.zeros(numel)
        super().__init__(m=self.m)

    def step(self, theta: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        self.m.mul_(self.rates.beta1).add_(gradient)
        theta.sub_(self.m, alpha=scale * self.rates.learning_rate)


def optimizer(name: str, sizes: Sequence[int], rates: Rates) -> Optimizer:
    """The optimizer of that name for parameter tensors of these sizes."""
    if name == "block-adam":
        return BlockAdam(sizes, rates)
    if name == "adam":
        return Adam(sum(sizes), rates)
    if name == "sgd":
        return Sgd(sum(sizes), rates)
    raise ValueError(f"optimizer: unknown {name!r}; choose block-adam, adam or sgd")


def decayed(round_index: int, decay_rounds: int) -> float:
    """What a learning rate is multiplied by: falls linearly from 1 to 0 in `decay_rounds`; 0: always 1."""
    return max(0.0, 1.0 - round_index / decay_rounds) if decay_rounds else 1.0


class Ema:
    """The running average of a flat vector, started at its first value.

    After t rounds the decay of a round is at most (1 + t) / (10 + t), as in TensorFlow's
    ExponentialMovingAverage, so that a short run's average is of its last tenth and not of its first rounds.
    """

    def __init__(self, theta: Tensor, decay: float) -> None:
        self.decay = decay
        self.average = theta.clone()
        self._rounds = torch.zeros(1, dtype=torch.int64)

    def update(self, theta: Tensor, rounds: int = 1) -> None:
        """Take in `theta`, that has stood for `rounds` rounds."""
        self._rounds += rounds
        passed = int(self._rounds)
        decay = min(self.decay, (1 + passed) / (10 + passed))
        self.average.lerp_(theta, 1 - decay**rounds)

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average, "rounds": self._rounds}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average.copy_(state["average"])
        self._rounds.copy_(state["rounds"])
