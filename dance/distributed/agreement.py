"""How all ranks come to hold the same figures, from which a policy decides the same at each."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_EARLY_CALLS = 3


class Agreement:
    """The figures of one policy in one group: now and then all-reduced with MAX, handed over later.

    All is called on the caller's thread, in the same order at all ranks. Figures of the first calls are due
    at the start of the next, later ones a call after that, which hides what their exchange takes.
    """

    def __init__(self, policy: Any, device: torch.device) -> None:
        self._policy = policy
        self._device = device
        self._pending: deque[tuple[int, Any, torch.Tensor]] = deque()
        self.calls = 0

    def begin(self) -> int:
        """Hands over what was agreed on and is due; returns the number of this call, from 1."""
        self.calls += 1
        while self._pending and self._pending[0][0] <= self.calls:
            _, work, figures = self._pending.popleft()
            work.wait()
            self._policy.agree(figures.cpu().numpy())
        return self.calls

    def share(self, group: dist.ProcessGroup) -> bool:
        """Shares this rank's figures if it is time to; returns whether it was."""
        if not self._policy.shares(self.calls):
            return False
        figures = torch.from_numpy(np.array(self._policy.figures(), dtype=np.float64)).to(self._device)
        work = dist.all_reduce(figures, dist.ReduceOp.MAX, group=group, async_op=True)
        due = self.calls + (1 if self.calls <= _EARLY_CALLS else 2)
        self._pending.append((due, work, figures))
        return True
