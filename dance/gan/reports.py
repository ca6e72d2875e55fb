"""What a receiver measured of a link, told to its sender: eight numbers now and then, beside other messages.

A meter is at the receiving end of its link, and the sender is the one who chooses a codec. Where a policy
chooses, each node adds to the messages that go to a peer anyway, every `REPORT_EVERY` rounds, what it
measured of the way from that peer: 96 bytes with their header, counted as the kind "link".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields

import torch
from torch import Tensor

import dance
from dance.bandwidth import LinkEstimate
from dance.exchange import Expected, Message
from dance.gan.choice import Choice
from dance.gan.messages import Post, content

LINK = "link"
REPORT_EVERY = 5
_NONE = dance.codec("none")
_NUMEL = len(fields(LinkEstimate))
_MOST = 1e30  # an unlimited link's rate; a packet holds no infinity


class Reports:
    """What the nodes of this process report and are told; `choices` are theirs and take it in."""

    def __init__(self, post: Post, choices: Mapping[int, Choice]) -> None:
        self.post = post
        self.choices = choices

    @property
    def wanted(self) -> bool:
        """Whether a policy chooses any codec; equal at all nodes of a run."""
        return any(choice.is_auto for choice in self.choices.values())

    def deliver(
        self,
        outbox: Sequence[Message],
        expected: Sequence[Expected],
        ways: Sequence[tuple[int, int]],
        round_index: int,
        *,
        due: bool | None = None,
    ) -> list[Message]:
        """Delivers a phase of messages along `ways`, (source, target) of any process, and with them reports.

        Returns what arrived but for the reports, in the order of `expected`. Reports travel where they are
        `due`; None: every fifth round, if they are wanted.
        """
        if due is None:
            due = self.wanted and round_index % REPORT_EVERY == 0
        if not due:
            return self.post.exchange.deliver(outbox, expected)
        told = [
            self.post.message(self._measured(target, source), _NONE, source, target, LINK, round_index)
            for source, target in ways
            if source in self.choices
        ]
        asked = [
            Expected(source=s, target=t, kind=LINK, shape=(_NUMEL,), codec=_NONE, round=round_index)
            for s, t in ways
            if t in self.choices
        ]
        inbox = self.post.exchange.deliver([*outbox, *told], [*expected, *asked])
        for message in inbox[len(expected) :]:
            values = content(message.packet).tolist()
            if values[0] > 0.0:
                self.choices[message.target].reported[message.source] = LinkEstimate(
                    **{each.name: value for each, value in zip(fields(LinkEstimate), values, strict=True)}
                )
        return inbox[: len(expected)]

    def _measured(self, source: int, target: int) -> Tensor:
        meter = self.post.exchange.links.get((source, target))
        estimate = None if meter is None else meter.estimate()
        if estimate is None:
            return torch.zeros(_NUMEL)
        return torch.tensor([min(value, _MOST) for value in astuple(estimate)])
