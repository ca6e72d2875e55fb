"""Error feedback: what an encode could not send is kept and added to the next input (Seide et al. 2014), with
the momentum correction, masking and warm-up of deep gradient compression (Lin et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dance.arrays import Kind, kind_of
from dance.codecs import DTYPES, SPARSE, Codec, Like, codec, dtype_number
from dance.coding import encode_feedback_as
from dance.errors import NonFiniteError
from dance.packet import Packet, derive_seed


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
        try:
            in_range = 0.0 <= momentum < 1.0
        except TypeError:
            in_range = False
        if not in_range:
            raise ValueError(f"ErrorFeedback: expected a momentum in [0, 1), got {momentum!r}")
        if momentum and not isinstance(self.codec, SPARSE):
            raise ValueError(
                f"ErrorFeedback: {self.codec} sends every element, so there is no late momentum to correct; "
                "pass momentum=0 or a sparse codec such as dgc"
            )
        self._dtype: int = dtype_number("ErrorFeedback", residual_dtype)
        if momentum and self._dtype:
            raise ValueError(f"ErrorFeedback: momentum needs float32 residuals, got {residual_dtype}")
        self.momentum = float(momentum)
        self.masking = masking
        self._warmup = _warmup_codecs(self.codec, warmup, warmup_steps)
        self._warmup_steps = warmup_steps
        self._residuals: dict[str | None, Any] = {}
        self._velocities: dict[str | None, Any] = {}
        self._steps: dict[str | None, int] = {}  # encodes of a key: warm-up and seeds follow from it
        self._paid: set[str | None] = set()  # keys whose residuals are known to be zero

    def __repr__(self) -> str:
        momentum = f", momentum={self.momentum:g}" if self.momentum else ""
        return f"ErrorFeedback({str(self.codec)!r}{momentum}; residuals of {len(self._residuals)} keys)"

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
        seed: int | None = None,
        nonfinite: str = "raise",
        out: Packet | None = None,
    ) -> Packet:
        """Encodes x plus the residual of ``key`` and keeps what is left, in place; the rest as
        `dance.encode_feedback`.

        ``key`` names a parameter; None is the one unnamed slot. ValueError when the key has held another
        shape or an array of another library; what is refused, be it for want of memory, changes nothing. To
        a velocity, an element that is not finite counts as 0. Velocities saturate at their largest finite
        value, and so does a residual to which one is added.

        A stochastic codec needs another seed in every step: None derives one from the key and the number of
        its encodes. Nodes pass `dance.derive_seed` of their own, so that their noise is independent.
        """
        if key is not None and not isinstance(key, str):
            raise ValueError(f"ErrorFeedback: expected a text or None as key, got {type(key).__name__}")
        kind = kind_of(x, "ErrorFeedback")
        residual = self._residuals.get(key)
        if residual is None:
            residual = kind.zeros(x, self._dtype)
        elif not isinstance(kind, type(kind_of(residual, "ErrorFeedback"))):
            raise ValueError(
                f"ErrorFeedback: {_slot(key)} is a {_type_text(residual)}, the input a {_type_text(x)}; "
                "pass arrays of the library that the key was first seen in"
            )
        elif residual.shape != x.shape:
            _check_shape(key, residual, x.shape)
        c = self.codec_of(key)
        step = self._steps.get(key, 0)
        if seed is None:
            seed = derive_seed(0, step, 0, key or "", "feedback") if c.stochastic else 0
        correction = None
        if self.momentum:
            velocity = self._velocities.get(key)
            if velocity is None:
                velocity = kind.zeros(residual, self._dtype)
            correction = _Correction(kind, residual, velocity, self.momentum, x)
        problem = None
        try:
            packet = encode_feedback_as(x, residual, c, (seed, nonfinite, out), correction)
        except NonFiniteError as error:  # everything else has been encoded
            problem, packet = error, error.packet
        if correction is not None:
            correction.keep(packet.indices() if self.masking else None)
            self._velocities[key] = correction.velocity
        self._residuals[key] = residual
        self._paid.discard(key)
        self._steps[key] = step + 1
        if problem is not None:
            raise problem
        return packet

    # What collectives build on: they encode parts of an array, or many at once, and keep the same slots.

    @property
    def residual_dtype(self) -> str:
        """The dtype of the residuals by its name."""
        return DTYPES[self._dtype]

    def open(self, key: str | None, like: Any) -> Any:
        """Returns the residual of ``key`` itself, made of zeros in the shape and place of ``like`` when the
        key is new; ValueError when it has held another shape.
        """
        array = self.slot("residual", key, like.shape)
        if array is None:
            array = kind_of(like, "ErrorFeedback").zeros(like, self._dtype)
            self.put("residual", key, array)
        return array

    def step(self, key: str | None) -> int:
        """Returns how many times ``key`` was encoded."""
        return self._steps.get(key, 0)

    def count(self, key: str | None) -> None:
        """Counts one more encode of ``key``."""
        self._steps[key] = self._steps.get(key, 0) + 1

    def owes(self, key: str | None) -> bool:
        """Returns whether there may be anything in the slots of ``key``."""
        return key in self._residuals and (key not in self._paid or self.momentum > 0.0)

    def paid(self, key: str | None) -> None:
        """Notes that nothing is left in the residual of ``key`` until the next use of it."""
        self._paid.add(key)

    def slot(self, name: str, key: str | None, shape: Sequence[int]) -> Any:
        """Returns the "residual" or "velocity" of ``key``, None while it is unknown; ValueError when it has
        held another shape.
        """
        array = (self._residuals if name == "residual" else self._velocities).get(key)
        self._paid.discard(key)  # for whoever asks may change it
        if array is not None:
            _check_shape(key, array, shape)
        return array

    def put(self, name: str, key: str | None, array: Any) -> None:
        """Makes ``array`` itself the "residual" or "velocity" of ``key``."""
        self._paid.discard(key)
        (self._residuals if name == "residual" else self._velocities)[key] = array

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
        """Takes over a snapshot, arrays copied. The codec here stays: that of the snapshot may be another,
        residuals fit any.

        ValueError, which changes nothing, for what is no snapshot, for arrays of another dtype than that of
        the residuals here, for velocities that fit no residual, and for velocities where there is no
        momentum: they would be lost.
        """
        if not isinstance(state, Mapping):
            raise _refused_snapshot(f"expected what state_dict gave, got {type(state).__name__}")
        for name in ("codec", "residuals"):
            if name not in state:
                raise _refused_snapshot(f"it lacks {name!r}; pass what state_dict gave")
        codec(state["codec"])
        residuals, velocities = (self._arrays(state, name) for name in _PLURAL)
        if velocities and not self.momentum:
            raise _refused_snapshot("it holds velocities; pass the momentum it was made with")
        for key, velocity in velocities.items():
            residual = residuals.get(key)
            given, needed = (f"{_type_text(v)} {getattr(v, 'shape', '')}" for v in (velocity, residual))
            if given != needed:
                raise _refused_snapshot(
                    f"its velocity of {key!r} is a {given}, the residual a {needed}; "
                    "pass what state_dict gave"
                )
        steps = _slots(state, "steps", "steps")
        for key, count in steps.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise _refused_snapshot(f"expected the steps of {key!r} to be a count, got {count!r}")
        self._residuals, self._velocities, self._steps = residuals, velocities, steps
        self._paid = set()

    def _arrays(self, state: Mapping[str, Any], name: str) -> dict[str | None, Any]:
        """Copies of the residuals or velocities of a snapshot."""
        copies: dict[str | None, Any] = {}
        for key, value in _slots(state, _PLURAL[name], name).items():
            copy = kind_of(value, f"{name} of {key!r}").copy(value)
            got = kind_of(copy, name).write(copy, f"{name} of {key!r}")[4]
            if got != self._dtype:
                raise _refused_snapshot(
                    f"its {name} of {key!r} is {DTYPES[got]}, residuals here are {DTYPES[self._dtype]}; "
                    f"pass residual_dtype={DTYPES[got]!r}"
                )
            copies[key] = copy
        return copies


class _Correction:
    """The momentum correction of one encode, in fresh memory until all that may fail is done."""

    def __init__(self, kind: Kind, residual: Any, velocity: Any, momentum: float, x: Any) -> None:
        self._kind = kind
        self._residual = residual
        self.velocity = velocity
        self._of = momentum, x

    def __call__(self) -> Any:
        """What is encoded in the place of the residual."""
        # v + u = (v + momentum * u) + x: so x itself is encoded, in its own dtype.
        self._state, self._moved = self._kind.corrected(self._residual, self.velocity, *self._of)
        return self._state

    def keep(self, sent: Any) -> None:
        """Changes residual and velocity; ``sent`` are the indices to mask."""
        if sent is not None:
            self._kind.clear(self._moved, sent)
        # From here on no memory is asked for.
        self._kind.assign(self._residual, self._state)
        self._kind.assign(self.velocity, self._moved)


def reshard(states: Sequence[Mapping[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """Returns the snapshot that ``rank`` of ``world`` ranks loads in place of those of all former ranks.

    ``states`` are their snapshots in order of rank. What all ranks together owe to the sum stays the same:
    former rank i goes to rank i % world, where residuals (and velocities) are added up in float32; a rank
    with no predecessor starts from zeros. An unchanged world keeps all bits. ValueError for a rank that is
    none, and where the snapshots differ in codec.
    """
    if not states or world < 1 or not 0 <= rank < world:
        raise ValueError(
            f"reshard: expected states of former ranks and a rank in [0, world), got {len(states)} states, "
            f"rank {rank}, world {world}"
        )
    codecs = sorted({str(state["codec"]) for state in states})
    if len(codecs) > 1:
        raise ValueError(f"reshard: expected the snapshots of one run, got codecs {', '.join(codecs)}")
    if len(states) == world:
        return dict(states[rank])
    merged: dict[str, Any] = {"codec": states[0]["codec"]}
    mine = states[rank::world]
    for name in ("residual", "velocity"):
        merged[_PLURAL[name]] = {}
        for state in mine:
            for key, array in _slots(state, _PLURAL[name], name).items():
                slots = merged if key is None else merged[_PLURAL[name]]
                at = f"unnamed_{name}" if key is None else key
                if at in slots:
                    _add(slots[at], array)
                else:
                    slots[at] = kind_of(array, "reshard").copy(array)
    for state in states:  # all ranks count alike
        for key, count in _slots(state, "steps", "steps").items():
            slots = merged if key is None else merged.setdefault("steps", {})
            at = "unnamed_steps" if key is None else key
            slots[at] = max(count, slots.get(at, 0))
    merged.setdefault("steps", {})
    return merged


def _add(total: Any, array: Any) -> None:
    if tuple(total.shape) != tuple(array.shape):
        raise ValueError(f"reshard: expected equal shapes, got {tuple(total.shape)} and {tuple(array.shape)}")
    kind_of(total, "reshard").add(total, array)


_PLURAL = {"residual": "residuals", "velocity": "velocities"}


def _slots(state: Mapping[str, Any], named: str, unnamed: str) -> dict[str | None, Any]:
    found = state.get(named, {})
    if not isinstance(found, Mapping):
        raise _refused_snapshot(f"expected {named} by key, got {type(found).__name__}")
    slots: dict[str | None, Any] = dict(found)
    if f"unnamed_{unnamed}" in state:
        slots[None] = state[f"unnamed_{unnamed}"]
    return slots


def _refused_snapshot(what: str) -> ValueError:
    return ValueError(f"ErrorFeedback: the snapshot cannot be loaded: {what}")


def _slot(key: str | None) -> str:
    return "the unnamed residual" if key is None else f"the residual of {key!r}"


def _check_shape(key: str | None, held: Any, shape: Sequence[int]) -> None:
    if tuple(held.shape) != tuple(shape):
        remedy = "; give each tensor a key" if key is None else ""
        raise ValueError(
            f"ErrorFeedback: {_slot(key)} has shape {tuple(held.shape)}, the input {tuple(shape)}{remedy}"
        )


def _type_text(x: Any) -> str:
    return f"{type(x).__module__.partition('.')[0]} {type(x).__name__}"


def _warmup_codecs(c: Codec, ratios: Sequence[float], steps: int) -> tuple[Codec, ...]:
    if not isinstance(ratios, Sequence) or isinstance(ratios, str):
        raise ValueError(f"ErrorFeedback: expected warmup ratios such as (0.25, 0.0625), got {ratios!r}")
    if not ratios:
        if steps:
            raise ValueError(f"ErrorFeedback: warmup_steps={steps} needs warmup, the ratios to begin with")
        return ()
    if not hasattr(c, "ratio"):
        raise ValueError(f"ErrorFeedback: {c} has no ratio to warm up; use topk, randk or dgc")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"ErrorFeedback: expected warmup_steps of at least 1 for each ratio, got {steps!r}")
    stages = tuple(replace(c, ratio=ratio) for ratio in ratios)  # type: ignore[call-arg]
    for ratio in ratios:
        if ratio < c.ratio:
            raise ValueError(
                f"ErrorFeedback: expected warmup ratios of at least the {c.ratio} of {c}, got {ratio}; "
                "begin with larger ones"
            )
    return stages
