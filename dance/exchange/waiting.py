"""Waiting for a gloo operation until a deadline, what is said of a lost one, and what may be drained."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

_DRAIN_SLACK = 1 << 16  # bytes beyond what was expected that a refused payload may have and be received


def wait_until(work: Any, deadline_s: float) -> None:
    """Waits until ``deadline_s`` of time.monotonic; RuntimeError after it or when the peer is lost."""
    # No less than a tick: to gloo a timeout of zero is none.
    work.wait(timedelta(seconds=max(0.001, deadline_s - time.monotonic())))


def lost(what: str, error: BaseException) -> str:
    """Returns what is said of ``what`` when ``error`` has ended it: gloo closes all pairs of the group."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"{what} did not get through ({reason}); the process group is of no more use"


def why_lost(error: BaseException) -> str:
    """Returns what may be the matter when ``error`` is that of a timeout, here or at the peer, who then
    closes connections; else "".
    """
    text = str(error).lower()
    if not any(word in text for word in ("timed out", "timeout", "connection")):
        return ""
    return (
        "a rank may have ended or be late, or ranks may differ in codec, min_bytes, or the size of a tensor: "
        "one that compresses and one that does not wait for each other"
    )


def drains(payload_nbytes: int, numel: int) -> bool:
    """Returns whether a refused payload is worth its memory: of no more bytes than ``numel`` floats and some
    take, it is received all the same, so that its sender may go on.
    """
    return payload_nbytes <= 4 * numel + _DRAIN_SLACK
