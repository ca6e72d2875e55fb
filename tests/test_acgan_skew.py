"""The skew that AC-GAN's adaptive layout goes by, against the vectors that its sketches stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dance.exchange import SimulatedExchange
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.skew import SIZE, Sketcher, disagreement, skew
from dance.gan.acgan.wires import wires
from dance.gan.config import RunConfig


def vectors() -> dict[str, Tensor]:
    """Of a matrix with as many columns as a sketch has buckets, and half of another row."""
    numel = 3 * SIZE + SIZE // 2
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(numel, generator=generator)
    spike, column, few = noise.clone(), torch.zeros(numel), torch.zeros(numel)
    spike[5] = 60.0  # most of the energy in one element
    column[7::SIZE] = 1.0
    few.view(-1, SIZE // 2)[:, :20] = noise.view(-1, SIZE // 2)[:, :20]
    return {"noise": noise, "spike": spike, "column": column, "few": few}


@pytest.mark.parametrize("name", vectors())
def test_a_sketch_is_linear_and_keeps_energies(name: str) -> None:
    """|sketch|^2 / |x|^2 has mean 1 and a deviation of at most sqrt(2 / SIZE), but for chance; 400 draws."""
    x, draws = vectors()[name], 400
    y = torch.ones_like(x)
    ratios = []
    for seed in range(draws):
        sketcher = Sketcher(len(x), seed << 1)
        ratios.append(float(sketcher(x).square().sum() / x.square().sum()))
        torch.testing.assert_close(sketcher(2 * x - y), 2 * sketcher(x) - sketcher(y), rtol=1e-4, atol=1e-4)
    deviation = math.sqrt(2 / SIZE)
    mean = sum(ratios) / draws
    spread = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / draws)
    assert abs(mean - 1) < 4 * deviation / math.sqrt(draws)
    assert spread < deviation * (1 + 4 / math.sqrt(2 * draws))


def test_signs_and_buckets_are_those_of_the_seed() -> None:
    x = torch.ones(5 * SIZE)
    assert torch.equal(Sketcher(len(x), 6)(x), Sketcher(len(x), 6)(x))
    assert not torch.equal(Sketcher(len(x), 6)(x), Sketcher(len(x), 8)(x))


def test_skew_is_one_where_workers_agree_and_their_number_where_they_do_not() -> None:
    """An element has a bucket for itself in vectors no longer than a sketch: nothing is lost."""
    for vectors, expected in ((torch.ones(3, 9), 1.0), (torch.eye(3, 9), 3.0), (torch.zeros(3, 9), 1.0)):
        sketcher = Sketcher(9, 4)
        assert skew([sketcher(x) for x in vectors]) == pytest.approx(expected, rel=1e-6)
    assert skew([torch.tensor([1.0]), torch.tensor([-1.0])]) == math.inf
    assert disagreement(math.inf, 2) == math.inf
    assert disagreement(1.0, 3) == disagreement(1.0, 1) == disagreement(math.nan, 3) == 0.0
    assert disagreement(3.0, 3) == math.inf
    # shared (2, 0, 0), own e_i of energy 1 around it: own / shared is 1 / 4, whatever their number
    for count in (2, 8):
        own = torch.cat([torch.full((count, 1), 2.0), torch.eye(count)], dim=1)
        assert disagreement(skew(list(own)), count) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("codec", ["none", "sign", "topk:ratio=0.01"])
def test_an_average_measures_its_vectors_and_not_what_their_codec_makes_of_them(codec: str) -> None:
    """Five workers share 1 and have 2 of their own in energy, anew in each of twelve turns.

    own / shared = (s - 1) / (1 - s / 5) at s = 3 / 1.4 moves by (1 - 1 / 5) / (1 - s / 5)^2 = 2.45 times what
    s does, and s - 1 = own / mean by two energies of sketches, of four and of one degree of freedom a bucket.
    """
    config = RunConfig(layout="data-parallel", codec=codec, d_nodes=5, simulate=True)
    ways = wires(config, SimulatedExchange(6), 784)
    generator = torch.Generator().manual_seed(1)
    numel, turns = 20_000, 12
    average = FeedbackAverage(ways, numel, "delta")
    average.measures = True
    found = []
    for turn in range(turns):
        shared, own = torch.randn(numel, generator=generator), torch.randn(5, numel, generator=generator)
        average.mean({n: shared + math.sqrt(2) * own[n - 1] for n in range(1, 6)}, turn)
        assert average.skew is not None
        found.append(disagreement(average.skew, 5))
    s = 3 / 1.4
    deviation = 2.45 * (s - 1) * math.sqrt(1 + 1 / 4) * math.sqrt(2 / SIZE / turns)
    # The vectors themselves are a sample, too: of 20,000 elements, less than a third of that deviation.
    assert sum(found) / turns == pytest.approx(2.0, abs=4 * deviation)


def test_every_turn_has_a_draw_of_its_own() -> None:
    config = RunConfig(layout="data-parallel", codec="none", d_nodes=2, simulate=True)
    average = FeedbackAverage(wires(config, SimulatedExchange(3), 784), 5000, "delta")
    average.measures = True
    x = torch.randn(2, 5000, generator=torch.Generator().manual_seed(2))
    found = set()
    for turn in range(3):
        average.mean({1: x[0], 2: x[1]}, turn)
        found.add(average.skew)
    assert len(found) == 3


def test_an_average_that_does_not_measure_sends_no_sketch() -> None:
    config = RunConfig(layout="data-parallel", d_nodes=2, simulate=True)
    exchange = SimulatedExchange(3)
    average = FeedbackAverage(wires(config, exchange, 784), 40, "delta")
    average.mean({1: torch.ones(40), 2: torch.ones(40)}, 0)
    assert average.skew is None
    assert set(exchange.counts.kinds) == {"delta"}
