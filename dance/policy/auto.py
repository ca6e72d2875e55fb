"""The codec of least predicted time under a bound on the error, or of least error within a time budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from dance.codecs import Codec, Uncompressed
from dance.policy.agreeing import Agreeing
from dance.policy.candidates import Candidates, Lists
from dance.policy.cost import link_cost, link_doubt, relative_error, sent_nbytes
from dance.policy.explanation import Cost, Explanation, Row
from dance.policy.rules import Choice, Course, Prospect, commit, least_error, least_time
from dance.policy.send import ALONE, Send, shape_of

_HEADROOM = 0.8  # a less lossy codec must fit with a fifth to spare, or estimates would make it come and go
_DWELL_ROUNDS = 20
_NONE = Uncompressed()


class Auto(Agreeing):
    """Chooses among candidates, from least to most lossy, by what they will take.

    candidates: one list, or one for each kind of send; None: CANDIDATES for packets to peers,
    WITHOUT_FEEDBACK or WITH_FEEDBACK for collectives. max_error bounds the error of one encoding of normal
    data; None: 0.02 for collectives without feedback, 0.2 with one, no bound for packets. Within 0.2 of
    WITH_FEEDBACK int4 is the most lossy: its sign and topk need a max_error of 0.603 and 0.957.

    objective "time": the least encode + wire + decode among candidates within ``max_error``, the error of one
    encoding of normal data. "error": the least lossy that fits ``budget_s``, or the send's own budget. None:
    "error" for sends with a budget and for packets to peers, which without a budget are not compressed, and
    "time" for all other collectives.

    A collective learns from its calls what the link, the codecs and torch's own collectives take, and all its
    ranks choose alike (`Policy`). Its first call takes int8, which measures the link while already cheap; on
    a steady link it has settled by the third. Packets to peers are judged by their links' meters; before
    those know anything it sends the smallest packet. A less lossy codec waits ``dwell_rounds`` after the last
    change and for room to spare, ``headroom`` of the budget.
    """

    def __init__(
        self,
        candidates: Lists | None = None,
        *,
        objective: Literal["time", "error"] | None = None,
        budget_s: float | None = None,
        max_error: float | None = None,
        headroom: float = _HEADROOM,
        dwell_rounds: int = _DWELL_ROUNDS,
    ) -> None:
        chosen = Candidates(candidates, max_error)
        super().__init__(f"auto {chosen} {objective} {budget_s} {headroom} {dwell_rounds}")
        if objective not in (None, "time", "error"):
            raise ValueError(f"auto: expected objective 'time' or 'error', got {objective!r}")
        if budget_s is not None and not budget_s > 0.0:
            raise ValueError(f"auto: expected budget_s above 0, got {budget_s}")
        if not 0.0 < headroom <= 1.0:
            raise ValueError(f"auto: expected headroom in (0, 1], got {headroom}")
        self.candidates = chosen
        self.objective = objective
        self.budget_s = budget_s
        self.headroom = headroom
        self.dwell_rounds = dwell_rounds
        self._courses: dict[Any, Course] = {}  # by shape of a collective, by kind and target of a packet
        self._settled: dict[Any, Codec] = {}  # what to answer until something new is agreed on

    def __repr__(self) -> str:
        link = self.link_estimate()
        known = "" if link is None else f", link {link.rate_mbps:.3g} Mbit/s"
        return (
            f"Auto(objective={self.objective!r}, budget_s={self.budget_s}, "
            f"max_error={self.candidates.max_error}; {self.round} collectives{known})"
        )

    def _decide(self, send: Send) -> Codec:
        if send.is_alone:
            return _NONE
        return self._decide_call(send) if send.is_collective else self._decide_packet(send)

    def _decide_packet(self, send: Send) -> Codec:
        course = self._courses.setdefault((send.kind, send.target), Course())
        course.at = send.round
        candidates = self.candidates.of(send)
        choice, costs = self._weigh(send, candidates, course)
        commit(course, choice, candidates, dwell=self.dwell_rounds, regime=0, measured=costs[0] is not None)
        return choice.codec

    def _decide_call(self, send: Send) -> Codec:
        seen, told = self._open(send)
        key = (shape_of(send), send.numel, send.budget_s)
        codec = self._settled.get(key)
        changed = False
        if codec is None:
            candidates = self.candidates.of(send)
            self._ledger.code(candidates, send)
            course = self._courses.setdefault(key[0], Course())
            course.at, course.agreed = seen, told
            held = course.codec
            choice, costs = self._weigh(send, candidates, course)
            regime, known = self._model.regime, costs[0] is not None
            commit(course, choice, candidates, dwell=self.dwell_rounds, regime=regime, measured=known)
            if not choice.trial:
                self._settled[key] = choice.codec
            codec, changed = choice.codec, choice.codec != held
        self._close(send, codec, changed=changed)
        return codec

    def _forget(self) -> None:
        self._settled.clear()

    def _weigh(
        self, send: Send, candidates: tuple[Codec, ...], course: Course, *, explaining: bool = False
    ) -> tuple[Choice, list[Cost | None]]:
        """Returns what to take and the cost of each candidate: all of them known, or none."""
        costs = [self._cost(send, each, explaining=explaining) for each in candidates]
        known = [cost for cost in costs if cost is not None]
        budget_s = self._budget_s(send)
        if self._for_error(send) and budget_s is None:
            return Choice(
                codec=candidates[0], reason="no time budget is set, so nothing needs to be compressed"
            ), costs
        if len(known) < len(costs):
            return self._blind(send, candidates), [None] * len(costs)
        prospects = [self._prospect(send, each, cost) for each, cost in zip(candidates, known, strict=True)]
        if not self._for_error(send):
            return least_time(prospects, course, self._model.regime), costs
        assert budget_s is not None
        choice = least_error(prospects, course, budget_s, dwell=self.dwell_rounds, headroom=self.headroom)
        return choice, costs

    def _for_error(self, send: Send) -> bool:
        if self.objective is not None:
            return self.objective == "error"
        return not send.is_collective or self._budget_s(send) is not None

    def _blind(self, send: Send, candidates: tuple[Codec, ...]) -> Choice:
        if send.is_collective:
            for each in candidates:
                if each.name == "int8":
                    return Choice(
                        codec=each, reason="nothing is measured yet: int8 is cheap while it measures"
                    )
        smallest = min(candidates, key=lambda each: each.packet_nbytes(send.numel, send.dtype))
        return Choice(codec=smallest, reason="a link is not measured yet: the smallest packet")

    def _cost(self, send: Send, codec: Codec, *, explaining: bool = False) -> Cost | None:
        """What a candidate costs. This rank's own measurements count where no rank relies on the result."""
        speed = None
        if explaining if send.is_collective else self.objective == "time":
            speed = self._speeds.of(codec, feedback=send.feedback, device=send.device)
        return (self._model.cost if send.is_collective else link_cost)(send, codec, speed)

    def _prospect(self, send: Send, codec: Codec, cost: Cost) -> Prospect:
        if not send.is_collective:
            deviation_s, least_s = link_doubt(send, codec)
            return Prospect(codec=codec, seconds=cost.total_s, deviation_s=deviation_s, least_s=least_s)
        return Prospect(
            codec=codec,
            seconds=cost.total_s,
            least_s=self._model.least_s(send, codec, cost),
            measured=self._model.measured(send, codec),
            direct=isinstance(codec, Uncompressed),
        )

    def _budget_s(self, send: Send) -> float | None:
        return self.budget_s if send.budget_s is None else send.budget_s

    def _row(self, send: Send, codec: Codec) -> Row:
        return self._table_row(send, codec, self._cost(send, codec), chosen=True)

    def _table_row(self, send: Send, codec: Codec, cost: Cost | None, *, chosen: bool) -> Row:
        budget_s = self._budget_s(send)
        return Row(
            codec=str(codec),
            num_bytes=sent_nbytes(codec, send),
            cost=cost,
            error=relative_error(codec),
            fits=budget_s is None or (cost is not None and cost.total_s <= budget_s),
            chosen=chosen,
        )

    def explain(self, send: Send) -> Explanation:
        """Returns what `choose` would choose for ``send`` now, with the cost of every candidate."""
        if send.is_alone:
            return Explanation(send=send, rows=(self._row(send, _NONE),), reason=ALONE)
        candidates = self.candidates.of(send)
        if send.is_collective:
            course = self._courses.get(shape_of(send), Course())
            course = replace(course, at=course.at + 1)
        else:
            course = replace(self._courses.get((send.kind, send.target), Course()), at=send.round)
        choice, costs = self._weigh(send, candidates, course, explaining=True)
        rows = tuple(
            self._table_row(send, each, cost, chosen=each == choice.codec)
            for each, cost in zip(candidates, costs, strict=True)
        )
        return Explanation(send=send, rows=rows, reason=choice.reason)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run goes on with; what was measured and not yet agreed on is left out."""
        courses = [[list(key), course.state_dict()] for key, course in self._courses.items()]
        return {**super().state_dict(), "courses": courses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._courses = {tuple(key): Course.from_state(course) for key, course in state["courses"]}
