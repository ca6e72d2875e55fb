"""Which recipe reaches the target first, forecast while the run goes on: no table, no settings.

    time to target = (a round's time without messages + its bytes / rate + latencies) * rounds

Bytes follow from the codecs, rates and latencies, each way, are what links measure, rounds are those of
dance.gan.rounds. A round's time without messages, computing above all, is what rounds took by the hub's
clock less what the messages of the recipe in use should have taken over the slowest links.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from dance.bandwidth import LinkEstimate
from dance.gan.recipes import Recipe

Array = npt.NDArray[np.float64]
_KEPT = 5  # measured times of a round; their median ignores one that an evaluation or a stall lengthened


@dataclass(frozen=True, kw_only=True)
class Load:
    """The bytes a round that one recipe sends a D-Node (down) and has it send (up), on average, in so many
    messages each way.
    """

    down: float
    up: float
    messages: float

    def seconds(self, down: LinkEstimate, up: LinkEstimate) -> float:
        """Returns how long they take, one message after the other."""
        wire_s = 8e-6 * (self.down / down.rate_mbps + self.up / up.rate_mbps)
        return wire_s + self.messages * (down.latency_s + up.latency_s)


class Forecast:
    """`rounds`: recipes and the rounds they need; `loads`: one for each of them, in the same order."""

    def __init__(self, rounds: Mapping[Recipe, float], loads: Sequence[Load]) -> None:
        self.recipes = tuple(rounds)
        self.rounds: Array = np.array(list(rounds.values()))
        self.loads = tuple(loads)
        self._others_s: deque[float] = deque(maxlen=_KEPT)
        self._last: tuple[int, float] | None = None

    @property
    def first(self) -> int:
        """The recipe to begin with, before anything is measured: the fewest bytes."""
        return int(np.argmin([load.down + load.up for load in self.loads]))

    @cached_property
    def digest(self) -> int:
        """24 bits of the recipes and rounds, which fit in a float32: nodes of a run need the same."""
        text = repr((self.recipes, self.rounds.tolist()))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=3).digest(), "little")

    @property
    def begun(self) -> bool:
        """Whether the clock was noted before."""
        return self._last is not None

    def begin(self, round_index: int, clock_s: float) -> None:
        """What the hub's clock shows before the first round."""
        self._last = round_index, clock_s

    def note(self, round_index: int, clock_s: float, used: int, down: LinkEstimate, up: LinkEstimate) -> None:
        """The same before a later one; since the last note recipe `used` was in use, over such links."""
        last, self._last = self._last, (round_index, clock_s)
        # A resumed run's clock may have begun anew.
        if last is None or round_index <= last[0] or clock_s < last[1]:
            return
        round_s = (clock_s - last[1]) / (round_index - last[0])
        self._others_s.append(max(0.0, round_s - self.loads[used].seconds(down, up)))

    def seconds_over(self, down: LinkEstimate, up: LinkEstimate) -> Array:
        """Returns each recipe's seconds, over such links, for what one uncompressed round learns."""
        other_s = median(self._others_s) if self._others_s else 0.0
        return np.array([other_s + load.seconds(down, up) for load in self.loads]) * self.rounds

    def state_dict(self) -> dict[str, Any]:
        return {"others_s": list(self._others_s), "last": None if self._last is None else list(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._others_s = deque(state["others_s"], maxlen=_KEPT)
        last = state["last"]
        self._last = None if last is None else (int(last[0]), float(last[1]))
