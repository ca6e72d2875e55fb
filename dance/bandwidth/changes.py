"""Where a series changes its level: Bayesian online change-point detection (Adams and MacKay 2007).

arXiv:0710.3742, with one addition: an observation may be an outlier, which says nothing about any level. It
is twelve times likelier to be one than to begin a new level, so that it takes two to declare a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

# One change in 250 observations, as in Oboe (Akhtar et al., SIGCOMM 2018).
_HAZARD = 1.0 / 250.0
_OUTLIERS = 0.05  # the share of observations that say nothing: stalls of the scheduler, losses
_WIDE = (
    0.1  # density of an outlier and of a new level: even over ten units, a factor of 150 either way in logs
)
# Noise of a level: inverse gamma of shape 2 around a deviation of 0.15 (a Student t of 4 degrees at first).
_SHAPE = 2.0
_SCALE = _SHAPE * 0.15**2
_SURE = 0.9
_MOST = 40  # hypotheses at once; then the less likely half is dropped


class ChangeDetector:
    """Tells how many of the latest observations belong to the present level of a series.

    Each hypothesis is a run: the level began ``length`` observations ago. It carries the sufficient
    statistics of a normal level of unknown mean and deviation, so its next observation follows a Student t,
    mixed with 5 % of outliers; an observation counts for a run with the probability that it is none.
    """

    def __init__(self) -> None:
        # Rows: length, probability, weight (observations that count), mean, sum of squared differences.
        self._runs: npt.NDArray[np.float64] = np.zeros((5, 0))
        self.length = 0
        """Of the present level, in observations."""

    def observe(self, value: float) -> int:
        """Takes in the next value and returns the length of the present level, this observation included.

        Less than one more than before: the level has changed, that many observations ago. Values are expected
        in units in which noise is about 0.15 and a change not above ten: logarithms.
        """
        length, probability, weight, mean, squares = self._runs
        shape = _SHAPE - 0.5 + 0.5 * weight
        spread = (2.0 * _SCALE + squares) * (1.0 + 1.0 / weight)  # 2 * shape * (scale of the t)^2
        difference = value - mean
        # Gamma(a + 1/2) / Gamma(a) is sqrt(a - 1/4 + 1/(32 a)) to 2e-4 from a = 2 on.
        density = np.sqrt((shape - 0.25 + 0.03125 / shape) / (np.pi * spread))
        density *= np.exp(-(shape + 0.5) * np.log1p(difference * difference / spread))
        density *= 1.0 - _OUTLIERS
        mixed = density + _OUTLIERS * _WIDE
        counts = density / mixed
        runs = np.empty((5, length.size + 1))
        runs[0, :-1] = length + 1.0
        runs[1, :-1] = probability * mixed * (1.0 - _HAZARD)
        runs[2, :-1] = weight + counts
        step = difference * counts / runs[2, :-1]
        runs[3, :-1] = mean + step
        runs[4, :-1] = squares + step * weight * difference
        runs[:, -1] = (1.0, _HAZARD * _WIDE if length.size else 1.0, 1.0, value, 0.0)
        runs[1] /= runs[1].sum()
        self._runs = runs
        self.length += 1
        self._decide()
        return self.length

    def _decide(self) -> None:
        """Declares a change where it is all but certain that a newer run is the present level."""
        length, probability = self._runs[0], self._runs[1]
        if probability[0] < 1.0 - _SURE:  # that of the present level, always the longest run
            self.length = int(length[1 + probability[1:].argmax()])
            self._keep(length <= self.length)
        elif length.size > _MOST:
            likely = probability >= np.partition(probability, -_MOST // 2)[-_MOST // 2]
            likely[0] = True
            self._keep(likely)

    def _keep(self, which: npt.NDArray[np.bool_]) -> None:
        self._runs = self._runs[:, which]
        self._runs[1] /= self._runs[1].sum()

    def state_dict(self) -> dict[str, Any]:
        return {"runs": self._runs.tolist(), "length": self.length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._runs = np.array(state["runs"], dtype=np.float64).reshape(5, -1)
        self.length = int(state["length"])
