"""From the arguments of a collective with one input and one output to its execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from dance.codecs import Uncompressed
from dance.distributed.call import Call, Options
from dance.distributed.choice import NONE, Choice, CodecLike, by_name, choose, named_codec, policy_of
from dance.distributed.device import DeviceCall
from dance.distributed.device_launch import execute_on_device
from dance.distributed.launch import Launch, direct_stats, new_stats
from dance.distributed.member import Member, member_of
from dance.distributed.residual import Residual, absorb
from dance.distributed.section import Section
from dance.distributed.settings import Settings, dtype_text
from dance.distributed.vector import Vector
from dance.distributed.work import Work

_CPU = torch.device("cpu")

# Of flat input and output: torch's own collective, with async_op or without; ours on the host; on the device.
Direct: TypeAlias = "Callable[[dist.ProcessGroup, torch.Tensor, torch.Tensor, bool], Any]"
Compressed: TypeAlias = "Callable[[Call, Section, torch.Tensor, Options], None]"
OnDevice: TypeAlias = "Callable[[DeviceCall, Section, torch.Tensor], None]"


@dataclass(kw_only=True)
class Submission:
    """A collective of ``input`` into ``outputs``, which together are one vector; `run` executes it.

    ``mean``: divide the sum by the ranks. ``targets``: how many ranks this one sends its input to, None: as
    the collective has it. ``sums``: it is a sum or a mean that is asked for, or no reduction; other
    reductions have no compressed way. ``source``: the rank that has what all get.
    """

    collective: str
    input: torch.Tensor
    outputs: Sequence[torch.Tensor]
    settings: Settings
    mean: bool = False
    targets: int | None = None
    sums: bool = True
    source: int | None = None

    def run(
        self, codec: CodecLike, direct: Direct | None, compressed: Compressed, on_device: OnDevice
    ) -> Work | None:
        """``direct`` None: nothing of torch's does it, so it goes in packets, whatever the codec."""
        settings, who = self.settings, self.collective
        settings.check(who)
        group, member = member_of(settings.group)
        member.check_unread()
        for output in self.outputs:
            if output.dtype != self.input.dtype or output.device != self.input.device:
                raise ValueError(
                    f"{who}: expected an output like the input, {self.input.dtype} on {self.input.device}, "
                    f"got {output.dtype} on {output.device}"
                )
        numel = self.input.numel()
        choice, reason = self._choose(member, by_name(codec, settings.keys[0]), alone=direct is None)
        settings.check_codec(who, choice.codec, self.input)
        stats = new_stats(who, member.world, numel, self.input)
        launch = Launch(
            group=group,
            member=member,
            stats=stats,
            tensors=self.outputs,
            choices=[choice] if choice.policy is not None else (),
            async_op=settings.async_op,
        )
        stats.reason = reason
        if direct is not None and (reason or isinstance(choice.codec, Uncompressed)):
            return self._direct(launch, direct)
        return self._compressed(launch, choice, compressed, on_device)

    def _choose(self, member: Member, codec: CodecLike, *, alone: bool) -> tuple[Choice, str]:
        """Returns the codec, and why the call goes direct though compression was asked for ("": it does not).

        A policy is only asked where it has a choice. ``alone``: there is no direct way.
        """
        feedback = self.settings.feedback
        policy = policy_of(member, codec, feedback=feedback is not None)
        key = self.settings.keys[0]
        reason = "" if alone else self.settings.only_direct([self.input], member.world, sums=self.sums)
        if policy is None:
            named = named_codec(codec, feedback, key)
            return Choice(codec=named), "" if isinstance(named, Uncompressed) else reason
        if reason:
            return Choice(codec=NONE), reason
        choice = choose(
            member,
            policy,
            kind=self.collective,
            target=key or "",
            numel=self.input.numel(),
            dtype=dtype_text(self.input),
            feedback=feedback is not None,
            device=self.input.device.type,
        )
        return choice, "policy" if isinstance(choice.codec, Uncompressed) and not alone else ""

    def _direct(self, launch: Launch, start: Direct) -> Work | None:
        direct_stats(launch.stats)
        source, device = self.input.detach(), self.input.device
        feedback, keys = self.settings.feedback, self.settings.keys
        in_place = self.outputs[0] is self.input  # what is paid then shows here, too
        owed = feedback is not None and self.targets != 0 and launch.member.owes(feedback, keys)
        if owed and not in_place:
            source = source.clone(memory_format=torch.contiguous_format)
        given = Vector([source], device)
        if feedback is not None:
            if owed:
                absorb(feedback, keys, [source], given.values)
            feedback.count(keys[0])
        taken = given if in_place else Vector(self.outputs, device, read=False)

        mean, world = self.mean, launch.member.world

        def after() -> None:
            if mean:
                taken.values.div_(world)
            taken.give_back()

        return launch.direct(lambda later: start(launch.group, given.values, taken.values, later), after)

    def _compressed(
        self, launch: Launch, choice: Choice, execute: Compressed, on_device: OnDevice
    ) -> Work | None:
        settings, stats, member = self.settings, launch.stats, launch.member
        feedback, key = settings.feedback, settings.keys[0]
        member.check_codec(choice.codec)
        number = member.next_call()
        # Neighbours may each have a key of their own.
        keys: Sequence[str | None] = () if self.collective == "neighbor_exchange" else settings.keys
        options = Options(mean=self.mean, nonfinite=settings.nonfinite, source=self.source, keys=keys)
        stats.codec, stats.algorithm = str(choice.codec), "one-shot"
        if self.targets is not None:
            stats.raw_bytes = self.targets * self.input.numel() * self.input.element_size()
        step = number
        if feedback is not None:
            step = feedback.step(key)
            feedback.slot("residual", key, self.input.shape)  # refuses another shape before anything is sent
            feedback.count(key)
        device = _CPU if member.over_host else self.input.device
        given = Vector([self.input], device)
        in_place = len(self.outputs) == 1 and self.outputs[0] is self.input
        taken = given if in_place else Vector(self.outputs, device, read=False)

        def section_of() -> Section:
            residual = None
            if feedback is not None and self.targets != 0:
                residual = Residual(feedback, [key], [self.input], device)
            return Section(
                codec=choice.codec,
                values=given.values,
                residual=residual,
                key=key or "",
                seed=settings.seed or 0,
                step=step,
                rank=member.rank,
            )

        def body() -> torch.cuda.Event | None:
            given.ready()
            event = None
            try:
                execute(Call(member.wire, number, stats, options), section_of(), taken.values, options)
            finally:
                event = taken.give_back()
            return event

        if member.over_host:
            return launch.compressed(member.encoding.until(body, feedback, [key]))

        def device_body(call: DeviceCall) -> list[Section]:
            section = section_of()
            on_device(call, section, taken.values)
            taken.give_back()
            return [section]

        return execute_on_device(launch, options, device_body)
