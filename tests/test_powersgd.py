"""PowerSGD against an oracle in NumPy float64 (the paper's algorithms 1 and 2), over real gloo processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

from dance.powersgd import LowRank, Matrix, PowerSGD, make_orthonormal

SHAPES = {"first": (40, 30), "conv": (24, 8, 3, 3), "wide": (17, 131)}
RANK = 3


def _gradients(rank: int, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    shapes = {**SHAPES, "bias": (37,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _run(world: int, *args: Any) -> list[list[dict[str, Any]]]:
    return [torch.load(io.BytesIO(saved), weights_only=True) for saved in run_ranks(_steps, world, *args)]


def _steps(rank: int, steps: int, dtype: torch.dtype = torch.float32) -> bytes:
    """What goes in and comes out of ``steps`` steps; the matrices go in two calls, as buckets do."""
    reducer = LowRank(PowerSGD(rank=RANK))
    residuals = {name: torch.zeros(torch.Size(shape).numel()) for name, shape in SHAPES.items()}
    trace = []
    for step in range(steps):
        record: dict[str, Any] = {"gradients": _gradients(rank, step)}
        record["factors"] = reducer.state_dict()["factors"]
        record["before"] = {name: residual.clone() for name, residual in residuals.items()}
        flat = {name: each.to(dtype).reshape(-1).clone() for name, each in record["gradients"].items()}
        matrices = [
            Matrix(name=name, gradient=flat[name], residual=residuals[name], rows=shape[0])
            for name, shape in SHAPES.items()
        ]
        futures = [reducer.start(matrices[:1], [flat["bias"]]), reducer.start(matrices[1:])]
        reducer.finish()
        for future in futures:
            future.wait()
        record["means"] = flat
        record["after"] = {name: residual.clone() for name, residual in residuals.items()}
        trace.append(record)
    saved = io.BytesIO()
    torch.save(trace, saved)
    return saved.getvalue()


def _oracle(values: list[np.ndarray[Any, Any]], right: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The decoded mean of ``values`` (gradient + residual of each rank), in float64."""
    mean = np.mean(values, axis=0)
    left, _ = np.linalg.qr(mean @ right)
    return left @ (mean.T @ left).T


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_step_is_that_of_the_paper_and_has_the_same_bits_at_all_ranks(world: int) -> None:
    traces = _run(world, 3)
    for step in range(3):
        records = [trace[step] for trace in traces]
        for name, mean in records[0]["means"].items():
            assert all(torch.equal(record["means"][name], mean) for record in records), name
        exact = np.mean([record["gradients"]["bias"].double().numpy() for record in records], axis=0)
        # The sum of `world` float32, each rounded at most once more by the factor 1 / world.
        np.testing.assert_allclose(records[0]["means"]["bias"].numpy(), exact, atol=4 * world * 2.0**-24)
        for name, shape in SHAPES.items():
            sizes = (shape[0], -1)
            values = [
                (r["gradients"][name].double().reshape(-1) + world * r["before"][name].double())
                .reshape(sizes)
                .numpy()
                for r in records
            ]
            decoded = records[0]["means"][name].double().reshape(sizes).numpy()
            scale = float(np.abs(np.mean(values, axis=0)).max())
            if step:
                right = records[0]["factors"][name].double().numpy().T
                # float32 factors of length up to 131 in sums of that length: relative error of some n * eps.
                np.testing.assert_allclose(decoded, _oracle(values, right), atol=2e-5 * scale)
            else:  # whatever the noise was: a projection of the mean on as many directions
                basis = np.linalg.svd(decoded)[0][:, :RANK]
                projected = basis @ (basis.T @ np.mean(values, axis=0))
                np.testing.assert_allclose(decoded, projected, atol=2e-5 * scale)
            for value, record in zip(values, records, strict=True):  # Algorithm 2: what was not applied stays
                left_over = (value - decoded).reshape(-1) / world
                np.testing.assert_allclose(record["after"][name].numpy(), left_over, atol=1e-6 * scale)


def test_directions_are_kept_from_step_to_step() -> None:
    """The same matrix again and again: subspace iteration finds its best approximation (warm start)."""
    errors, best = run_ranks(_repeated, 2)[0]
    assert errors[0] > 1.3 * best
    assert errors[-1] < 1.001 * best


def _repeated(rank: int) -> tuple[list[float], float]:
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(50, 20, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(60, 20, generator=generator))
    matrix = u @ torch.diag(0.8 ** torch.arange(20.0)) @ v.t()
    best = float(torch.linalg.svdvals(matrix)[4:].square().sum().sqrt())
    reducer, errors = LowRank(PowerSGD(rank=4, min_compression=1)), []
    for _ in range(30):
        gradient = matrix.reshape(-1).clone()
        reducer.start([Matrix(name="w", gradient=gradient, residual=torch.zeros(3000), rows=50)])
        reducer.finish()
        torch.distributed.barrier()
        errors.append(float((gradient.view(50, 60) - matrix).norm()))
    return errors, best


def test_matrices_of_lower_rank_and_zeros_are_exact_and_directions_come_back() -> None:
    for zero, outer, full in run_ranks(_degenerate, 2):
        assert zero == 0.0
        assert outer < 1e-6
        assert full == RANK


def _degenerate(rank: int) -> tuple[float, float, int]:
    reducer, residual = LowRank(PowerSGD(rank=RANK)), torch.zeros(40 * 30)

    def reduced(matrix: torch.Tensor) -> torch.Tensor:
        gradient = matrix.reshape(-1).clone()
        future = reducer.start([Matrix(name="w", gradient=gradient, residual=residual, rows=40)])
        reducer.finish()
        future.wait()
        return gradient.view(40, 30)

    zero = float(reduced(torch.zeros(40, 30)).abs().max())
    one_row = torch.zeros(40, 30)
    one_row[7] = torch.arange(30.0) / 30
    outer = float((reduced(one_row) - one_row).abs().max())
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(40, 30, generator=generator)
    reduced(matrix)
    return zero, outer, int(torch.linalg.matrix_rank(reduced(matrix)))


def test_what_is_not_finite_arrives_as_nan_everywhere_and_moves_no_state() -> None:
    answers = run_ranks(_with_infinity, 2)
    for bad, good, kept in answers:
        assert bad
        assert good
        assert kept


def _with_infinity(rank: int) -> tuple[bool, bool, bool]:
    reducer = LowRank(PowerSGD(rank=RANK))
    residuals = {name: torch.zeros(torch.Size(shape).numel()) for name, shape in SHAPES.items()}
    for step in range(2):
        before = residuals["first"].clone(), reducer.state_dict()["factors"].get("first")
        flat = {name: each.reshape(-1) for name, each in _gradients(rank, step).items()}
        if step == 1 and rank == 1:
            flat["first"][33] = torch.inf
        matrices = [
            Matrix(name=name, gradient=flat[name], residual=residuals[name], rows=shape[0])
            for name, shape in SHAPES.items()
        ]
        future = reducer.start(matrices, [flat["bias"]])
        reducer.finish()
        future.wait()
    kept = torch.equal(residuals["first"], before[0])
    kept &= torch.equal(reducer.state_dict()["factors"]["first"], before[1])
    good = all(bool(torch.isfinite(flat[name]).all()) for name in ("conv", "wide", "bias"))
    return bool(torch.isnan(flat["first"]).all()), good, kept


def test_sixteen_bit_gradients_are_rounded_once_and_the_residual_knows() -> None:
    for trace in zip(*_run(2, 2, torch.bfloat16), strict=True):
        for name in SHAPES:
            first, second = (record["means"][name] for record in trace)
            assert first.dtype == torch.bfloat16
            assert torch.equal(first, second)
            given = sum(
                r["gradients"][name].bfloat16().double().reshape(-1) / 2 + r["before"][name] for r in trace
            )
            kept = sum(record["after"][name].double() for record in trace)
            torch.testing.assert_close(given - kept, first.double(), atol=1e-6, rtol=0)


_ANY_CPU = """
import hashlib, torch
from dance.powersgd import Matrix, _decode, _Factored, make_orthonormal
g = torch.Generator().manual_seed(1)
parts = [torch.rand(4, n, generator=g) - 0.5 for n in (7, 64, 1000)]
make_orthonormal(parts)
matrix = Matrix(name="w", gradient=torch.zeros(300000), residual=torch.zeros(300000), rows=1000)
right = torch.rand(4, 300, generator=g)
low = _Factored(matrix=matrix, value=torch.zeros(1000, 300), left=parts[2], right=right)
_decode(low, 0.5, torch.tensor(True))
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in (*parts, low.matrix.gradient))).hexdigest())
"""


def test_unlike_cpus_compute_the_same_bits() -> None:
    """What ranks compute from what they all have: with and without vector instructions and threads."""
    answers = []
    for changes in ({"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}):
        run = subprocess.run(
            [sys.executable, "-c", _ANY_CPU],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(run.stdout)
    assert answers[0] == answers[1]


class _Late(LowRank):
    def _put(self, *given: Any) -> None:
        time.sleep(0.5)  # meanwhile all else of the group ends
        super()._put(*given)


def _ended(rank: int) -> bool:
    group = dist.new_group()
    reducer = _Late(PowerSGD(rank=RANK), group)
    gradient, residual = torch.ones(40 * 30), torch.zeros(40 * 30)
    done = reducer.start([Matrix(name="w", gradient=gradient, residual=residual, rows=40)])
    reducer.finish()
    dist.destroy_process_group(group)
    del group, reducer
    done.wait()
    time.sleep(0.3)
    return bool((gradient - 1.0).abs().max() < 1e-5)


def test_a_group_may_end_while_its_thread_still_puts_results_in_place() -> None:
    """gloo's thread must not be the last to hold the group: its end would wait for that thread."""
    assert run_ranks(_ended, 2) == [True, True]


def test_rows_are_orthonormal_or_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(1, 33, generator=generator).repeat(4, 1)
    near[1:] += 1e-5 * torch.randn(3, 33, generator=generator)
    near[3] = 2 * near[0]
    tiny = 1e-30 * torch.randn(2, 5, generator=generator)
    make_orthonormal([near, tiny])
    torch.testing.assert_close(near[:3] @ near[:3].t(), torch.eye(3), atol=1e-6, rtol=0)
    assert not near[3].any()
    torch.testing.assert_close(tiny @ tiny.t(), torch.eye(2), atol=1e-6, rtol=0)


def test_settings_are_text_and_say_what_is_wrong() -> None:
    assert PowerSGD.parse("powersgd") == PowerSGD()
    assert PowerSGD.parse("powersgd:rank=2,min_compression=1.5") == PowerSGD(rank=2, min_compression=1.5)
    for each in (PowerSGD(), PowerSGD(rank=7, min_compression=1.25)):
        assert PowerSGD.parse(str(each)) == each
    with pytest.raises(ValueError, match="rank of at least 1, got 0"):
        PowerSGD(rank=0)
    with pytest.raises(
        ValueError, match=r"'powersgd:ranks=2': unknown option 'ranks=2'; powersgd has rank=4"
    ):
        PowerSGD.parse("powersgd:ranks=2")
    assert PowerSGD(rank=4).rank_of((37,)) == 0
    assert PowerSGD(rank=4).rank_of((16, 1, 3, 3)) == 0  # 144 elements, factors of 100
    assert PowerSGD(rank=4).rank_of((64, 32, 3, 3)) == 4
