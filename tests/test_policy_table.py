"""Policies by name and by calibration: patterns, the map of (size, rate, deviation), and its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_world import World, drive, steady, steps

from dance import codec
from dance.bandwidth import LinkMeter
from dance.policy import Auto, Calibration, Fixed, PerLayer, Send, Table, read_calibration

NUMELS, MBPS, DEVIATIONS = (1 << 16, 1 << 20), (10.0, 1000.0, 1e5), (0.0, 0.5)
CODECS = tuple(codec(text) for text in ("none", "bf16", "int8"))
PARTS = np.array([1.0, 0.5, 0.26])


def seconds(numel: float, mbps: float, deviation: float) -> np.ndarray:
    """A law that is a straight line in the logarithms along every axis."""
    return PARTS * 64.0 * numel / (mbps * 1e6) * np.exp(deviation) + np.zeros(3)


def calibration(**changes: Any) -> Calibration:
    table = np.array([[[seconds(n, m, d) for d in DEVIATIONS] for m in MBPS] for n in NUMELS])
    made = Calibration(
        collective="all_reduce",
        world=2,
        numels=NUMELS,
        mbps=MBPS,
        deviations=DEVIATIONS,
        codecs=CODECS,
        seconds=table,
        about={"made_on": "2026-11-24"},
    )
    return replace(made, **changes) if changes else made


def bent() -> Calibration:
    """Where none is best at the highest rate, whatever the deviation."""
    table = calibration().seconds.copy()
    table[:, 2, :, 0] *= 0.1
    return calibration(seconds=table)


@pytest.mark.parametrize("numel", [1 << 16, 100_000, 1 << 20, 1 << 22, 100])
@pytest.mark.parametrize("mbps", [1.0, 10.0, 33.0, 1000.0, 3e6])
@pytest.mark.parametrize("deviation", [0.0, 0.2, 0.5])
def test_interpolation_is_exact_for_lines_and_scales_beyond(
    numel: int, mbps: float, deviation: float
) -> None:
    np.testing.assert_allclose(
        calibration().at(numel, mbps, deviation), seconds(numel, mbps, deviation), rtol=1e-9
    )


def test_deviation_beyond_the_table_counts_as_the_last() -> None:
    np.testing.assert_array_equal(calibration().at(1000, 50.0, 9.0), calibration().at(1000, 50.0, 0.5))


def test_the_file_gives_the_calibration_back(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(calibration().to_json())
    again = read_calibration(path)
    assert again.to_json() == calibration().to_json()
    assert str(again.codecs[2]) == "int8:block=256"
    np.testing.assert_array_equal(again.seconds, calibration().seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="something"), "expected an object of format"),
        (lambda v: v.update(version=2), "expected version 1, got 2"),
        (lambda v: v.pop("mbps"), "missing or unknown entries: mbps"),
        (lambda v: v.update(extra=1), "missing or unknown entries: extra"),
        (lambda v: v.update(mbps=[10.0, 5.0, 1.0]), "expected rising mbps"),
        (lambda v: v.update(mbps=["10", 20.0, 30.0]), "expected a number, got '10'"),
        (lambda v: v.update(numels=[0, 4]), "expected numels and mbps above 0"),
        (lambda v: v.update(world=True), "expected a number, got True"),
        (lambda v: v.update(codecs=["zip"] * 3), "unknown codec 'zip'"),
        (lambda v: v.update(codecs="none"), "expected a list of codecs, got str"),
        (lambda v: v["seconds"].pop(), "positive seconds of shape"),
        (lambda v: v["seconds"][0][0][0].__setitem__(0, -1.0), "positive seconds of shape"),
        (lambda v: v["seconds"][0][0][0].append(1.0), "nested lists of numbers"),
        (lambda v: v.update(about=1), "an object 'about'"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    values = json.loads(calibration().to_json())
    change(values)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"table.json: .*{message}.*; make a new one: dance calibrate"):
        Table(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no calibration can be read"):
        read_calibration(tmp_path / "nothing.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="no calibration can be read"):
        read_calibration(tmp_path / "x.json")


def test_a_table_follows_the_link() -> None:
    trace = steps((5e4, 0.2), (50.0, 200.0))
    done = drive(
        World(trace=trace, direct_mbps=5e4, wire_mbps=5e4), lambda: Table(bent()), 1 << 20, calls=260
    )
    slow = int(np.searchsorted(done.ends_s, 0.2))
    assert done.names[0] == "int8"  # nothing is known: the smallest packet
    assert set(done.names[10 : slow - 1]) == {"none"}
    assert set(done.names[slow + 40 :]) == {"int8"}


def test_a_table_serves_packets_to_peers() -> None:
    def meter(mbps: float) -> LinkMeter:
        link = LinkMeter()
        for num_bytes in (1_000, 10_000, 100_000, 1_000_000):
            link.observe(num_bytes, num_bytes * 8e-6 / mbps)
        return link

    table = Table(bent())
    send = Send(kind="gossip", round=0, numel=1 << 20, links=[meter(1e5), meter(20.0)])
    assert str(table.choose(send)) == "int8:block=256"
    assert str(table.choose(replace(send, links=[meter(1e5)]))) == "none"
    assert str(Table(bent()).choose(replace(send, links=[LinkMeter()]))) == "int8:block=256"
    with pytest.raises(ValueError, match="calibrated for all_reduce over 4 ranks"):
        Table(calibration(world=4)).choose(send)


def test_a_table_explains_and_keeps_to_its_bound() -> None:
    table = Table(calibration(), max_error=0.005)
    send = Send(kind="all_reduce", round=1, numel=1 << 20, world=2)
    assert [row.codec for row in table.explain(send).rows] == ["none", "bf16"]
    assert "not measured yet" in table.explain(send).reason
    table.believe(rate_mbps=100.0)
    explanation = table.explain(send)
    assert explanation.chosen.codec == "bf16"
    link = table.link_estimate()
    assert link is not None
    expected = seconds(1 << 20, 100.0, min(link.deviation, DEVIATIONS[-1]))[1]
    assert explanation.chosen.predicted_s == pytest.approx(expected, rel=0.02)
    assert "Mbit/s" in str(explanation)
    with pytest.raises(ValueError, match="asked for broadcast over 2; calibrate that"):
        table.choose(replace(send, kind="broadcast"))
    state = json.loads(json.dumps(table.state_dict()))
    again = Table(calibration(), max_error=0.005)
    again.load_state_dict(state)
    assert again.state_dict() == table.state_dict()
    assert again.choose(send) == table.choose(send)


def test_per_layer_asks_the_first_pattern_that_matches() -> None:
    policy = PerLayer({"*.bias": "bf16", "head.*": "none", "head.weight": "int4"}, default="int8")

    def chosen(target: str) -> str:
        return policy.choose(Send(kind="all_reduce", target=target, round=1, numel=1000, world=2)).name

    names = ("conv.bias", "head.weight", "head.bias", "conv.weight", "")
    assert [chosen(name) for name in names] == ["bf16", "none", "bf16", "int8", "int8"]
    assert sorted(decision.target for decision in policy.log) == sorted(names)
    assert str(policy.rule_of("conv.bias")) == "bf16"
    assert policy.rule_of("conv.weight") is None
    assert policy.explain(Send(kind="all_reduce", target="x.bias", round=2, numel=9)).chosen.codec == "bf16"


def test_per_layer_policies_learn_each_from_their_own_calls() -> None:
    def make() -> PerLayer:
        return PerLayer({"*.bias": "bf16"}, default=Auto())

    sends = [(1 << 20, "conv.weight"), (1 << 16, "conv.bias")]
    done = drive(World(trace=steady(100.0), world=3), make, sends, calls=40)
    assert set(done.names[1::2]) == {"bf16"}
    assert set(done.names[0::2]) == {"int8"}
    done = drive(World(trace=steady(1e5), direct_mbps=1e5, world=3), make, sends, calls=40)
    assert set(done.names[8::2]) == {"none"}


def test_per_layer_state() -> None:
    policy = PerLayer({"*.bias": Auto()}, default="int8")
    policy.choose(Send(kind="all_reduce", target="a.bias", round=1, numel=1000, world=2))
    again = PerLayer({"*.bias": Auto()}, default="int8")
    again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again.state_dict() == policy.state_dict()
    with pytest.raises(ValueError, match="expected the state of 1 policies, got 2"):
        PerLayer({}, default=Fixed("int8")).load_state_dict(policy.state_dict())


def test_sizes_of_a_collective_do_not_hold_each_others_codec() -> None:
    """Small calls want none, large ones int8 by a little: each keeps what it has."""
    table = calibration().seconds.copy()
    table[0, :, :, :] = [1.0, 1.5, 1.5]
    table[1, :, :, :] = [1.02, 1.5, 1.0]
    policy = Table(calibration(seconds=table))
    chosen = []
    for number in range(1, 9):
        policy.believe(rate_mbps=100.0)  # something new is known: what was settled is decided again
        numel = NUMELS[number % 2]
        send = Send(kind="all_reduce", target="w", round=number, numel=numel, world=2)
        chosen.append(policy.choose(send).name)
    assert chosen == ["int8", "none"] * 4
    again = Table(calibration(seconds=table))
    again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again.choose(send) == policy.choose(send)


def test_a_table_takes_none_for_one_rank() -> None:
    policy = Table(calibration())
    send = Send(kind="all_reduce", round=1, numel=1 << 20)
    assert policy.choose(send).name == "none"
    assert [row.codec for row in policy.explain(send).rows] == ["none"]
