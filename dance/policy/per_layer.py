"""A codec or policy for each name: biases in bf16, the last layer uncompressed, the rest by `Auto`."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from dance.codecs import Codec, Like
from dance.policy.cost import row
from dance.policy.decision import Figures, Logged, Policy
from dance.policy.explanation import Explanation, Row
from dance.policy.fixed import Fixed
from dance.policy.send import Outcome, Send


class PerLayer(Logged):
    """Asks the first of ``rules`` whose pattern matches the send's target, else ``default``.

    rules: pattern (as file names': ``*.bias``, ``layer[12].*``) -> codec or policy. Policies given learn
    each from their own calls.
    """

    def __init__(self, rules: Mapping[str, Like | Policy], default: Like | Policy) -> None:
        super().__init__()
        self._rules = [(pattern, _policy(each)) for pattern, each in rules.items()]
        self.default = _policy(default)
        self._asked = self.default
        # Each once, in order: one policy may serve several patterns.
        self._policies = list(dict.fromkeys([*(policy for _, policy in self._rules), self.default]))
        self._lengths = [0] * len(self._policies)

    def rule_of(self, target: str) -> Policy | None:
        """Returns the policy of the first pattern that matches, None where the default counts."""
        for pattern, policy in self._rules:
            if fnmatchcase(target, pattern):
                return policy
        return None

    def _of(self, send: Send) -> Policy:
        return self.rule_of(send.target) or self.default

    def _decide(self, send: Send) -> Codec:
        self._asked = self._of(send)
        return self._asked.choose(send)

    def _row(self, send: Send, codec: Codec) -> Row:
        return row(codec, send)

    def explain(self, send: Send) -> Explanation:
        return self._of(send).explain(send)

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        self._of(send).observe(send, codec, outcome)

    def shares(self, call: int) -> bool:
        """Returns whether figures are exchanged after this call: as the policy that was asked says."""
        return self._asked.shares(call)

    def figures(self) -> Figures:
        """Returns the figures of all policies, one after another."""
        figures = [policy.figures() for policy in self._policies]
        self._lengths = [each.size for each in figures]
        return np.concatenate(figures)

    def agree(self, figures: Figures) -> None:
        start = 0
        for policy, length in zip(self._policies, self._lengths, strict=True):
            policy.agree(figures[start : start + length])
            start += length

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "policies": [policy.state_dict() for policy in self._policies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of policies built with the same rules; ValueError if they are not as many."""
        if len(state["policies"]) != len(self._policies):
            raise ValueError(
                f"per-layer policy: expected the state of {len(self._policies)} policies, "
                f"got {len(state['policies'])}; build it with the rules it was saved with"
            )
        super().load_state_dict(state)
        for policy, each in zip(self._policies, state["policies"], strict=True):
            policy.load_state_dict(each)


def _policy(each: Like | Policy) -> Policy:
    return Fixed(each) if isinstance(each, (str, Codec)) else each
