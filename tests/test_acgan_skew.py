"""The skew that AC-GAN's adaptive layout goes by, against the vectors that its sketches stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dance.exchange import SimulatedExchange
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.skew import SIZE, Sketcher, skew
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


def test_skew_is_what_lasts_of_what_workers_have_of_their_own_over_what_they_share() -> None:
    """In vectors no longer than a sketch an element has a bucket for itself: nothing is lost."""
    for count in (2, 8):
        own = torch.eye(count, 20)  # of energy 1 each
        shared = torch.zeros(20)
        shared[-1], other = 2.0, torch.zeros(20)
        other[-2] = 3.0
        sketcher = Sketcher(20, 4)

        def sketched(vectors: Tensor, sketcher: Sketcher = sketcher) -> Tensor:
            return torch.stack([sketcher(x) for x in vectors])

        before = sketched(shared + own)
        assert skew(before, before) == pytest.approx(1 / 4, rel=1e-5)
        # Twice as much of their own, about a shared part of 2 and then of 3: 2 over 2 * 3.
        assert skew(before, sketched(other + 2 * own)) == pytest.approx(2 / 6, rel=1e-5)
        # What they have of their own in one of them alone does not count, however much it is ...
        assert skew(before, sketched(shared + 5 * own.roll(9, 1))) == pytest.approx(0.0, abs=1e-6)
        # ... and below 0 is what turns round.
        assert skew(before, sketched(shared - own)) == pytest.approx(-1 / 4, rel=1e-5)
    assert skew(torch.ones(1, 4), torch.ones(1, 4)) == 0.0, "one worker alone"
    assert skew(torch.zeros(3, 4), torch.zeros(3, 4)) == 0.0, "nothing moved"
    apart = torch.tensor([[1.0], [-1.0]])
    assert skew(apart, apart) == math.inf
    assert skew(apart, -apart) == -math.inf


@pytest.mark.parametrize("codec", ["none", "sign", "topk:ratio=0.01"])
def test_an_average_measures_its_vectors_and_not_what_their_codec_makes_of_them(codec: str) -> None:
    """Five workers share 1 in energy, have 0.5 of their own that lasts and 2 that is drawn anew in each turn.

    The sketches' inner products of own parts, 2.5 in energy each, have four times SIZE degrees of freedom: a
    deviation of 2.5 / sqrt(4 * SIZE) = 0.04 of one skew; what is shared is known to 5 %, of 0.5.
    """
    config = RunConfig(layout="data-parallel", codec=codec, d_nodes=5, simulate=True)
    ways = wires(config, SimulatedExchange(6), 784)
    generator = torch.Generator().manual_seed(1)
    numel, turns = 20_000, 13
    average = FeedbackAverage(ways, numel, "delta")
    average.measures = True
    lasting = math.sqrt(0.5) * torch.randn(5, numel, generator=generator)
    found = []
    for turn in range(turns):
        shared, own = torch.randn(numel, generator=generator), torch.randn(5, numel, generator=generator)
        vectors = shared + lasting + math.sqrt(2) * own
        average.mean({n: vectors[n - 1] for n in range(1, 6)}, turn)
        assert (average.skew is None) == (turn == 0)
        if average.skew is not None:
            found.append(average.skew)
    # Twelve skews share a draw and neighbours a sketch: as if there were four of them.
    assert sum(found) / len(found) == pytest.approx(0.5, abs=4 * math.hypot(0.04, 0.03) / math.sqrt(4))


def test_a_resumed_hub_still_has_the_sketches_of_the_exchange_before() -> None:
    config = RunConfig(layout="data-parallel", codec="none", d_nodes=2, simulate=True)
    x = torch.randn(2, 2, 5000, generator=torch.Generator().manual_seed(2))

    def average() -> FeedbackAverage:
        made = FeedbackAverage(wires(config, SimulatedExchange(3), 784), 5000, "delta")
        made.measures = True
        return made

    whole, resumed = average(), average()
    whole.mean({1: x[0, 0], 2: x[0, 1]}, 0)
    for node in range(3):
        resumed.restore(node, *whole.state(node))
    for each in (whole, resumed):
        each.mean({1: x[1, 0], 2: x[1, 1]}, 1)
    assert whole.skew is not None
    assert resumed.skew == whole.skew


def test_an_average_that_does_not_measure_sends_no_sketch() -> None:
    config = RunConfig(layout="data-parallel", d_nodes=2, simulate=True)
    exchange = SimulatedExchange(3)
    average = FeedbackAverage(wires(config, exchange, 784), 40, "delta")
    average.mean({1: torch.ones(40), 2: torch.ones(40)}, 0)
    assert average.skew is None
    assert set(exchange.counts.kinds) == {"delta"}
