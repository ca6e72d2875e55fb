"""The DDP hook over real gloo processes: what it reduces to, in every mode of DDP, and what it refuses."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_terms import ROUNDING, Ledger, Terms, backward, coefficients, equal_at_all_ranks, owed, same, wrap
from processes import run_ranks
from torch.nn.parallel import DistributedDataParallel

import dance
from dance.ddp import CompressionState, PowerSGD
from dance.distributed.member import member_of
from dance.policy import Fixed, PerLayer
from dance.report import CallLog

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"gradient_as_bucket_view": True},
    {"static_graph": True},
    {"find_unused_parameters": True},
    {"find_unused_parameters": True, "gradient_as_bucket_view": True},
)


def _mean(world: int, step: int) -> dict[str, torch.Tensor]:
    given = [coefficients(rank, step) for rank in range(world)]
    return {name: sum(each[name].double() for each in given) / world for name in given[0]}


def _int8_error(world: int, step: int) -> dict[str, float]:
    """The most that int8 without feedback may be off: half a step of the largest value in the same block, of
    any matrix, for each rank and, with more than two ranks, once more for the sum; bf16 for vectors.
    """
    given = [coefficients(rank, step) for rank in range(world)]
    matrices = max(float(each[n].abs().max()) for each in given for n in each if each[n].ndim > 1)
    roundings = 1 if world == 2 else 2
    return {
        name: roundings * (1.01 * matrices / 254 if tensor.ndim > 1 else float(tensor.abs().max()) / 128)
        for name, tensor in given[0].items()
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gradients_are_means_in_every_mode_of_ddp(world: int) -> None:
    for plain, close, equal, unused, accumulated in run_ranks(_modes, world, world):
        assert plain == [True] * len(OPTIONS)
        assert close == [True] * len(OPTIONS)
        assert equal == [True] * len(OPTIONS)
        assert unused
        assert accumulated


def _modes(rank: int, world: int) -> tuple[list[bool], list[bool], list[bool], bool, bool]:
    plain, close, equal = [], [], []
    for options in OPTIONS:
        without, direct, coded = (wrap(Terms(), **options) for _ in range(3))
        dance.ddp.attach(direct, "none")
        dance.ddp.attach(coded, "int8", min_bytes=0, feedback=False)
        one = two = three = True
        for step in range(3):
            given = coefficients(rank, step)
            applied = backward(coded, given)
            two &= _near(applied, _mean(world, step), _int8_error(world, step))
            three &= equal_at_all_ranks(applied)
            # torch multiplies by 1 / world, and rings of three add in the order that they please.
            rounding = {name: 4 * 2.0**-24 * float(x.abs().max()) * world for name, x in given.items()}
            one &= _near(backward(direct, given), backward(without, given), rounding)
        plain.append(one)
        close.append(two)
        equal.append(three)

    # A parameter that this rank does not use, and one that nobody does.
    ddp = wrap(Terms(), find_unused_parameters=True)
    dance.ddp.attach(ddp, "int8", min_bytes=0)
    given = coefficients(rank, 0)
    del given["norm.bias"]
    if rank == 0:
        del given["conv.weight"]
    applied = backward(ddp, given)
    mean = sum(coefficients(each, 0)["conv.weight"].double() for each in range(1, world)) / world
    bound = _int8_error(world, 0)["conv.weight"]
    unused = "norm.bias" not in applied and (
        world == 1 or float((applied["conv.weight"] - mean).abs().max()) <= bound
    )

    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "int8", min_bytes=0, feedback=False)
    with ddp.no_sync():
        backward(ddp, coefficients(rank, 0))
    steps = state.step
    ddp(coefficients(rank, 0)).backward()  # and once more the same
    doubled = {name: p.grad / 2 for name, p in ddp.module.named_parameters()}
    accumulated = steps == 0 and _near(doubled, _mean(world, 0), _int8_error(world, 0))
    return plain, close, equal, unused, accumulated


def _near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: dict[str, float]) -> bool:
    return all(float((found[name] - expected[name]).abs().max()) <= bound[name] for name in expected)


def test_rules_start_step_min_bytes_and_the_codec_of_the_moment() -> None:
    for answers in run_ranks(_settings, 2):
        assert all(answers.values()), answers


def _settings(rank: int) -> dict[str, bool]:
    answers = {}

    # Rules: by name, the first counts; what is uncompressed is exact, all else is not.
    ddp = wrap(Terms())
    dance.ddp.attach(ddp, "int4", rules={"last.*": "none", "*.weight": "int8"}, min_bytes=0, feedback=False)
    applied, mean = backward(ddp, coefficients(rank, 0)), _mean(2, 0)
    gaps = {name: float((applied[name] - mean[name]).abs().max() / mean[name].abs().max()) for name in mean}
    answers["rules"] = (
        max(gaps["last.weight"], gaps["last.bias"]) < 1e-6
        and gaps["norm.weight"] > 1e-4  # int8: a rule for weights meets norms, too
        and 1e-4 < gaps["first.bias"] < 2**-7  # bf16, the default of vectors
    )

    policy = PerLayer({"last.*": "none", "*.weight": Fixed("int8")}, "int4")
    for name, each in (("per layer", policy), ("logged", CallLog(policy, Path(tempfile.mkdtemp()) / "log"))):
        again = wrap(Terms())
        dance.ddp.attach(again, each, min_bytes=0, feedback=False)
        answers[name] = same(backward(again, coefficients(rank, 0)), applied)

    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "sign", start_step=2, min_bytes=0)
    exact = []
    for step in range(4):
        applied, mean = backward(ddp, coefficients(rank, step)), _mean(2, step)
        exact.append(_near(applied, mean, dict.fromkeys(mean, 1e-5)))
    answers["start_step"] = exact == [True, True, False, False]
    stats = state.stats()
    answers["stats"] = stats["steps"] == 4 and 0 < stats["compressed"] < stats["calls"]
    answers["bytes"] = 0 < stats["bytes_sent"] < 0.6 * stats["raw_bytes"]

    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "sign", min_bytes=1 << 20)
    applied, mean = backward(ddp, coefficients(rank, 0)), _mean(2, 0)
    stats = state.stats()
    answers["min_bytes"] = (
        _near(applied, mean, dict.fromkeys(mean, 1e-5))
        and stats["under_min_bytes"] == stats["calls"] > 0
        and stats["bytes_sent"] == stats["raw_bytes"]
    )

    # A policy, and "auto", which decides from what it measures but alike at all ranks.
    for name, codec in (("policy", Fixed("int8")), ("auto", "auto")):
        ddp = wrap(Terms())
        state = dance.ddp.attach(ddp, codec, min_bytes=0)
        ledger, equal = Ledger(), True
        for step in range(6):
            applied = backward(ddp, coefficients(rank, step))
            ledger.book(rank, 2, step, applied)
            equal &= equal_at_all_ranks(applied)
        answers[name] = equal and ledger.gap(owed(state)) < ROUNDING
        # What a policy has learned is in the snapshot.
        resumed = CompressionState("auto" if name == "auto" else Fixed("int8"))
        resumed.load_state_dict(state.state_dict())
        answers[f"{name} resumed"] = resumed.codec.round == state.codec.round >= 6 and (
            resumed.codec.state_dict() == state.codec.state_dict()
        )
        state.codec = "int8"
        state.codec = codec
        answers[f"{name} kept"] = resumed.codec.state_dict() == state.codec.state_dict()

    # Parameters used twice, frozen ones, and a wrapped (compiled) module: one name each.
    module = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 40), torch.nn.Linear(40, 40))
    module[2].weight = module[0].weight
    module[1].requires_grad_(False)
    ddp = wrap(torch.compile(module, backend="eager"), bucket_cap_mb=25)
    state = dance.ddp.attach(ddp, "int8", min_bytes=0)
    ddp(torch.ones(3, 40)).sum().backward()
    names = sorted(state.state_dict()["residuals"]["residuals"])
    answers["names"] = names == ["0.bias", "0.weight", "2.bias"]
    return answers


def test_what_is_not_finite_reaches_all_ranks_and_leaves_residuals_finite() -> None:
    for answers in run_ranks(_not_finite, 2):
        assert all(answers.values()), answers


def _not_finite(rank: int) -> dict[str, bool]:
    answers = {}
    for algorithm in ("int8", "topk:ratio=0.05", "powersgd:rank=2", "none"):
        ddp = wrap(Terms())
        state = dance.ddp.attach(ddp, algorithm, min_bytes=0)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        scales = []
        for step in range(4):
            given = coefficients(rank, step)
            if step == 2 and rank == 1:
                given["conv.weight"][3, 2, 1, 0] = torch.inf
            optimizer.zero_grad()
            before = ddp.module.conv.weight.detach().clone()
            scaler.scale(ddp(given)).backward()
            scaler.step(optimizer)
            scaler.update()
            moved = not torch.equal(before, ddp.module.conv.weight)
            scales.append((scaler.get_scale(), moved))
        # The third step is skipped at both ranks, the scale halved, and the run goes on.
        kept = state.state_dict()["residuals"]["residuals"].values()
        answers[algorithm] = (
            scales == [(4.0, True), (4.0, True), (2.0, False), (2.0, True)]
            and all(bool(torch.isfinite(each).all()) for each in kept)
            and all(bool(torch.isfinite(p).all()) for p in ddp.parameters())
        )
    return answers


def test_transport_without_gloo_noise_of_every_step_and_errors() -> None:
    for answers in run_ranks(_transport_and_noise, 2):
        assert all(answers.values()), answers


def _transport_and_noise(rank: int) -> dict[str, bool]:
    answers = {}
    member = member_of(None)[1]
    member.over_host = False  # payloads by torch's collectives of raw bytes, as over NCCL
    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "int8", min_bytes=0)
    for step in range(2):
        given = coefficients(rank, step)
        if step == 0 and rank == 1:
            given["conv.weight"][3, 2, 1, 0] = torch.inf
        applied = backward(ddp, given)
        answers[f"nan {step}"] = bool(applied["conv.weight"].isnan().all()) is (step == 0)
    kept = state.state_dict()["residuals"]["residuals"].values()
    answers["residuals"] = all(bool(torch.isfinite(each).all()) for each in kept)
    answers["counted"] = state.stats()["nonfinite"] > 0
    member.over_host = True

    ddp = wrap(Terms())
    dance.ddp.attach(ddp, "int2:rounding=stochastic", min_bytes=0, feedback=False)
    twice = [backward(ddp, coefficients(rank, 0)) for _ in range(2)]
    answers["noise"] = not torch.equal(twice[0]["conv.weight"], twice[1]["conv.weight"])

    # Torch makes an error of its own class of what a hook's future holds; docs/ddp.md says so.
    ddp = wrap(Terms())
    dance.ddp.attach(ddp, ("int8", "int4")[rank], min_bytes=0)
    with pytest.raises(RuntimeError) as caught:
        backward(ddp, coefficients(rank, 0))
    answers["error"] = type(caught.value) is RuntimeError and "PeerError" in str(caught.value)
    return answers


def test_other_dtypes_and_sparse_gradients() -> None:
    for answers in run_ranks(_dtypes, 2):
        assert all(answers.values()), answers


def _dtypes(rank: int) -> dict[str, bool]:
    answers = {}
    for dtype, algorithm in (
        (torch.bfloat16, "int8"),
        (torch.bfloat16, "powersgd:rank=2"),
        (torch.float16, "int8"),
        (torch.float64, "int8"),
    ):
        ddp = wrap(Terms().to(dtype))
        dance.ddp.attach(ddp, algorithm, min_bytes=0)
        applied = backward(ddp, coefficients(rank, 0, dtype))
        right = all(each.dtype == dtype for each in applied.values())
        if algorithm == "int8":
            # The rounding of the dtype itself, twice, beside that of int8.
            bound = {name: each * 2 for name, each in _int8_error(2, 0).items()}
            right &= _near(applied, _mean(2, 0), bound)
        answers[f"{dtype} {algorithm}"] = right and equal_at_all_ranks(applied)

    model = torch.nn.ModuleDict(
        {"table": torch.nn.Embedding(50, 8, sparse=True), "out": torch.nn.Linear(8, 4).double()}
    )

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.parts["out"](self.parts["table"](index).double())
            return result

    ddp = DistributedDataParallel(Mixed())
    dance.ddp.attach(ddp, "int8", min_bytes=0)
    ddp(torch.tensor([rank, 7])).sum().backward()
    gradient = model["table"].weight.grad
    answers["sparse"] = gradient.is_sparse and sorted(gradient.coalesce().indices()[0].tolist()) == [0, 1, 7]
    return answers


LATE = ("int8", "int4", "none", "powersgd:rank=2")


def test_the_hook_does_not_wait_for_the_network() -> None:
    """Rank 1 begins when rank 0 has handed over every bucket: a hook that waits for it waits for ever."""
    assert min(run_ranks(_late, 2)[0]) > 2


def _late(rank: int) -> list[int]:
    """How many buckets there were for each algorithm."""
    store, counts = dist.distributed_c10d._get_default_store(), []
    for algorithm in LATE:
        handed: list[int] = []
        awaited = 0

        def counted(state, bucket, handed=handed, algorithm=algorithm):  # type: ignore[no-untyped-def] # DDP reads annotations
            future = dance.ddp.compress_hook(state, bucket)
            handed.append(bucket.index())
            if rank == 0 and len(handed) == awaited:  # noqa: B023
                store.set(algorithm, "handed over")
            return future

        ddp = wrap(Terms())
        rules = (
            {"last.*": "none", "first.*": "none"} if algorithm == "int4" else None
        )  # some buckets go direct
        ddp.register_comm_hook(CompressionState(algorithm, rules=rules, min_bytes=0), counted)
        for step in range(2):
            handed.clear()
            backward(ddp, coefficients(rank, step))
        counts.append(len(handed))
        # PowerSGD waits at the last bucket, of several; the others nowhere.
        awaited = len(handed) - algorithm.startswith("powersgd")
        loss = ddp(coefficients(rank, 2))
        handed.clear()
        if rank == 1:
            store.wait([algorithm], timedelta(seconds=30))
        loss.backward()
    return counts


def test_two_modules_with_a_state_each_and_uneven_inputs() -> None:
    for answers in run_ranks(_two, 2):
        assert all(answers.values()), answers


def _two(rank: int) -> dict[str, bool]:
    answers = {}
    pairs = [(wrap(Terms()), algorithm) for algorithm in ("int8", "powersgd:rank=2")]
    states = [dance.ddp.attach(ddp, algorithm, min_bytes=0) for ddp, algorithm in pairs]
    alone = [wrap(Terms()) for _ in pairs]
    for ddp, (_, algorithm) in zip(alone, pairs, strict=True):
        dance.ddp.attach(ddp, algorithm, min_bytes=0)
    together, separate = [], []
    for step in range(4):
        given = coefficients(rank, step)
        for ddp, _ in pairs:
            ddp.zero_grad()
        (pairs[0][0](given) + pairs[1][0](given)).backward()  # one backward pass through both
        for (ddp, _), other in zip(pairs, alone, strict=True):
            together.append({name: p.grad.clone() for name, p in ddp.module.named_parameters()})
            separate.append(backward(other, given))
    answers["two"] = all(map(same, together, separate)) and [state.step for state in states] == [4, 4]

    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "int8", min_bytes=0)
    with ddp.join():
        for step in range(2 + rank):
            ddp(coefficients(rank, step)).backward()
    answers["join"] = state.step == 3
    return answers


def test_what_ddp_and_the_state_refuse_says_what_to_do() -> None:
    for messages in run_ranks(_refused, 1):
        expected = (
            "takes one hook for good.*compress_hook; change its codec with state.codec = 'int4'",
            "takes one hook for good.*other_hook; wrap the model in a new DistributedDataParallel",
            "expected a DistributedDataParallel, got Linear; wrap the model in one",
            "pass no others, set state.codec",
            "takes one hook for good, and this module has a built-in one; wrap the model in a new",
            "give each DDP module a state of its own",
        )
        assert len(messages) == len(expected)
        for message, pattern in zip(messages, expected, strict=True):
            assert re.search(pattern, message), message


def _refused(rank: int) -> list[str]:
    messages: list[str] = []
    with pytest.warns(
        UserWarning, match=r"no parameter fits the rule 'head\.\*'.*such as 'first.weight'"
    ) as warned:
        dance.ddp.attach(wrap(Terms()), "int8", rules={"*.bias": "fp16", "head.*": "fp16", "first.*": "none"})
    assert len(warned) == 1

    def note(call: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            call(*args, **options)
        except ValueError as error:
            messages.append(str(error))

    def other_hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations
        raise AssertionError

    one, two, three, four = (wrap(torch.nn.Linear(4, 3)) for _ in range(4))
    state = dance.ddp.attach(one, "int8")
    note(dance.ddp.attach, one, "int4")
    two.register_comm_hook(None, other_hook)
    note(dance.ddp.attach, two)
    note(dance.ddp.attach, torch.nn.Linear(4, 3))
    note(dance.ddp.attach, three, "int4", state=state)
    four._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    note(dance.ddp.attach, four)
    one(torch.ones(1, 4)).sum().backward()
    three.register_comm_hook(state, dance.ddp.compress_hook)  # one state, two modules in use
    note(lambda: three(torch.ones(1, 4)).sum().backward())
    return messages


def test_arguments_are_checked() -> None:
    for options, pattern in (
        ({"codec": "int9"}, "unknown codec 'int9'"),
        ({"codec": 8}, "expected a codec, a policy or PowerSGD, got int 8;"),
        ({"codec": "powersgd:rank=x"}, "codec 'powersgd:rank=x': expected an integer for rank, got 'x'"),
        ({"codec": "powersgd:rnk=4"}, "unknown option 'rnk=4'; powersgd has rank=4, min_compression=2.0"),
        (
            {"codec": "powersdg:rank=4"},
            r"did you mean powersgd:rank=4\? choose from none, .*, powersgd, auto",
        ),
        ({"codec": "Auto"}, "did you mean auto"),
        ({"rules": {"*.bias": "powersgd"}}, "only dance.ddp accepts it"),
        ({"codec": "powersgd", "feedback": False}, "PowerSGD does not converge without feedback"),
        (
            {"codec": "qsgd:levels=3,block=4096", "feedback": True},
            "leaves residuals unbounded; pass feedback=None",
        ),
        ({"start_step": -1}, "expected start_step to be a count, got -1"),
        ({"min_bytes": 0.5}, "expected min_bytes to be a count, got 0.5"),
        ({"rules": {"*.bias": "int9"}}, "unknown codec 'int9'"),
    ):
        with pytest.raises(ValueError, match=pattern):
            CompressionState(**options)
    assert CompressionState("powersgd:rank=2").codec == PowerSGD(rank=2)
    assert str(CompressionState("int4").codec) == "int4:block=256"
    assert repr(CompressionState("int4")) == "CompressionState('int4:block=256'; 0 steps)"
    assert repr(CompressionState("auto")).startswith("CompressionState(Auto(")


def test_vectors_take_bf16_where_that_is_less() -> None:
    for codec, expected in (("int8", "bf16"), ("none", "none"), ("fp16", "fp16"), ("sign", "bf16")):
        state = CompressionState(codec, rules={"head.*": "int4"})
        assert state.codec_of("norm.bias", 1).name == expected
        assert state.codec_of("norm.weight", 2).name == codec
        assert state.codec_of("head.bias", 1).name == "int4"
    assert CompressionState("auto").codec_of("norm.bias", 1).name == "bf16"
    assert CompressionState("powersgd").codec_of("norm.bias", 1).name == "none"
