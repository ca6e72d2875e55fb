"""Policies: fixed, replayed, and the least lossy codec that is in time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_world import World, drive, steady

from dance import codec
from dance.bandwidth import LinkMeter
from dance.errors import DanceError
from dance.feedback import ErrorFeedback
from dance.policy import CANDIDATES, Auto, Fixed, PerLayer, Policy, Schedule, Send
from dance.policy.cost import relative_error
from dance.report import CallLog, read_metrics

NUMEL = 1_000_000


def meter(rate_mbps: float, latency_s: float = 0.001) -> LinkMeter:
    link = LinkMeter()
    for num_bytes in (1_000, 10_000, 100_000, 1_000_000):
        link.observe(num_bytes, latency_s + num_bytes * 8 / (rate_mbps * 1e6))
    return link


def send(round_: int = 0, *rates: float, budget_s: float | None = 1.0, kind: str = "gossip") -> Send:
    return Send(
        kind=kind, round=round_, numel=NUMEL, links=[meter(rate) for rate in rates], budget_s=budget_s
    )


@pytest.mark.parametrize(
    ("rate_mbps", "expected"),
    [
        (1000.0, "none"),
        (20.0, "fp16"),
        (10.0, "int8:block=256"),
        (2.0, "sign:block=256"),
        (1.0, "topk:ratio=0.01"),
    ],
)
def test_auto_takes_the_least_lossy_that_is_in_time(rate_mbps: float, expected: str) -> None:
    # 1M elements: none 32 Mbit, fp16 16, int8 8.1, sign 1.1, top-1 % 0.64; budget 1 s.
    policy = Auto()
    assert str(policy.choose(send(0, rate_mbps))) == expected


def test_the_slowest_link_counts() -> None:
    assert str(Auto().choose(send(0, 1000.0, 2.0))) == "sign:block=256"


def test_none_when_nothing_presses_and_smallest_when_nothing_is_known_or_fits() -> None:
    assert str(Auto().choose(send(budget_s=None))) == "none"
    assert str(Auto().choose(send())) == "topk:ratio=0.01"
    assert str(Auto().choose(send(0, 0.001))) == "topk:ratio=0.01"
    assert str(Auto(budget_s=1.0).choose(send(0, 1000.0, budget_s=None))) == "none"


def test_auto_goes_down_at_once_and_up_with_patience() -> None:
    policy = Auto()
    assert str(policy.choose(send(0))) == "topk:ratio=0.01"  # unmeasured: the smallest
    assert str(policy.choose(send(1, 100.0))) == "none"  # the first measurement counts at once
    assert str(policy.choose(send(2, 20.0))) == "fp16"
    assert str(policy.choose(send(3, 100.0))) == "fp16"
    assert str(policy.choose(send(21, 100.0))) == "fp16"
    assert str(policy.choose(send(22, 33.0))) == "fp16"  # none fits, but without room to spare
    assert str(policy.choose(send(23, 100.0))) == "none"
    assert str(policy.choose(send(24, 2.0))) == "sign:block=256"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mbps", "latency_s", "noise", "budget_s", "expected"),
    [
        (1e4, 0.02, 0.3, 0.1, "none"),  # nearly all of it is latency, which is no matter of the size
        (100.0, 0.001, 0.1, 0.33, "fp16"),  # none takes just as long as there is time
        (5.0, 0.002, 0.1, 0.5, "sign"),  # a slow link
    ],
)
def test_noise_and_latency_neither_confuse_nor_excite_it(
    mbps: float, latency_s: float, noise: float, budget_s: float, expected: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    link = LinkMeter()
    policy = Auto(("none", "fp16", "int8", "sign"), budget_s=budget_s)
    late, names = 0, []
    for k in range(600):
        chosen = policy.choose(Send(kind="gossip", round=k, numel=NUMEL, links=[link]))
        num_bytes = chosen.packet_nbytes(NUMEL)
        seconds = (latency_s + num_bytes * 8e-6 / mbps) * np.exp(noise * random.standard_normal())
        link.observe(num_bytes, seconds)
        late += seconds > budget_s
        names.append(chosen.name)
    assert names[100:].count(expected) > 0.97 * 500
    assert late <= 6
    assert len(policy.log) <= 14  # single trials among them


def test_a_codec_taken_in_vain_waits_longer_each_time() -> None:
    policy = Auto(("none", "fp16"), budget_s=1.0)
    ups = []
    for k in range(700):
        # Fast whenever fp16 is in use, slow as soon as none is.
        held = policy.log[-1].codec if policy.log else "none"
        chosen = policy.choose(send(k, 20.0 if held == "none" else 100.0, budget_s=None))
        if chosen.name == "none" and held != "none":
            ups.append(k)
    waits = np.diff(ups).tolist()
    assert waits == sorted(waits)
    assert waits[0] >= 20
    assert waits[-1] >= 8 * 20


def test_candidates_by_kind() -> None:
    policy = Auto({"image": ("none", "int8"), "": ("sign",)})
    assert str(policy.choose(send(0, 1.0, kind="image"))) == "int8:block=256"
    assert str(policy.choose(send(0, 1000.0, kind="gossip"))) == "sign:block=256"
    with pytest.raises(ValueError, match="no candidates for kind 'gossip'; there are some for image"):
        Auto({"image": ("none",)}).choose(send())


def test_explain_is_a_table_and_decides_nothing() -> None:
    policy = Auto()
    explanation = policy.explain(send(7, 2.0))
    assert [row.codec for row in explanation.rows] == [str(codec(text)) for text in CANDIDATES]
    assert [row.fits for row in explanation.rows] == [False, False, False, True, True]
    assert [row.chosen for row in explanation.rows] == [False, False, False, True, False]
    assert explanation.rows[0].num_bytes == 64 + 4 * NUMEL
    lines = str(explanation).splitlines()
    assert len(lines) == 7
    assert lines[4].startswith("sign:block=256")
    assert lines[4].endswith("<- chosen")
    assert "round 7" in lines[6]
    assert policy.log == []


def test_a_log_can_be_replayed() -> None:
    policy: Policy = Auto()
    rates = [None, 100.0, 20.0, 2.0, 2.0, 1000.0]
    chosen = [policy.choose(send(k, *([] if rate is None else [rate]))) for k, rate in enumerate(rates)]
    replay = Schedule(policy.log)
    assert [replay.choose(send(k)) for k in range(6)] == chosen
    assert replay.choose(send(99)) == chosen[-1]
    # A log holds changes only; a replay logs what it replays.
    assert [(decision.round, decision.codec) for decision in policy.log] == [
        (0, "topk:ratio=0.01"),
        (1, "none"),
        (2, "fp16"),
        (3, "sign:block=256"),
    ]
    assert [(each.round, each.codec) for each in replay.log] == [
        (each.round, each.codec) for each in policy.log
    ]
    with pytest.raises(
        ValueError, match="no decision for 'image' up to round 3; there are some for 'gossip'"
    ):
        replay.choose(send(3, kind="image"))


def test_a_log_of_several_links_is_replayed_link_by_link() -> None:
    policy = Auto()
    chosen: dict[tuple[int, str], object] = {}

    def to(target: str, k: int, *rates: float) -> Send:
        return replace(send(k, *rates), target=target)

    for k in range(60):
        for target, rate in (("1", 1000.0), ("2", 20.0 if k < 30 else 500.0), ("3,4", 2.0)):
            chosen[k, target] = policy.choose(to(target, k, rate))
    assert [str(chosen[59, target]) for target in ("1", "2", "3,4")] == ["none", "none", "sign:block=256"]
    assert str(chosen[0, "2"]) == "fp16"
    assert len(policy.log) == 4
    again = Auto()
    again.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert again.log == policy.log
    assert again.state_dict() == policy.state_dict()
    replay = Schedule(again.log)
    for (k, target), taken in chosen.items():
        assert replay.choose(to(target, k)) == taken
    with pytest.raises(ValueError, match=r"no decision for 'gossip' to 5 up to round 0; .*'gossip' to 3,4"):
        replay.choose(to("5", 0))


def test_policy_memory_is_resumed() -> None:
    one, two = Auto(), Auto()
    for k, rate in enumerate((100.0, 2.0)):
        one.choose(send(k, rate))
    two.load_state_dict(one.state_dict())
    for k in range(2, 40):
        assert one.choose(send(k, 100.0)) == two.choose(send(k, 100.0))
    assert one.log == two.log
    fixed = Fixed("int8")
    assert fixed.choose(send()) == codec("int8")
    assert len(fixed.explain(send()).rows) == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        Auto(())
    with pytest.raises(ValueError, match="budget_s above 0, got 0"):
        Auto(budget_s=0.0)
    with pytest.raises(ValueError, match="unknown codec"):
        Fixed("zip")


def test_the_objective_may_be_named() -> None:
    # Packets to peers by time: what the wire leaves, coding may take.
    fast = Send(kind="gossip", round=0, numel=NUMEL, links=[meter(1e6, 0.0)])
    slow = send(0, 10.0, budget_s=None)
    assert str(Auto(("none", "int8"), objective="time").choose(fast)) == "none"
    assert str(Auto(("none", "int8"), objective="time").choose(slow)) == "int8:block=256"
    assert str(Auto(("none", "int8"), objective="error").choose(slow)) == "none"
    chosen = Auto(("none", "int8"), objective="time").explain(slow).chosen
    assert chosen.cost is not None
    assert chosen.cost.encode_s is not None
    assert chosen.cost.encode_s > 0.0


def test_a_log_of_calls_has_predicted_beside_measured(tmp_path: Path) -> None:
    logs = iter([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    drive(World(trace=steady(100.0)), lambda: CallLog(Auto(), next(logs)), 1 << 18, calls=12)
    lines = read_metrics(tmp_path / "0.jsonl")
    assert [line["round"] for line in lines] == list(range(1, 13))
    assert lines[0]["predicted_s"] is None
    for line in lines[3:]:
        assert (line["codec"], line["kind"], line["numel"]) == ("int8:block=256", "all_reduce", 1 << 18)
        assert line["predicted_s"] == pytest.approx(line["seconds"], rel=0.3)
        assert line["predicted_wire_s"] == pytest.approx(line["wire_s"], rel=0.3)
        assert 0 < line["wire_bytes"] <= line["num_bytes"]
    with pytest.raises(DanceError, match="cannot write"):
        CallLog(Auto(), tmp_path / "no" / "calls.jsonl")


def test_errors_are_those_of_normal_data() -> None:
    errors = [relative_error(codec(text)) for text in ("none", "fp16", "bf16", "int8", "int4", "sign")]
    assert errors == sorted(errors)
    assert errors[0] == 0.0
    # sign: sqrt(1 - 2 / pi) of a normal's norm; bf16: uniform in 2^-8 of the value at most.
    assert errors[-1] == pytest.approx((1.0 - 2.0 / np.pi) ** 0.5, rel=0.02)
    assert errors[2] < 2.0**-9


def test_a_send_that_cannot_be_is_refused() -> None:
    for change, message in (
        ({"numel": "1Mi"}, "Send: expected numel to be a number of at least 0, got '1Mi'"),
        ({"numel": -1}, "at least 0, got -1"),
        ({"world": 0}, "expected world to be a number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Send(**{"kind": "all_reduce", "round": 1, "numel": 9, **change})


def test_a_collective_without_a_world_is_told_to_be_of_one_rank() -> None:
    alone = Send(kind="all_reduce", round=1, numel=1 << 20)
    for policy in (Auto(), Auto(("int8", "sign"), budget_s=1e-3)):
        explanation = policy.explain(alone)
        assert [row.codec for row in explanation.rows] == ["none"]
        assert "one rank sends nothing; say how many there are: Send(..., world=4)" in str(explanation)
        assert policy.choose(alone).name == "none"
    assert "one rank" not in str(Auto().explain(replace(alone, world=2)))
    assert "one rank" not in str(Auto().explain(replace(alone, kind="gossip")))


def test_policies_show_what_they_are() -> None:
    auto = Auto(objective="time", max_error=0.1)
    auto.believe(rate_mbps=100.0)
    shown = {
        repr(Fixed("int8")): "Fixed('int8:block=256')",
        repr(auto): "Auto(objective='time', budget_s=None, max_error=0.1; 0 collectives",
        repr(
            PerLayer({"*.bias": "bf16", "head.*": Auto()}, "int4")
        ): "PerLayer({'*.bias': 'bf16', 'head.*': Auto(",
        repr(Schedule([])): "Schedule(0 decisions",
        repr(ErrorFeedback("topk:ratio=0.01")): "ErrorFeedback('topk:ratio=0.01'; residuals of 0 keys)",
    }
    for text, beginning in shown.items():
        assert text.startswith(beginning), text
