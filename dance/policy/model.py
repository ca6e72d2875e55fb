"""What a collective will take with each codec, as all ranks of its group believe it.

seconds = coding and the wire, and what measured calls took beyond that. The wire of compressed calls is timed
by itself; torch times its uncompressed collectives as a whole, so those have a meter of their own. A meter
that has seen nothing for a while is scaled by what the other saw meanwhile: both are of one link.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dance.bandwidth import LinkMeter
from dance.codec_speed import Speed
from dance.codecs import Codec
from dance.codecs import codec as to_codec
from dance.plan import Plan, plan
from dance.policy.cost import call_cost
from dance.policy.explanation import Cost
from dance.policy.figures import AgreedCall
from dance.policy.send import Send, Shape, shape_of

# How much of a phase's time may be no matter of the rate, where only one size has been seen.
_LATENCY_S = 5e-4
_STALLS = 1.5  # as much of it may be waiting for the next chunk, in times of this rank's coding
_CALM = 1.25  # factor between times that are called equal
_ALIKE = 1.5  # factor between sizes that tell latency and rate apart
_DRIFT = 3.0  # factor that is no artefact of a line through few sizes, though no change was declared
_DOUBTS = 2  # agreements, the cold one among them, after which a candidate is known: one may have stalled
_LATEST = 5  # agreements whose median corrects
_COLD = 2.0  # the first call of its kind faults its pages: it is believed up to this factor ...
_COLDEST = 4.0  # ... and later ones may take so much less
_BELIEVED_NBYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 22)  # what a link that is believed in is fitted to
_LEAST = 0.3  # of the parts' time: no correction goes below


class _Way:
    """One way to use the link, compressed or direct: its meter, and what it saw last."""

    def __init__(self) -> None:
        self.meter = LinkMeter()
        self.cold = False  # whether the meter has seen one call, the first
        self.at = 0  # the model's time of the last observation
        self.num_bytes = 0  # the last observation's
        self.coding_s = 0.0  # of a phase, when that was
        # What the other way would have taken for these bytes then, and the changes that it had seen.
        self.other: tuple[float, int] | None = None

    @property
    def known(self) -> bool:
        return self.meter.num_observations > 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "meter": self.meter.state_dict(),
            "cold": self.cold,
            "at": self.at,
            "num_bytes": self.num_bytes,
            "coding_s": self.coding_s,
            "other": self.other,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.meter.load_state_dict(state["meter"])
        self.cold, self.at, self.num_bytes = state["cold"], state["at"], state["num_bytes"]
        self.coding_s = state["coding_s"]
        self.other = None if state["other"] is None else (state["other"][0], state["other"][1])


@dataclass(kw_only=True)
class Cell:
    """How much longer calls of one shape and codec took than their parts say, and when that was."""

    extras_s: list[float]  # of the latest agreements
    base_s: float  # what the parts said then
    count: int  # agreements since the link changed
    regime: int

    @property
    def extra_s(self) -> float:
        """The median, so that a stalled call changes nothing."""
        return median(self.extras_s)


class GroupModel:
    """The link, the coding speeds and the corrections that all ranks agree on."""

    def __init__(self) -> None:
        self.speeds: dict[tuple[Codec, bool, str], Speed] = {}
        self._ways = {True: _Way(), False: _Way()}  # direct, compressed
        self._cells: dict[tuple[Shape, Codec], Cell] = {}
        self._time = 0
        self.regime = 0
        """How often the link has changed."""

    @property
    def knows_link(self) -> bool:
        return any(way.known for way in self._ways.values())

    @property
    def link(self) -> LinkMeter:
        """The meter that saw the link last."""
        return max(self._ways.values(), key=lambda way: way.at).meter

    def measured(self, send: Send, codec: Codec) -> int:
        """Returns how many agreements told of this shape and codec since the link changed."""
        cell = self._cells.get((shape_of(send), codec))
        return cell.count if cell is not None and cell.regime == self.regime else 0

    def cost(self, send: Send, codec: Codec, speed: Speed | None = None) -> Cost | None:
        """Returns what a call will take, None while nothing is known of the link.

        ``speed`` is that of the codec where none has been agreed on; None is beyond measure.
        """
        if not self.knows_link:
            return None
        cost = self._parts(send, codec, speed)
        base_s = cost.total_s
        cell = self._nearest_cell(send, codec)
        extra_s = 0.0 if cell is None else cell.extra_s * min(1.0, base_s / cell.base_s)
        return Cost(
            encode_s=cost.encode_s,
            wire_s=cost.wire_s,
            decode_s=cost.decode_s,
            total_s=max(base_s + extra_s, _LEAST * base_s),
        )

    def least_s(self, send: Send, codec: Codec, cost: Cost) -> float:
        """Returns what a call of predicted ``cost`` may take at best, given how often it has been measured.

        A cold first call may have taken far longer than others will. Before a compressed call of this shape
        and codec has been measured warm twice, what was measured beyond its parts may be chance; before any
        direct call has been, half a millisecond of the compressed ones' time may be none of their bytes', and
        as long as ranks were coding, they may have waited for each other's next chunk. What a few calls tell
        is in doubt by as much as they differ.
        """
        measured = self.measured(send, codec)
        if _plan(send, codec).algorithm != "direct":
            if measured > _DOUBTS:
                return cost.total_s
            base_s = self._parts(send, codec).total_s
            return min(cost.total_s, base_s / _CALM if measured == 1 else base_s)
        compressed = self._ways[False]
        if measured > 1:
            return cost.total_s - self._doubt_s(send, codec)
        least_s = cost.total_s / (_COLDEST if measured else _COLD)
        if not compressed.known or compressed.cold:
            return least_s
        parts = _plan(send, codec)
        seen_s = self._phase_s(False, compressed.num_bytes)
        wire_s = parts.phases * self._phase_s(False, max(1, parts.bytes_sent // parts.phases))
        wire_s *= max(0.0, 1.0 - _LATENCY_S / seen_s)
        wire_s *= max(1.0 / _COLDEST, 1.0 - _STALLS * compressed.coding_s / seen_s)
        return min(least_s, wire_s) if measured else wire_s

    def _doubt_s(self, send: Send, codec: Codec) -> float:
        cell = self._cells[shape_of(send), codec]
        if len(cell.extras_s) == 1:
            return (cell.base_s + cell.extra_s) * (1.0 - 1.0 / _CALM)
        return (max(cell.extras_s) - min(cell.extras_s)) / 2.0 / math.sqrt(len(cell.extras_s))

    def believe(self, rate_mbps: float, latency_s: float) -> None:
        """Takes a link for known until a call has measured it."""
        way = self._ways[False] = _Way()
        for num_bytes in _BELIEVED_NBYTES:
            way.meter.observe(num_bytes, latency_s + num_bytes * 8e-6 / rate_mbps)
        self._time += 1
        way.cold, way.at, way.num_bytes = True, self._time, 0  # any call replaces it

    def learn(self, calls: Sequence[AgreedCall]) -> float:
        """Takes in calls in the order in which they took place.

        Returns by how much they surprise: 1 is as much as noise explains.
        """
        surprise = 0.0
        groups: dict[tuple[Shape, Codec], list[AgreedCall]] = {}
        for call in calls:
            groups.setdefault((shape_of(call.send), call.codec), []).append(call)
        for group in groups.values():
            surprise = max(surprise, self._learn(group))
        return surprise

    def _learn(self, calls: list[AgreedCall]) -> float:
        """Takes in calls of one shape and codec: as one if they tell nothing new, else one by one."""
        parts = _plan(calls[-1].send, calls[-1].codec)
        direct, num_bytes = parts.algorithm == "direct", max(1, parts.bytes_sent // max(1, parts.phases))
        phases_s = [self._seen_s(call, parts) for call in calls]
        surprise = 0.0
        if self.knows_link:
            factor = _factor(median(phases_s[-3:]), self._phase_s(direct, num_bytes))
            surprise = math.log(factor) / math.log(_CALM)
            if surprise >= 1.0 and (estimate := self.link.estimate()) is not None:
                surprise = min(surprise, math.log(factor) / max(3.0 * estimate.deviation, 1e-9))
        for seconds in phases_s if surprise >= 1.0 else [median(phases_s)]:
            self._observe_link(direct, num_bytes, seconds)
        speed = self._speed(calls[-1].send, calls[-1].codec, None)
        coding_s = parts.encoded * speed.encode_s + parts.decoded * speed.decode_s
        self._ways[direct].coding_s = coding_s / max(1, parts.phases)
        self._correct(calls[-1])
        return surprise

    def _seen_s(self, call: AgreedCall, parts: Plan) -> float:
        """What a phase of the call took on the wire."""
        if parts.algorithm == "direct":
            seconds = call.seconds
        elif call.wire_s_per_byte is not None:
            seconds = call.wire_s_per_byte * parts.bytes_sent
        else:  # nobody timed the wire: what coding leaves
            cost = call_cost(parts, self._speed(call.send, call.codec, None), 0.0)
            seconds = max(call.seconds - cost.total_s, 0.1 * call.seconds)
        return seconds / max(1, parts.phases)

    def _observe_link(self, direct: bool, num_bytes: int, seconds: float) -> None:
        """Takes in a phase."""
        way, other = self._ways[direct], self._ways[not direct]
        # What a first call took was cold, and what was seen of the link before it changed is past.
        alike = not way.num_bytes or _factor(num_bytes, way.num_bytes) < _ALIKE
        if (way.cold and alike) or self._scale(direct) != 1.0:
            way.meter, other.other = LinkMeter(), None
        way.cold = way.at == 0
        self._time += 1
        way.at, way.num_bytes = self._time, num_bytes
        changes = way.meter.num_changes
        way.meter.observe(num_bytes, seconds)
        self.regime += way.meter.num_changes - changes
        if other.known:
            way.other = (self._phase_s(not direct, num_bytes), other.meter.num_changes)
            if other.other is None:
                other.other = (self._phase_s(direct, other.num_bytes), way.meter.num_changes)

    def _correct(self, call: AgreedCall) -> None:
        base_s = self._parts(call.send, call.codec).total_s
        key = (shape_of(call.send), call.codec)
        cell = self._cells.get(key)
        if cell is None:
            expected = self.cost(call.send, call.codec)  # what calls like it took beyond their parts is in it
            assert expected is not None
            seconds = min(max(call.cost_s, expected.total_s / _COLD), expected.total_s * _COLD)
            cell = Cell(extras_s=[seconds - base_s], base_s=base_s, count=1, regime=self.regime)
        elif cell.count == 1 or cell.regime != self.regime:  # the first was cold, or of another link
            count = cell.count + 1 if cell.regime == self.regime else 1
            cell = Cell(extras_s=[call.cost_s - base_s], base_s=base_s, count=count, regime=self.regime)
        else:
            extras_s = [*cell.extras_s, call.cost_s - base_s][-_LATEST:]
            cell = Cell(extras_s=extras_s, base_s=base_s, count=cell.count + 1, regime=self.regime)
        self._cells[key] = cell

    def _parts(self, send: Send, codec: Codec, speed: Speed | None = None) -> Cost:
        """What coding and wire take, before anything that was measured corrects it."""
        parts = _plan(send, codec)
        phases = max(1, parts.phases)
        wire_s = phases * self._phase_s(parts.algorithm == "direct", max(1, parts.bytes_sent // phases))
        return call_cost(parts, self._speed(send, codec, speed), wire_s)

    def _speed(self, send: Send, codec: Codec, speed: Speed | None) -> Speed:
        agreed = self.speeds.get((codec, send.feedback, send.device), speed)
        return Speed(encode_s=0.0, decode_s=0.0) if agreed is None else agreed

    def _phase_s(self, direct: bool, num_bytes: int) -> float:
        """What a phase of so many bytes takes."""
        own, other = self._ways[direct], self._ways[not direct]
        if not own.known:
            return _known(other.meter.predict_s(num_bytes))
        return _known(own.meter.predict_s(num_bytes)) * self._scale(direct)

    def _scale(self, direct: bool) -> float:
        """How much slower the link has become since this way was used, by what the other way saw."""
        own, other = self._ways[direct], self._ways[not direct]
        if other.at < own.at or own.other is None:
            return 1.0
        then_s, changes = own.other
        now_s = _known(other.meter.predict_s(own.num_bytes))
        least = _CALM if other.meter.num_changes > changes else _DRIFT
        return now_s / then_s if _factor(now_s, then_s) > least else 1.0

    def _nearest_cell(self, send: Send, codec: Codec) -> Cell | None:
        """The correction of this shape and codec, or the likeliest to resemble it: direct calls resemble each
        other, compressed ones too, of any codec, and the nearer in size the more.
        """
        shape = shape_of(send)
        if (cell := self._cells.get((shape, codec))) is not None:
            return cell
        direct = _plan(send, codec).algorithm == "direct"
        found: tuple[int, bool, int] | None = None
        best: Cell | None = None
        for (other, measured), cell in self._cells.items():
            if other[:4] != shape[:4] or (measured.name == "none") != direct:
                continue
            rank = (abs(other[4] - shape[4]), measured != codec, -cell.count)
            if found is None or rank < found:
                found, best = rank, cell
        return best

    def state_dict(self) -> dict[str, Any]:
        return {
            "speeds": [
                [str(codec), feedback, device, speed.encode_s, speed.decode_s]
                for (codec, feedback, device), speed in self.speeds.items()
            ],
            "time": self._time,
            "regime": self.regime,
            "direct": self._ways[True].state_dict(),
            "compressed": self._ways[False].state_dict(),
            "cells": [
                [list(shape), str(codec), cell.extras_s, cell.base_s, cell.count, cell.regime]
                for (shape, codec), cell in self._cells.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.speeds = {
            (to_codec(text), feedback, device): Speed(encode_s=encode_s, decode_s=decode_s)
            for text, feedback, device, encode_s, decode_s in state["speeds"]
        }
        self._time, self.regime = state["time"], state["regime"]
        self._ways[True].load_state_dict(state["direct"])
        self._ways[False].load_state_dict(state["compressed"])
        self._cells = {
            ((kind, world, dtype, feedback, octave), to_codec(text)): Cell(
                extras_s=list(extras_s), base_s=base_s, count=count, regime=regime
            )
            for (kind, world, dtype, feedback, octave), text, extras_s, base_s, count, regime in state[
                "cells"
            ]
        }


def _plan(send: Send, codec: Codec) -> Plan:
    return plan(send.kind, codec, send.numel, send.world, dtype=send.dtype)


def _known(seconds: float | None) -> float:
    assert seconds is not None
    return max(seconds, 1e-9)


def _factor(a: float, b: float) -> float:
    return max(a, b) / max(min(a, b), 1e-9)
