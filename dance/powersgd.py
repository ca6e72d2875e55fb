"""PowerSGD: a gradient matrix travels as two thin factors (Vogels et al. 2019, algorithms 1 and 2).

The sum of all ranks' matrices V is approximated by its projection on r directions that follow its largest
singular vectors from step to step: P = V Q, reduced and made orthonormal, then Q = V' P, reduced; what is
decoded is P Q'. Both are linear in V, so torch's own uncompressed all_reduce adds them up. What the product
lacks stays in each rank's residual.

Here factors are kept transposed, one row a direction: `torch.mm` of a thin matrix is then 10 to 30 times
faster on a CPU. Whatever must be the same at all ranks is computed from reduced factors by elementwise
operations alone, which have the same bits on every CPU.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.futures import Future

from dance.codecs.value import parse
from dance.exchange.group_ref import GroupRef
from dance.packet import derive_seed
from dance.plan import plan

_CHUNK_NUMEL = 1 << 16  # elements of a product at a time: its passes stay in cache
_STATS = ("bytes_sent", "bytes_received", "seconds", "encode_s", "decode_s", "nonfinite")
_DEGENERATE = 1e-14  # of a float64 row: what is left of it after projection is rounding alone


@dataclass(frozen=True, kw_only=True)
class PowerSGD:
    """The settings; ``"powersgd:rank=4"`` is the same as text.

    ``rank`` is the number of directions kept of each matrix. A tensor of shape (n, ...) is a matrix of n
    rows; it goes uncompressed where its factors would not be smaller by ``min_compression``, as vectors do.
    """

    name: ClassVar[str] = "powersgd"
    examples: ClassVar[tuple[str, ...]] = ("powersgd:rank=4",)

    rank: int = 4
    min_compression: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"powersgd: expected a rank of at least 1, got {self.rank!r}")
        if not self.min_compression > 0.0:
            raise ValueError(f"powersgd: expected min_compression above 0, got {self.min_compression!r}")

    @classmethod
    def parse(cls, text: str) -> PowerSGD:
        """Returns the settings that ``text`` describes, such as "powersgd" or "powersgd:rank=2"."""
        kinds: Any = {cls.name: cls}  # no codec, but written like one
        settings: Any = parse(text, kinds)
        assert isinstance(settings, cls)
        return settings

    def __str__(self) -> str:
        shown = [
            f"{each.name}={getattr(self, each.name):g}"
            for each in fields(self)
            if each.name == "rank" or getattr(self, each.name) != each.default
        ]
        return f"powersgd:{','.join(shown)}"

    def rank_of(self, shape: Sequence[int]) -> int:
        """Returns how many directions a tensor of ``shape`` keeps; 0: it goes uncompressed."""
        if len(shape) < 2 or 0 in shape:
            return 0
        n = shape[0]
        m = torch.Size(shape[1:]).numel()
        rank = min(self.rank, n, m)
        return rank if n * m >= self.min_compression * rank * (n + m) else 0


@dataclass(kw_only=True)
class Matrix:
    """One gradient to reduce: ``gradient`` (flat and contiguous, float32, float16 or bfloat16) becomes the
    approximate mean, in place, and ``residual`` (flat float32) takes what is left of it; the matrix has
    ``rows`` rows.
    """

    name: str
    gradient: torch.Tensor
    residual: torch.Tensor
    rows: int


@dataclass(kw_only=True)
class _Factored:
    """A matrix under way: ``value`` (n, m) float32 is gradient / world + residual; the factors are views into
    messages.
    """

    matrix: Matrix
    value: torch.Tensor
    left: torch.Tensor  # (rank, n)
    right: torch.Tensor  # (rank, m)


@dataclass(kw_only=True)
class _Underway:
    """What one `LowRank.start` has sent; of ``dense``: each tensor and its part of the message."""

    factored: list[_Factored]
    dense: list[tuple[torch.Tensor, torch.Tensor]]
    work: Any
    timed: Future[None]
    result: Future[None]


class LowRank:
    """Reduces gradients to their approximate mean over ``group``; `state_dict` holds the factors by name.

    A step is any number of `start`, such as one a bucket, and one `finish`. All ranks call them in the same
    order, on the thread that makes the other calls on the group, too: collectives are matched by their
    order. Every rank ends with the same bits. A gradient that is not finite at some rank arrives as NaN at
    all ranks; the residual and the factors of that matrix stay as they were.
    """

    def __init__(self, settings: PowerSGD, group: dist.ProcessGroup | None = None, *, seed: int = 0) -> None:
        self.settings = settings
        self.group = group
        self._share = 1.0  # of a rank in the mean
        self._lock = threading.Lock()
        self._stats: dict[str, float] = dict.fromkeys(_STATS, 0)
        self._seed = seed
        self._factors: dict[str, torch.Tensor] = {}  # right ones, (rank, m), the same at all ranks
        self._noise: dict[str, torch.Tensor] = {}
        self._underway: list[_Underway] = []

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Of the ranks that take part; it is not kept alive."""
        return self._group.get()

    @group.setter
    def group(self, group: dist.ProcessGroup | None) -> None:
        self._group = GroupRef(group)

    def start(self, matrices: Sequence[Matrix], dense: Sequence[torch.Tensor] = ()) -> Future[None]:
        """Sends the left factors and, with them, ``dense``: contiguous tensors that become their exact mean.

        Returns at once. The future completes some time after `finish`, with everything in place.
        """
        begun_s = time.perf_counter()
        share = self._share = 1.0 / dist.get_world_size(self.group)
        device = (matrices[0].gradient if matrices else dense[0]).device
        values = [_value(each, share) for each in matrices]
        rights = [self._right(each.name, value) for each, value in zip(matrices, values, strict=True)]
        lefts = [(len(right), each.rows) for each, right in zip(matrices, rights, strict=True)]
        message, parts = _message([*lefts, *(tuple(each.shape) for each in dense)], device)
        factored = []
        for each, value, right in zip(matrices, values, rights, strict=True):
            left = torch.mm(right, value.t(), out=next(parts))
            factored.append(_Factored(matrix=each, value=value, left=left, right=right))
        pairs = list(zip(dense, parts, strict=True))
        for tensor, part in pairs:
            part.copy_(tensor).mul_(share)
        result: Future[None] = Future(devices=[device] if device.type == "cuda" else [])
        self._count(encode_s=time.perf_counter() - begun_s)
        work = self._all_reduce(message)
        timed = work.get_future().then(lambda _: self._count(seconds=time.perf_counter() - begun_s))
        self._underway.append(
            _Underway(factored=factored, dense=pairs, work=work, timed=timed, result=result)
        )
        return result

    def finish(self) -> None:
        """Waits for the left factors of all that was started, and sends the right ones in one message."""
        underway, self._underway = self._underway, []
        for each in underway:
            each.work.wait()
            each.timed.wait()
        begun_s = time.perf_counter()
        factored = [low for each in underway for low in each.factored]
        if not factored:
            self._complete(underway, begun_s)
            return
        make_orthonormal([low.left for low in factored])
        message, parts = _message([tuple(low.right.shape) for low in factored], factored[0].value.device)
        for low in factored:
            low.right = torch.mm(low.left, low.value, out=next(parts))
        self._count(encode_s=time.perf_counter() - begun_s)
        self._all_reduce(message).get_future().then(lambda future: self._complete(underway, begun_s, future))

    def _complete(
        self, underway: Sequence[_Underway], begun_s: float, reduced: Future[Any] | None = None
    ) -> None:
        """Puts all results in place; runs on a thread of the process group."""
        try:
            if reduced is not None:
                reduced.value()  # raises what the collective did
            decoding_s = time.perf_counter()
            self._put(underway)
            now_s = time.perf_counter()
            self._count(decode_s=now_s - decoding_s, seconds=now_s - begun_s)
        except Exception as error:
            for each in underway:
                each.result.set_exception(error)  # type: ignore[arg-type]
            return
        for each in underway:
            each.result.set_result(None)

    def _put(self, underway: Sequence[_Underway]) -> None:
        for each in underway:
            for tensor, part in each.dense:
                tensor.copy_(part)
            spoilt = False
            for low in each.factored:
                finite = torch.isfinite(low.right).all() & torch.isfinite(low.left).all()
                _decode(low, self._share, finite)
                kept = self._factors[low.matrix.name]
                torch.where(finite, low.right, kept, out=kept)
                spoilt |= not finite.is_cuda and not finite  # of a GPU asking would wait
            self._count(nonfinite=int(spoilt))

    def _all_reduce(self, message: torch.Tensor) -> Any:
        world = dist.get_world_size(self.group)
        ring = plan("all_reduce", "none", message.numel(), world).bytes_sent
        self._count(bytes_sent=ring, bytes_received=ring)
        return dist.all_reduce(message, group=self.group, async_op=True)

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._stats[name] += value

    def stats(self) -> dict[str, float]:
        """Returns totals of this rank: bytes that rings of float32 send and receive; seconds that coding and,
        with it, all of it took, but not those between `start` and `finish` in which nothing was under way;
        and how many `start` had a matrix that was not finite at some rank (of CPU tensors).
        """
        with self._lock:
            return dict(self._stats)

    def _right(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Returns the directions to begin with: those of the last step; noise for a new one, or one lost."""
        shape = (self.settings.rank_of(value.shape), value.shape[1])
        noise = self._noise.get(name)
        if noise is None or noise.shape != shape or noise.device != value.device:
            # Uniform, for these bits are the same everywhere; torch's normal numbers depend on the CPU.
            seed = derive_seed(self._seed, 0, 0, name, "powersgd") >> 1
            generator = torch.Generator().manual_seed(seed)
            noise = self._noise[name] = (
                torch.rand(shape, generator=generator).mul_(2.0).sub_(1.0).to(value.device)
            )
        kept = self._factors.get(name)
        if kept is None or kept.shape != shape:
            self._factors[name] = noise.clone()
            return noise
        # A direction of which nothing was left would stay zero for ever.
        kept = self._factors[name] = kept.to(value.device)
        return torch.where(kept.any(dim=1, keepdim=True), kept, noise)

    def state_dict(self) -> dict[str, Any]:
        """Returns a snapshot: settings and factors by name; tensors are copies."""
        return {
            "settings": str(self.settings),
            "factors": {name: factor.clone() for name, factor in self._factors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the factors of a snapshot, copied; those of another rank of matrices are begun anew."""
        self._factors = {name: factor.clone() for name, factor in state["factors"].items()}


def make_orthonormal(matrices: Sequence[torch.Tensor]) -> None:
    """Makes the rows of each (rank, n) float32 matrix orthonormal, in place; a row that depends on those
    before it becomes zero.

    Gram-Schmidt, every row projected twice, in float64 and by elementwise operations: the same bits on every
    CPU and in whatever company a matrix is. Matrices of similar length are worked on together.
    """
    alike: dict[tuple[int, int], list[torch.Tensor]] = {}
    for each in matrices:
        rank, n = each.shape
        alike.setdefault((rank, 1 << (n - 1).bit_length()), []).append(each)
    for (rank, padded), group in alike.items():
        rows = torch.zeros(len(group), rank, padded, dtype=torch.float64, device=group[0].device)
        for k, each in enumerate(group):
            rows[k, :, : each.shape[1]] = each
        for r in range(rank):
            row = rows[:, r]
            before = _sum(row * row).sqrt()
            for _ in range(2):
                along = _sum(rows[:, :r] * row[:, None])
                for earlier in range(r):
                    row -= rows[:, earlier] * along[:, earlier, None]
            after = _sum(row * row).sqrt()
            # A comparison with NaN is false: what is not finite stays so.
            scale = torch.where(after <= _DEGENERATE * before, 0.0, 1.0 / after)
            row *= scale[:, None]
        for k, each in enumerate(group):
            each.copy_(rows[k, :, : each.shape[1]])


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Returns the sums over the last dimension, a power of two, by halves: always the same additions."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def _message(
    shapes: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """Returns a flat float32 buffer, and views into it of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    message = torch.empty(sum(sizes), device=device)
    return message, (
        part.view(shape) for part, shape in zip(torch.split(message, sizes), shapes, strict=True)
    )


def _value(matrix: Matrix, share: float) -> torch.Tensor:
    """Returns share * gradient + residual as (n, m), in the memory of a float32 gradient."""
    value = matrix.gradient.float()
    torch.add(matrix.residual, value, alpha=share, out=value)
    return value.view(matrix.rows, -1)


def _decode(low: _Factored, share: float, finite: torch.Tensor) -> None:
    """Gradient = left' right; residual = value - share * gradient, where that is finite."""
    n, m = low.value.shape
    step = n if low.value.is_cuda else max(1, _CHUNK_NUMEL // m)
    gradient, residual = (each.view(n, m) for each in (low.matrix.gradient, low.matrix.residual))
    product, term = (torch.empty(min(step, n), m, device=low.value.device) for _ in range(2))
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        out, other = product[: rows.stop - first], term[: rows.stop - first]
        torch.mul(low.left[0, rows, None], low.right[0], out=out)
        for left, right in zip(low.left[1:, rows], low.right[1:], strict=True):
            out += torch.mul(left[:, None], right, out=other)
        if gradient.dtype != torch.float32:
            out.copy_(out.to(gradient.dtype))  # what the optimiser will see
        torch.sub(low.value[rows], out, alpha=share, out=other)
        torch.where(finite, other, residual[rows], out=residual[rows])
        gradient[rows] = torch.where(finite, out, math.nan)
