"""What this process keeps of a group: its wire, its thread, memory, totals and agreements of policies."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dance.codecs import Codec
from dance.distributed.agreement import Agreement
from dance.distributed.residual import Encoding
from dance.distributed.totals import Totals
from dance.distributed.turns import Turns
from dance.errors import NonFiniteError
from dance.exchange.wire import Wire
from dance.exchange.worker import Worker
from dance.feedback import ErrorFeedback

_MEMBERS: weakref.WeakKeyDictionary[dist.ProcessGroup, Member] = weakref.WeakKeyDictionary()


class Member:
    """This process as a member of a group; holds no reference to the group, which may end first."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = group.rank()
        self.world = group.size()
        backends = dist.get_backend_config(group)
        self.over_host = "cpu:gloo" in backends  # messages point to point
        self.device = torch.device("cpu")  # where torch's collectives take small tensors of ours
        if not self.over_host:
            if not torch.cuda.is_available():
                raise ValueError(
                    f"dance.distributed: the group's backends are {backends!r}, none of them gloo, and torch "
                    "finds no GPU for another; call init_process_group('gloo')"
                )
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._wire: Wire | None = None
        self.worker = Worker("dance-collectives")
        self.totals = Totals()
        self.turns = Turns()
        self.encoding = Encoding()
        self.calls = 0  # compressed ones: all ranks count alike
        self.auto: dict[bool, Any] = {}  # the policy that "auto" stands for, without and with feedback
        self.unread: tuple[str, torch.Tensor] | None = None  # on a device: whether a call met NaN or infinity
        self._agreements: weakref.WeakKeyDictionary[Any, Agreement] = weakref.WeakKeyDictionary()

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            raise ValueError(
                "collective: the group has no gloo, and links are measured by its messages; make the group "
                "with init_process_group('cpu:gloo,cuda:nccl')"
            )
        return self._wire

    def agreement(self, policy: Any) -> Agreement:
        found = self._agreements.get(policy)
        if found is None:
            found = self._agreements[policy] = Agreement(policy, self.device)
        return found

    def check_codec(self, codec: Codec) -> None:
        """Raises ValueError, without gloo, for a codec whose payloads have no size known beforehand."""
        if not self.over_host and not codec.fixed_size:
            raise ValueError(
                f"{codec}: its size varies, and a group without gloo moves bytes of known size only; take "
                "topk, or a group with both: init_process_group('cpu:gloo,cuda:nccl') and CPU tensors"
            )

    def check_unread(self) -> None:
        """Raises NonFiniteError, at all ranks, if the last call on the device met what is not finite.

        It waits until that call is done: all ranks have to raise in the same call.
        """
        if self.unread is not None:
            (name, bad), self.unread = self.unread, None
            if bad.item():
                raise NonFiniteError(
                    f"{name}: the input of some rank was NaN or infinite; its blocks counted as zero in that "
                    "call; mend the input or pass nonfinite='zero'"
                )

    def owes(self, feedback: ErrorFeedback, keys: Sequence[str | None]) -> bool:
        """Returns whether anything is owed to what goes uncompressed; waits for calls with the same keys that
        are still encoding, and for no others.
        """
        if self.encoding.any(feedback, keys):
            self.worker.drain()
        return any(feedback.owes(key) for key in keys)

    def next_call(self) -> int:
        self.calls += 1
        return self.calls

    def open(self, group: dist.ProcessGroup) -> None:
        if self.over_host:
            self._wire = Wire(group)

    def close(self) -> None:
        self.worker.close()
        if self._wire is not None:
            self._wire.close()


def member_of(group: dist.ProcessGroup | None) -> tuple[dist.ProcessGroup, Member]:
    """Returns the group (None: the default one) and this process's membership, made at the first call."""
    if group is None:
        group = dist.group.WORLD
    if isinstance(group, dist.ProcessGroup):
        found = _MEMBERS.get(group)
        if found is not None:
            return group, found
    if group is None or not dist.is_initialized():
        raise ValueError(
            "dance.distributed: torch.distributed is not initialised; run under torchrun and call "
            "torch.distributed.init_process_group('gloo')"
        )
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError("dance.distributed: this process is no member of the group; call it in members only")
    member = _MEMBERS[group] = Member(group)
    member.open(group)
    weakref.finalize(group, member.close)
    return group, member
