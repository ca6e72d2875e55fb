"""Local SGD (Stich 2019) and DiLoCo (Douillard et al. 2023): ranks train alone and average every H steps.

After H inner steps each rank sends its pseudo-gradient theta_start - theta, compressed; the mean of what all
ranks sent is the gradient of an outer optimizer, whose step every rank takes from theta_start. One message in
H steps instead of one a step, and a codec on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

import dance.distributed as dd
import dance.feedback
from dance.codecs import Codec
from dance.codecs import codec as to_codec
from dance.feedback import ErrorFeedback

Parameters: TypeAlias = "torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]"


class OuterSGD(torch.optim.Optimizer):
    """SGD with Nesterov momentum; the defaults are DiLoCo's. lr=1, momentum=0 is plain averaging.

        buffer = momentum * buffer + gradient;  parameter -= lr * (gradient + momentum * buffer)

    Equal inputs give equal bits on all machines, since every operation is rounded by itself. torch.optim.SGD
    fuses multiplications with additions where the CPU can: ranks on different machines drift apart.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 0.7,
        momentum: float = 0.9,
        nesterov: bool = True,
    ) -> None:
        if not lr > 0.0 or not 0.0 <= momentum < 1.0:
            raise ValueError(f"OuterSGD: expected lr above 0 and momentum in [0, 1), got {lr} and {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Changes the parameters in place; those without a gradient stay."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if momentum:
                    state = self.state[parameter]
                    buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                    buffer.mul_(momentum).add_(update)
                    update = update + buffer * momentum if group["nesterov"] else buffer
                parameter.sub_(update * lr)


averaging = partial(OuterSGD, lr=1.0, momentum=0.0)
"""The outer optimizer of plain local SGD: everybody goes on from the mean of the parameters."""


class LocalSGD:
    """Averages a model over the ranks of ``group`` every ``every`` steps, with an outer optimizer.

        local = dance.local_sgd.LocalSGD(model, every=100, codec="int8")
        for batch in data:
            ...; optimizer.step()
            local.step()

    Any inner optimizer will do; its state stays at its rank. ``parameters``: a module, or names with tensors
    (``module.named_parameters()``), float32, float16 or bfloat16 on one device, equal names and shapes at all
    ranks. The constructor gives all ranks the values of the group's rank 0, in place, and after each `sync`
    all ranks hold the same bits again. Of a module those parameters are taken that require a gradient, and
    its persistent floating-point buffers (the statistics of batch norm) are averaged with them, uncompressed
    and in float32; counters stay as they are, and so do all buffers where only parameters are passed.

    ``codec``: text, codec or policy, "auto" included, of the pseudo-gradients. ``feedback`` keeps what it
    loses for the next round, by parameter name; False forgets it, and an `ErrorFeedback` is used as it is.
    ``outer_optimizer`` makes a torch optimizer from a list of float32 tensors. Memory: three float32 vectors
    of the model's size (start, pseudo-gradient, momentum), and one more with feedback.

    `every` may be set between steps: 1 in a warm-up, say (post-local SGD, Lin et al. 2020).
    """

    def __init__(
        self,
        parameters: Parameters,
        *,
        every: int,
        codec: str | Codec | Any = "int8",
        outer_optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer] = OuterSGD,
        feedback: bool | ErrorFeedback = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"local_sgd: expected every to be a number of steps, at least 1, got {every!r}")
        if isinstance(outer_optimizer, torch.optim.Optimizer) or not callable(outer_optimizer):
            raise ValueError(
                "local_sgd: expected outer_optimizer to make an optimizer from a list of tensors, got "
                f"{type(outer_optimizer).__name__}; pass functools.partial(torch.optim.SGD, lr=0.5), say"
            )
        if not dist.is_initialized():
            raise ValueError(
                "local_sgd: torch.distributed is not initialised; run under torchrun and call "
                "torch.distributed.init_process_group('gloo')"
            )
        self._parameters, self._buffers = _of(parameters)
        self.every = every
        self.codec = to_codec(codec) if isinstance(codec, str) and codec != "auto" else codec
        self.feedback = _feedback(self.codec) if feedback is True else feedback or None
        self.round = 0  # outer steps taken
        self.bytes_sent = 0
        self.raw_bytes = 0  # what the same outer steps would have sent uncompressed
        self._since = 0  # inner steps since the last outer one
        self._group = group
        device = next(iter(self._parameters.values())).device
        _check_equal_layout(_layout(self._parameters | self._buffers), device, group)
        self._start_flat, self._start = _vectors(self._parameters, device)
        self._delta_flat, self._delta = _vectors(self._parameters, device)
        self._buffers_flat, self._buffer_views = _vectors(self._buffers, device)
        _copy(self._start, self._parameters)
        _copy(self._buffer_views, self._buffers)
        for flat in (self._start_flat, self._buffers_flat):
            dist.broadcast(flat, group=group, group_src=0)
        _copy(self._parameters, self._start)
        _copy(self._buffers, self._buffer_views)
        self.outer_optimizer = outer_optimizer(list(self._start.values()))

    def step(self) -> bool:
        """Counts an inner step; on every ``every``-th takes the outer one. Returns whether it did."""
        self._since += 1
        if self._since < self.every:
            return False
        self.sync()
        return True

    def sync(self) -> None:
        """Takes the outer step now, at the end of training, say, at all ranks.

        Changes the parameters, and the buffers of a module, in place. NonFiniteError at all ranks, without an
        outer step, where the pseudo-gradient of one is not finite and the codec compresses; residuals of what
        is finite have moved.
        """
        works = []
        if self._buffers:
            _copy(self._buffer_views, self._buffers)
            works.append(self._all_reduce([self._buffers_flat], "none"))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                # What the parameter began with: the start, rounded to its dtype.
                delta = self._delta[name].copy_(parameter)
                torch.sub(self._start[name].to(parameter.dtype), delta, out=delta)
        works.append(self._all_reduce(list(self._delta.values()), self.codec, self.feedback, [*self._delta]))
        for work in works:
            work.wait()
            self.bytes_sent += work.stats().bytes_sent
            self.raw_bytes += work.stats().raw_bytes
        for start, delta in zip(self._start.values(), self._delta.values(), strict=True):
            start.grad = delta
        self.outer_optimizer.step()
        for start in self._start.values():
            start.grad = None
        _copy(self._parameters, self._start)
        _copy(self._buffers, self._buffer_views)
        self.round += 1
        self._since = 0

    def _all_reduce(
        self,
        tensors: list[torch.Tensor],
        codec: Any,
        feedback: ErrorFeedback | None = None,
        keys: list[str] | None = None,
    ) -> dd.Work:
        work = dd.all_reduce_coalesced(
            tensors,
            dist.ReduceOp.AVG,
            codec=codec,
            group=self._group,
            async_op=True,
            feedback=feedback,
            keys=keys,
            min_bytes=0,
            seed=self.round,
        )
        assert work is not None
        return work

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot of this rank: counters, where the round began, outer optimizer and residuals.

        The module, the inner optimizer and a policy have a state of their own. Every rank saves its own:
        start and outer optimizer are equal at all of them, residuals are not. For another number of ranks
        see `reshard`.
        """
        return {
            "round": self.round,
            "since": self._since,
            "bytes_sent": self.bytes_sent,
            "raw_bytes": self.raw_bytes,
            "start": {name: start.clone() for name, start in self._start.items()},
            "outer_optimizer": deepcopy(self.outer_optimizer.state_dict()),
            "rank": dist.get_rank(self._group),
            "world": dist.get_world_size(self._group),
            "feedback": None if self.feedback is None else self.feedback.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a snapshot; with the module's and the inner optimizer's the run goes on bit for bit.

        ValueError, which changes nothing, for other parameters, for residuals of another rank or world size
        (see `reshard`), and for residuals where there is no feedback.
        """
        if not isinstance(state, Mapping) or not {"start", "rank", "world", "feedback"} <= state.keys():
            raise ValueError("local_sgd: expected what state_dict or reshard gave")
        if _layout(state["start"]) != _layout(self._start):
            raise ValueError(
                "local_sgd: the state is of other parameters; make LocalSGD with the names and shapes "
                "that it was saved with"
            )
        if self.feedback is None and state["feedback"] is not None:
            raise ValueError(
                "local_sgd: the state holds residuals; pass feedback=True, or drop state['feedback']"
            )
        if self.feedback is not None and state["feedback"] is not None:
            rank, world = dist.get_rank(self._group), dist.get_world_size(self._group)
            if (state["rank"], state["world"]) != (rank, world):
                raise ValueError(
                    f"local_sgd: the snapshot is of rank {state['rank']} of {state['world']}, this is "
                    f"rank {rank} of {world}; every rank loads its own, and where their number has changed "
                    "dance.local_sgd.reshard(the snapshots of all ranks, rank, world)"
                )
            self.feedback.load_state_dict(state["feedback"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        _copy(self._start, state["start"])
        self.round, self._since = int(state["round"]), int(state["since"])
        self.bytes_sent, self.raw_bytes = int(state["bytes_sent"]), int(state["raw_bytes"])


def reshard(states: Sequence[Mapping[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """Returns the snapshot for ``rank`` of ``world`` from those of all ranks, in their order, before.

    The sum of the residuals over all ranks stays what it was (`dance.feedback.reshard`); with an unchanged
    world every rank gets its own snapshot. ValueError for snapshots that are not those of all ranks.
    """
    found = [(state["rank"], state["world"]) for state in states]
    if found != [(each, len(states)) for each in range(len(states))]:
        texts = ", ".join(f"{each} of {of}" for each, of in found)
        raise ValueError(
            f"local_sgd: expected the snapshots of all ranks in their order, got those of {texts}"
        )
    parts = [state["feedback"] for state in states]
    feedback = None if None in parts else dance.feedback.reshard(parts, rank, world)
    return {
        **states[rank if len(states) == world else 0],
        "rank": rank,
        "world": world,
        "feedback": feedback,
    }


def _of(parameters: Parameters) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns what is averaged, in order of names: parameters and buffers."""
    buffers: dict[str, torch.Tensor] = {}
    if isinstance(parameters, torch.nn.Module):
        saved = parameters.state_dict()  # without constants such as masks
        buffers = {
            name: each
            for name, each in parameters.named_buffers()
            if name in saved and each.is_floating_point()
        }
        items: Any = [(name, each) for name, each in parameters.named_parameters() if each.requires_grad]
    else:
        items = parameters.items() if isinstance(parameters, Mapping) else list(parameters)
    if any(not isinstance(item, tuple) for item in items):
        raise ValueError(
            "local_sgd: expected names with tensors; pass module.named_parameters(), or the module"
        )
    found = dict(sorted(items, key=lambda item: item[0]))
    if not found:
        raise ValueError("local_sgd: expected at least one parameter that requires a gradient, got none")
    place = next(iter(found.values())).device
    for name, each in found.items():
        if each.dtype not in (torch.float32, torch.float16, torch.bfloat16) or each.device != place:
            raise ValueError(
                "local_sgd: expected float32, float16 or bfloat16 on one device, got "
                f"{each.dtype} on {each.device} for {name!r}; cast or move it first"
            )
    return found, dict(sorted(buffers.items()))


def _feedback(codec: Any) -> ErrorFeedback:
    """Returns an error feedback; a policy's residuals fit any codec."""
    return ErrorFeedback(codec if isinstance(codec, Codec) else "int8")


def _vectors(
    like: Mapping[str, torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns a float32 vector of zeros and its views by name."""
    flat = torch.zeros(sum(each.numel() for each in like.values()), dtype=torch.float32, device=device)
    parts = torch.split(flat, [each.numel() for each in like.values()])
    return flat, {name: part.view(each.shape) for (name, each), part in zip(like.items(), parts, strict=True)}


def _copy(into: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, each in into.items():
            each.copy_(source[name])


def _layout(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, list[int]]]:
    return [(name, list(each.shape)) for name, each in tensors.items()]


def _check_equal_layout(layout: Any, device: torch.device, group: dist.ProcessGroup | None) -> None:
    digest = int.from_bytes(blake2b(repr(layout).encode(), digest_size=7).digest(), "little")
    bounds = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
    if int(bounds[0]) != -int(bounds[1]):
        raise ValueError(
            "local_sgd: names or shapes of parameters differ between ranks; pass the same model at all ranks"
        )
