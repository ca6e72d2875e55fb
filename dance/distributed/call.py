"""One compressed collective under way at this rank: its messages, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dance.distributed.section import Section
from dance.distributed.work import CallStats
from dance.errors import NonFiniteError
from dance.exchange.stamp import NONFINITE, Stamp
from dance.exchange.wire import Wire
from dance.exchange.wire_call import WireCall


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller of a collective has decided.

    ``source``, of a broadcast, and ``keys`` are only compared with those of other ranks.
    """

    mean: bool = False
    nonfinite: str = "raise"
    source: int | None = None
    keys: Sequence[str | None] = ()


class Call(WireCall):
    """The messages of a collective, and its stats."""

    def __init__(self, wire: Wire, number: int, stats: CallStats, options: Options) -> None:
        stamp = Stamp(
            number=number,
            verb=stats.collective,
            mean=options.mean,
            source=options.source,
            keys=options.keys,
        )
        super().__init__(wire, stamp)
        self._stats = stats
        self._options = options

    @contextmanager
    def ending(self, sections: Sequence[Section]) -> Iterator[None]:
        """Around all that a collective does: waits for the rest when it is through, and fills in the stats
        however it ends. Raises PeerError or FrameError, and NonFiniteError at all ranks where ``nonfinite``
        is "raise" and any input was not finite.
        """
        stats = self._stats
        try:
            yield
            self.finish()
        except BaseException as error:
            self.leave(error)
            raise
        finally:
            stats.bytes_sent += self.bytes_sent
            stats.bytes_received += self.bytes_received
            stats.encode_s += sum(section.encode_s for section in sections) + self.seal_s
            stats.decode_s += sum(self.decode_s) + sum(self.check_s)
            stats.check_s += self.seal_s + sum(self.check_s)
            stats.wire_s = self.observe()
            stats.nonfinite = bool(self.flags & NONFINITE)
        if stats.nonfinite and self._options.nonfinite == "raise":
            raise self._nonfinite(sections)

    def _nonfinite(self, sections: Sequence[Section]) -> NonFiniteError:
        remedy = "it counted as zero everywhere; mend the input or pass nonfinite='zero'"
        for section in sections:
            index = section.nonfinite_at
            if index >= 0:
                what = f"element {index}" + (f" of {section.key}" if section.key else "")
                return NonFiniteError(
                    f"{self._stats.collective}: {what} of rank {self.rank} is NaN or infinite; {remedy}",
                    index,
                )
        ranks = ", ".join(str(rank) for rank in sorted(set(self.nonfinite_at)))
        return NonFiniteError(
            f"{self._stats.collective}: rank {ranks} tells of an input that is NaN or infinite; {remedy}"
        )
