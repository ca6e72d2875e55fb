"""What each candidate would cost, and why one was chosen; its text is a table."""

from __future__ import annotations

from dataclasses import dataclass

from dance.policy.send import Send


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Predicted seconds of one candidate; parts are None where only the total is known.

    total_s is less than the sum where coding overlaps the wire, and more where measured calls took longer
    than their parts.
    """

    encode_s: float | None = None
    wire_s: float | None = None
    decode_s: float | None = None
    total_s: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one candidate would cost; ``cost`` is None before the link has been measured.

    num_bytes: sent by the busiest rank, headers included. error: ||decoded - x|| / ||x|| of normal data.
    """

    codec: str
    num_bytes: int
    cost: Cost | None
    error: float
    fits: bool
    chosen: bool
    note: str = ""

    @property
    def predicted_s(self) -> float | None:
        return None if self.cost is None else self.cost.total_s


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The candidates of one send with their cost; ``str()`` of it is a table."""

    send: Send
    rows: tuple[Row, ...]
    reason: str

    @property
    def chosen(self) -> Row:
        return next(row for row in self.rows if row.chosen)

    def __str__(self) -> str:
        titles = ("bytes", "encode", "wire", "decode", "total", "error")
        lines = [f"{'codec':<20}" + "".join(f"{title:>11}" for title in titles) + "  fits"]
        for row in self.rows:
            cost = row.cost
            times = (
                ("unknown",) * 4
                if cost is None
                else tuple(_seconds(s) for s in (cost.encode_s, cost.wire_s, cost.decode_s, cost.total_s))
            )
            cells = (f"{row.num_bytes}", *times, f"{row.error:.1e}")
            mark = "  <- chosen" if row.chosen else f"  ({row.note})" if row.note else ""
            fits = "yes" if row.fits else "no"
            lines.append(f"{row.codec:<20}" + "".join(f"{cell:>11}" for cell in cells) + f"  {fits:<4}{mark}")
        send = self.send
        return "\n".join((*lines, f"{send.kind} of {send.numel}, round {send.round}: {self.reason}"))


def _seconds(seconds: float | None) -> str:
    """Seconds for people: 12.3 us, 4.56 ms, 1.2 s."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
