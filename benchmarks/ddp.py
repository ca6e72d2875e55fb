"""DDP on a small CNN: seconds a step with several hooks over a slow link, and accuracy after equal steps.

    python -m benchmarks.ddp          about 5 minutes, as root, on an idle machine; --help for less

Step times: one DDP module a hook, all in one process, which step by turns, each round beginning with another,
so that ratios compare neighbours in time; what is shown is the median over steps, of the slowest rank.
Accuracy: digits (1,797 real 8x8 images, a quarter of them kept for the test), every hook from the same
weights and on the same batches, several seeds. Writes benchmarks/results/ddp.json and the tables of
docs/collective_results.md.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import collective_tables
from benchmarks.collective_tables import NO_HOOK
from benchmarks.findings import RESULTS, Findings, findings, say
from benchmarks.testbed.ranks import end_on_sigterm
from benchmarks.testbed.trial import LOOPBACK, Parent, at_rank, bed_of, trial

MODULE = "benchmarks.ddp"
TORCH_FP16 = "torch fp16 hook"
TORCH_POWERSGD = "torch PowerSGD"
# Its callbacks start collectives on threads of gloo, so with several buckets their order may differ by rank.
TORCH_POWERSGD_ONE_BUCKET = "torch PowerSGD, one bucket"
_WARM_UP = 4  # steps: buckets are rebuilt after the first, PowerSGD starts at the third, auto has settled
_BATCH = 32  # images a rank and step
_LEARNING_RATE = 0.05
_ALONE_TIMEOUT_S = 45.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured; the defaults are those of docs/collective_results.md."""

    rate: str = "100mbit"
    """The link whose step times are measured."""
    ranks: tuple[int, ...] = (2, 4)
    """Group sizes."""
    codecs: tuple[str, ...] = ("auto", "bf16", "int8", "int4", "sign", "topk:ratio=0.01", "powersgd:rank=4")
    """What dance.ddp.attach is given, beside no hook and torch's own hooks."""
    rounds: int = 15
    """Steps of each hook that are timed."""
    steps: int = 250
    """Training steps before accuracy is measured."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each hook whose accuracies are averaged."""
    quick: bool = False
    """Three steps timed, 20 trained, one seed, two ranks: to see that everything runs; writes no document."""
    out: Path | None = None
    """Where the JSON goes; by default to benchmarks/results, and with --quick nowhere."""


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=f"python -m {MODULE}", description=__doc__)
    end_on_sigterm()
    path = config.out or (None if config.quick else RESULTS / "ddp.json")
    rounds, steps, seeds = (3, 20, (0,)) if config.quick else (config.rounds, config.steps, config.seeds)
    with findings(MODULE, path) as found:
        for ranks in config.ranks[:1] if config.quick else config.ranks:
            hooks = [NO_HOOK, TORCH_FP16, TORCH_POWERSGD_ONE_BUCKET, *config.codecs]
            failure = _run(found, config.rate, ranks, {"what": "time", "hooks": hooks, "rounds": rounds})
            if failure is not None:
                found.failures.append(f"time, {config.rate}, {ranks} ranks: {failure}")
            # It may never come back: alone, and if it fails, that is what was found.
            alone = {"what": "time alone", "hooks": [NO_HOOK, TORCH_POWERSGD], "rounds": rounds}
            failure = _run(found, config.rate, ranks, alone, _ALONE_TIMEOUT_S)
            if failure is not None:
                found.records.append(
                    {"what": "failure", "ranks": ranks, "hook": TORCH_POWERSGD, "how": failure}
                )
        work = {"what": "accuracy", "hooks": [NO_HOOK, *config.codecs], "steps": steps, "seeds": seeds}
        failure = _run(found, LOOPBACK, config.ranks[0], work)
        if failure is not None:
            found.failures.append(f"accuracy: {failure}")
    print(collective_tables.ddp(found))
    if not config.quick:
        collective_tables.write_document()
    return 0 if found.complete else 1


def _run(
    found: Findings, link: str, ranks: int, work: dict[str, Any], timeout_s: float = 600.0
) -> str | None:
    """Adds what a trial measures to ``found``; returns what went wrong."""
    name = f"{work['what']}, {link}, {ranks} ranks"
    say(f"{name}: {', '.join(work['hooks'])}")
    try:
        with bed_of(link, ranks) as bed, trial(MODULE, bed, work, timeout_s=timeout_s) as records:
            for record in records:
                found.records.append({"link": link, "ranks": ranks, "what": work["what"], **record})
    except (RuntimeError, TimeoutError) as error:
        say(f"{name}: {error}")
        return str(error)
    return None


def measure(work: dict[str, Any], parent: Parent) -> None:
    """At every rank."""
    if work["what"] == "accuracy":
        _train(work, parent)
    else:
        _time(work, parent)


def _time(work: dict[str, Any], parent: Parent) -> None:
    import torch
    import torch.distributed as dist

    trainers = {name: _Trainer(name, seed=0) for name in work["hooks"]}
    x, y = trainers[NO_HOOK].batch(0)
    measured = torch.zeros(len(trainers), work["rounds"], dtype=torch.float64)
    num_bytes = dict.fromkeys(trainers, 0)
    names = list(trainers)
    for number in range(-_WARM_UP, work["rounds"]):
        first = number % len(names)
        for k in [*range(first, len(names)), *range(first)]:
            name, trainer = names[k], trainers[names[k]]
            sent = trainer.bytes_sent()
            dist.barrier()
            start = time.perf_counter()
            trainer.step(x, y)
            seconds = time.perf_counter() - start
            if number >= 0:
                measured[k, number] = seconds
                num_bytes[name] = trainer.bytes_sent() - sent
    dist.all_reduce(measured, dist.ReduceOp.MAX)
    for k, name in enumerate(trainers):
        record = {"hook": name, "seconds": measured[k].tolist(), "parameters": trainers[name].num_parameters}
        parent.tell({**record, "bytes_a_step": num_bytes[name] or None})


def _train(work: dict[str, Any], parent: Parent) -> None:
    for seed in work["seeds"]:
        for name in work["hooks"]:
            trainer = _Trainer(name, seed=seed)
            for step in range(work["steps"]):
                loss = trainer.step(*trainer.batch(step))
            record = {"hook": name, "seed": seed, "steps": work["steps"], "loss": loss}
            parent.tell({**record, "accuracy": trainer.accuracy()})


class _Trainer:
    """A model, its DDP with a hook, and the data of this rank."""

    def __init__(self, hook: str, *, seed: int) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        torch.manual_seed(seed)
        model = cnn()
        self.num_parameters = sum(p.numel() for p in model.parameters())
        one_bucket = {"bucket_cap_mb": 1024} if hook == TORCH_POWERSGD_ONE_BUCKET else {}
        self._ddp = DistributedDataParallel(model, **one_bucket)
        self._state = _attach(self._ddp, hook)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, momentum=0.9)
        self._train, self._test = _digits(seed)
        self._seed = seed

    def batch(self, step: int) -> tuple[Any, Any]:
        """The images and labels of this rank in a step."""
        import torch
        import torch.distributed as dist

        x, y = self._train
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + step)
        order = torch.randperm(len(x), generator=generator)[dist.get_rank() :: dist.get_world_size()]
        return x[order[:_BATCH]], y[order[:_BATCH]]

    def step(self, x: Any, y: Any) -> float:
        from torch.nn.functional import cross_entropy

        self._optimizer.zero_grad()
        loss = cross_entropy(self._ddp(x), y)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def accuracy(self) -> float:
        import torch

        x, y = self._test
        self._ddp.eval()
        with torch.no_grad():
            return float((self._ddp.module(x).argmax(1) == y).float().mean())

    def bytes_sent(self) -> int:
        """By the hook of this rank until now; 0 where the hook does not count."""
        return 0 if self._state is None else int(self._state.stats()["bytes_sent"])


def _attach(ddp: Any, hook: str) -> Any:
    """Gives a DDP module its hook; returns the state of ours."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if hook == NO_HOOK:
        return None
    if hook == TORCH_FP16:
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return None
    if hook in (TORCH_POWERSGD, TORCH_POWERSGD_ONE_BUCKET):
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return None
    import dance.ddp

    return dance.ddp.attach(ddp, codec=hook)


def cnn() -> Any:
    """Two convolutions and two linear layers, 1.07 M parameters, for 8x8 images of ten classes."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 1020),
        nn.ReLU(),
        nn.Linear(1020, 10),
    )


def _digits(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """scikit-learn's digits as (images, labels) to train on and to test on."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(x) // 4], order[len(x) // 4 :]
    return (x[rest], y[rest]), (x[held_out], y[held_out])


if __name__ == "__main__":
    sys.exit(0 if at_rank(measure) else main())
