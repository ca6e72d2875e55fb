"""How far a node's gossip steps go: its codec, the step that goes with it, and halvings agreed by all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec
from dance.gossip.guard import DivergenceGuard
from dance.gossip.options import GossipOptions

AGREE_EVERY = 8  # rounds between two questions whether any node's guard has fired: one byte each way

_LOG = logging.getLogger("dance.gossip")


class Pace:
    """The codec, the step size and the guards of one node, one guard for each of ``keys``.

    ``automatic`` says which step goes with a codec where the options leave it open.
    """

    def __init__(
        self, options: GossipOptions, node: int, automatic: Callable[[Codec], float], keys: Iterable[int]
    ) -> None:
        self._name = f"node {node}, {options.key}"
        self._automatic = automatic if options.step_size == "auto" else None
        self._codec = to_codec(options.codec)
        self._full_step = automatic(self._codec) if self._automatic else float(options.step_size)
        self._backoff = 1.0  # a power of two: what is left of the step after all halvings
        self._guards = {key: DivergenceGuard() for key in keys if options.guard}
        self.alarm = False

    @property
    def codec(self) -> Codec:
        return self._codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        c = to_codec(codec)
        if c == self._codec:
            return
        self._codec = c
        if self._automatic is not None:
            self._full_step = self._automatic(c)
        self._reset_guards()

    @property
    def step_size(self) -> float:
        return self._full_step * self._backoff

    def halve(self) -> None:
        """Halves the step size, also of codecs to come, lowers the alarm and starts all guards afresh."""
        self._backoff /= 2.0
        self.alarm = False
        self._reset_guards()
        _LOG.warning(
            "%s: what the codec cannot follow kept growing; the step size is halved to %.4g",
            self._name,
            self.step_size,
        )

    def probe(self, key: int, theta: torch.Tensor, reference: torch.Tensor) -> None:
        """Shows the guard of ``key`` what is about to be sent."""
        if key in self._guards:
            self._guards[key].probe(theta, reference)

    @contextmanager
    def mixing(self, theta: torch.Tensor, keys: Iterable[int]) -> Iterator[None]:
        """Shows the guards of ``keys`` what the block does to ``theta``; raises the alarm if one fires."""
        guards = [self._guards[key] for key in keys if key in self._guards]
        before = DivergenceGuard.sample(theta) if guards else theta
        yield
        for guard in guards:
            self.alarm |= guard.mixed(before, theta)

    def _reset_guards(self) -> None:
        for guard in self._guards.values():
            guard.reset()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "codec": str(self._codec),
            "full_step": self._full_step,
            "backoff": self._backoff,
            "alarm": self.alarm,
        }
        for key, guard in self._guards.items():
            state.update({f"guard.{key}.{name}": value for name, value in guard.state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._codec = to_codec(state["codec"])
        self._full_step, self._backoff = float(state["full_step"]), float(state["backoff"])
        self.alarm = bool(state["alarm"])
        for key, guard in self._guards.items():
            prefix = f"guard.{key}."
            guard.load_state_dict(
                {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            )


class Paced:
    """What every node shows of its `Pace`."""

    pace: Pace

    @property
    def codec(self) -> Codec:
        """The codec of the next packet; may be set before any round, and changes an automatic step."""
        return self.pace.codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        self.pace.codec = codec

    @property
    def step_size(self) -> float:
        return self.pace.step_size

    @property
    def alarm(self) -> bool:
        """Whether this node's guard asks for a smaller step; only `halve`, at all nodes, may answer."""
        return self.pace.alarm

    def halve(self) -> None:
        """Halves the step size. All nodes must do so in the same round, or the mean is not preserved."""
        self.pace.halve()
