"""The meter on simulated links: changes found, steady links left alone, rates right whatever the noise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from dance.bandwidth import LinkEstimate, LinkMeter
from dance.bandwidth.changes import ChangeDetector
from dance.bandwidth.drift import drift

LATENCY_S = 0.002
SIZES = {
    "one size": (1_000_000,),
    "two sizes": (40_000, 1_000_000),
    "sizes of codecs": (130_000, 500_000, 1_000_000, 4_000_000),
}


def deliveries(
    mbps: Sequence[float],
    noise: float,
    seed: int,
    sizes: Sequence[int] = (1_000_000,),
    stalls: float = 0.0,
    burst: int = 0,
) -> Iterator[tuple[int, float]]:
    """One delivery at each rate: lognormal noise, stalls of 0.3 s on average, a token bucket always full."""
    random = np.random.default_rng(seed)
    for rate in mbps:
        num_bytes = int(random.choice(sizes))
        seconds = LATENCY_S + max(num_bytes - burst, 0.01 * num_bytes) * 8e-6 / rate
        seconds *= math.exp(random.normal(0.0, noise))
        stall = random.exponential(0.3) if random.random() < stalls else 0.0
        yield num_bytes, seconds + stall


def fed(*args: object, **kwargs: object) -> LinkMeter:
    meter = LinkMeter()
    for num_bytes, seconds in deliveries(*args, **kwargs):  # type: ignore[arg-type]
        meter.observe(num_bytes, seconds)
    return meter


# ---- changes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("sizes", ["one size", "sizes of codecs"])
def test_steps_of_the_rate_are_found_within_three_deliveries(noise: float, sizes: str) -> None:
    mbps = [100.0] * 30 + [10.0] * 30 + [100.0] * 30
    delays: list[int] = []
    others = 0
    for seed in range(20):
        meter = LinkMeter()
        found = []
        for k, (num_bytes, seconds) in enumerate(deliveries(mbps, noise, seed, SIZES[sizes])):
            before = meter.num_changes
            meter.observe(num_bytes, seconds)
            if meter.num_changes > before:
                found.append(k)
                assert meter.changed_at <= k - 1  # two deliveries at least speak for it
                # What was measured at the old rate is gone: sums of a few lognormals are left.
                assert meter.rate_mbps == pytest.approx(mbps[k], rel=4 * noise)
        delays += [next((k + 1 - step for k in found if k >= step), 99) for step in (30, 60)]
        others += len(found) - 2
    print(f"{sizes}, noise {noise:g}: deliveries until a change is found {np.bincount(delays)[1:].tolist()}")
    assert others == 0
    # Small deliveries hardly tell a latency from a rate, so that a few need more of them.
    assert np.mean(np.array(delays) <= 3) >= (1.0 if sizes == "one size" else 0.95)
    assert max(delays) <= 6


@pytest.mark.parametrize("sizes", SIZES)
def test_a_steady_link_hardly_ever_changes(sizes: str) -> None:
    changes = [fed([50.0] * 1000, 0.2, seed, SIZES[sizes]).num_changes for seed in range(6)]
    print(f"{sizes}, noise 0.2: {sum(changes)} changes in {1000 * len(changes)} deliveries")
    assert sum(changes) < 1000 * len(changes) / 250


def test_stalled_deliveries_are_no_change() -> None:
    meter = LinkMeter()
    for k in range(200):
        num_bytes, seconds = next(deliveries([50.0], 0.1, k))
        meter.observe(num_bytes, seconds + (2.0 if k % 10 == 5 else 0.0))
    assert meter.num_changes == 0
    assert meter.rate_mbps == pytest.approx(50.0, rel=0.1)


def test_new_sizes_are_no_change() -> None:
    # Small deliveries after large ones are slow for their bytes: that is latency.
    meter = LinkMeter()
    for num_bytes in (1_000_000,) * 10 + (4_000,) * 5 + (300_000,) * 5:
        meter.observe(num_bytes, 0.02 + num_bytes * 8e-6 / 10.0)
    assert meter.num_changes == 0
    assert meter.latency_s == pytest.approx(0.02, rel=1e-6)
    assert meter.rate_mbps == pytest.approx(10.0, rel=1e-6)
    # And the latency outlives a change of the rate.
    for _ in range(3):
        meter.observe(1_000_000, 0.02 + 1_000_000 * 8e-6 / 1.0)
    assert meter.num_changes == 1
    assert meter.changed_at == 20
    assert meter.latency_s == pytest.approx(0.02, rel=1e-6)
    assert meter.rate_mbps == pytest.approx(1.0, rel=1e-6)


# ---- the line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["two sizes", "sizes of codecs"])
def test_first_bytes_at_line_speed_do_not_spoil_the_rate(sizes: str) -> None:
    # 64 KB pass at once: all of a delivery of 40 KB, half of one of 130 KB.
    errors, bursts = [], []
    for seed in range(20):
        meter = fed([10.0] * 24, 0.05, seed, SIZES[sizes], burst=64_000)
        rate, estimate = meter.rate_mbps, meter.estimate()
        assert rate is not None
        assert estimate is not None
        errors.append(abs(math.log(rate / 10.0)))
        bursts.append(estimate.burst_bytes)
        for num_bytes in (500_000, 1_000_000, 4_000_000):
            true_s = LATENCY_S + (num_bytes - 64_000) * 0.8e-6
            assert estimate.predict_s(num_bytes) == pytest.approx(true_s, rel=0.3)
            assert meter.predict_s(num_bytes) == pytest.approx(estimate.predict_s(num_bytes))
        small = min(SIZES[sizes])
        fastest = min(
            t for b, t in deliveries([10.0] * 24, 0.05, seed, SIZES[sizes], burst=64_000) if b == small
        )
        assert estimate.predict_s(small) >= 0.99 * fastest
    assert float(np.mean(errors)) < 0.05  # the deviation of one delivery
    if sizes == "two sizes":
        # All that deliveries of 40 KB and 1 MB can tell: the line through both crosses 0 at 37 KB.
        slope = 1e-6 * ((1_000_000 - 64_000) * 0.8 - 40_000 * 0.008) / 960_000
        crossing = 40_000 - (LATENCY_S + 40_000 * 0.008e-6) / slope
        assert float(np.mean(bursts)) == pytest.approx(crossing, rel=0.02)


def test_a_stall_in_ten_and_two_sizes() -> None:
    errors = []
    for seed in range(20):
        meter = fed([10.0] * 24, 0.1, seed, SIZES["two sizes"], stalls=0.1)
        rate, small_s = meter.rate_mbps, meter.predict_s(40_000)
        assert rate is not None
        assert small_s is not None
        errors.append((math.log(rate / 10.0), math.log(small_s / 0.034)))
    # A median of 12 deliveries of each size: 1.25 * 0.1 / sqrt(12) = 0.036, and the stalls' bias.
    assert np.sqrt(np.mean(np.square(errors), axis=0)).max() < 2 * 0.036


def test_two_deliveries_of_nearly_one_size_tell_no_latency() -> None:
    meter = LinkMeter()
    meter.observe(1_000_000, 0.80)
    meter.observe(1_050_000, 0.79)
    assert meter.latency_s == 0.0
    assert meter.rate_mbps == pytest.approx(10.0, rel=0.1)


def test_a_drifting_rate_is_followed_and_noise_is_not() -> None:
    # From 50 Mbit/s down by 4 % a delivery, too slow to be a change: the median of 24 would be 40 % too fast.
    errors, steady = [], []
    for seed in range(20):
        meter = fed([50.0 * 0.96**k for k in range(40)], 0.03, seed)
        assert meter.rate_mbps is not None
        errors.append(abs(math.log(meter.rate_mbps / (50.0 * 0.96**40))))
        noise = np.random.default_rng(seed).normal(0.0, 0.2, 24)
        steady.append(drift(noise.tolist()))
    assert float(np.median(errors)) < 0.12
    assert float(np.mean(np.array(steady) == 0.0)) >= 0.7
    # A smoothing's level deviates by sqrt(gain / (2 - gain)) of the noise: 0.58 of 0.2.
    assert max(map(abs, steady)) < 3 * 0.58 * 0.2


def test_the_drift_of_plain_series() -> None:
    assert drift([]) == drift([0.1, 0.2, 0.3]) == 0.0
    assert drift([0.0] * 10) == 0.0
    level = drift([-0.2] * 10 + [0.2] * 10)
    assert level == pytest.approx(0.2, abs=0.01)
    # One outlier moves the level by no more than the gain's share of 0.3.
    assert abs(drift([-0.2] * 10 + [0.2] * 9 + [3.0]) - level) <= 0.5 * 0.3


# ---- uncertainty -------------------------------------------------------------------------------------------


def test_deviations_cover_the_truth_and_shrink() -> None:
    inside, predicted, shrunk = [], [], []
    for seed in range(60):
        sizes = SIZES["sizes of codecs"]
        estimates = [fed([50.0] * count, 0.1, seed, sizes).estimate() for count in (4, 24)]
        for estimate in estimates:
            assert estimate is not None
            inside.append(abs(estimate.rate_mbps - 50.0) < 2 * estimate.rate_deviation_mbps)
            for num_bytes, seconds in deliveries([50.0] * 4, 0.1, 1000 + seed, sizes):
                error = abs(seconds - estimate.predict_s(num_bytes))
                predicted.append(error < 2 * estimate.predict_deviation_s(num_bytes))
        few, many = (estimate.rate_deviation_mbps for estimate in estimates if estimate is not None)
        shrunk.append(many < few)
    # 95 % lie within two deviations of a normal variable, whose deviation is known; here it is estimated.
    assert np.mean(inside) > 0.9
    assert np.mean(predicted) > 0.9
    assert np.mean(shrunk) > 0.9


def test_estimates_are_plain_values() -> None:
    meter = LinkMeter()
    assert meter.estimate() is None
    meter.observe(125_000, 0.1)
    estimate = meter.estimate()
    assert estimate is not None
    assert estimate.rate_mbps == pytest.approx(10.0)
    assert 0.0 < estimate.rate_deviation_mbps < 10.0
    given = LinkEstimate(rate_mbps=8.0, latency_s=0.5)
    assert given.predict_s(1_000_000) == pytest.approx(1.5)
    assert given.predict_deviation_s(1_000_000) == 0.0
    instant = LinkMeter()
    instant.observe(1000, 0.0)
    assert instant.estimate() is not None


# ---- state -------------------------------------------------------------------------------------------------


def test_a_restored_meter_goes_on_bit_for_bit() -> None:
    mbps = [100.0] * 30 + [10.0] * 20 + [40.0] * 10
    events = list(deliveries(mbps, 0.1, 0, SIZES["sizes of codecs"], stalls=0.05))
    whole = LinkMeter()
    for k, (num_bytes, seconds) in enumerate(events):
        again = LinkMeter()
        again.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        assert again.estimate() == whole.estimate()
        if k % 7 == 0 or k in (31, 32, 51):
            for later_bytes, later_s in events[k:]:
                again.observe(later_bytes, later_s)
            reference = LinkMeter()
            for earlier_bytes, earlier_s in events:
                reference.observe(earlier_bytes, earlier_s)
            assert again.state_dict() == reference.state_dict()
            assert again.estimate() == reference.estimate()
        whole.observe(num_bytes, seconds)
    assert whole.num_changes >= 1


# ---- the detector alone ------------------------------------------------------------------------------------


class PlainDetector:
    """Adams and MacKay's recursion written out run by run, with the exact Student t."""

    def __init__(self) -> None:
        self.runs: dict[
            int, tuple[float, float, float, float]
        ] = {}  # length: probability, weight, mean, squares

    def observe(self, value: float) -> None:
        hazard, outliers, wide = 1 / 250, 0.05, 0.1
        grown = {1: (hazard * wide if self.runs else 1.0, 1.0, value, 0.0)}
        for length, (probability, weight, mean, squares) in self.runs.items():
            alpha = 2.0 + (weight - 1.0) / 2.0
            scale = math.sqrt((2.0 * 0.15**2 + squares / 2.0) * (weight + 1.0) / (alpha * weight))
            density = math.exp(
                math.lgamma(alpha + 0.5)
                - math.lgamma(alpha)
                - 0.5 * math.log(2.0 * math.pi * alpha)
                - math.log(scale)
                - (alpha + 0.5) * math.log1p(((value - mean) / scale) ** 2 / (2.0 * alpha))
            )
            mixed = (1 - outliers) * density + outliers * wide
            counts = (1 - outliers) * density / mixed
            new_mean = (weight * mean + counts * value) / (weight + counts)
            grown[length + 1] = (
                probability * mixed * (1 - hazard),
                weight + counts,
                new_mean,
                squares + counts * (value - mean) * (value - new_mean),
            )
        total = sum(run[0] for run in grown.values())
        self.runs = {length: (run[0] / total, *run[1:]) for length, run in grown.items()}


def test_the_run_length_posterior_is_the_plain_one() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate((random.normal(0.0, 0.2, 15), [3.0], random.normal(0.0, 0.2, 10), [0.5, 0.6]))
    detector, plain = ChangeDetector(), PlainDetector()
    for k, value in enumerate(values):
        assert detector.observe(float(value)) == k + 1
        plain.observe(float(value))
        for length, probability, *statistics in np.array(detector.state_dict()["runs"]).T:
            assert probability == pytest.approx(plain.runs[int(length)][0], rel=2e-3 * (k + 1), abs=1e-9)
            assert statistics == pytest.approx(plain.runs[int(length)][1:], rel=2e-3, abs=1e-3)


def test_two_in_a_row_are_a_change_and_one_or_two_apart_are_not() -> None:
    def lengths(values: Sequence[float]) -> list[int]:
        detector = ChangeDetector()
        return [detector.observe(value) for value in values]

    quiet = [0.02, -0.03, 0.0, 0.05, -0.01] * 4
    assert lengths([*quiet, 2.0, 0.0, 0.01, -2.0, 0.03])[-1] == 25
    assert lengths([*quiet, 3.0, 1.0, 0.0])[-1] == 23  # two stalls of different lengths
    assert lengths([*quiet, 2.0, 2.05, 1.98])[-2:] == [2, 3]
    assert lengths([*quiet, *[0.7, 0.72] * 2])[-1] == 4
