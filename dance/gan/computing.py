"""How long simulated nodes compute: a virtual time for each node and round, the same for the same seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from dance.bandwidth.groups import of_nodes
from dance.bandwidth.units import parse_seconds
from dance.packet import derive_seed

# Which part of a node's training of a round a block is. A forward pass is one unit an image, a backward pass
# two: one for the weights, one for the inputs. G: b images each way. D: 2b images both ways, then b for the
# feedback, without weights. What coding and mixing take is not modelled.
GENERATE, ABSORB = 1 / 3, 2 / 3
UPDATE, FEEDBACK = 3 / 4, 1 / 4
WHOLE = 1.0  # a G and a D at one place

_STRAGGLERS = re.compile(r"([0-9.]+)x([0-9.]+)")
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Mean seconds that a node's training takes in one round.

    spread and jitter are standard deviations of the logarithm: of a factor drawn once for each node, and of
    one drawn for each node and round. Both factors have mean 1.
    """

    seconds: float
    spread: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for what in ("seconds", "spread", "jitter"):
            if not 0.0 <= getattr(self, what) < math.inf:
                raise ValueError(
                    f"compute: expected a finite {what} of at least 0, got {getattr(self, what)}"
                )


@dataclass(frozen=True, kw_only=True)
class Straggling:
    """In each round a node is, with this probability, so many times as slow."""

    probability: float
    factor: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.probability <= 1.0 and 1.0 <= self.factor < math.inf):
            raise ValueError(
                "stragglers: expected a probability in [0, 1] and a factor of at least 1, "
                f"got {self.probability}x{self.factor}"
            )


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Virtual seconds of training by node and round; nodes that are not named take none and never straggle.

    A pure function of (seed, node, round): nothing to save, and equal for any order of asking.
    """

    speeds: Mapping[int, Speed]
    stragglers: Mapping[int, Straggling]
    seed: int = 0

    def seconds(self, node: int, round_: int) -> float:
        """Returns how long `node` trains in a round."""
        speed = self.speeds.get(node)
        if speed is None:
            return 0.0
        seconds = speed.seconds
        if speed.spread:
            seconds *= _factor(speed.spread, self._uniform(node, 0, "speed"))
        if speed.jitter:
            seconds *= _factor(speed.jitter, self._uniform(node, round_, "jitter"))
        straggling = self.stragglers.get(node)
        if straggling is not None and self._uniform(node, round_, "straggler") < straggling.probability:
            seconds *= straggling.factor
        return seconds

    def _uniform(self, node: int, round_: int, key: str) -> float:
        """Returns a number in (0, 1)."""
        return ((derive_seed(self.seed, round_, node, key, "compute") >> 11) + 0.5) / (1 << 53)


def parse_computing(
    compute: str | None, stragglers: str | None, num_nodes: int, seed: int
) -> Computing | None:
    """Returns the model of two texts, each with a value for all nodes or for groups of them (`of_nodes`).

    compute: ``20ms``, ``20ms,spread=0.5,jitter=0.1``; stragglers: ``0.1x5``. Without compute there is no
    model (None), and stragglers raise ValueError.
    """
    if compute is None:
        if stragglers is not None:
            raise ValueError(
                f"stragglers: {stragglers!r} slow down virtual compute times; add --compute, such as 20ms"
            )
        return None
    slow = {} if stragglers is None else of_nodes(stragglers, num_nodes, _straggling)
    return Computing(speeds=of_nodes(compute, num_nodes, _speed), stragglers=slow, seed=seed)


def _speed(text: str) -> Speed:
    first, *rest = text.split(",")
    seconds = parse_seconds(first)
    options: dict[str, float] = {}
    for item in rest:
        name, _, value = (word.strip() for word in item.partition("="))
        try:
            options[name] = float(value)
        except ValueError:
            seconds = None
    if seconds is None or not set(options) <= {"spread", "jitter"}:
        raise ValueError(
            f"compute {text!r}: expected seconds of a round such as 20ms or 20ms,spread=0.5,jitter=0.1"
        )
    return Speed(seconds=seconds, **options)


def _straggling(text: str) -> Straggling:
    match = _STRAGGLERS.fullmatch(text.strip())
    try:
        probability, factor = (float(number) for number in match.groups()) if match else (-1.0, -1.0)
    except ValueError:  # 0.1.2x5
        match = None
    if match is None:
        raise ValueError(f"stragglers {text!r}: expected probability x factor such as 0.1x5")
    return Straggling(probability=probability, factor=factor)


def _factor(deviation: float, uniform: float) -> float:
    """Returns a lognormal number of mean 1."""
    return math.exp(deviation * _NORMAL.inv_cdf(uniform) - deviation * deviation / 2.0)
