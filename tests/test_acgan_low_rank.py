"""Low-rank averages of gradients: against a recursion in float64, and what no compression may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_gan import BASE, parts
from torch import Tensor

from dance.exchange import SimulatedExchange
from dance.gan.acgan import ModelParallel, acgan
from dance.gan.acgan.low_rank import LowRankAverage
from dance.gan.acgan.wires import wires
from dance.gan.config import RunConfig
from dance.gan.nodes import discriminator_net
from dance.gan.settings import AcganConfig

SHAPE = (1, 6, 8)
CONFIG = replace(
    BASE, d_widths=(16, 12), acgan=AcganConfig(aggregation="low-rank", rank=2, factor_codec="none")
)
# What a run of CONFIG factors: 16 x 48 and 12 x 16; the last layer and the biases go whole.
MATRICES = [(16, 48), (12, 16)]


def average_of(config: RunConfig) -> LowRankAverage:
    ways = wires(config, SimulatedExchange(config.num_nodes), 48)
    return LowRankAverage(ways, discriminator_net(config, SHAPE), config.acgan.rank)


def gradients(average: LowRankAverage, step: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(step)
    numel = sum(average.sizes)
    return {node: torch.randn(numel, generator=generator) for node in average.wires.d_ids}


def test_factors_follow_power_iteration_in_float64() -> None:
    average = average_of(CONFIG)
    assert sorted((n, m) for n, m, r in average.shapes if r) == sorted(MATRICES)
    q = [direction.double().numpy() for direction in average.directions]
    residuals = {node: np.zeros(sum(average.sizes)) for node in average.wires.d_ids}
    starts = np.cumsum([0, *average.sizes])
    for step in range(4):
        given = gradients(average, step)
        mean = average.mean(given, step).vector
        values = {node: g.double().numpy() + residuals[node] for node, g in given.items()}
        for k, (n, m, r) in enumerate(average.shapes):
            part = slice(starts[k], starts[k + 1])
            each = {node: value[part].reshape(n, m) for node, value in values.items()}
            middle: NDArray[np.float64] = np.mean(list(each.values()), axis=0)
            if not r:
                expected, kept = middle, {node: 0 * v for node, v in each.items()}
            else:
                basis = np.linalg.qr((q[k] @ middle.T).T)[0]  # its columns span what Gram-Schmidt's rows do
                expected = basis @ (basis.T @ middle)
                kept = {node: v - basis @ (basis.T @ v) for node, v in each.items()}
                # The rows that the code keeps are Q of ITS basis; both span the same directions.
                q[k] = average.directions[k].double().numpy()
            # float32 products over at most 48 terms, in a basis made orthonormal in float64.
            np.testing.assert_allclose(mean[part].numpy().reshape(n, m), expected, rtol=0, atol=2e-5)
            for node in each:
                residuals[node][part] = kept[node].reshape(-1)
                np.testing.assert_allclose(
                    average.residuals[node][part].numpy(), residuals[node][part], atol=2e-5
                )


def test_where_no_matrix_is_worth_two_factors_all_go_whole() -> None:
    average = average_of(replace(CONFIG, acgan=replace(CONFIG.acgan, rank=10)))
    vectors = gradients(average, 0)
    mean = average.mean(vectors, 0)
    assert mean is not None
    torch.testing.assert_close(mean.vector, torch.stack(list(vectors.values())).mean(0))
    assert average.wires.exchange.counts.kinds == ("d-factor-q",)


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
def test_what_is_not_in_the_mean_is_in_the_residuals(codec: str) -> None:
    """What workers were given, on average: the means plus what they keep, but for the hub's rounding."""
    average = average_of(replace(CONFIG, acgan=replace(CONFIG.acgan, factor_codec=codec)))
    numel = sum(average.sizes)
    given, means = torch.zeros(numel, dtype=torch.float64), torch.zeros(numel, dtype=torch.float64)
    largest = 0.0
    for step in range(5):
        vectors = gradients(average, step)
        given += torch.stack(list(vectors.values())).double().mean(0)
        means += average.mean(vectors, step).vector
        largest = max(
            largest, float(torch.stack([q.abs().max() for q in average.directions if len(q)]).max())
        )
    kept = torch.stack(list(average.residuals.values())).double().mean(0)
    # The hub's message: Q and the small tensors rounded once more, by at most half a step of the codec; a
    # basis row has norm 1, and two rows meet in an element of the product.
    half_step = {"none": 0.0, "bf16": 2.0**-9, "int8": 1 / 254}[codec]
    bound = 5 * 2 * half_step * (largest + 5) + 1e-4
    assert float((given - means - kept).abs().max()) <= bound


def test_constant_gradients_arrive_whole_after_some_steps() -> None:
    """Of the same gradients again and again, the sum of the means falls behind by a bounded debt."""
    average = average_of(CONFIG)
    vectors = gradients(average, 0)
    wanted = torch.stack(list(vectors.values())).mean(0)
    total = torch.zeros_like(wanted)
    behind = []
    for step in range(120):
        total += average.mean(vectors, step).vector
        behind.append(float((wanted * (step + 1) - total).norm()))
    # min(n, m) / rank = 8 steps pay a debt back, if directions take turns; twice that for their overlap.
    assert max(behind[60:]) <= 16 * float(wanted.norm())
    assert behind[-1] <= 1.5 * max(behind[40:60])


@pytest.mark.parametrize(
    ("changes", "phases"),
    [({"aggregation": "parameters"}, 4), ({"aggregation": "gradient"}, 6), ({"aggregation": "low-rank"}, 10)],
)
def test_with_auto_each_phase_of_a_round_may_take_its_share(changes: dict[str, Any], phases: int) -> None:
    """Two local steps: images, feedback, and up and down each gossip once and each factor in every step."""
    config = replace(CONFIG, codec="auto", round_ms=60.0, local_steps=2, acgan=AcganConfig(**changes))
    for choice in wires(config, SimulatedExchange(config.num_nodes), 48).choices.values():
        assert choice._budget_s == pytest.approx(0.06 / phases)


def test_discriminators_stay_equal_to_the_bit_and_train() -> None:
    config = replace(CONFIG, local_steps=2, acgan=replace(CONFIG.acgan, factor_codec="int8"))
    nodes = acgan(config, SimulatedExchange(config.num_nodes), parts(config, shape=SHAPE))
    assert isinstance(nodes, ModelParallel)
    first = nodes.discriminators[1].net.theta.clone()
    for r in range(6):
        nodes.round(r)
    for d in nodes.discriminators.values():
        assert torch.equal(d.net.theta, nodes.discriminators[1].net.theta)
    assert not torch.equal(nodes.discriminators[1].net.theta, first)


@pytest.mark.parametrize("codec", ["int8", "none"])
def test_a_restored_average_goes_on_with_equal_bits(codec: str) -> None:
    config = replace(CONFIG, acgan=replace(CONFIG.acgan, factor_codec=codec))
    average, other = average_of(config), average_of(config)
    for step in range(3):
        average.mean(gradients(average, step), step)
    for node in (0, *average.wires.d_ids):
        tensors, meta = average.state(node)
        other.restore(node, tensors, meta)
    after, again = (each.mean(gradients(each, 3), 3).vector for each in (average, other))
    assert torch.equal(after, again)
