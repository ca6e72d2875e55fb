"""Which codec the next send takes: always the same, a replayed log, or the least lossy one that is in time.

A policy belongs to one sender. It sees its links' meters and the time a round leaves for the send, and logs
what it decides, so that a run can be repeated with the same decisions.

A meter sits at the receiving end of its link, so a sender has none of the way to its peer and judges it by
the meter of the way back. That is right for links with equal rates both ways and too hopeful, or too timid,
for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dance.bandwidth import LinkMeter
from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec

# Least lossy first. "Do not compress" is the first candidate of all.
CANDIDATES = ("none", "fp16", "int8:block=256", "sign:block=256", "topk:ratio=0.01")
_HEADROOM = 0.8  # a less lossy codec must fit with a fifth to spare, or estimates would make it come and go
_DWELL_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Send:
    """One send to decide on: ``numel`` float32 of a ``kind`` in ``round``, over links, within ``budget_s``.

    ``target`` names who receives it, where decisions differ by receiver. ``links`` are the meters of all
    links that the packet takes; the slowest one counts.
    """

    kind: str
    round: int
    numel: int
    target: str = ""
    links: Sequence[LinkMeter] = ()
    budget_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided for one send, and why."""

    kind: str
    target: str
    round: int
    codec: str
    num_bytes: int
    predicted_s: float | None
    budget_s: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one candidate would cost."""

    codec: str
    num_bytes: int
    predicted_s: float | None
    fits: bool
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The candidates of one send, with their cost; its text is a table."""

    send: Send
    rows: tuple[Row, ...]
    reason: str

    def __str__(self) -> str:
        lines = [f"{'codec':<20}{'bytes':>12}{'seconds':>12}  fits"]
        for row in self.rows:
            seconds = "unknown" if row.predicted_s is None else f"{row.predicted_s:.6f}"
            mark = "  <- chosen" if row.chosen else ""
            lines.append(
                f"{row.codec:<20}{row.num_bytes:>12}{seconds:>12}  {'yes' if row.fits else 'no'}{mark}"
            )
        return "\n".join((*lines, f"{self.send.kind}, round {self.send.round}: {self.reason}"))


class Policy(Protocol):
    """Chooses a codec for each send; `choose` logs its decisions, `explain` only tells.

    The log holds changes: the first decision for a kind and target, and each that takes another codec.
    """

    log: list[Decision]

    def choose(self, send: Send) -> Codec: ...

    def explain(self, send: Send) -> Explanation: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Logged:
    """What all policies share: the log of decisions is their memory."""

    def __init__(self) -> None:
        self.log: list[Decision] = []
        self._latest: dict[tuple[str, str], Decision] = {}

    def _explain(self, send: Send) -> tuple[Codec, Explanation]:
        raise NotImplementedError

    def choose(self, send: Send) -> Codec:
        """Returns the codec for ``send`` and logs the decision if it is a change."""
        codec, explanation = self._explain(send)
        chosen = next(row for row in explanation.rows if row.chosen)
        latest = self._latest.get((send.kind, send.target))
        if latest is None or latest.codec != chosen.codec:
            decision = Decision(
                kind=send.kind,
                target=send.target,
                round=send.round,
                codec=chosen.codec,
                num_bytes=chosen.num_bytes,
                predicted_s=chosen.predicted_s,
                budget_s=send.budget_s,
            )
            self._latest[send.kind, send.target] = decision
            self.log.append(decision)
        return codec

    def explain(self, send: Send) -> Explanation:
        """Returns what `choose` would choose for ``send`` now, with the cost of every candidate."""
        return self._explain(send)[1]

    def state_dict(self) -> dict[str, Any]:
        return {"log": [asdict(decision) for decision in self.log]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.log = [Decision(**entry) for entry in state["log"]]
        self._latest = {(decision.kind, decision.target): decision for decision in self.log}


class Fixed(_Logged):
    """Always the same codec."""

    def __init__(self, codec: Like) -> None:
        super().__init__()
        self.codec = to_codec(codec)

    def _explain(self, send: Send) -> tuple[Codec, Explanation]:
        row = _row(self.codec, send, chosen=True)
        return self.codec, Explanation(send=send, rows=(row,), reason="the codec is fixed")


class Schedule(_Logged):
    """Replays a log of decisions: the last codec logged for that kind and target up to that round."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._codecs: dict[tuple[str, str], list[tuple[int, Codec]]] = {}
        for decision in decisions:
            entries = self._codecs.setdefault((decision.kind, decision.target), [])
            entries.append((decision.round, to_codec(decision.codec)))
        for entries in self._codecs.values():
            entries.sort(key=lambda entry: entry[0])

    def _explain(self, send: Send) -> tuple[Codec, Explanation]:
        entries = self._codecs.get((send.kind, send.target), ())
        logged = [entry for entry in entries if entry[0] <= send.round]
        if not logged:
            known = sorted(_name(kind, target) for kind, target in self._codecs)
            raise ValueError(
                f"schedule: no decision for {_name(send.kind, send.target)} up to round {send.round}; "
                f"there are some for {', '.join(known) or 'nothing at all'}"
            )
        start, codec = logged[-1]
        row = _row(codec, send, chosen=True)
        return codec, Explanation(send=send, rows=(row,), reason=f"replayed from round {start}")


@dataclass(frozen=True, kw_only=True)
class _Held:
    """The codec in use for a kind and target, since which round, and whether links were measured by then."""

    codec: Codec
    since: int
    measured: bool


class Auto(_Logged):
    """The least lossy candidate whose predicted time fits the time budget of the send.

    Candidates are ordered from least to most lossy, one list for all kinds or one for each kind (``""``: the
    others). Before a link is measured it sends the smallest packet, which measures it. A lossier codec is
    taken at once; a less lossy one only 20 rounds after the last change and with a fifth of the budget to
    spare.
    """

    def __init__(
        self,
        candidates: Sequence[Like] | Mapping[str, Sequence[Like]] = CANDIDATES,
        *,
        budget_s: float | None = None,
        headroom: float = _HEADROOM,
        dwell_rounds: int = _DWELL_ROUNDS,
    ) -> None:
        super().__init__()
        lists = candidates if isinstance(candidates, Mapping) else {"": candidates}
        self._candidates = {
            kind: tuple(to_codec(each) for each in each_list) for kind, each_list in lists.items()
        }
        for kind, each_list in self._candidates.items():
            if not each_list:
                raise ValueError(f"auto: expected at least one candidate for kind {kind!r}, got none")
        if budget_s is not None and not budget_s > 0.0:
            raise ValueError(f"auto: expected budget_s above 0, got {budget_s}")
        if not 0.0 < headroom <= 1.0:
            raise ValueError(f"auto: expected headroom in (0, 1], got {headroom}")
        self.budget_s = budget_s
        self.headroom = headroom
        self.dwell_rounds = dwell_rounds
        self._current: dict[tuple[str, str], _Held] = {}

    def choose(self, send: Send) -> Codec:
        codec = super().choose(send)
        held = self._current.get((send.kind, send.target))
        if held is None or held.codec != codec or not held.measured:
            measured = _predict_s(codec, send) is not None
            self._current[send.kind, send.target] = _Held(codec=codec, since=send.round, measured=measured)
        return codec

    def _explain(self, send: Send) -> tuple[Codec, Explanation]:
        candidates = self._candidates.get(send.kind) or self._candidates.get("")
        if candidates is None:
            known = ", ".join(sorted(self._candidates))
            raise ValueError(f"auto: no candidates for kind {send.kind!r}; there are some for {known}")
        codec, reason = self._pick(candidates, send)
        rows = tuple(
            _row(each, send, chosen=each == codec, budget_s=self._budget_s(send)) for each in candidates
        )
        return codec, Explanation(send=send, rows=rows, reason=reason)

    def _pick(self, candidates: tuple[Codec, ...], send: Send) -> tuple[Codec, str]:
        smallest = min(candidates, key=lambda each: each.packet_nbytes(send.numel))
        budget_s = self._budget_s(send)
        if budget_s is None:
            return candidates[0], "no time budget is set, so nothing needs to be compressed"
        times = [_predict_s(each, send) for each in candidates]
        if any(seconds is None for seconds in times):
            return smallest, "a link is not measured yet: the smallest packet"
        known = [seconds for seconds in times if seconds is not None]
        best = next((k for k, seconds in enumerate(known) if seconds <= budget_s), None)
        if best is None:
            return smallest, f"nothing fits {budget_s:.6f} s: the smallest packet"
        held = self._current.get((send.kind, send.target))
        # What was chosen blind binds nobody; nor does a codec that no longer fits.
        if held is not None and held.measured and held.codec in candidates:
            now = candidates.index(held.codec)
            if best < now and known[now] <= budget_s:
                if send.round - held.since < self.dwell_rounds:
                    return held.codec, f"stays for {self.dwell_rounds} rounds after its last change"
                roomy = next((k for k in range(now) if known[k] <= self.headroom * budget_s), None)
                if roomy is None:
                    return held.codec, f"nothing less lossy fits {self.headroom:g} of {budget_s:.6f} s"
                best = roomy
        return candidates[best], f"the least lossy that fits {budget_s:.6f} s"

    def _budget_s(self, send: Send) -> float | None:
        return self.budget_s if send.budget_s is None else send.budget_s

    def state_dict(self) -> dict[str, Any]:
        current = [
            [kind, target, str(held.codec), held.since, held.measured]
            for (kind, target), held in self._current.items()
        ]
        return {**super().state_dict(), "current": current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._current = {
            (kind, target): _Held(codec=to_codec(text), since=int(since), measured=bool(measured))
            for kind, target, text, since, measured in state["current"]
        }


def _name(kind: str, target: str) -> str:
    return f"{kind!r} to {target}" if target else repr(kind)


def _predict_s(codec: Codec, send: Send) -> float | None:
    times = [meter.predict_s(codec.packet_nbytes(send.numel)) for meter in send.links]
    known = [seconds for seconds in times if seconds is not None]
    return max(known) if times and len(known) == len(times) else None


def _row(codec: Codec, send: Send, *, chosen: bool, budget_s: float | None = None) -> Row:
    predicted_s = _predict_s(codec, send)
    budget_s = send.budget_s if budget_s is None else budget_s
    return Row(
        codec=str(codec),
        num_bytes=codec.packet_nbytes(send.numel),
        predicted_s=predicted_s,
        fits=budget_s is None or (predicted_s is not None and predicted_s <= budget_s),
        chosen=chosen,
    )
