"""The divergence guard: tells when a step is too large because what codecs cannot follow keeps growing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

_ROUNDS = 3
_LAG, _HISTORY = 32, 64
_GROWTH = 1.25
_FLOOR = 1e-5  # of the size of theta: below it is the rounding of float32
_DOMINANCE = 2.0
_STRETCHES, _STRETCH = 16, 1 << 10  # neighbours share cache lines: single elements would cost all of theta

_Row = tuple[float, float, float]  # distance to the public copy, gossip's move, move of the node's updates


class DivergenceGuard:
    """Watches ||theta - theta_hat|| and tells when gossip itself makes it grow.

    It must have grown over three rounds and lie a quarter above all that was seen 32 to 64 rounds ago, and so
    must the move that gossip makes; and that move must be twice what the node's own updates do. Growth alone
    is no sign: the distance starts at zero and grows for a while in every training run, after a change to a
    lossier codec, and by waves with sign, where it doubles while the moves shrink. Looks at no more than
    16 evenly spread stretches of 1,024 elements, so it costs next to nothing.

    A round: `probe` before the encode, `sample` before the mix, `mixed` after it.
    """

    def __init__(self) -> None:
        self._rows: deque[_Row] = deque(maxlen=_HISTORY)
        self._distance: float | None = None  # of the round under way
        self._last: torch.Tensor | None = None  # the sample as the last mix left it

    @staticmethod
    def sample(theta: torch.Tensor) -> torch.Tensor:
        """Returns a copy of the elements that guards look at."""
        return _probed(theta).clone()

    def probe(self, theta: torch.Tensor, reference: torch.Tensor) -> None:
        """Takes the distance of this round, after the node's own update and before it is sent."""
        self._distance = _norm(_probed(theta) - _probed(reference))

    def mixed(self, before: torch.Tensor, theta: torch.Tensor) -> bool:
        """Takes the move from ``before``, the sample before the mix; returns whether the step is too large.

        What moved theta between the last mix and ``before`` are the node's own updates, with order "overlap"
        too.
        """
        update = 0.0 if self._last is None else _norm(before - self._last)
        self._last = self.sample(theta)
        if self._distance is None:
            return False
        row = (self._distance, _norm(self._last - before), update)
        self._distance = None
        if all(map(math.isfinite, row)):
            self._rows.append(row)
        if not self._diverges(floor=_FLOOR * float(torch.linalg.vector_norm(self._last))):
            return False
        self.reset()
        return True

    def reset(self) -> None:
        """Forgets what it has seen: what follows a change of codec or step is another story."""
        self._rows.clear()
        self._distance = None

    def _diverges(self, floor: float) -> bool:
        if len(self._rows) <= _LAG + _ROUNDS:
            return False
        distances, moves, updates = zip(*self._rows, strict=True)
        return (
            all(later > earlier for earlier, later in pairwise(distances[-_ROUNDS - 1 :]))
            and distances[-1] > floor
            and distances[-1] > _GROWTH * max(distances[:-_LAG])
            and moves[-1] > _GROWTH * max(moves[:-_LAG])
            and moves[-1] > _DOMINANCE * max(updates[-_ROUNDS:])
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns rows, the distance of the round under way and, if there is one, the tensor ``last``."""
        state: dict[str, Any] = {"rows": [list(row) for row in self._rows], "distance": self._distance}
        return state if self._last is None else {**state, "last": self._last.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self._rows.extend((float(row[0]), float(row[1]), float(row[2])) for row in state["rows"])
        self._distance = None if state["distance"] is None else float(state["distance"])
        last = state.get("last")
        self._last = None if last is None else last.clone()


def _probed(theta: torch.Tensor) -> torch.Tensor:
    apart = theta.numel() // _STRETCHES
    return theta if apart <= _STRETCH else theta[: _STRETCHES * apart].view(_STRETCHES, apart)[:, :_STRETCH]


def _norm(difference: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64))
