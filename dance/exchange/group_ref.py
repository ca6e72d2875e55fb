"""A process group that is not kept alive."""

from __future__ import annotations

import weakref

import torch.distributed as dist


class GroupRef:
    """A group (None: the default one) for state that callbacks refer to.

    They run and are dropped on gloo's threads, maybe after all else of the group; a thread that ends its own
    group waits for itself, and the process is aborted.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = None if group is None else weakref.ref(group)

    def get(self) -> dist.ProcessGroup | None:
        """Returns the group; ValueError where it is gone."""
        if self._group is None:
            return None
        group = self._group()
        if group is None:
            raise ValueError("the process group is gone; do not destroy it while it is in use")
        return group
