"""Error feedback: what an encode could not send is kept and added to the next input (Seide et al. 2014), with
the momentum correction, masking and warm-up of deep gradient compression (Lin et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dance.arrays import Kind, kind_of
from dance.codecs import SPARSE, Codec, Like, codec, dtype_number
from dance.coding import encode_feedback
from dance.errors import NonFiniteError
from dance.packet import Packet


class ErrorFeedback:
    """Encodes with a residual per key, made of zeros when a key is first seen.

    Use it for messages that add up over steps (gradients, differences of parameters). Codecs that leave
    residuals unbounded (`Codec.bounded`) are refused.

    Residuals are float32 unless ``residual_dtype`` says float16 or bfloat16. That is the default for 16-bit
    inputs, too: a residual collects what is small against it, and bfloat16 drops what is below 1/512 of it.

    For a sparse codec, ``momentum`` corrects for what momentum at the receiver would do to late values: the
    velocity u = momentum * u + x is collected instead of x, v += u is encoded, and with ``masking`` the
    velocity of what was sent is cleared, as v is. Train with plain SGD then. On CUDA, masking waits for the
    kernel. For a codec with a ratio, ``warmup`` are larger ratios to begin with, each for ``warmup_steps``
    encodes of a key; Lin et al. take (0.25, 0.0625, 0.015625, 0.004) for an epoch each, and then 0.001.
    """

    def __init__(
        self,
        codec_or_text: Like,
        *,
        momentum: float = 0.0,
        masking: bool = True,
        warmup: Sequence[float] = (),
        warmup_steps: int = 0,
        residual_dtype: str = "float32",
    ) -> None:
        self.codec = codec(codec_or_text)
        if not self.codec.bounded:
            raise ValueError(
                f"ErrorFeedback: the residuals of {self.codec} have no bound; choose a codec with a "
                "contraction such as int8, sign or topk, or more levels or smaller blocks"
            )
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"ErrorFeedback: expected a momentum in [0, 1), got {momentum}")
        if momentum and not isinstance(self.codec, SPARSE):
            raise ValueError(
                f"ErrorFeedback: {self.codec} sends every element, so there is no late momentum to correct; "
                "pass momentum=0 or a sparse codec such as dgc"
            )
        self._dtype = dtype_number("ErrorFeedback", residual_dtype)
        if momentum and self._dtype:
            raise ValueError(f"ErrorFeedback: momentum needs float32 residuals, got {residual_dtype}")
        self.momentum = float(momentum)
        self.masking = masking
        self._warmup = _warmup_codecs(self.codec, warmup, warmup_steps)
        self._warmup_steps = warmup_steps
        self._residuals: dict[str | None, Any] = {}
        self._velocities: dict[str | None, Any] = {}
        self._steps: dict[str | None, int] = {}  # encodes of a key, counted during warm-up

    def codec_of(self, key: str | None = None) -> Codec:
        """Returns the codec of the next encode of ``key``: `codec`, or one of the warm-up."""
        if not self._warmup:
            return self.codec
        stage = self._steps.get(key, 0) // self._warmup_steps
        return self._warmup[stage] if stage < len(self._warmup) else self.codec

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
        shape. To a velocity, an element that is not finite counts as 0.
        """
        if key is not None and not isinstance(key, str):
            raise ValueError(f"ErrorFeedback: expected a text or None as key, got {type(key).__name__}")
        residual = self._residuals.get(key)
        if residual is None:
            kind = kind_of(x, "ErrorFeedback")
            kind.read(x, self.codec.name)  # raises before a refused input can leave a residual of its shape
            residual = self._residuals[key] = kind.zeros(x, self._dtype)
        elif residual.shape != x.shape and tuple(residual.shape) != tuple(x.shape):
            slot = "the unnamed residual" if key is None else f"the residual of {key!r}"
            remedy = "; give each tensor a key" if key is None else ""
            raise ValueError(
                f"ErrorFeedback: {slot} has shape {tuple(residual.shape)}, the input {tuple(x.shape)}{remedy}"
            )
        c = self.codec_of(key)
        if not self.momentum:
            packet = encode_feedback(x, residual, c, seed=seed, nonfinite=nonfinite, out=out)
        else:
            kind = kind_of(x, "ErrorFeedback")
            velocity = self._velocities.get(key)
            if velocity is None:
                velocity = self._velocities[key] = kind.zeros(x, self._dtype)
            packet = self._with_momentum(kind, (x, residual, velocity), c, (seed, nonfinite, out))
        if self._warmup:
            self._steps[key] = self._steps.get(key, 0) + 1
        return packet

    def _with_momentum(
        self,
        kind: Kind,
        arrays: tuple[Any, Any, Any],
        c: Codec,
        options: tuple[int, str, Packet | None],
    ) -> Packet:
        x, residual, velocity = arrays
        seed, nonfinite, out = options
        # v + u = (v + momentum * u) + x: so x itself is encoded, in its own dtype.
        kind.add_scaled(residual, self.momentum, velocity)
        try:
            packet = encode_feedback(x, residual, c, seed=seed, nonfinite=nonfinite, out=out)
        except NonFiniteError:
            kind.decay_and_add(velocity, self.momentum, x)
            raise
        kind.decay_and_add(velocity, self.momentum, x)
        if self.masking:
            kind.clear(velocity, packet.indices())
        return packet

    def residual(self, key: str | None = None) -> Any:
        """Returns the residual itself, not a copy; None while the key is unknown."""
        return self._residuals.get(key)

    def velocity(self, key: str | None = None) -> Any:
        """Returns the velocity itself, not a copy; None while the key is unknown or without momentum."""
        return self._velocities.get(key)

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot: codec, residuals, velocities and counted steps by key, and those of the unnamed
        slot where there is one; arrays are copies.
        """
        state: dict[str, Any] = {"codec": str(self.codec)}
        for name, slots in (("residual", self._residuals), ("velocity", self._velocities)):
            copies = {key: kind_of(value, "state_dict").copy(value) for key, value in slots.items()}
            if None in copies:
                state[f"unnamed_{name}"] = copies.pop(None)
            state[_PLURAL[name]] = copies
        steps: dict[str | None, int] = dict(self._steps)
        if None in steps:
            state["unnamed_steps"] = steps.pop(None)
        state["steps"] = steps
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a snapshot, arrays copied; its codec may be another, residuals fit any.

        ValueError for a snapshot with velocities where there is no momentum: they would be lost.
        """
        loaded: dict[str, dict[str | None, Any]] = {}
        for name in _PLURAL:
            slots: dict[str | None, Any] = dict(state.get(_PLURAL[name], {}))
            if f"unnamed_{name}" in state:
                slots[None] = state[f"unnamed_{name}"]
            loaded[name] = {
                key: kind_of(value, "load_state_dict").copy(value) for key, value in slots.items()
            }
        if loaded["velocity"] and not self.momentum:
            raise ValueError(
                "ErrorFeedback: the snapshot holds velocities; pass the momentum it was made with"
            )
        steps: dict[str | None, int] = dict(state.get("steps", {}))
        if "unnamed_steps" in state:
            steps[None] = state["unnamed_steps"]
        self._residuals, self._velocities, self._steps = loaded["residual"], loaded["velocity"], steps


_PLURAL = {"residual": "residuals", "velocity": "velocities"}


def _warmup_codecs(c: Codec, ratios: Sequence[float], steps: int) -> tuple[Codec, ...]:
    if not ratios:
        if steps:
            raise ValueError(f"ErrorFeedback: warmup_steps={steps} needs warmup, the ratios to begin with")
        return ()
    if not hasattr(c, "ratio"):
        raise ValueError(f"ErrorFeedback: {c} has no ratio to warm up; use topk, randk or dgc")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"ErrorFeedback: expected warmup_steps of at least 1 for each ratio, got {steps!r}")
    return tuple(replace(c, ratio=ratio) for ratio in ratios)  # type: ignore[call-arg]
