"""Which recipe reaches the target first, forecast while the run goes on: nothing to calibrate.

    time to target = (a round without messages + queue * (its bytes / rate + latencies)) * rounds

Bytes follow from the codecs, rates and latencies, each way, are what links measure, rounds are those of
dance.gan.rounds. The hub's clock tells the rest. `queue` is how many times longer than one D-Node's messages
those of a round take: 1 where the hub's own link is fast, up to the number of D-Nodes where it is no faster
than theirs and carries one after the other. It is the slope of a round's time over that of its messages,
which differ once recipes or links have changed; a round without messages, computing above all, is what is
left.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from dance.bandwidth import LinkEstimate
from dance.gan.recipes import Recipe

Array = npt.NDArray[np.float64]
_KEPT = 8  # times of rounds; medians ignore one that an evaluation or a stall lengthened
_APART = 0.2  # of the longer: messages whose times differ by less say nothing about their slope


@dataclass(frozen=True, kw_only=True)
class RoundTraffic:
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
    """`rounds`: recipes and the rounds they need; `traffic`: one for each of them, in the same order."""

    def __init__(
        self, rounds: Mapping[Recipe, float], traffic: Sequence[RoundTraffic], num_workers: int
    ) -> None:
        self.recipes = tuple(rounds)
        self.rounds: Array = np.array(list(rounds.values()))
        self.traffic = tuple(traffic)
        self.num_workers = num_workers
        self.queue = math.sqrt(num_workers)  # before it is measured: neither of the two ends
        self._windows: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # seconds of messages, of a round
        self._last: tuple[int, float] | None = None

    @property
    def first(self) -> int:
        """The recipe to begin with, before anything is measured: the fewest bytes."""
        return int(np.argmin([each.down + each.up for each in self.traffic]))

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
        self._windows.append((self.traffic[used].seconds(down, up), round_s))
        slopes = [
            (later - earlier) / (more - less)
            for (less, earlier), (more, later) in combinations(self._windows, 2)
            if abs(more - less) > _APART * max(more, less)
        ]
        if slopes:
            self.queue = min(max(median(slopes), 1.0), float(self.num_workers))

    @property
    def measured(self) -> bool:
        """Whether a forecast can be made."""
        return bool(self._windows)

    def seconds_over(self, down: LinkEstimate, up: LinkEstimate) -> Array:
        """Returns each recipe's seconds, over such links, for what one uncompressed round learns."""
        wires = np.array([each.seconds(down, up) for each in self.traffic])
        other_s = median(round_s - self.queue * wire_s for wire_s, round_s in self._windows)
        return (max(0.0, other_s) + self.queue * wires) * self.rounds

    def state_dict(self) -> dict[str, Any]:
        last = None if self._last is None else list(self._last)
        return {"windows": [list(each) for each in self._windows], "queue": self.queue, "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what the hub knew; the states of other nodes hold nothing."""
        if state["last"] is None:
            return
        self._windows = deque(((float(w), float(r)) for w, r in state["windows"]), maxlen=_KEPT)
        self.queue = float(state["queue"])
        self._last = int(state["last"][0]), float(state["last"][1])
