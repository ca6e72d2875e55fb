"""Which codec a call takes: the one that was named, the feedback's, or what a policy chooses for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from dance.codecs import Codec, Uncompressed
from dance.codecs import codec as to_codec
from dance.distributed.member import Member
from dance.distributed.work import CallStats
from dance.feedback import ErrorFeedback
from dance.policy import Auto, Outcome, Send
from dance.policy.per_layer import part_of

# Text, codec, or a policy (`dance.policy`); "auto": one Auto policy kept per group. None: the feedback's own
# codec, with its warm-up, or int8 without feedback.
CodecLike: TypeAlias = "str | Codec | Any | None"
NONE = Uncompressed()
_DEFAULT = to_codec("int8")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A codec, and the policy that chose it and will be told what came of it.

    ``share``: the part of the call's bytes that it is about, where a call has several codecs.
    """

    codec: Codec
    policy: Any = None
    send: Send | None = None
    share: float = 1.0

    def observe(self, stats: CallStats) -> None:
        """Tells the policy what came of it, unless the call was executed otherwise than it chose."""
        direct = isinstance(self.codec, Uncompressed)
        if self.policy is None or direct != (stats.algorithm == "direct"):
            return
        outcome = Outcome(
            seconds=self.share * stats.seconds,
            encode_s=self.share * stats.encode_s,
            decode_s=self.share * stats.decode_s,
            wire_bytes=round(self.share * stats.bytes_received),
            wire_s=None if stats.wire_s is None else self.share * stats.wire_s,
        )
        self.policy.observe(self.send, self.codec, outcome)


def by_name(like: CodecLike, key: str | None) -> CodecLike:
    """Returns what ``like`` says of the tensor of ``key``, where it has rules for names; else itself."""
    return part_of(like, key or "") if hasattr(like, "rule_of") else like


def policy_of(member: Member, like: CodecLike, *, feedback: bool) -> Any:
    """Returns the policy that ``like`` is, None where it is a codec."""
    if isinstance(like, str) and like.strip().partition(":")[0].lower() == "auto":
        if like.strip() != "auto":
            raise ValueError(
                f"codec {like!r}: did you mean 'auto'? It takes no options as a text; with options pass a "
                "policy such as codec=dance.policy.Auto(budget_s=0.05)"
            )
        policy = member.auto.get(feedback)
        if policy is None:
            policy = member.auto[feedback] = Auto()
        return policy
    return like if hasattr(like, "choose") else None


def named_codec(like: CodecLike, feedback: ErrorFeedback | None, key: str | None) -> Codec:
    """Returns the codec that was named, or that of the feedback."""
    if like is not None:
        return like if isinstance(like, Codec) else to_codec(like)
    return _DEFAULT if feedback is None else feedback.codec_of(key)


def choose(member: Member, policy: Any, **send: Any) -> Choice:
    """Asks ``policy``, which all ranks do with equal arguments; ``send`` are fields of `Send`."""
    number = member.agreement(policy).begin()
    asked = Send(round=number, world=member.world, **send)
    return Choice(codec=policy.choose(asked), policy=policy, send=asked)
