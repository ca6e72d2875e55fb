"""Trace readers on files made here, and synthetic traces against closed forms of their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dance.bandwidth import (
    Trace,
    cellular,
    markov,
    parse_link,
    parse_trace,
    periodic,
    read_trace,
    steps,
    walk,
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    return path


# ---- readers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0 8\n0.5 0\n1.0 16\n",
        "# seconds mbps\n10.0\t8.0\n\n10.5 0  # none\n11 16\n",
        "seconds,mbps\n0,8\n0.5,0\n1.0,16\n",
        "ms,kbps\n2000,8000\n2500,0\n3000,16000\n",
        "run, Time (s), Throughput (Mbps)\nbus,0,8\nbus,0.5,0\nbus,1,16\n",
        '"throughput_bps","time_us"\n8e6,0\n0,500000\n16e6,1000000\n',
        "\ufefftime,rate_gbps\n0,0.008\n0.5,0\n1,0.016\n",
    ],
)
def test_the_same_trace_in_seconds_and_csv(tmp_path: Path, text: str) -> None:
    trace = read_trace(written(tmp_path, text))
    np.testing.assert_allclose(trace.times_s, [0.0, 0.5, 1.0, 1.5], rtol=1e-12)
    np.testing.assert_allclose(trace.mbps, [8.0, 0.0, 16.0], rtol=1e-12)


def test_mahimahi_delivers_1500_bytes_an_opportunity(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stamps = np.sort(random.integers(0, 2_000, 5_000))
    stamps[-1] = 2_000
    path = written(tmp_path, "".join(f"{stamp}\n" for stamp in stamps))
    trace = read_trace(path)
    assert trace.period_s == pytest.approx(2.0)
    assert trace.finish_s(0.0, 1500 * 5_000) == pytest.approx(2.0)
    # Whole bins carry whole opportunities: those up to their end.
    for end_ms in range(100, 2_001, 100):
        count = int((stamps <= end_ms).sum())
        assert trace.mean_mbps(0.0, end_ms / 1e3) * end_ms / 1e3 == pytest.approx(count * 1500 * 8e-6)
    # In bins of a millisecond it is the packet's schedule itself, to a millisecond.
    fine = read_trace(path, bin_s=0.001)
    for k in range(100, 5_000, 317):
        assert stamps[k] - 1.0 <= fine.finish_s(0.0, 1500 * (k + 0.5)) * 1e3 <= stamps[k] + 1e-6
    assert read_trace(written(tmp_path, "4\n")).mean_mbps(0.0, 0.004) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found none; expected lines 'seconds mbps', Mahimahi"),
        ("# nothing\n\n", "found none"),
        ("1 2 3\n", "line 1: expected lines 'seconds mbps'.*CSV.*got '1 2 3'"),
        ("0 1\n1 2 3\n", "line 2: expected 'seconds mbps', got '1 2 3'"),
        ("0 1\n1 fast\n", "line 2: expected 'seconds mbps', got '1 fast'"),
        ("0 1\n\n0 2\n", "line 3: expected strictly rising times, above 0 s, got '0 2'"),
        ("0 1\nnan 2\n", "line 2: expected strictly rising times"),
        ("0 0\n1 0\n", "one > 0"),
        ("0 1\n1 -1\n", ">= 0"),
        ("0 1\n1 inf\n", "finite"),
        ("1\n2.5\n", r"line 2: expected a whole millisecond \(Mahimahi\), got '2.5'"),
        ("5\n4\n", r"line 2: expected no millisecond before 5 \(Mahimahi\), got '4'"),
        ("0\n0\n", "a last millisecond above 0"),
        ("999999999999999\n", "at most 10000000 bins"),
        ("0,1\n1,2\n", "line 1: expected a header with a column of times and one of rates"),
        ("seconds,ms,mbps\n0,0,1\n", "line 1: expected a header"),
        ("seconds,mbps\n", "found a header and no lines"),
        ("seconds,mbps\n0,1\n1\n", "line 3: expected 2 columns, as in the header, got '1'"),
        ("seconds,mbps\n0,slow\n", "line 2: expected numbers, got '0,slow'"),
    ],
)
def test_broken_files_are_told_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(written(tmp_path, text))
    assert "trace.txt" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read .*; expected lines"):
            read_trace(tmp_path / name)
    with pytest.raises(ValueError, match="bin_s above 0, got 0"):
        read_trace(written(tmp_path, "1\n2\n"), bin_s=0.0)


def test_a_saved_trace_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "saved.txt"
    for trace in (
        walk(20.0, seed=3, step_s=0.1, duration_s=50.0),
        steps((1.0,)),
        Trace(times_s=np.array([7.0, 7.3, 9.1]), mbps=np.array([1 / 3, 0.0, 1e-9])),
    ):
        trace.save(path)
        again = read_trace(path)
        assert np.array_equal(again.mbps, trace.mbps)
        assert np.array_equal(again.times_s, trace.times_s)


# ---- a trace in time ---------------------------------------------------------------------------------------


def test_rates_in_time() -> None:
    trace = steps((100.0, 10.0, 0.0), hold_s=2.0)
    assert [trace.rate_mbps(at) for at in (0.0, 1.999, 2.0, 5.0, 6.0, 8.5, 601.0)] == [
        100.0,
        100.0,
        10.0,
        0.0,
        100.0,
        10.0,
        100.0,
    ]
    assert trace.mean_mbps(1.0, 3.0) == pytest.approx(55.0)
    assert trace.mean_mbps(0.0, 600.0) == pytest.approx(110.0 / 3)
    assert trace.mean_mbps(5.0, 7.0) == pytest.approx(50.0)
    with pytest.raises(ValueError, match="an end after 3"):
        trace.mean_mbps(3.0, 3.0)


# ---- generators --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: markov((10.0, 1.0), seed=seed),
        lambda seed: walk(10.0, seed=seed),
        lambda seed: cellular(10.0, seed=seed),
    ],
)
def test_generators_repeat_by_seed(make: Callable[[int], Trace]) -> None:
    assert np.array_equal(make(5).mbps, make(5).mbps)
    assert not np.array_equal(make(5).mbps, make(6).mbps)
    assert make(5).period_s == 600.0


def test_markov_is_as_often_in_each_state_and_stays_as_long_as_it_should() -> None:
    count, leave = 200_000, 0.2
    mbps = markov((100.0, 10.0, 1.0), hold_s=5.0, duration_s=float(count), seed=1).mbps
    memory = 1.0 - 1.5 * leave  # the second eigenvalue of three states left for either other one
    deviation = math.sqrt(2 / 9 / count * (1 + memory) / (1 - memory))
    for rate in (100.0, 10.0, 1.0):
        assert abs(float((mbps == rate).mean()) - 1 / 3) < 4 * deviation
    moves = int((np.diff(mbps) != 0).sum())
    assert abs(moves / count - leave) < 4 * math.sqrt(leave * (1 - leave) / count)
    # From 10 it goes to either other rate equally often.
    after = mbps[1:][(mbps[:-1] == 10.0) & (mbps[1:] != 10.0)]
    assert abs(float((after == 1.0).mean()) - 0.5) < 4 * 0.5 / math.sqrt(after.size)


def test_a_walk_has_its_volatility_and_its_mirrors() -> None:
    count = 100_000
    free = walk(20.0, volatility=0.1, span=1e9, step_s=0.25, duration_s=count / 4, seed=1).mbps
    assert free[0] == pytest.approx(20.0)
    moves = np.diff(np.log(free))
    # A sample deviation deviates by a share of 1 / sqrt(2 n).
    assert float(moves.std()) == pytest.approx(0.05, rel=4 / math.sqrt(2 * count))
    assert abs(float(moves.mean())) < 4 * 0.05 / math.sqrt(count)
    held = walk(20.0, volatility=0.3, span=2.0, duration_s=count, seed=2).mbps
    assert held.min() >= 10.0 * (1 - 1e-12)
    assert held.max() <= 40.0 * (1 + 1e-12)
    assert float(np.abs(np.diff(np.log(held))).max()) < 6 * 0.3
    # Between mirrors a walk is uniform in the long run: width ln 4, correlation time about 4 steps.
    logs = np.log(held / 20.0)
    deviation = math.log(4.0) / math.sqrt(12.0)
    assert abs(float(logs.mean())) < 4 * deviation * math.sqrt(2 * 4.3 / count)
    assert float(logs.std()) == pytest.approx(deviation, rel=4 * math.sqrt(4.3 / count))


def test_a_period_has_its_mean_and_extremes() -> None:
    trace = periodic(50.0, amplitude=0.8, period_s=60.0, step_s=0.5)
    assert trace.period_s == pytest.approx(60.0)
    assert float(trace.mbps.mean()) == pytest.approx(50.0)
    assert float(trace.mbps.std()) == pytest.approx(50.0 * 0.8 / math.sqrt(2.0))
    assert float(trace.mbps.max()) == pytest.approx(90.0, rel=1e-3)
    assert trace.rate_mbps(15.0) > 89.0 > 11.0 > trace.rate_mbps(45.0)
    assert float(periodic(1.0, amplitude=1.0).mbps.min()) >= 0.0


def test_cellular_is_lognormal_and_forgets_exponentially() -> None:
    count, share, memory = 200_000, 0.5, math.exp(-0.5)
    mbps = cellular(30.0, deviation=share, correlation_s=2.0, duration_s=float(count), seed=1).mbps
    independent = count * (1 - memory) / (1 + memory)
    assert float(mbps.mean()) == pytest.approx(30.0, rel=4 * share / math.sqrt(independent))
    logs = np.log(mbps)
    variance = math.log1p(share**2)
    assert float(logs.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / independent))
    assert abs(float(logs.mean()) - math.log(30.0) + variance / 2) < 4 * math.sqrt(variance / independent)
    logs -= logs.mean()
    for lag in (1, 5, 10, 20):
        correlation = float((logs[lag:] * logs[:-lag]).mean() / logs.var())
        assert correlation == pytest.approx(memory**lag, abs=4 / math.sqrt(independent))


def test_texts_of_synthetic_traces() -> None:
    link = parse_link("steps:100,10,100@30s,5ms")
    assert link.delay_s == pytest.approx(0.005)
    assert link.trace is not None
    assert link.trace.period_s == 90.0
    assert link.trace.mbps.tolist() == [100.0, 10.0, 100.0]
    assert link.received_s(29.0, 12_500_000 + 1_250_000) == pytest.approx(31.0)
    for text, trace in (
        ("steps:1gbit,500kbit", steps((1000.0, 0.5))),
        ("markov:100,10@20s,seed=7,duration=100s", markov((100, 10), hold_s=20.0, seed=7, duration_s=100.0)),
        (
            "walk: 20, volatility=0.2, span=5, step=500ms",
            walk(20.0, volatility=0.2, span=5.0, step_s=0.5),
        ),
        ("periodic:50,amplitude=0.8,period=30s", periodic(50.0, amplitude=0.8, period_s=30.0)),
        (
            "cellular:20,deviation=0.4,correlation=5s,seed=2",
            cellular(20.0, deviation=0.4, correlation_s=5.0, seed=2),
        ),
    ):
        parsed = parse_trace(text)
        assert np.array_equal(parsed.mbps, trace.mbps)
        assert np.array_equal(parsed.times_s, trace.times_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps:", "expected a rate in Mbit/s, got ''"),
        ("steps:1,fast", "expected a rate in Mbit/s, got 'fast'"),
        ("steps:1,2@3", "expected hold such as 30s or 500ms, got '3'"),
        ("steps:0", "one > 0"),
        ("steps:1,2@0s", "hold_s above 0, got 0"),
        ("markov:1,2@10ms", "hold_s of at least step_s = 1, got 2 and 0.01"),
        ("markov:1", "at least 2 rates"),
        ("walk:1,2", "expected one rate, got 2"),
        ("walk:1@5s", "unknown option 'hold'; expected one of volatility, span, duration, step, seed"),
        ("walk:1,span=1", "span above 1, got 1"),
        ("walk:1,seed=x", "a number for seed, got 'x'"),
        ("walk:1,duration=1000000s,step=1us", "10\\^7 steps"),
        ("periodic:1,period=2s", "at least 3 steps"),
        ("periodic:1,amplitude=2", "amplitude in \\[0, 1\\], got 2"),
        ("cellular:-1", "mbps above 0, got -1"),
        ("cellular:1,deviation=nan", "deviation above 0, got nan"),
    ],
)
def test_texts_that_name_no_trace(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_link(text)
    assert text in str(caught.value)


def test_an_unknown_generator_is_named() -> None:
    with pytest.raises(ValueError, match="unknown generator 'waves'; expected one of steps, markov, walk"):
        parse_trace("waves:1")
