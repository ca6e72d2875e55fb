"""What each of torch's own collectives took where many are under way: its time without its queue."""

from __future__ import annotations

import threading


class Turns:
    """The direct calls of a group in the order in which they end; from any thread.

    torch says when a call ends, not when it leaves the queue, and gloo executes two at a time. So a call
    begins when it is enqueued or when the one before it ends, whichever is later; and if it was enqueued
    before that end, the time of the two is shared out by their bytes, or every second would take nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start_s = self._end_s = 0.0  # of the call that ended last, by the clock of time.monotonic
        self._num_bytes = 0

    def taken_s(self, enqueued_s: float, ended_s: float, num_bytes: int) -> float:
        """Returns the seconds of a call of ``num_bytes`` that has just ended."""
        with self._lock:
            seconds = ended_s - enqueued_s
            if enqueued_s < self._end_s and num_bytes + self._num_bytes > 0:
                both_s = ended_s - self._start_s
                seconds = min(seconds, both_s * num_bytes / (num_bytes + self._num_bytes))
            self._start_s = min(max(enqueued_s, self._end_s), ended_s)
            self._end_s, self._num_bytes = max(ended_s, self._end_s), num_bytes
            return seconds
