"""One send or collective to decide on, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dance.bandwidth import Measured
from dance.plan import COLLECTIVES

# Why a send that `is_alone` is not compressed.
ALONE = "one rank sends nothing; say how many there are: Send(..., world=4)"


@dataclass(frozen=True, kw_only=True)
class Send:
    """What a codec is wanted for: ``numel`` elements of ``dtype`` in ``round``, within ``budget_s`` if given.

    A packet to peers: ``kind`` is what it carries ("gossip", "image"), ``target`` names who receives it where
    decisions differ by receiver, and ``links`` is what is known of its links; the slowest counts.

    A collective over ``world`` ranks: ``kind`` is its name ("all_reduce"), ``target`` the tensor's key,
    ``round`` the number of the policy's call (1 is the first; a resumed run counts on), ``links`` is empty.
    ``feedback``: whether an error feedback keeps what the codec loses. ``device``: where the codec runs,
    "cpu" or "cuda".
    """

    kind: str
    round: int
    numel: int
    target: str = ""
    links: Sequence[Measured] = ()
    budget_s: float | None = None
    world: int = 1
    dtype: str = "float32"
    feedback: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("numel", 0), ("world", 1)):
            value = getattr(self, name)
            if not hasattr(value, "__index__") or value < least:
                raise ValueError(f"Send: expected {name} to be a number of at least {least}, got {value!r}")

    @property
    def is_collective(self) -> bool:
        return self.world > 1

    @property
    def is_alone(self) -> bool:
        """Whether it is a collective of one rank, which sends nothing."""
        return self.kind in COLLECTIVES and not self.is_collective and not self.links


# kind, world, dtype, feedback and octave of a send: what decisions and corrections are kept for.
Shape: TypeAlias = "tuple[str, int, str, bool, int]"


def shape_of(send: Send) -> Shape:
    return (send.kind, send.world, send.dtype, send.feedback, send.numel.bit_length())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a collective took at this rank.

    seconds: from its first action to its result, without the time that it queued behind others of the group.
    encode_s, decode_s: spent in the codec, however much of it the wire hid. wire_bytes, wire_s: payload bytes
    received, and the length of the union of the intervals in which a payload's receive was posted and not yet
    complete; wire_s is None for direct calls, which torch times as a whole.
    """

    seconds: float
    encode_s: float = 0.0
    decode_s: float = 0.0
    wire_bytes: int = 0
    wire_s: float | None = None
