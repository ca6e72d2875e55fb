"""How all ranks come to hold the same figures, from which a policy decides the same at each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dance.errors import PeerError
from dance.exchange.waiting import lost

_EARLY_CALLS = 3


class Agreement:
    """The figures of one policy in one group: now and then all-reduced with MAX, handed over later.

    All is called on the caller's thread, in the same order at all ranks. Figures of the first calls are due
    at the start of the next, later ones a call after that, which hides what their exchange takes. A peer that
    is late or gone shows there first: `begin` and `share` raise PeerError.
    """

    def __init__(self, policy: Any, device: torch.device) -> None:
        self._policy = policy
        self._device = device
        self._pending: deque[tuple[int, Any, torch.Tensor]] = deque()
        self._calls = 0
        self._round = 0

    def begin(self) -> int:
        """Hands over what was agreed on and is due; returns the number of this call: the policy's own count
        goes on, which its snapshot holds.
        """
        self._calls += 1
        while self._pending and self._pending[0][0] <= self._calls:
            _, work, figures = self._pending.popleft()
            _through(work.wait)
            self._policy.agree(figures.cpu().numpy())
        self._round = getattr(self._policy, "round", self._round) + 1
        return self._round

    def share(self, group: dist.ProcessGroup) -> bool:
        """Shares this rank's figures if it is time to; returns whether it was."""
        if not self._policy.shares(self._round):
            return False
        figures = torch.from_numpy(np.array(self._policy.figures(), dtype=np.float64)).to(self._device)
        work = _through(lambda: dist.all_reduce(figures, dist.ReduceOp.MAX, group=group, async_op=True))
        due = self._calls + (1 if self._calls <= _EARLY_CALLS else 2)
        self._pending.append((due, work, figures))
        return True


def _through(body: Callable[[], Any]) -> Any:
    try:
        return body()
    except RuntimeError as error:
        raise PeerError(lost("policy: what ranks measured", error)) from error
