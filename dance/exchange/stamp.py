"""What a packet's `round` says of the call that it belongs to: 32 bits, compared by whoever receives it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

NONFINITE = 1 << 31  # the input of a rank held NaN or infinity; its blocks count as zeros
REFUSED = 1 << 30  # the sender had to refuse a packet that went into this one
FLAGS = NONFINITE | REFUSED

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "neighbor_exchange")
# Bits 0 to 9: the number of the call; 10 to 12: the verb; 13: an average; 14 to 29: a digest of the names.
_VERB, _MEAN, _DIGEST = 10, 13, 14
# A prime, so that calls differ, too, whose numbers are a multiple of a power of two apart: tags repeat so.
_NUMBERS = 1021


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Call ``number`` of a group, which does ``verb`` (``mean``: an average) and in which ranks name
    ``source`` (of a broadcast) and ``keys`` (of residuals).
    """

    number: int
    verb: str
    mean: bool = False
    source: int | None = None
    keys: Sequence[str | None] = ()

    def bits(self) -> int:
        names = "\0".join([str(self.source), *(key or "" for key in self.keys)])
        digest = zlib.crc32(names.encode()) & 0xFFFF
        return (
            self.number % _NUMBERS | VERBS.index(self.verb) << _VERB | self.mean << _MEAN | digest << _DIGEST
        )


def is_same_call(mine: int, theirs: int) -> bool:
    """Returns whether two stamps have the same number; what else they say is for `differs`."""
    return (mine ^ theirs) & ((1 << _VERB) - 1) == 0


def differs(mine: int, theirs: int) -> str:
    """Returns what the sender of the stamp ``theirs`` means to do otherwise than this rank, "": nothing."""
    ours, other = mine >> _VERB & 7, theirs >> _VERB & 7
    if ours != other:
        verb = VERBS[other] if other < len(VERBS) else "another collective"
        return (
            f"it calls {verb}, this rank {VERBS[ours]}; do all ranks make the same calls in the same order?"
        )
    if (mine ^ theirs) >> _MEAN & 1:
        means = mine >> _MEAN & 1
        return (
            f"it asks for {('AVG', 'SUM')[means]}, this rank for {('SUM', 'AVG')[means]}; "
            "pass the same op at all ranks"
        )
    if (mine ^ theirs) >> _DIGEST & 0xFFFF:
        what = "src or key" if VERBS[ours] == "broadcast" else "key"
        return (
            f"it passes another {what} than this rank, or another number of tensors; pass the same, in the "
            "same order, at all ranks"
        )
    return ""
