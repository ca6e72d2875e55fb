"""What `dance calibrate` found: seconds of a collective by size, rate and deviation of the link, and codec.

The map of Oboe (Akhtar et al., SIGCOMM 2018): computed offline for every state of the network, looked up
online. The file is JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dance.codecs import Codec
from dance.codecs import codec as to_codec

FORMAT = "dance calibration"
VERSION = 1
Array = npt.NDArray[np.float64]
_AXES = ("numels", "mbps", "deviations")


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """``seconds[i, j, k, c]`` of ``collective`` over ``world`` ranks: numels[i] float32 elements over a link
    of mean mbps[j] Mbit/s whose standard deviation is deviations[k] of that, with codecs[c]. Axes rise.

    ``about`` says where and how it was made, for people.
    """

    collective: str
    world: int
    numels: tuple[int, ...]
    mbps: tuple[float, ...]
    deviations: tuple[float, ...]
    codecs: tuple[Codec, ...]
    seconds: Array
    about: Mapping[str, Any] = field(default_factory=dict)
    _logs: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _AXES:
            axis = getattr(self, name)
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < 0 or not math.isfinite(axis[-1]):
                raise ValueError(f"calibration: expected rising {name}, got {list(axis)}")
        if self.numels[0] < 1 or self.mbps[0] <= 0.0 or self.world < 2 or not self.codecs:
            raise ValueError(
                "calibration: expected numels and mbps above 0, at least 2 ranks and a codec, "
                f"got {self.numels}, {self.mbps}, {self.world}, {[str(each) for each in self.codecs]}"
            )
        shape = (len(self.numels), len(self.mbps), len(self.deviations), len(self.codecs))
        seconds = np.asarray(self.seconds, dtype=np.float64)
        if seconds.shape != shape or not (np.isfinite(seconds) & (seconds > 0.0)).all():
            raise ValueError(
                f"calibration: expected positive seconds of shape {shape}, got shape {seconds.shape}"
            )
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "_logs", np.log(seconds))

    def at(self, numel: int, mbps: float, deviation: float) -> Array:
        """Returns the seconds of each codec, interpolated between the nearest entries.

        Linear in the logarithms of size, rate and seconds, and in the deviation; beyond the ends of an axis
        the last entry counts, its seconds scaled by the bytes or the rate.
        """
        table, scale = self._logs, 0.0
        for axis, value in ((self.numels, float(max(numel, 1))), (self.mbps, mbps)):
            inside = min(max(value, axis[0]), axis[-1])
            scale += math.log(value / inside) * (1.0 if axis is self.numels else -1.0)
            table = between(table, np.log(np.array(axis, dtype=np.float64)), math.log(inside))
        table = between(table, np.array(self.deviations), deviation)
        return np.exp(table + scale)

    def to_json(self) -> str:
        """Returns the text of the file."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "about": dict(self.about),
                "collective": self.collective,
                "world": self.world,
                "numels": list(self.numels),
                "mbps": list(self.mbps),
                "deviations": list(self.deviations),
                "codecs": [str(each) for each in self.codecs],
                "seconds": self.seconds.tolist(),
            },
            indent=1,
        )


def between(table: Array, axis: Array, value: float) -> Array:
    """Returns the entry of the first axis of ``table`` at ``value``, between its two neighbours."""
    high = int(np.searchsorted(axis, value))
    if high == 0:
        return np.asarray(table[0])
    if high == len(axis):
        return np.asarray(table[-1])
    part = (value - axis[high - 1]) / (axis[high] - axis[high - 1])
    return np.asarray((1.0 - part) * table[high - 1] + part * table[high])


def read_calibration(path: str | Path) -> Calibration:
    """Reads what `dance calibrate` wrote; ValueError says what is wrong with a file."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no calibration can be read ({error}); make one: dance calibrate") from None
    try:
        return _parse(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; make a new one: dance calibrate") from None


def _parse(values: Any) -> Calibration:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT!r}")
    if values.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}, got {values.get('version')!r}")
    known = {"format", "version", "about", "collective", "world", *_AXES, "codecs", "seconds"}
    if set(values) != known:
        odd = ", ".join(sorted(set(values) ^ known))
        raise ValueError(f"missing or unknown entries: {odd}")
    if not isinstance(values["about"], dict) or not isinstance(values["collective"], str):
        raise ValueError("expected an object 'about' and a text 'collective'")
    try:
        seconds = np.array(values["seconds"], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("expected seconds as nested lists of numbers of one shape") from None
    return Calibration(
        collective=values["collective"],
        world=_number(values["world"], int),
        numels=tuple(_number(each, int) for each in _list(values, "numels")),
        mbps=tuple(float(_number(each, (int, float))) for each in _list(values, "mbps")),
        deviations=tuple(float(_number(each, (int, float))) for each in _list(values, "deviations")),
        codecs=tuple(to_codec(each) for each in _list(values, "codecs")),
        seconds=seconds,
        about=values["about"],
    )


def _list(values: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = values[name]
    if not isinstance(found, list):
        raise ValueError(f"expected a list of {name}, got {type(found).__name__}")
    return found


def _number(value: Any, kinds: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"expected a number, got {value!r}")
    return value
