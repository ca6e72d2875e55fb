"""A codec or policy for each name: biases in bf16, the last layer uncompressed, the rest by `Auto`."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from dance.codecs import Codec, Like
from dance.policy.decision import Decision, Figures, Policy
from dance.policy.explanation import Explanation
from dance.policy.fixed import Fixed
from dance.policy.send import Outcome, Send


class PerLayer:
    """Asks the first of ``rules`` whose pattern matches the send's target, else ``default``.

    rules: pattern (as file names': ``*.bias``, ``layer[12].*``) -> codec or policy. Policies given learn
    each from their own calls. A collective asks them, or takes the codec, for each of its tensors by key
    (`part_of`). ``log`` holds the decisions of all of them, one policy after another.
    """

    def __init__(self, rules: Mapping[str, Like | Policy], default: Like | Policy) -> None:
        self._rules = [(pattern, _policy(each)) for pattern, each in rules.items()]
        self._default = _policy(default)
        self._asked = self._default
        # Each once, in order: one policy may serve several patterns.
        self._policies = list(dict.fromkeys([*(policy for _, policy in self._rules), self._default]))
        self._lengths = [0] * len(self._policies)

    def __repr__(self) -> str:
        rules = ", ".join(f"{pattern!r}: {_shown(policy)}" for pattern, policy in self._rules)
        return f"PerLayer({{{rules}}}, {_shown(self._default)})"

    def rule_of(self, target: str) -> Codec | Policy | None:
        """Returns what the first pattern that matches says, None where the default counts."""
        policy = self._ruled(target)
        return None if policy is None else _plain(policy)

    @property
    def default(self) -> Codec | Policy:
        """What counts where no pattern matches."""
        return _plain(self._default)

    @property
    def log(self) -> list[Decision]:
        return [decision for policy in self._policies for decision in policy.log]

    def _ruled(self, target: str) -> Policy | None:
        return next((policy for pattern, policy in self._rules if fnmatchcase(target, pattern)), None)

    def _of(self, send: Send) -> Policy:
        return self._ruled(send.target) or self._default

    def choose(self, send: Send) -> Codec:
        self._asked = self._of(send)
        return self._asked.choose(send)

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
        return {"policies": [policy.state_dict() for policy in self._policies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of policies built with the same rules; ValueError if they are not as many."""
        if len(state["policies"]) != len(self._policies):
            raise ValueError(
                f"per-layer policy: expected the state of {len(self._policies)} policies, "
                f"got {len(state['policies'])}; build it with the rules it was saved with"
            )
        for policy, each in zip(self._policies, state["policies"], strict=True):
            policy.load_state_dict(each)


def ruled(like: Any, target: str) -> Any:
    """Returns what the rules of ``like`` say of a tensor: a codec or a policy; None where it has no rules, or
    none that matches.
    """
    find = getattr(like, "rule_of", None)
    part = None if find is None else find(target)
    return None if part is None else part_of(part, target)


def part_of(like: Any, target: str) -> Any:
    """Returns the codec or the policy that counts for a tensor: ``like`` itself where that has no rules."""
    if not hasattr(like, "rule_of"):
        return like
    part = ruled(like, target)
    if part is None:
        part = like.default
    return part if part is like else part_of(part, target)


def _policy(each: Like | Policy) -> Policy:
    return Fixed(each) if isinstance(each, (str, Codec)) else each


def _shown(policy: Policy) -> str:
    part = _plain(policy)
    return repr(str(part) if isinstance(part, Codec) else part)


def _plain(policy: Policy) -> Codec | Policy:
    """Returns the codec where it is fixed: beside others, one that is known needs no policy's turn."""
    return policy.codec if type(policy) is Fixed else policy
