"""What error feedback keeps for a vector of one or more named tensors, as one vector.

A rank keeps one residual a tensor, in units of the sum over ranks. Of what it sends, it holds what encoding
lost (Seide et al. 2014); where the rank owns a shard, whose own part it does not send, it holds what encoding
the sum lost. So a residual is simply what this rank owes to the sum, wherever shards lie: another algorithm,
codec, grouping or world size changes nothing about it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from dance.arrays import kind_of
from dance.feedback import ErrorFeedback
from dance.packet import Packet
from dance.plan import Span

_T = TypeVar("_T")


class Residual:
    """The residuals of ``keys`` as the vector ``values``, made of zeros where a key is new.

    The arrays of the feedback become parts of that vector, so it is found again by the next call with these
    keys, and taken apart by one with others.
    """

    def __init__(
        self,
        feedback: ErrorFeedback,
        keys: Sequence[str | None],
        tensors: Sequence[torch.Tensor],
        device: torch.device,
    ) -> None:
        self._feedback = feedback
        self._keys = keys
        shapes = [tensor.shape for tensor in tensors]
        self.values = _joined(feedback, "residual", keys, shapes, device)
        self.momentum = feedback.momentum
        if self.momentum:
            self._velocity = _joined(feedback, "velocity", keys, shapes, device)

    def before(self, x: torch.Tensor) -> None:
        """To be called before ``x`` is encoded: momentum correction (Lin et al. 2018)."""
        if self.momentum:
            kind = kind_of(self.values, "residual")
            values, velocity = kind.corrected(self.values, self._velocity, self.momentum, x)
            kind.assign(self.values, values)
            kind.assign(self._velocity, velocity)

    def after(self, span: Span, sent: Packet | None) -> None:
        """To be called when ``span`` was encoded, to mask momentum; ``sent`` is what a sparse codec sent of
        it, None: everything.
        """
        if self.momentum and self._feedback.masking:
            velocity = self._velocity[span[0] : span[1]]
            if sent is None:
                velocity.zero_()
            else:
                kind_of(velocity, "residual").clear(velocity, sent.indices())


class Encoding:
    """The keys whose calls wait or are encoded in the group's thread: their residuals are not known yet."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[int, str | None]] = Counter()  # by feedback and key
        self._lock = threading.Lock()

    def until(
        self, body: Callable[[], _T], feedback: ErrorFeedback | None, keys: Sequence[str | None]
    ) -> Callable[[], _T]:
        """Counts the keys from now on until the function returned, which is ``body``, has been executed."""
        if feedback is None:
            return body
        names = [(id(feedback), key) for key in keys]
        with self._lock:
            self._calls.update(names)

        def and_end() -> _T:
            try:
                return body()
            finally:
                with self._lock:
                    self._calls.subtract(names)
                    self._calls += Counter()  # drops zeros

        return and_end

    def any(self, feedback: ErrorFeedback, keys: Sequence[str | None]) -> bool:
        with self._lock:
            return any((id(feedback), key) in self._calls for key in keys)


def absorb(
    feedback: ErrorFeedback, keys: Sequence[str | None], tensors: Sequence[torch.Tensor], x: torch.Tensor
) -> None:
    """Adds to ``x``, the tensors as one vector that is to go uncompressed, what is owed to it, in place.

    Where x is not finite the residual stays as it was; what a 16-bit x has no room for stays owed.
    """
    residual = Residual(feedback, keys, tensors, x.device)
    residual.before(x)
    residual.after((0, x.numel()), None)
    pay(x, residual.values)
    if not residual.values.any():
        for key in keys:
            feedback.paid(key)


def pay(x: torch.Tensor, owed: torch.Tensor, scale: float = 1.0) -> None:
    """Adds ``scale`` times ``owed`` to ``x`` of any floating dtype, in place, and leaves in ``owed`` what
    rounding to that dtype has lost; where the sum is not finite, what was there.
    """
    total = x.float() + owed.float() * scale
    x.copy_(total)
    left = (total - x.float()) / scale
    owed.copy_(torch.where(torch.isfinite(left), left, owed))


def _joined(
    feedback: ErrorFeedback,
    name: str,
    keys: Sequence[str | None],
    shapes: Sequence[torch.Size],
    device: torch.device,
) -> torch.Tensor:
    """Returns the arrays of ``keys`` as one vector, which they are parts of from then on."""
    found = [feedback.slot(name, key, shape) for key, shape in zip(keys, shapes, strict=True)]
    for key, array in zip(keys, found, strict=True):
        if array is not None and not isinstance(array, torch.Tensor):
            raise ValueError(
                f"ErrorFeedback: the {name} of {key!r} is of another library than torch; use one for each"
            )
    start = _start(found, device)
    if start is not None:
        return start.as_strided((sum(shape.numel() for shape in shapes),), (1,))
    sizes = [shape.numel() for shape in shapes]
    joined = torch.zeros(sum(sizes), dtype=getattr(torch, feedback.residual_dtype), device=device)
    for key, shape, array, part in zip(keys, shapes, found, torch.split(joined, sizes), strict=True):
        place: Any = part.view(shape)
        if array is not None:
            place.copy_(array)
        feedback.put(name, key, place)
    return joined


def _start(arrays: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor | None:
    """Returns the first of the arrays if they lie one behind the other in one storage."""
    first = arrays[0]
    if first is None:
        return None
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for array in arrays:
        if (
            array is None
            or array.device != device
            or not array.is_contiguous()
            or array.data_ptr() != end
            or array.untyped_storage().data_ptr() != storage
        ):
            return None
        end += array.numel() * array.element_size()
    return first
