"""What the ranks of a group tell each other, so that all of them decide alike.

One vector of float64, reduced to its elementwise maximum: for each of the latest calls its seconds (negated,
so that the least counts: a rank that came last waited for nobody) and the seconds a byte of its wire (the
slowest rank's); for each codec in use the slowest rank's speeds; and a digest of all that was decided, as it
is and negated, which shows whether ranks have decided alike.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dance.codec_speed import CodecSpeeds, Speed
from dance.codecs import Codec
from dance.codecs import codec as to_codec
from dance.plan import plan
from dance.policy.decision import Figures
from dance.policy.send import Outcome, Send

_CALLS = 32  # latest calls that are remembered; outcomes of earlier ones come too late to count
_MISSING = -1e30  # less than anything measured, and finite: sums of them overflow nowhere
_CODECS = 24  # whose speeds are told: candidates, with and without feedback
_LENGTH = 2 * _CALLS + 2 * _CODECS + 2  # 912 bytes, always, so that ranks at odds can still hear each other
_DIGEST_NBYTES = 6  # exact in a float64


@dataclass(frozen=True, kw_only=True)
class AgreedCall:
    """A call as all ranks know it: the least seconds over ranks, and the slowest rank's wire.

    wire_s_per_byte is None where the call was direct, or no rank timed its wire.
    """

    send: Send
    codec: Codec
    seconds: float
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
        self._figures = np.full(2 * _CALLS, _MISSING)
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
            self._figures[slot] = self._figures[_CALLS + slot] = _MISSING
        self._latest = send

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Takes in what a call took here; one that was agreed on or forgotten meanwhile is let go."""
        slot = send.round % _CALLS
        with self._lock:
            if self._calls[slot] != (send, codec):
                return
            self._figures[slot] = -outcome.seconds
            if outcome.wire_s is not None and outcome.wire_bytes > 0:
                self._figures[_CALLS + slot] = outcome.wire_s / outcome.wire_bytes
            key = (codec, send.feedback, send.device)
            if key in self._coded:
                cost = plan(send.kind, codec, send.numel, send.world, dtype=send.dtype)
                if cost.encoded and cost.decoded:
                    speed = Speed(
                        encode_s=outcome.encode_s / cost.encoded, decode_s=outcome.decode_s / cost.decoded
                    )
                    self.speeds.observe(codec, speed, feedback=send.feedback, device=send.device)

    def figures(self) -> Figures:
        """Returns this rank's vector."""
        vector = np.zeros(_LENGTH)
        with self._lock:
            vector[: 2 * _CALLS] = self._figures
            for k, (codec, feedback, device) in enumerate(self._coded):
                speed = self.speeds.of(codec, feedback=feedback, device=device)
                vector[2 * _CALLS + 2 * k :][:2] = speed.encode_s, speed.decode_s
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
        told = figures[2 * _CALLS : -2].reshape(-1, 2).tolist()
        for key, (encode_s, decode_s) in zip(self._coded, told, strict=False):
            self.agreed_speeds[key] = Speed(encode_s=encode_s, decode_s=decode_s)
        calls: list[AgreedCall] = []
        with self._lock:
            for slot in np.flatnonzero(figures[:_CALLS] > _MISSING).tolist():
                call = self._calls[slot]
                if call is None:  # told twice, where an exchange began before the one before had ended
                    continue
                wire_s = float(figures[_CALLS + slot])
                calls.append(
                    AgreedCall(
                        send=call[0],
                        codec=call[1],
                        seconds=-float(figures[slot]),
                        wire_s_per_byte=wire_s if wire_s > _MISSING else None,
                    )
                )
                self._calls[slot] = None
                self._figures[slot] = self._figures[_CALLS + slot] = _MISSING
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
