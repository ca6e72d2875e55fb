"""What the hook keeps from step to step: residuals and factors by parameter name, and the number of steps."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dance.feedback
from dance.codecs import CODECS, Codec, Like
from dance.codecs import codec as to_codec
from dance.codecs.value import unknown_codec
from dance.ddp.layout import Layout
from dance.ddp.names import ParameterNames, named_parameters
from dance.ddp.rules import Rules
from dance.distributed import CallStats, Work
from dance.distributed.totals import Totals
from dance.feedback import ErrorFeedback
from dance.plan import plan
from dance.policy import Auto
from dance.policy.per_layer import part_of, ruled
from dance.powersgd import LowRank, PowerSGD

NONE = to_codec("none")

# A codec (text or value), "auto" or another policy, or PowerSGD ("powersgd:rank=4", or its settings).
Algorithm: TypeAlias = "Like | PowerSGD | Any"


class CompressionState:
    """The state of `compress_hook` for one DDP module; every rank makes it with the same arguments.

    ``codec`` may be set anew between two steps: residuals go on with any other. ``rules`` map patterns of
    parameter names (``"*.bias"``; the first that fits counts) to codecs; other vectors, such as biases and
    norms, take bf16, and everything else takes ``codec``. The first ``start_step`` steps go uncompressed, and
    so do buckets of less than ``min_bytes``. ``feedback`` adds what could not be sent to the next gradient of
    that name; None: where the residuals of a codec are bounded. ``seed`` is the run's, for stochastic codecs.

    A rank contributes gradient / world size, so a residual is a share of the mean as well: the sum over ranks
    is what the parameters are still owed, whatever the world size becomes.
    """

    def __init__(
        self,
        codec: Algorithm = "auto",
        *,
        rules: Mapping[str, Like] | None = None,
        start_step: int = 0,
        min_bytes: int = 65536,
        feedback: bool | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("start_step", start_step), ("min_bytes", min_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"CompressionState: expected {name} to be a count, got {value!r}")
        self._rules = Rules(rules)
        self._auto: Auto | None = None  # that of "auto", whose memory is this state's
        self._feedback = feedback
        self.codec = codec
        self.start_step = start_step
        self.min_bytes = min_bytes
        self.seed = seed
        self.step = 0  # that have been reduced, or are being
        self.names = ParameterNames()
        self.layout = Layout()
        self.residuals = ErrorFeedback("int8")  # a store: every call names the codec it uses
        self.factors = LowRank(PowerSGD())
        self._world = 0  # that the residuals belong to; 0: none yet
        self._loaded: tuple[int, int] | None = None  # rank and world of a snapshot, until a group is known
        self._named: dict[str, int | None] = {}  # parameters of that snapshot, until a module is known
        self._totals = Totals()

    def __repr__(self) -> str:
        codec = str(self._codec) if isinstance(self._codec, (Codec, PowerSGD)) else self._codec
        return f"CompressionState({codec!r}; {self.step} steps)"

    @property
    def codec(self) -> Any:
        """The codec, policy or PowerSGD settings of what no rule names."""
        return self._codec

    @codec.setter
    def codec(self, codec: Algorithm) -> None:
        parsed = codec
        if isinstance(codec, str) and codec == "auto":
            self._auto = self._auto or Auto()
            parsed = self._auto
        elif isinstance(codec, str):
            parsed = _parsed(codec)
        elif not isinstance(codec, (Codec, PowerSGD)) and not hasattr(codec, "choose"):
            raise ValueError(
                "CompressionState: expected a codec, a policy or PowerSGD, "
                f"got {type(codec).__name__} {reprlib.repr(codec)}; "
                'pass a text such as "auto", "int8" or "powersgd:rank=4"'
            )
        if self._feedback and isinstance(parsed, Codec) and not parsed.bounded:
            raise ValueError(f"CompressionState: {parsed} leaves residuals unbounded; pass feedback=None")
        if self._feedback is False and isinstance(parsed, PowerSGD):
            raise ValueError(
                "CompressionState: PowerSGD does not converge without feedback; pass feedback=None"
            )
        self._codec = parsed

    def codec_of(self, name: str, ndim: int) -> Any:
        """Returns the codec, or the policy, of a parameter; with PowerSGD that of what has no factors."""
        given = NONE if isinstance(self._codec, PowerSGD) else self._codec
        rule = ruled(given, name)  # of a policy for each name: it counts as those of the user do
        return self._rules.choose(name, ndim, part_of(given, name)) if rule is None else rule

    def keeps_residual(self, codec: Any) -> bool:
        """Returns whether what ``codec``, or a policy, cannot send is kept."""
        bounded = codec.bounded if isinstance(codec, Codec) else True
        return bounded and self._feedback is not False

    def serve(self, ddp: DistributedDataParallel) -> None:
        """Works for ``ddp`` from now on, whose first step is grouped as the last step before was."""
        self.check_loaded(ddp)
        self._loaded, self._named = None, {}
        self.names.take(ddp)
        for pattern in self._rules.idle(self.names.sizes):
            warnings.warn(
                f"CompressionState: no parameter fits the rule {pattern!r}; names are those of "
                f"model.named_parameters(), such as {next(iter(self.names.sizes), '')!r}",
                stacklevel=3,
            )
        self.layout.expect(self.layout.buckets)

    def names_of(self, parameters: Sequence[torch.Tensor]) -> list[str]:
        """Returns the names of ``parameters``; where they are new, their DDP module is looked for."""
        if not self.names.know(parameters):
            self.serve(self.names.owner(self, parameters[0]))
        return self.names.of(parameters)

    def check_loaded(self, ddp: DistributedDataParallel) -> None:
        """ValueError where a snapshot was loaded that is not of the model in ``ddp``, or not of this rank in
        its group.
        """
        self._check(self._loaded, ddp.process_group)
        if self._named:
            _check_names(self._named, {name: each.numel() for name, each in named_parameters(ddp).items()})

    def _check(self, loaded: tuple[int, int] | None, group: dist.ProcessGroup | None) -> None:
        """The same of ``loaded``, rank and world of a snapshot."""
        if loaded is None:
            return
        (rank, world), here = loaded, (dist.get_rank(group), dist.get_world_size(group))
        if loaded != here:
            raise ValueError(
                f"CompressionState: the snapshot is of rank {rank} of {world}, this is "
                f"rank {here[0]} of {here[1]}; every rank loads its own, and where their number has changed "
                "dance.ddp.reshard(the snapshots of all ranks, rank, world)"
            )

    def begin(self) -> None:
        """ValueError where the residuals belong to another world size than that of the group served."""
        world = dist.get_world_size(self.names.group)
        if self._world not in (0, world):
            raise ValueError(
                f"CompressionState: its residuals are one rank's of {self._world}, the group has {world}; "
                "load_state_dict(dance.ddp.reshard(the snapshots of all ranks, rank, world))"
            )
        self._world = world

    def residual(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Returns the residual of ``name`` itself, made of zeros of the shape of ``like`` where it is new."""
        found: torch.Tensor = self.residuals.open(name, like)
        if found.device != like.device:
            self.residuals.put("residual", name, found := found.to(like.device))
        return found

    def count(self, work: Work) -> None:
        """Notes a collective that has ended; from any thread."""
        self._totals.add(work.stats(), failed=work.exception() is not None)

    def end_step(self) -> None:
        """The last bucket of a step has been handed over."""
        self.step += 1
        self.layout.end_step()

    def count_factored(self, numel: int, dtype: str) -> None:
        """Notes that ``numel`` elements go by way of `factors`, which count what that takes themselves."""
        raw = plan("all_reduce", "none", numel, self._world, dtype=dtype)
        call = CallStats(
            collective="all_reduce",
            algorithm="powersgd",
            codec=str(self._codec),
            world=self._world,
            numel=numel,
            raw_bytes=raw.bytes_sent,
        )
        self._totals.add(call, failed=False)

    def stats(self) -> dict[str, Any]:
        """Returns running totals of this rank, as `dance.distributed.stats` has them, and the steps."""
        totals = {"steps": self.step, **self._totals.read()}
        for name, value in self.factors.stats().items():
            totals[name] += value
        return totals

    def rescale(self, factor: float) -> None:
        """Multiplies all residuals by ``factor``: that of a loss scale that has changed (torch.amp)."""
        snapshot = self.residuals.state_dict()
        for residual in snapshot["residuals"].values():
            residual.mul_(factor)
        self.residuals.load_state_dict(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot of this rank: every rank saves its own. Tensors are copies.

        The codec is not in it, for residuals fit any; the memory of a policy, that of "auto" included, is.
        """
        policy = getattr(self._codec, "state_dict", None)
        rank = self._loaded[0] if self._loaded else dist.get_rank(self.names.group) if self._world else 0
        return {
            "step": self.step,
            "rank": rank,
            "world": self._world,
            "residuals": self.residuals.state_dict(),
            "factors": self.factors.state_dict(),
            "layout": self.layout.buckets,
            "policy": None if policy is None else policy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the snapshot of this rank, tensors copied; a run goes on as if it had not stopped.

        ValueError, which changes nothing, where it is of another model, another rank's, or of another world
        size (see `reshard`); before there is a DDP module that could tell, `attach` raises it. The memory of
        a policy is dropped where there is none now.
        """
        if not isinstance(state, Mapping) or "residuals" not in state:
            raise ValueError("CompressionState: expected what state_dict or reshard gave")
        loaded = (state["rank"], state["world"]) if state["world"] else None
        named: dict[str, int | None] = dict.fromkeys(name for names in state["layout"] for name in names)
        named |= dict.fromkeys(state["factors"]["factors"])
        named |= {name: each.numel() for name, each in state["residuals"]["residuals"].items()}
        if self.names.serving:
            self._check(loaded, self.names.group)
            _check_names(named, self.names.sizes)
            loaded, named = None, {}
        self._loaded, self._named = loaded, named
        self.residuals.load_state_dict(state["residuals"])
        self.factors.load_state_dict(state["factors"])
        if state["policy"] is not None and hasattr(self._codec, "load_state_dict"):
            self._codec.load_state_dict(state["policy"])
        self.layout.expect(state["layout"])
        self.step, self._world = state["step"], state["world"]


def _parsed(text: str) -> Codec | PowerSGD:
    name = text.partition(":")[0].strip()
    if name == "powersgd":
        return PowerSGD.parse(text)
    examples = {kind.name: kind.examples[0] for kind in CODECS}
    examples |= {PowerSGD.name: PowerSGD.examples[0], "auto": "auto"}
    if name not in examples:
        raise unknown_codec(text, examples)
    return to_codec(text)


def _check_names(named: Mapping[str, int | None], sizes: Mapping[str, int]) -> None:
    """ValueError where a parameter of a snapshot is not in the model, or not of its size; None: unknown."""
    for name, numel in named.items():
        if name not in sizes or numel not in (None, sizes[name]):
            other = f"has {numel} elements, here {sizes[name]}" if name in sizes else "is no parameter here"
            raise ValueError(
                f"CompressionState: the snapshot is of another model: its {name!r} {other}; load it around "
                "the model that it was saved with"
            )


def reshard(states: Sequence[Mapping[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """Returns the snapshot for ``rank`` of ``world`` from those of all ranks, in their order, before.

    The sum of the residuals over all ranks stays what it was (`dance.feedback.reshard`): nothing that the
    parameters are owed is lost. With an unchanged world every rank gets its own snapshot.
    """
    begun = any(state["world"] for state in states)  # before the first step no snapshot knows its rank
    if begun and [(state["rank"], state["world"]) for state in states] != [
        (rank, len(states)) for rank in range(len(states))
    ]:
        found = ", ".join(f"{state['rank']} of {state['world']}" for state in states)
        raise ValueError(f"reshard: expected the snapshots of all ranks in their order, got those of {found}")
    shared = states[rank if len(states) == world else 0]
    parts = [state["residuals"] for state in states]
    return {**shared, "rank": rank, "world": world, "residuals": dance.feedback.reshard(parts, rank, world)}
