"""How a collective is executed on the device, and when what is not finite is reported."""

from __future__ import annotations

from collections.abc import Callable

from dance.distributed.call import Options
from dance.distributed.device import DeviceCall
from dance.distributed.launch import Launch
from dance.distributed.section import Section
from dance.distributed.work import Work


def execute_on_device(
    launch: Launch, options: Options, body: Callable[[DeviceCall], list[Section]]
) -> Work | None:
    """Executes ``body``, which returns what it encoded.

    With ``nonfinite="raise"`` all ranks raise NonFiniteError if any input was not finite: at once on the CPU;
    on CUDA in the next call of the group, direct ones included, which for that waits until this one is done
    (`Member.check_unread`). With "zero" nothing waits, and only the stats tell.
    """
    member, stats = launch.member, launch.stats

    def run() -> None:
        timed = any(choice.policy is not None for choice in launch.choices)
        call = DeviceCall(group=launch.group, stats=stats, mean=options.mean, timed=timed)
        sections = body(call)
        if not sections:
            return
        flag = call.nonfinite(sections)
        if flag.is_cuda:
            stats.nonfinite_flag = flag
        else:
            stats.nonfinite = bool(flag.item())
        if options.nonfinite == "raise":
            member.unread = (stats.collective, flag)
            if not flag.is_cuda:
                member.check_unread()

    return launch.on_device(run)
