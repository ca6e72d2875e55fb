"""The codec that a calibration found best for a link of this mean rate and deviation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dance.bandwidth import LinkEstimate
from dance.codecs import Codec, Uncompressed
from dance.codecs import codec as to_codec
from dance.policy.agreeing import Agreeing
from dance.policy.calibration import Calibration, read_calibration
from dance.policy.candidates import Candidates
from dance.policy.cost import relative_error, sent_nbytes
from dance.policy.explanation import Cost, Explanation, Row
from dance.policy.send import ALONE, Send, shape_of

_GAIN = 0.04  # another codec must promise so much


class Table(Agreeing):
    """Looks up what `dance calibrate` computed: (size, mean, deviation of the link) -> seconds of each codec.

    calibration: the value or the path of its file; all ranks need the same one. Of its codecs those count
    that ``max_error`` allows (`Candidates`). Collectives take the agreed link (`Policy`), packets to peers
    the slowest of theirs and a calibration for 2 ranks, who send each other one packet. Until it is measured
    the codec of least bytes is taken. A single rank takes
    none. ValueError for a collective that was not calibrated.
    """

    def __init__(self, calibration: Calibration | str | Path, *, max_error: float | None = None) -> None:
        self.calibration = (
            calibration if isinstance(calibration, Calibration) else read_calibration(calibration)
        )
        super().__init__(f"table {max_error} {self.calibration.to_json()}")
        self._candidates = Candidates({"": self.calibration.codecs}, max_error)
        self._held: dict[
            tuple[Any, ...], Codec
        ] = {}  # by shape of a collective, by kind and target of a packet
        self._settled: dict[tuple[str, str, int], Codec] = {}  # until something new is agreed on

    def __repr__(self) -> str:
        made = self.calibration
        return f"Table({made.collective} over {made.world} ranks, max_error={self._candidates.max_error})"

    def _decide(self, send: Send) -> Codec:
        name = _name(send)
        held = self._held.get(name)
        if not send.is_collective:
            chosen = self._look_up(send, held)[0]
        else:
            self._open(send)
            known = self._settled.get((send.kind, send.target, send.numel))
            chosen = self._look_up(send, held)[0] if known is None else known
            self._settled[send.kind, send.target, send.numel] = chosen
            self._close(send, chosen, changed=chosen != held)
        self._held[name] = chosen
        return chosen

    def _forget(self) -> None:
        self._settled.clear()

    def _look_up(self, send: Send, held: Codec | None) -> tuple[Codec, dict[Codec, float] | None, str]:
        """Returns the codec to take, the seconds of all candidates if the link is known, and why."""
        if send.is_alone:
            return Uncompressed(), None, ALONE
        made = (self.calibration.collective, self.calibration.world)
        if made != ((send.kind, send.world) if send.is_collective else (made[0], 2)):
            raise ValueError(
                f"table: calibrated for {made[0]} over {made[1]} ranks, asked for {send.kind} over "
                f"{send.world if send.is_collective else 2}; calibrate that: dance calibrate --help"
            )
        candidates = self._candidates.of(send)
        link = self._link(send)
        if link is None:
            smallest = min(candidates, key=lambda each: each.packet_nbytes(send.numel, send.dtype))
            return smallest, None, "the link is not measured yet: the smallest packet"
        found = self.calibration.at(send.numel, link.rate_mbps, link.deviation)
        seconds = {
            codec: float(found[k]) for k, codec in enumerate(self.calibration.codecs) if codec in candidates
        }
        best = min(seconds, key=seconds.__getitem__)
        state = f"a link of {link.rate_mbps:.3g} Mbit/s, deviation {link.deviation:.0%}"
        if held in seconds and seconds[best] > (1.0 - _GAIN) * seconds[held]:
            return held, seconds, f"{best} would save less than {_GAIN:.0%} on {state}"
        return best, seconds, f"the least time calibrated for {state}"

    def _link(self, send: Send) -> LinkEstimate | None:
        if send.is_collective:
            return self.link_estimate()
        estimates = [meter.estimate() for meter in send.links]
        known = [each for each in estimates if each is not None]
        if not known or len(known) < len(estimates):
            return None
        return min(known, key=lambda each: each.rate_mbps)

    def explain(self, send: Send) -> Explanation:
        """Returns what `choose` would choose for ``send`` now, with the calibrated time of each candidate."""
        chosen, seconds, reason = self._look_up(send, self._held.get(_name(send)))
        candidates = (chosen,) if send.is_alone else self._candidates.of(send)
        rows = tuple(
            self._table_row(send, each, None if seconds is None else seconds[each], chosen=each == chosen)
            for each in candidates
        )
        return Explanation(send=send, rows=rows, reason=reason)

    def _row(self, send: Send, codec: Codec) -> Row:
        seconds = self._look_up(send, codec)[1]
        return self._table_row(send, codec, None if seconds is None else seconds[codec], chosen=True)

    def _table_row(self, send: Send, codec: Codec, seconds: float | None, *, chosen: bool) -> Row:
        cost = None
        if seconds is not None:
            cost = Cost(total_s=seconds)
        return Row(
            codec=str(codec),
            num_bytes=sent_nbytes(codec, send),
            cost=cost,
            error=relative_error(codec),
            fits=send.budget_s is None or (seconds is not None and seconds <= send.budget_s),
            chosen=chosen,
        )

    def state_dict(self) -> dict[str, Any]:
        held = [[list(name), str(codec)] for name, codec in self._held.items()]
        return {**super().state_dict(), "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._held = {tuple(name): to_codec(text) for name, text in state["held"]}


def _name(send: Send) -> tuple[Any, ...]:
    """What the codec in use is kept for: calls of about one size, packets of one kind and target."""
    return shape_of(send) if send.is_collective else (send.kind, send.target)
