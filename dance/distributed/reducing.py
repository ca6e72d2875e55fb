"""From the arguments of an all-reduce to its execution: tensors by codec, direct or compressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from dance.codecs import Uncompressed
from dance.distributed.all_reduce import AllReduce
from dance.distributed.call import Call, Options
from dance.distributed.choice import NONE, Choice, CodecLike, by_name, choose, named_codec, policy_of
from dance.distributed.device import DeviceCall
from dance.distributed.device_launch import execute_on_device
from dance.distributed.launch import Launch, direct_stats, new_stats
from dance.distributed.member import Member, member_of
from dance.distributed.residual import Residual, absorb
from dance.distributed.section import Section
from dance.distributed.settings import Settings, check_op, check_tensors, dtype_text
from dance.distributed.vector import Vector
from dance.distributed.work import Work
from dance.plan import plan

_CPU = torch.device("cpu")
_SUM, _AVG = dist.ReduceOp.SUM, dist.ReduceOp.AVG


@dataclass
class _Bundle:
    """Tensors that one codec encodes as one vector."""

    choice: Choice
    tensors: list[torch.Tensor] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def numel(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def direct(self) -> bool:
        return isinstance(self.choice.codec, Uncompressed)


def all_reduce_tensors(
    tensors: Sequence[torch.Tensor], op: Any, codecs: Sequence[CodecLike], settings: Settings
) -> Work | None:
    """All-reduces ``tensors``, of one dtype and device, in place; ``codecs`` holds one for each."""
    check_tensors("all_reduce", *tensors)
    check_op("all_reduce", op)
    group, member = member_of(settings.group)
    settings.check("all_reduce")
    member.check_unread()
    first = tensors[0]
    if op == _AVG:
        settings.check_average("all_reduce", first)
    bundles, reason = _bundles(tensors, codecs, settings, member, sums=op in (_SUM, _AVG))
    stats = new_stats("all_reduce", member.world, sum(bundle.numel for bundle in bundles), first)
    stats.reason = reason
    launch = Launch(
        group=group,
        member=member,
        stats=stats,
        tensors=tensors,
        choices=_shares(bundles, member.world, direct=reason != ""),
        async_op=settings.async_op,
    )
    if stats.reason or all(bundle.direct for bundle in bundles):
        if op not in (_SUM, _AVG) and settings.feedback is not None:
            raise ValueError(f"all_reduce: feedback keeps what is owed to a sum; got op {op}")
        return _direct(launch, op, bundles, settings)
    if op not in (_SUM, _AVG):
        raise ValueError(f"all_reduce: compressed there is SUM and AVG, got {op}; pass codec='none'")
    return _compressed(launch, op == _AVG, bundles, settings)


def _bundles(
    tensors: Sequence[torch.Tensor],
    codecs: Sequence[CodecLike],
    settings: Settings,
    member: Member,
    *,
    sums: bool,
) -> tuple[list[_Bundle], str]:
    """Returns what is encoded together, and why nothing is though it was asked for ("": something is, or
    it was not asked for). Policies are only asked where they have a choice.
    """
    first = tensors[0]
    feedback = settings.feedback
    bundles: dict[Any, _Bundle] = {}
    by_policy: dict[int, tuple[Any, list[int]]] = {}
    for k, (tensor, given) in enumerate(zip(tensors, codecs, strict=True)):
        like = by_name(given, settings.keys[k])
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"all_reduce: expected tensors of one dtype and device, got {first.dtype} on {first.device} "
                f"and {tensor.dtype} on {tensor.device}; make a call for each"
            )
        policy = policy_of(member, like, feedback=feedback is not None)
        if policy is not None:
            by_policy.setdefault(id(policy), (policy, []))[1].append(k)
            continue
        codec = named_codec(like, feedback, settings.keys[k])
        settings.check_codec("all_reduce", codec, tensor)
        _put(bundles, codec, Choice(codec=codec), tensor, settings.keys[k])
    wanted = [t for bundle in bundles.values() if not bundle.direct for t in bundle.tensors]
    named = len(wanted)
    wanted += [tensors[k] for _, numbers in by_policy.values() for k in numbers]
    reason = settings.only_direct(wanted, member.world, sums=sums or named > 0) if wanted else ""
    for policy, numbers in by_policy.values():
        if reason:
            for k in numbers:
                _put(bundles, NONE, Choice(codec=NONE), tensors[k], settings.keys[k])
            continue
        chosen = choose(
            member,
            policy,
            kind="all_reduce",
            target=settings.keys[numbers[0]] or "",
            numel=sum(tensors[k].numel() for k in numbers),
            dtype=dtype_text(first),
            feedback=feedback is not None,
            device=first.device.type,
        )
        settings.check_codec("all_reduce", chosen.codec, first)
        for k in numbers:
            _put(bundles, (id(policy), chosen.codec), chosen, tensors[k], settings.keys[k])
    if any(bundle.direct and bundle.choice.policy is not None for bundle in bundles.values()):
        reason = "policy"  # where the large ones do not pay, a second message for the rest does not either
    return list(bundles.values()), reason


def _shares(bundles: Sequence[_Bundle], world: int, *, direct: bool) -> list[Choice]:
    """Returns the choices of policies, each with its share of the bytes that are sent."""
    sizes = []
    for bundle in bundles:
        codec = NONE if direct else bundle.choice.codec
        dtype = dtype_text(bundle.tensors[0])
        sizes.append(plan("all_reduce", codec, bundle.numel, world, dtype=dtype).bytes_sent)
    total = max(1, sum(sizes))
    return [
        replace(bundle.choice, share=size / total)
        for bundle, size in zip(bundles, sizes, strict=True)
        if bundle.choice.policy is not None
    ]


def _put(
    bundles: dict[Any, _Bundle], name: Any, choice: Choice, tensor: torch.Tensor, key: str | None
) -> None:
    bundle = bundles.setdefault(name, _Bundle(choice))
    bundle.tensors.append(tensor)
    bundle.keys.append(key)


def _direct(launch: Launch, op: Any, bundles: Sequence[_Bundle], settings: Settings) -> Work | None:
    tensors = [tensor for bundle in bundles for tensor in bundle.tensors]
    keys = [key for bundle in bundles for key in bundle.keys]
    launch.stats.algorithm = "direct"
    direct_stats(launch.stats)
    feedback = settings.feedback
    owed = feedback is not None and launch.member.owes(feedback, keys)
    vector = Vector(tensors, tensors[0].device)
    if feedback is not None:
        if owed:
            absorb(feedback, keys, tensors, vector.values)
        for key in keys:
            feedback.count(key)
    average = op == _AVG
    plain, world = _SUM if average else op, launch.member.world

    def after() -> None:
        if average:
            vector.values.div_(world)
        vector.give_back()

    return launch.direct(
        lambda later: dist.all_reduce(vector.values, plain, group=launch.group, async_op=later), after
    )


def _compressed(launch: Launch, mean: bool, bundles: Sequence[_Bundle], settings: Settings) -> Work | None:
    stats, member, feedback = launch.stats, launch.member, settings.feedback
    for bundle in bundles:
        member.check_codec(bundle.choice.codec)
    number = member.next_call()
    options = Options(mean=mean, nonfinite=settings.nonfinite, keys=[k for b in bundles for k in b.keys])
    stats.codec = " + ".join(dict.fromkeys(str(bundle.choice.codec) for bundle in bundles))
    algorithms = {
        plan("all_reduce", bundle.choice.codec, bundle.numel, member.world).algorithm for bundle in bundles
    }
    stats.algorithm = algorithms.pop() if len(algorithms) == 1 else "mixed"
    device = _CPU if member.over_host else bundles[0].tensors[0].device
    vectors = [Vector(bundle.tensors, device) for bundle in bundles]
    steps = []
    for bundle in bundles:
        steps.append(number if feedback is None else feedback.step(bundle.keys[0]))
        if feedback is not None:
            for key, tensor in zip(bundle.keys, bundle.tensors, strict=True):
                feedback.slot("residual", key, tensor.shape)  # refuses another shape before anything is sent
                feedback.count(key)

    def sections_of() -> list[Section]:
        sections = []
        for bundle, vector, step in zip(bundles, vectors, steps, strict=True):
            vector.ready()
            residual = None
            if feedback is not None:
                residual = Residual(feedback, bundle.keys, bundle.tensors, device)
            sections.append(
                Section(
                    codec=bundle.choice.codec,
                    values=vector.values,
                    residual=residual,
                    key=bundle.keys[0] or "",
                    seed=settings.seed or 0,
                    step=step,
                    rank=member.rank,
                )
            )
        return sections

    def body() -> torch.cuda.Event | None:
        sections = sections_of()
        try:
            AllReduce(Call(member.wire, number, stats, options), sections, options).run()
        finally:
            events = [vector.give_back() for vector in vectors]
        return events[-1]

    if member.over_host:
        keys = [key for bundle in bundles for key in bundle.keys]
        return launch.compressed(member.encoding.until(body, feedback, keys))

    def on_device(call: DeviceCall) -> list[Section]:
        sections = sections_of()
        for section, vector in zip(sections, vectors, strict=True):
            call.all_reduce(section)
            vector.give_back()
        return sections

    return execute_on_device(launch, options, on_device)
