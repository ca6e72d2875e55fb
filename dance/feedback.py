"""Error feedback: what an encode could not send is kept and added to the next input (Seide et al. 2014)."""

from __future__ import annotations

from typing import Any

from dance.arrays import kind_of
from dance.codecs import Like, codec
from dance.packet import Packet, encode_feedback


class ErrorFeedback:
    """Encodes with a residual per key, made of zeros when a key is first seen.

    Use it for messages that add up over steps (gradients, differences of parameters). Codecs without a
    contraction are refused: their residual would grow without bound.
    """

    def __init__(self, codec_or_text: Like) -> None:
        self.codec = codec(codec_or_text)
        if self.codec.contraction is None:
            raise ValueError(
                f"ErrorFeedback: {self.codec} is no contraction; choose a codec such as int8, sign or topk"
            )
        self._residuals: dict[str | None, Any] = {}

    def encode(
        self,
        x: Any,
        key: str | None = None,
        *,
        seed: int = 0,
        nonfinite: str = "raise",
        out: Packet | None = None,
    ) -> Packet:
        """Encodes x plus the residual of ``key`` and keeps what is left, in place; the rest as
        `dance.encode_feedback`.

        ``key`` names a parameter; None is the one unnamed slot. ValueError when the key has held another
        shape.
        """
        if key is not None and not isinstance(key, str):
            raise ValueError(f"ErrorFeedback: expected a text or None as key, got {type(key).__name__}")
        residual = self._residuals.get(key)
        if residual is None:
            kind = kind_of(x, "ErrorFeedback")
            kind.read(x, self.codec.name)  # raises before a refused input can leave a residual of its shape
            residual = self._residuals[key] = kind.zeros(x)
        elif residual.shape != x.shape and tuple(residual.shape) != tuple(x.shape):
            slot = "the unnamed residual" if key is None else f"the residual of {key!r}"
            remedy = "; give each tensor a key" if key is None else ""
            raise ValueError(
                f"ErrorFeedback: {slot} has shape {tuple(residual.shape)}, the input {tuple(x.shape)}{remedy}"
            )
        return encode_feedback(x, residual, self.codec, seed=seed, nonfinite=nonfinite, out=out)

    def residual(self, key: str | None = None) -> Any:
        """Returns the residual itself, not a copy; None while the key is unknown."""
        return self._residuals.get(key)

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot: codec, residuals by key, and the unnamed one where there is one; arrays are
        copies.
        """
        copies = {key: kind_of(value, "state_dict").copy(value) for key, value in self._residuals.items()}
        state: dict[str, Any] = {"codec": str(self.codec)}
        if None in copies:
            state["unnamed"] = copies.pop(None)
        state["residuals"] = copies
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a snapshot, arrays copied; its codec may be another, residuals fit any."""
        residuals = dict(state["residuals"])
        if "unnamed" in state:
            residuals[None] = state["unnamed"]
        self._residuals = {
            key: kind_of(value, "load_state_dict").copy(value) for key, value in residuals.items()
        }
