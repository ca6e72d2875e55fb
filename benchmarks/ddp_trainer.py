"""What the DDP benchmarks train: a small CNN on digits (1,797 real 8x8 images), with one hook or another."""

from __future__ import annotations

from typing import Any

from benchmarks.collective_tables import NO_HOOK

TORCH_FP16 = "torch fp16 hook"
TORCH_POWERSGD = "torch PowerSGD"
# Its callbacks start collectives on threads of gloo, so with several buckets their order may differ by rank.
TORCH_POWERSGD_ONE_BUCKET = "torch PowerSGD, one bucket"
CODECS = ("auto", "bf16", "int8", "int4", "sign", "topk:ratio=0.01", "powersgd:rank=4")
"""What dance.ddp.attach is given."""
_BATCH = 32  # images a rank and step
_LEARNING_RATE = 0.05


class Trainer:
    """A model, its DDP with a hook, and the data of this rank."""

    def __init__(self, hook: str, *, seed: int) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        torch.manual_seed(seed)
        model = cnn()
        self.num_parameters = sum(p.numel() for p in model.parameters())
        one_bucket = {"bucket_cap_mb": 1024} if hook == TORCH_POWERSGD_ONE_BUCKET else {}
        self._ddp = DistributedDataParallel(model, **one_bucket)
        self._state = attach(self._ddp, hook)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, momentum=0.9)
        self._train, self._test = digits(seed)
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


def attach(ddp: Any, hook: str) -> Any:
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


def digits(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """scikit-learn's digits as (images, labels) to train on and to test on."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(x) // 4], order[len(x) // 4 :]
    return (x[rest], y[rest]), (x[held_out], y[held_out])
