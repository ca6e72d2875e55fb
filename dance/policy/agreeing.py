"""What policies that learn from collectives have in common: an exchange of figures, and a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dance.bandwidth import LinkEstimate
from dance.codec_speed import CodecSpeeds
from dance.codecs import Codec
from dance.policy.decision import Figures, Logged
from dance.policy.figures import Ledger
from dance.policy.model import GroupModel
from dance.policy.send import Outcome, Send, Shape, shape_of

_LEARNING_CALLS = 3  # of every shape: figures are exchanged after each of them ...
_PATIENCE_CALLS = 16  # ... and on to here if their outcomes take long to come
_SHARE_S = 3e-4  # what an exchange of figures and deciding anew cost beside the wire, about ...
_SHARE_PART = 0.01  # ... and the part of the calls' time that it may take
_GAPS = (8, 32)  # calls between exchanges when all is as expected, at least and at most


class Agreeing(Logged):
    """A policy whose ranks decide collectives from figures that they agree on.

    ``arguments`` is a text that differs where ranks were given different ones.
    """

    def __init__(self, arguments: str) -> None:
        super().__init__()
        self._speeds = CodecSpeeds()
        self._model = GroupModel()
        self._ledger = Ledger(self._speeds)
        self._ledger.sign(arguments)
        self._seen: dict[Shape, int] = {}  # calls
        self._told: dict[Shape, int] = {}  # of them, those that all ranks know the outcome of
        self._calls = self._shared_at = 0
        self._share = self._learning = False
        self._gap = self._interval = 1  # calls between exchanges: now, and when all is as expected
        self._alarmed = False  # whether the last exchange surprised, and the link has not changed

    def _open(self, send: Send) -> tuple[int, int]:
        """Counts a call; returns how many of its shape there were, and how many all ranks know of."""
        shape = shape_of(send)
        self._calls += 1
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        told = self._told.get(shape, 0)
        self._learning = seen <= _LEARNING_CALLS or (told < _LEARNING_CALLS and seen <= _PATIENCE_CALLS)
        return seen, told

    def _close(self, send: Send, codec: Codec, *, changed: bool) -> None:
        """Notes what was decided for the call, and whether figures are exchanged after it."""
        if changed:
            self._gap = max(1, self._interval // _GAPS[0])  # what it takes is worth knowing soon
            self._ledger.sign(f"{send.kind} {send.numel} {send.round} {codec}")
        self._share = self._learning or changed or self._calls - self._shared_at >= self._gap
        if self._share:
            self._shared_at = self._calls
        self._ledger.begin(send, codec)

    def _forget(self) -> None:
        """Something new was agreed on."""

    def believe(self, *, rate_mbps: float, latency_s: float = 0.0) -> None:
        """Takes the link of collectives for known until the first call measures it; the same at all ranks.

        Then `explain` answers before any call, with codec speeds measured here, and so does the first call.
        """
        if not 0.0 < rate_mbps < math.inf or not 0.0 <= latency_s < math.inf:
            raise ValueError(
                f"policy: expected rate_mbps above 0 and latency_s of at least 0, "
                f"got {rate_mbps} and {latency_s}"
            )
        self._model.believe(rate_mbps, latency_s)
        self._ledger.sign(f"{rate_mbps} {latency_s}")
        self._forget()

    def link_estimate(self) -> LinkEstimate | None:
        """Returns what the ranks agree on about the link of their collectives, None before they do.

        Its latency is that of a phase, in which every rank waits for the others once.
        """
        return self._model.link.estimate()

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Takes in what a call took at this rank; from any thread."""
        if send.is_collective:
            self._ledger.observe(send, codec, outcome)

    def shares(self, call: int) -> bool:
        """Returns whether figures are exchanged after the call just chosen for.

        After the first calls of every shape and after changes, then ever more seldom, down to every 8th to
        32nd call so that exchanges take about 1 % of the calls' time; often again where calls surprise.
        """
        return self._share

    def figures(self) -> Figures:
        """Returns what this rank measured since the last agreement; measures codec speeds the first time."""
        return self._ledger.figures()

    def agree(self, figures: Figures) -> None:
        """Takes in the agreed figures; ValueError, at all ranks alike, if ranks have decided differently."""
        calls = self._ledger.read(figures)
        self._model.speeds = dict(self._ledger.agreed_speeds)
        self._forget()
        if not calls:
            return
        for call in calls:
            shape = shape_of(call.send)
            self._told[shape] = self._told.get(shape, 0) + 1
        regime = self._model.regime
        surprise = self._model.learn(calls)
        if self._model.regime != regime:
            self._ledger.forget_costs()
        mean_s = sum(call.seconds for call in calls) / len(calls)
        self._interval = _GAPS[0]
        share_s = _SHARE_S + (self._model.link.predict_s(figures.nbytes) or 0.0)
        while self._interval < _GAPS[1] and self._interval * mean_s * _SHARE_PART < share_s:
            self._interval *= 2
        alarm = surprise >= 1.0
        if self._model.regime != regime or self._learning or (alarm and not self._alarmed):
            self._gap = self._interval // _GAPS[0]
        else:  # a second alarm that is no change is noise
            self._gap = min(2 * self._gap, self._interval)
        self._alarmed = alarm and self._model.regime == regime

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run goes on with; what was measured and not yet agreed on is left out."""
        return {
            **super().state_dict(),
            "model": self._model.state_dict(),
            "ledger": self._ledger.state_dict(),
            "seen": [[list(shape), seen, self._told.get(shape, 0)] for shape, seen in self._seen.items()],
            "calls": self._calls,
            "gaps": [self._gap, self._interval],
            "alarmed": self._alarmed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._model.load_state_dict(state["model"])
        self._ledger.load_state_dict(state["ledger"])
        self._seen, self._told = {}, {}
        for (kind, world, dtype, feedback, octave), seen, told in state["seen"]:
            shape = (kind, world, dtype, feedback, octave)
            self._seen[shape], self._told[shape] = seen, told
        self._calls = self._shared_at = state["calls"]
        self._gap, self._interval = state["gaps"]
        self._alarmed = state["alarmed"]
        self._forget()
