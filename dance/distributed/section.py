"""A vector that a collective encodes with one codec, part by part."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from dance import coding
from dance.codecs import DTYPES, SPARSE, Codec, Uncompressed
from dance.distributed.residual import Residual
from dance.errors import NonFiniteError
from dance.exchange.parts import Part
from dance.packet import Packet, derive_seed
from dance.plan import Span

EXACT = Uncompressed()


@dataclass(kw_only=True)
class Section:
    """``values`` (1-D, contiguous) with its codec and residual; all its packets are encoded by `encode`.

    ``seed`` is the run's, ``step`` what tells this encode of ``key`` from others, ``rank`` the sender's: the
    seeds of stochastic codecs follow from them. ``nonfinite_at`` is the first element that was found to be
    NaN or infinite, -1: none; ``encode_s`` the seconds spent so far.
    """

    codec: Codec
    values: torch.Tensor
    residual: Residual | None = None
    key: str = ""
    seed: int = 0
    step: int = 0
    rank: int = 0
    nonfinite_at: int = -1
    encode_s: float = 0.0
    dtype: int = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = DTYPES.index(str(self.values.dtype).removeprefix("torch."))

    def part(self, span: Span) -> Part:
        return Part(self.codec, span[1] - span[0], self.dtype)

    def begin(self) -> None:
        """To be called before the first encode."""
        if self.residual is not None:
            self.residual.before(self.values)

    def encode_exact(self, span: Span, packet: Packet) -> None:
        """Puts the elements of ``span`` into ``packet`` as they are, without the residual; what is not finite
        counts as zero.
        """
        start_s = time.perf_counter()
        try:
            coding.encode(self.values[span[0] : span[1]], EXACT, out=packet)
        except NonFiniteError as error:
            self.found(span[0] + error.index)
        self.encode_s += time.perf_counter() - start_s

    def encode_own(self, span: Span, packet: Packet) -> None:
        """Puts the elements of ``span`` and what is owed to them into ``packet``, exact: they stay here."""
        self._encode(span, packet, EXACT)

    def encode(self, span: Span, packet: Packet, seed: int | None = None) -> None:
        """Encodes the elements of ``span`` into ``packet``; the seed follows from where they start."""
        if seed is None:
            seed = self.packet_seed("send", span[0])
        self._encode(span, packet, self.codec, seed)

    def _encode(self, span: Span, packet: Packet, codec: Codec, seed: int = 0) -> None:
        start, stop = span
        start_s = time.perf_counter()
        x = self.values[start:stop]
        try:
            if self.residual is None:
                coding.encode(x, codec, seed=seed, out=packet)
            else:
                coding.encode_feedback(x, self.residual.values[start:stop], codec, seed=seed, out=packet)
        except NonFiniteError as error:
            self.found(start + error.index)
        if self.residual is not None and self.residual.momentum:
            self.residual.after(span, packet if isinstance(codec, SPARSE) else None)
        self.encode_s += time.perf_counter() - start_s

    def found(self, index: int) -> None:
        """Notes that element ``index`` is not finite."""
        if self.nonfinite_at < 0:
            self.nonfinite_at = index

    def packet_seed(self, phase: str, start: int, *, rank: int | None = None) -> int:
        """Returns the seed of a packet of ``rank`` (None: this one); 0 where the codec needs none."""
        if not self.codec.stochastic:
            return 0
        sender = self.rank if rank is None else rank
        return derive_seed(self.seed, self.step, sender, self.key, f"{phase} {start}")
