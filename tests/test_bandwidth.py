"""Links, traces and the meter: arithmetic against integration by hand, estimates that stand outliers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dance.bandwidth import Link, LinkMeter, Links, Trace, parse_link, parse_links, read_trace


def test_meter_tells_latency_from_rate() -> None:
    meter = LinkMeter()
    assert meter.rate_mbps is None
    assert meter.predict_s(1000) is None
    assert meter.latency_s == 0.0
    for num_bytes in (1_000, 200_000, 50_000, 1_000_000, 3_000):
        meter.observe(num_bytes, 0.020 + num_bytes * 8 / 10e6)
    assert meter.rate_mbps == pytest.approx(10.0)
    assert meter.latency_s == pytest.approx(0.020)
    assert meter.predict_s(500_000) == pytest.approx(0.42)


def test_meter_with_one_size_charges_the_rate() -> None:
    meter = LinkMeter()
    for _ in range(5):
        meter.observe(125_000, 0.11)
    assert meter.latency_s == 0.0
    assert meter.predict_s(125_000) == pytest.approx(0.11)


def test_meter_stands_stalls_and_follows_a_change() -> None:
    random = np.random.default_rng(0)
    meter = LinkMeter()
    for k in range(16):
        num_bytes = int(random.integers(10_000, 1_000_000))
        stall = 3.0 if k in (3, 7, 11) else 0.0
        meter.observe(num_bytes, 0.005 + num_bytes * 8 / 50e6 * random.uniform(0.95, 1.05) + stall)
    assert meter.rate_mbps == pytest.approx(50.0, rel=0.15)
    for _ in range(12):
        num_bytes = int(random.integers(10_000, 1_000_000))
        meter.observe(num_bytes, 0.005 + num_bytes * 8 / 5e6)
    assert meter.rate_mbps == pytest.approx(5.0, rel=0.05)


def test_meter_state_and_refusals() -> None:
    meter, other = LinkMeter(), LinkMeter()
    for num_bytes in (100, 1000, 5000):
        meter.observe(num_bytes, num_bytes * 1e-6 + 0.001)
    meter.observe(0, 1.0)
    assert meter.num_observations == 3
    other.load_state_dict(meter.state_dict())
    assert other.predict_s(777) == meter.predict_s(777)
    for seconds in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match=f"seconds >= 0, got 10 in {seconds}"):
            meter.observe(10, seconds)
    instant = LinkMeter()
    instant.observe(1000, 0.0)
    assert instant.predict_s(10**6) == pytest.approx(0.0, abs=1e-5)


def test_trace_integrates_its_steps_and_repeats() -> None:
    trace = Trace(times_s=np.array([0.0, 1.0, 2.0]), mbps=np.array([8.0, 0.0, 16.0]))  # bytes: 1e6, 0, 2e6
    assert trace.period_s == 3.0
    assert trace.finish_s(0.0, 500_000) == pytest.approx(0.5)
    assert trace.finish_s(0.5, 500_000) == pytest.approx(1.0)
    assert trace.finish_s(0.5, 500_001) == pytest.approx(2.0, abs=1e-5)
    assert trace.finish_s(1.5, 1_000_000) == pytest.approx(2.5)
    assert trace.finish_s(2.5, 1_000_000) == pytest.approx(3.0)
    assert trace.finish_s(2.5, 1_500_000) == pytest.approx(3.5)
    assert trace.finish_s(30.5, 500_000) == pytest.approx(31.0)
    assert trace.finish_s(0.25, 0) == 0.25
    # Against small steps in time.
    for start, num_bytes in ((0.3, 7_654_321), (4.9, 12_000_000)):
        time_s, left, step = start, float(num_bytes), 1e-4
        while left > 0:
            left -= float(trace.mbps[int(time_s % 3.0)]) * 1e6 / 8 * step
            time_s += step
        assert trace.finish_s(start, num_bytes) == pytest.approx(time_s, abs=1e-3)


def test_trace_files(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("# seconds mbps\n5.0 10\n\n6.0 20 # faster\n")
    trace = read_trace(path)
    assert trace.finish_s(0.0, 1_250_000) == pytest.approx(1.0)
    link = parse_link(f"{path},5ms")
    assert link.delay_s == pytest.approx(0.005)
    assert link.sent_s(0.0, 1_250_000) == link.received_s(0.0, 1_250_000) == pytest.approx(1.0)


def test_link_texts() -> None:
    link = parse_link("10mbit,5ms")
    assert (link.rate_mbps, link.down_mbps, link.delay_s) == (10.0, None, 0.005)
    assert link.sent_s(1.0, 1_250_000) == pytest.approx(2.0)
    link = parse_link("500kbit/1.5gbit")
    assert (link.rate_mbps, link.down_mbps) == (0.5, 1500.0)
    assert link.received_s(0.0, 187_500_000) == pytest.approx(1.0)
    links = Links(default=link, nodes={3: Link(rate_mbps=1.0)})
    assert links.of(3).rate_mbps == 1.0
    assert links.of(0) is link
    assert parse_links(None).of(5).sent_s(2.0, 10**9) == 2.0
    for text in ("10", "fast", "10mbit,soon", "0mbit", "1mbit/2mbit/3mbit", ""):
        with pytest.raises(ValueError, match="link"):
            parse_link(text)
