"""The skew that AC-GAN's adaptive layout goes by, against the vectors that its sketches stand for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dance.exchange import SimulatedExchange
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.skew import SIZE, Sketcher, disagreement, skew
from dance.gan.acgan.wires import wires
from dance.gan.config import RunConfig


def test_a_sketch_is_linear_and_keeps_energies() -> None:
    """|sketch|^2 / |x|^2 has mean 1 and a deviation of at most sqrt(2 / SIZE), over 400 draws of signs."""
    generator = torch.Generator().manual_seed(0)
    numel, draws = 3 * SIZE + 17, 400
    x, y = torch.randn(2, numel, generator=generator)
    x[5] = 20.0  # most of the energy in one element
    ratios = []
    for seed in range(draws):
        sketcher = Sketcher(numel, seed << 1)
        ratios.append(float(sketcher(x).square().sum() / x.square().sum()))
        torch.testing.assert_close(sketcher(2 * x - y), 2 * sketcher(x) - sketcher(y), rtol=1e-4, atol=1e-4)
    deviation = math.sqrt(2 / SIZE)
    mean = sum(ratios) / draws
    spread = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / draws)
    assert abs(mean - 1) < 4 * deviation / math.sqrt(draws)
    assert spread < deviation * (1 + 4 / math.sqrt(2 * draws))


def test_signs_are_drawn_anew_and_alike_everywhere() -> None:
    x = torch.ones(5 * SIZE)
    assert torch.equal(Sketcher(len(x), 6)(x), Sketcher(len(x), 6)(x))
    assert not torch.equal(Sketcher(len(x), 6)(x), Sketcher(len(x), 8)(x))


def test_skew_is_one_where_workers_agree_and_their_number_where_they_do_not() -> None:
    """An element has its bucket for itself in vectors no longer than a sketch, so that nothing is lost."""
    for vectors, expected in ((torch.ones(3, 9), 1.0), (torch.eye(3, 9), 3.0), (torch.zeros(3, 9), 1.0)):
        sketcher = Sketcher(9, 4)
        assert skew([sketcher(x) for x in vectors]) == pytest.approx(expected, rel=1e-6)
    assert disagreement(1.0, 3) == disagreement(1.0, 1) == 0.0
    assert disagreement(3.0, 3) == math.inf
    # shared (2, 0, 0), own e_i of energy 1 around it: own / shared is 1 / 4, whatever their number
    for count in (2, 8):
        own = torch.cat([torch.full((count, 1), 2.0), torch.eye(count)], dim=1)
        assert disagreement(skew(list(own)), count) == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("codec", ["none", "sign", "topk:ratio=0.01"])
def test_an_average_measures_its_vectors_and_not_what_their_codec_makes_of_them(codec: str) -> None:
    """Five workers share 1 and have 2 of their own in energy.

    Skew s is 3 / 1.4, and own / shared moves by 2.6 times what s does, d log(own / shared) / d log s. That is
    a ratio of two energies of a sketch each, and the mean of all turns, which draw their signs anew.
    """
    config = RunConfig(layout="data-parallel", codec=codec, d_nodes=5, simulate=True)
    ways = wires(config, SimulatedExchange(6), 784)
    generator = torch.Generator().manual_seed(1)
    numel, turns = 20_000, 12
    average = FeedbackAverage(ways, numel, "delta", measures=True)
    found = []
    for turn in range(turns):
        shared, own = torch.randn(numel, generator=generator), torch.randn(5, numel, generator=generator)
        average.mean({n: shared + math.sqrt(2) * own[n - 1] for n in range(1, 6)}, turn)
        assert average.skew is not None
        found.append(disagreement(average.skew, 5))
    deviation = 2.6 * math.sqrt(2) * math.sqrt(2 / SIZE / turns)
    assert sum(found) / turns == pytest.approx(2.0, rel=3 * deviation)


def test_an_average_that_does_not_measure_sends_no_sketch() -> None:
    config = replace(RunConfig(layout="data-parallel", simulate=True), d_nodes=2)
    exchange = SimulatedExchange(3)
    average = FeedbackAverage(wires(config, exchange, 784), 40, "delta")
    average.mean({1: torch.ones(40), 2: torch.ones(40)}, 0)
    assert average.skew is None
    assert set(exchange.counts.kinds) == {"delta"}
