"""The codecs a policy chooses from: by kind of send, and those alone that lose no more than is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec
from dance.policy.cost import relative_error
from dance.policy.send import Send

# Least lossy first. "Do not compress" is the first candidate of all.
CANDIDATES = ("none", "fp16", "int8:block=256", "sign:block=256", "topk:ratio=0.01")
# Of collectives: what training bears without feedback, and what it bears with one.
WITHOUT_FEEDBACK = ("none", "fp16", "bf16", "int8:block=256")
WITH_FEEDBACK = (*WITHOUT_FEEDBACK, "int4:block=256", "sign:block=256", "topk:ratio=0.01")
# The most that one encoding of normal data may lose of its norm (int8: 0.7 %, int4: 13 %, sign: 60 %).
_MAX_ERROR = {False: 0.02, True: 0.2}

Lists: TypeAlias = "Sequence[Like] | Mapping[str, Sequence[Like]]"


class Candidates:
    """Candidates from least to most lossy: one list for all kinds, or one for each kind (``""``: the others).

    None: CANDIDATES for packets to peers, WITHOUT_FEEDBACK or WITH_FEEDBACK for collectives. ``max_error``
    bounds the error of one encoding (`relative_error`); None: 0.02 for collectives without feedback, 0.2 with
    feedback, no bound for packets to peers. Of WITH_FEEDBACK that leaves int4 the most lossy: sign and topk
    are only chosen with a ``max_error`` of at least their own (0.603 and 0.957).
    """

    def __init__(self, lists: Lists | None, max_error: float | None) -> None:
        if max_error is not None and not max_error >= 0.0:
            raise ValueError(f"auto: expected max_error of at least 0, got {max_error}")
        self.max_error = max_error
        named = lists if isinstance(lists, Mapping) else None if lists is None else {"": lists}
        self._lists = (
            None
            if named is None
            else {kind: tuple(to_codec(each) for each in texts) for kind, texts in named.items()}
        )
        for kind, codecs in (self._lists or {}).items():
            if not codecs:
                raise ValueError(f"auto: expected at least one candidate for kind {kind!r}, got none")
        self._chosen: dict[tuple[str, bool, bool], tuple[Codec, ...]] = {}

    def of(self, send: Send) -> tuple[Codec, ...]:
        """Returns the candidates of a send; ValueError where there are none."""
        key = (send.kind, send.is_collective, send.feedback)
        if key not in self._chosen:
            self._chosen[key] = self._choose(send)
        return self._chosen[key]

    def _choose(self, send: Send) -> tuple[Codec, ...]:
        if self._lists is None:
            texts = WITH_FEEDBACK if send.feedback else WITHOUT_FEEDBACK
            codecs = tuple(to_codec(text) for text in (texts if send.is_collective else CANDIDATES))
        else:
            found = self._lists.get(send.kind) or self._lists.get("")
            if found is None:
                known = ", ".join(sorted(self._lists))
                raise ValueError(f"auto: no candidates for kind {send.kind!r}; there are some for {known}")
            codecs = found
        bound = self.max_error
        if bound is None:
            if not send.is_collective:
                return codecs
            bound = _MAX_ERROR[send.feedback]
        within = tuple(each for each in codecs if relative_error(each) <= bound)
        if send.feedback:
            within = tuple(each for each in within if each.bounded)
        if not within:
            listed = ", ".join(f"{each} ({relative_error(each):.2g})" for each in codecs)
            raise ValueError(
                f"auto: none of {listed} has an error of at most {bound:g}; add none to the candidates, "
                f"or raise max_error"
            )
        return within

    def __str__(self) -> str:
        lists = (
            None if self._lists is None else {k: [str(c) for c in v] for k, v in sorted(self._lists.items())}
        )
        return f"{lists} {self.max_error}"
