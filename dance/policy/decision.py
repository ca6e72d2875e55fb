"""What a policy is: it chooses a codec for each send, logs what it decides, and may learn from outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from dance.codecs import Codec
from dance.codecs import codec as to_codec
from dance.policy.explanation import Explanation, Row
from dance.policy.send import Outcome, Send

Figures: TypeAlias = "npt.NDArray[np.float64]"


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


class Policy(Protocol):
    """Chooses a codec for each send; `choose` logs its decisions, `explain` only tells.

    The log holds changes: the first decision for a kind and target, and each that takes another codec.

    All ranks of a group must choose alike. A policy that learns therefore decides from agreed figures only:
    after a call for which `shares` says so (it says the same at all ranks) the `figures` of all ranks are
    reduced to their elementwise maximum, which is handed to `agree` before the next `choose`. All but
    `observe` are called on one thread, in the same order at all ranks.
    """

    log: list[Decision]

    def choose(self, send: Send) -> Codec: ...

    def explain(self, send: Send) -> Explanation: ...

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Takes in what a call took at this rank; from any thread."""

    def shares(self, call: int) -> bool:
        """Returns whether figures are exchanged after this call, the latest that was chosen for."""

    def figures(self) -> Figures:
        """Returns what this rank measured: finite float64, of one length at all ranks."""

    def agree(self, figures: Figures) -> None:
        """Takes in the elementwise maximum over all ranks of what `figures` returned."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Logged:
    """What all policies have in common: the log of decisions is their memory, and most learn nothing.

    ``round`` is that of the last collective; it is saved, so that a resumed run counts on.
    """

    def __init__(self) -> None:
        self.log: list[Decision] = []
        self.round = 0
        self._latest: dict[tuple[str, str], Codec] = {}

    def _decide(self, send: Send) -> Codec:
        raise NotImplementedError

    def _row(self, send: Send, codec: Codec) -> Row:
        raise NotImplementedError

    def choose(self, send: Send) -> Codec:
        """Returns the codec for ``send`` and logs the decision if it is a change."""
        codec = self._decide(send)
        if send.is_collective:
            self.round = send.round
        latest = self._latest.get((send.kind, send.target))
        if latest is not codec and latest != codec:
            row = self._row(send, codec)
            self._latest[send.kind, send.target] = codec
            self.log.append(
                Decision(
                    kind=send.kind,
                    target=send.target,
                    round=send.round,
                    codec=row.codec,
                    num_bytes=row.num_bytes,
                    predicted_s=row.predicted_s,
                    budget_s=send.budget_s,
                )
            )
        return codec

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Takes in what a call took at this rank; nothing is learned here."""

    def shares(self, call: int) -> bool:
        """Returns whether figures are exchanged after this call: never, where nothing is learned."""
        return False

    def figures(self) -> Figures:
        """Returns what this rank measured: nothing here."""
        return np.zeros(0)

    def agree(self, figures: Figures) -> None:
        """Takes in the agreed figures: there are none here."""

    def state_dict(self) -> dict[str, Any]:
        return {"log": [asdict(decision) for decision in self.log], "round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.log = [Decision(**entry) for entry in state["log"]]
        self.round = int(state.get("round", 0))
        self._latest = {(each.kind, each.target): to_codec(each.codec) for each in self.log}
