"""What the ranks of a group tell each other, so that all of them decide alike.

One vector of float64, reduced to its elementwise maximum: for each of the latest calls its seconds and the
mean of calls like it (both negated: the least counts), its parts, and the seconds a byte of its wire; for
each codec in use the slowest rank's speeds; the number of the latest call; and a digest of all that was
decided, as it is and negated, which shows whether ranks decided alike.

What a rank waits for others who begin later is no matter of the codec. The least seconds over ranks are those
of the rank that came last. That says what the link does, but not what compressed calls cost: the last one
finds the others' messages there already, and the others wait for its own. Over many calls what a rank spends
on them is what they cost it, and the rank that spends least is the one that all others wait for.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dance.codec_speed import CodecSpeeds, Speed
from dance.codecs import Codec, Uncompressed
from dance.codecs import codec as to_codec
from dance.plan import plan
from dance.policy.cost import CALL_S
from dance.policy.decision import Figures
from dance.policy.send import Outcome, Send, Shape, shape_of

# Latest calls that are remembered; outcomes of earlier ones come too late to count. It is more than pass
# between two exchanges (`agreeing`) and until the second is handed over.
_CALLS = 64
_MEAN_CALLS = 8  # whose mean tells what a call costs
_STALL = 4.0  # a call counts for no more than this many times the fastest of them
_MISSING = -1e30  # less than anything measured, and finite: sums of them overflow nowhere
_CODECS = 24  # whose speeds are told: candidates, with and without feedback
_ROWS = 4
_LENGTH = _ROWS * _CALLS + 2 * _CODECS + 3  # 2,456 bytes, always: ranks at odds can still hear each other
_DIGEST_NBYTES = 6  # exact in a float64


@dataclass(frozen=True, kw_only=True)
class AgreedCall:
    """A call as all ranks know it: what it took the rank that began last, what calls like it cost, and the
    slowest rank's wire.

    wire_s_per_byte is None where the call was direct, or no rank timed its wire.
    """

    send: Send
    codec: Codec
    seconds: float
    cost_s: float
    wire_s_per_byte: float | None


class Ledger:
    """The latest calls with this rank's outcomes, and codec speeds, as figures to be agreed on.

    `begin` and `read` are called at all ranks alike; `observe` when an outcome comes, on any thread.
    """

    def __init__(self, speeds: CodecSpeeds | None = None) -> None:
        self.speeds = CodecSpeeds() if speeds is None else speeds
        self.agreed_speeds: dict[tuple[Codec, bool, str], Speed] = {}
        self._coded: list[tuple[Codec, bool, str]] = []  # whose speeds are told, in this order
        self._calls: list[tuple[Send, Codec] | None] = [None] * _CALLS
        # Of each call: its seconds and those of calls like it, negated; its parts; a byte of its wire.
        self._figures = np.full((_ROWS, _CALLS), _MISSING)
        self._spent: dict[tuple[Shape, Codec], deque[float]] = {}  # seconds of the latest calls
        self.digest = ""
        """Of all that was decided so far."""
        self._latest: Send | None = None
        self._lock = threading.Lock()

    def sign(self, text: str) -> None:
        """Adds something that was decided to the digest that ranks compare."""
        self.digest = hashlib.blake2s((self.digest + text).encode()).hexdigest()

    def code(self, codecs: Sequence[Codec], send: Send) -> None:
        """Tells the speeds of ``codecs`` from now on; they are measured here if they have not been yet."""
        for codec in codecs:
            key = (codec, send.feedback, send.device)
            if key not in self._coded:
                if len(self._coded) == _CODECS:
                    raise ValueError(
                        f"policy: expected at most {_CODECS} candidates, with and without feedback "
                        f"together; {codec} is one more"
                    )
                self._coded.append(key)

    def begin(self, send: Send, codec: Codec) -> None:
        """Makes room for the outcome of a call that has just been decided on."""
        slot = send.round % _CALLS
        with self._lock:
            self._calls[slot] = (send, codec)
            self._figures[:, slot] = _MISSING
        self._latest = send

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Takes in what a call took here; one that was agreed on or forgotten meanwhile is let go."""
        slot = send.round % _CALLS
        with self._lock:
            if self._calls[slot] != (send, codec):
                return
            parts = plan(send.kind, codec, send.numel, send.world, dtype=send.dtype)
            self._figures[0, slot] = -outcome.seconds
            self._figures[1, slot] = -self._mean_s(send, codec, outcome.seconds)
            if parts.algorithm == "direct":
                return
            if outcome.wire_s is not None:
                parts_s = CALL_S + outcome.encode_s + outcome.wire_s + outcome.decode_s
                self._figures[2, slot] = min(outcome.seconds, parts_s)
                self._figures[3, slot] = outcome.wire_s / max(1, outcome.wire_bytes)
            if (codec, send.feedback, send.device) in self._coded and parts.encoded and parts.decoded:
                speed = Speed(
                    encode_s=outcome.encode_s / parts.encoded, decode_s=outcome.decode_s / parts.decoded
                )
                self.speeds.observe(codec, speed, feedback=send.feedback, device=send.device)

    def _mean_s(self, send: Send, codec: Codec, seconds: float) -> float:
        """Returns the mean of the latest calls of this shape and codec, but for the first, which was cold."""
        key = (shape_of(send), codec)
        spent = self._spent.get(key)
        if spent is None:
            self._spent[key] = deque(maxlen=_MEAN_CALLS)
            return seconds
        spent.append(seconds)
        most_s = _STALL * min(spent)
        return sum(min(each, most_s) for each in spent) / len(spent)

    def forget_costs(self) -> None:
        """Calls are no longer what they were: the link has changed."""
        with self._lock:
            for spent in self._spent.values():
                spent.clear()

    def figures(self) -> Figures:
        """Returns this rank's vector."""
        vector = np.zeros(_LENGTH)
        with self._lock:
            vector[: _ROWS * _CALLS] = self._figures.ravel()
            for k, (codec, feedback, device) in enumerate(self._coded):
                speed = self.speeds.of(codec, feedback=feedback, device=device)
                vector[_ROWS * _CALLS + 2 * k :][:2] = speed.encode_s, speed.decode_s
        vector[-3] = 0 if self._latest is None else self._latest.round
        vector[-2] = stamp = self._stamp()
        vector[-1] = -stamp
        return vector

    def read(self, figures: Figures) -> list[AgreedCall]:
        """Returns the calls that an agreed vector newly tells of, in order; ValueError if ranks disagree."""
        if figures.shape != (_LENGTH,) or figures[-2] != -figures[-1]:  # the most and the least digest
            raise ValueError(
                "policy: the ranks of this group have decided differently; give all of them a policy with "
                "the same arguments and state, one policy a group, and the same calls in the same order"
            )
        speeds = figures[_ROWS * _CALLS : -3].reshape(-1, 2).tolist()
        for key, (encode_s, decode_s) in zip(self._coded, speeds, strict=False):
            if encode_s == decode_s == 0.0 and not isinstance(key[0], Uncompressed):
                continue  # it came into use after these figures were taken
            self.agreed_speeds[key] = Speed(encode_s=encode_s, decode_s=decode_s)
        calls: list[AgreedCall] = []
        with self._lock:
            told = figures[: _ROWS * _CALLS].reshape(_ROWS, _CALLS)
            for slot in np.flatnonzero(told[0] > _MISSING).tolist():
                call = self._calls[slot]
                if call is None:  # told twice, where an exchange began before the one before had ended
                    continue
                if call[0].round > figures[-3]:  # the slot's next call, after these figures were taken
                    continue
                seconds, mean_s, parts_s, wire_s = told[:, slot].tolist()
                calls.append(
                    AgreedCall(
                        send=call[0],
                        codec=call[1],
                        seconds=-seconds,
                        cost_s=max(-mean_s, parts_s),
                        wire_s_per_byte=wire_s if wire_s > _MISSING else None,
                    )
                )
                self._calls[slot] = None
                self._figures[:, slot] = _MISSING
        return sorted(calls, key=lambda call: call.send.round)

    def state_dict(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "coded": [[str(codec), feedback, device] for codec, feedback, device in self._coded],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.digest = state["digest"]
        self._coded = [(to_codec(text), feedback, device) for text, feedback, device in state["coded"]]
        self._latest = None
        self._calls = [None] * _CALLS
        self._figures[:] = _MISSING

    def _stamp(self) -> int:
        send = self._latest
        text = "" if send is None else f"{send.kind} {send.round} {send.numel} {send.world} {send.dtype}"
        digest = hashlib.blake2s((self.digest + text).encode()).digest()
        return int.from_bytes(digest[:_DIGEST_NBYTES], "little")
