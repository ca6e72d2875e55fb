"""The divergence guard: halves the step when what codecs cannot follow keeps growing."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

_LOG = logging.getLogger("dance.gossip")
_ROUNDS = 3
_LAG, _HISTORY = 32, 64
_GROWTH = 1.25
_FLOOR = 1e-5  # of the size of theta: below it is the rounding of float32
_DOMINANCE = 2.0
_PROBE = 1 << 16


class DivergenceGuard:
    """Watches ||theta - theta_hat|| and asks for half the step when gossip itself makes it grow.

    It must have grown over three rounds and lie a quarter above all that was seen 32 to 64 rounds ago, and so
    must the move that gossip makes; and that move must be twice what the node's own updates do. Growth alone
    is no sign: the distance starts at zero and grows for a while in every training run, after a change to a
    lossier codec, and by waves with sign at step 0.5, where it doubles in 25 rounds while the moves shrink.
    Looks at no more than 65,536 evenly spread elements, so it costs next to nothing.
    """

    def __init__(self, numel: int, name: str) -> None:
        self._name = name
        self._stride = max(1, math.ceil(numel / _PROBE))
        self._distances: deque[float] = deque(maxlen=_HISTORY)
        self._moves: deque[float] = deque(maxlen=_HISTORY)
        self._updates: deque[float] = deque(maxlen=_ROUNDS)
        self._last: torch.Tensor | None = None  # the probed elements as the last mix left them
        self._before: torch.Tensor | None = None

    def before_encode(self, theta: torch.Tensor, reference: torch.Tensor) -> None:
        """Takes the distance of this round, after the node's own update and before it is sent."""
        probe = theta[:: self._stride]
        self._distances.append(_distance(probe, reference[:: self._stride]))
        if self._last is not None:
            self._updates.append(_distance(probe, self._last))

    def before_mix(self, theta: torch.Tensor) -> None:
        self._before = theta[:: self._stride].clone()

    def after_mix(self, theta: torch.Tensor, step_size: float) -> bool:
        """Returns whether ``step_size`` is too large; logs a warning if so, and starts afresh."""
        assert self._before is not None
        probe = theta[:: self._stride]
        self._moves.append(_distance(probe, self._before))
        self._last = probe.clone()
        if not self._diverges(floor=_FLOOR * float(torch.linalg.vector_norm(probe))):
            return False
        _LOG.warning(
            "%s: the distance to the public copy grew over %d rounds to %.3g; step size %.4g is halved",
            self._name,
            _ROUNDS,
            self._distances[-1],
            step_size,
        )
        self.reset()
        return True

    def reset(self) -> None:
        """Forgets what it has seen: what follows a change of codec or step is another story."""
        self._distances.clear()
        self._moves.clear()
        self._updates.clear()

    def _diverges(self, floor: float) -> bool:
        distances, moves = list(self._distances), list(self._moves)
        if len(distances) <= _LAG + _ROUNDS or len(moves) < len(distances):
            return False
        if not math.isfinite(distances[-1]):
            return True
        return (
            all(later > earlier for earlier, later in pairwise(distances[-_ROUNDS - 1 :]))
            and distances[-1] > floor
            and distances[-1] > _GROWTH * max(distances[:-_LAG])
            and moves[-1] > _GROWTH * max(moves[:-_LAG])
            and moves[-1] > _DOMINANCE * max(self._updates, default=0.0)
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns lists of floats and, if there is one, the tensor ``last``."""
        state: dict[str, Any] = {
            "distances": list(self._distances),
            "moves": list(self._moves),
            "updates": list(self._updates),
        }
        return state if self._last is None else {**state, "last": self._last.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self._distances.extend(float(value) for value in state["distances"])
        self._moves.extend(float(value) for value in state["moves"])
        self._updates.extend(float(value) for value in state["updates"])
        last = state.get("last")
        self._last = None if last is None else last.clone()


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm((a - b).double()))
