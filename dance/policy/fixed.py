"""Policies that measure nothing: always the same codec, or a replayed log."""

from __future__ import annotations

from collections.abc import Iterable

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec
from dance.policy.cost import row
from dance.policy.decision import Decision, Logged
from dance.policy.explanation import Explanation, Row
from dance.policy.send import Send


class Fixed(Logged):
    """Always the same codec."""

    def __init__(self, codec: Like) -> None:
        super().__init__()
        self.codec = to_codec(codec)

    def __repr__(self) -> str:
        return f"Fixed({str(self.codec)!r})"

    def _decide(self, send: Send) -> Codec:
        return self.codec

    def _row(self, send: Send, codec: Codec) -> Row:
        return row(codec, send)

    def explain(self, send: Send) -> Explanation:
        return Explanation(send=send, rows=(self._row(send, self.codec),), reason="the codec is fixed")


class Schedule(Logged):
    """Replays a log of decisions: the last codec logged for that kind and target up to that round.

    Raises ValueError for a send about which the log says nothing.
    """

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._codecs: dict[tuple[str, str], list[tuple[int, Codec]]] = {}
        for decision in decisions:
            entries = self._codecs.setdefault((decision.kind, decision.target), [])
            entries.append((decision.round, to_codec(decision.codec)))
        for entries in self._codecs.values():
            entries.sort(key=lambda entry: entry[0])

    def __repr__(self) -> str:
        kinds = sorted(_name(kind, target) for kind, target in self._codecs)
        return (
            f"Schedule({sum(map(len, self._codecs.values()))} decisions for {', '.join(kinds) or 'nothing'})"
        )

    def _logged(self, send: Send) -> tuple[int, Codec]:
        entries = self._codecs.get((send.kind, send.target), ())
        found = [entry for entry in entries if entry[0] <= send.round]
        if not found:
            known = sorted(_name(kind, target) for kind, target in self._codecs)
            raise ValueError(
                f"schedule: no decision for {_name(send.kind, send.target)} up to round {send.round}; "
                f"there are some for {', '.join(known) or 'nothing at all'}"
            )
        return found[-1]

    def _decide(self, send: Send) -> Codec:
        return self._logged(send)[1]

    def _row(self, send: Send, codec: Codec) -> Row:
        return row(codec, send)

    def explain(self, send: Send) -> Explanation:
        start, codec = self._logged(send)
        return Explanation(send=send, rows=(self._row(send, codec),), reason=f"replayed from round {start}")


def _name(kind: str, target: str) -> str:
    return f"{kind!r} to {target}" if target else repr(kind)
