"""What an asynchronous collective hands out, and what one call cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch


@dataclass(kw_only=True)
class CallStats:
    """What one collective did at this rank.

    ``algorithm`` is that of `dance.plan` ("mixed": of a coalesced call); ``reason`` says why a direct one is
    direct ("": asked for; "policy", "under min_bytes", "one rank", "dtype", "op"). ``bytes_sent`` and
    ``bytes_received`` count what went over the wire, headers included; of a direct collective torch does not
    tell, so they are what its ring sends (`dance.plan`).
    ``raw_bytes`` is what the same collective would have sent uncompressed. ``encode_s`` and ``decode_s`` are
    the seconds that coding took at this rank, ``check_s`` the part of them that checksums, headers and the
    checking of what came took, ``wire_s`` those in which a payload was on its way to it (None
    of a direct one), ``seconds`` all of it but the time in a queue. ``nonfinite``: whether the
    input of some rank held NaN or infinity; every rank is told (None of a direct one: nobody looked). Of a
    call on a GPU without gloo it is None, and ``nonfinite_flag`` a tensor there, of one element: not 0 if so.
    """

    collective: str
    algorithm: str
    codec: str
    world: int
    numel: int
    reason: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    raw_bytes: int = 0
    seconds: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    check_s: float = 0.0
    wire_s: float | None = None
    nonfinite: bool | None = None
    nonfinite_flag: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def spoil(self, tensor: torch.Tensor) -> None:
        """Makes NaN of ``tensor``, in place, if the input of some rank was not finite; nothing waits."""
        if self.nonfinite_flag is not None:
            if tensor.is_cuda:
                self.nonfinite_flag.record_stream(torch.cuda.current_stream(tensor.device))
            tensor.masked_fill_(self.nonfinite_flag != 0, torch.nan)
        elif self.nonfinite:
            tensor.fill_(torch.nan)


class Work:
    """A collective under way, as torch's: wait for it before touching its tensors."""

    def __init__(self, stats: CallStats, tensors: Sequence[torch.Tensor]) -> None:
        self._stats = stats
        self._tensors = list(tensors)
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._future: torch.futures.Future[list[torch.Tensor]] | None = None
        self._event: torch.cuda.Event | None = None  # when results are on the GPU

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits until the collective is done and returns True; raises what went wrong.

        ``timeout`` is how long this call waits at most (TimeoutError); the collective goes on. Without it,
        the wait ends with the group's timeout. Of CUDA tensors, the current stream waits.
        """
        if not self._done.wait(None if timeout is None else timeout.total_seconds()):
            raise TimeoutError(f"{self._stats.collective}: not done within {timeout}; wait again, or longer")
        if self._error is not None:
            raise self._error
        if self._event is not None:
            self._event.wait()
        return True

    def is_completed(self) -> bool:
        """Returns whether it is done, well or not."""
        return self._done.is_set()

    def exception(self) -> BaseException | None:
        """Returns what went wrong, None while nothing has."""
        return self._error

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Returns a future of the list of tensors that hold the result, the same one every time."""
        with self._lock:
            late = self._future is None and self._done.is_set()
            if self._future is None:
                devices: list[Any] = sorted({t.device.index for t in self._tensors if t.is_cuda})
                self._future = torch.futures.Future(devices=devices or None)
            future = self._future
        if late:
            self._complete(future)
        return future

    def stats(self) -> CallStats:
        """Returns what the collective did and cost; complete when it is done."""
        return self._stats

    def finish(self, error: BaseException | None, event: torch.cuda.Event | None = None) -> None:
        """Ends it, well or with ``error``; for whoever executes the collective."""
        with self._lock:
            self._error, self._event = error, event
            self._done.set()  # first: callbacks of the future find it done
            future = self._future
        if future is not None:
            self._complete(future)

    def _complete(self, future: torch.futures.Future[list[torch.Tensor]]) -> None:
        if self._error is not None:
            future.set_exception(self._error)  # type: ignore[arg-type]
            return
        if self._event is not None:
            self._event.wait()  # the future records an event of the current stream
        future.set_result(self._tensors)


def guarded(body: Callable[[], object]) -> BaseException | None:
    """Executes ``body`` and returns what it raised."""
    try:
        body()
    except BaseException as error:
        return error
    return None
