"""How a run may send its messages, and which of these ways reaches the target first over which link.

The map of Oboe (Akhtar et al., SIGCOMM 2018) for GANs: `dance calibrate gan` computes, for each mean rate and
deviation of a link, the seconds to the target of each recipe; a run looks up the link that it measures. The
file is JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import dance
from dance.bandwidth import LinkEstimate
from dance.gan.config import codec_text
from dance.policy.calibration import between

FORMAT = "dance gan calibration"
VERSION = 1
KINDS = ("gossip", "image", "feedback")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A codec for each kind of message, as texts, and the rounds between two gossips (H)."""

    gossip: str
    image: str
    feedback: str
    period: int

    def __post_init__(self) -> None:
        for name in KINDS:
            dance.codec(codec_text(getattr(self, name), 64))  # raises ValueError for an unknown one
        if self.period < 1:
            raise ValueError(f"recipe: expected a period of at least 1 round, got {self.period}")

    def __str__(self) -> str:
        return f"gossip {self.gossip} every {self.period}, images {self.image}, feedback {self.feedback}"


@dataclass(frozen=True, kw_only=True, eq=False)
class RecipeTable:
    """``seconds[i, j, r]`` to the target over a link of mean mbps[i] Mbit/s whose standard deviation is
    deviations[j] of that, with recipes[r]. Axes rise. ``about`` says where and how it was made, for people.
    """

    mbps: tuple[float, ...]
    deviations: tuple[float, ...]
    recipes: tuple[Recipe, ...]
    seconds: Array
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mbps", "deviations"):
            axis = getattr(self, name)
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < 0 or not math.isfinite(axis[-1]):
                raise ValueError(f"expected rising {name}, got {list(axis)}")
        shape = (len(self.mbps), len(self.deviations), len(self.recipes))
        seconds = np.asarray(self.seconds, dtype=np.float64)
        if self.mbps[0] <= 0.0 or not self.recipes:
            raise ValueError("expected rates above 0 and at least one recipe")
        if seconds.shape != shape or not (np.isfinite(seconds) & (seconds > 0.0)).all():
            raise ValueError(f"expected positive seconds of shape {shape}, got shape {seconds.shape}")
        object.__setattr__(self, "seconds", seconds)

    def at(self, mbps: float, deviation: float) -> Array:
        """Returns the seconds of each recipe, linear between the nearest entries in the logarithms of rate
        and seconds and in the deviation; beyond the ends of an axis the last entry counts.
        """
        inside = min(max(mbps, self.mbps[0]), self.mbps[-1])
        row = between(np.log(self.seconds), np.log(np.array(self.mbps)), math.log(inside))
        return np.exp(between(row, np.array(self.deviations), deviation))

    def seconds_over(self, down: LinkEstimate, up: LinkEstimate) -> Array:
        """Returns the seconds of each recipe, by the slower way alone."""
        link = min(down, up, key=lambda way: way.rate_mbps)
        return self.at(link.rate_mbps, link.deviation)

    @property
    def first(self) -> int:
        """The recipe to begin with, before anything is measured: the best over the slowest, unsteady link."""
        return int(self.seconds[0, -1].argmin())

    @cached_property
    def digest(self) -> int:
        """24 bits of the file's text, which fit in a float32: nodes of a run need the same table."""
        return int.from_bytes(hashlib.blake2b(self.to_json().encode(), digest_size=3).digest(), "little")

    def to_json(self) -> str:
        """Returns the text of the file."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "about": dict(self.about),
                "mbps": list(self.mbps),
                "deviations": list(self.deviations),
                "recipes": [asdict(recipe) for recipe in self.recipes],
                "seconds": self.seconds.tolist(),
            },
            indent=1,
        )


def read_recipes(path: str | Path) -> RecipeTable:
    """Reads what `dance calibrate gan` wrote; ValueError says what is wrong with a file."""
    remedy = "make one: dance calibrate gan"
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"table: {path} cannot be read ({error}); {remedy}") from None
    try:
        return _parse(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"table: {path}: {error}; {remedy}") from None


def _parse(values: Any) -> RecipeTable:
    if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("version") != VERSION:
        raise ValueError(f"expected an object of format {FORMAT!r}, version {VERSION}")
    known = {"format", "version", *(entry.name for entry in fields(RecipeTable))}
    if set(values) != known:
        raise ValueError(f"missing or unknown entries: {', '.join(sorted(set(values) ^ known))}")
    return RecipeTable(
        mbps=tuple(float(each) for each in values["mbps"]),
        deviations=tuple(float(each) for each in values["deviations"]),
        recipes=tuple(Recipe(**each) for each in values["recipes"]),
        seconds=np.array(values["seconds"], dtype=np.float64),
        about=dict(values["about"]),
    )
