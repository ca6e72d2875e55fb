"""What the ranks of a group believe of their calls, and the rules by which one candidate is taken."""

from __future__ import annotations

import pytest

from dance import codec
from dance.codec_speed import Speed
from dance.plan import plan
from dance.policy import Outcome, Send
from dance.policy.figures import AgreedCall, Ledger
from dance.policy.model import GroupModel
from dance.policy.rules import Course, Prospect, commit, least_time

NONE, BF16, INT8 = (codec(text) for text in ("none", "bf16", "int8"))
NUMEL = 1 << 20
SEND = Send(kind="all_reduce", round=1, numel=NUMEL, world=2)


def call(text: str, mbps: float, extra_s: float = 0.0, numel: int = NUMEL) -> AgreedCall:
    """A call over a link without latency and codecs without cost, that took ``extra_s`` longer."""
    parts = plan("all_reduce", text, numel, 2)
    wire_s = parts.bytes_sent * 8e-6 / mbps
    direct = parts.algorithm == "direct"
    seconds = wire_s + extra_s + (0.0 if direct else 2e-4)
    return AgreedCall(
        send=Send(kind="all_reduce", round=1, numel=numel, world=2),
        codec=codec(text),
        seconds=seconds,
        cost_s=seconds,
        wire_s_per_byte=None if direct else wire_s / parts.bytes_sent,
    )


def total_s(model: GroupModel, text: str, numel: int = NUMEL) -> float:
    cost = model.cost(Send(kind="all_reduce", round=1, numel=numel, world=2), codec(text))
    assert cost is not None
    return cost.total_s


def learned(*calls: AgreedCall) -> GroupModel:
    model = GroupModel()
    assert model.cost(SEND, NONE) is None
    for each in calls:
        model.learn([each])
    return model


def test_one_way_stands_in_for_the_other() -> None:
    # Same bytes a second, whatever was measured: 4.19 MB and 1.07 MB at 100 Mbit/s.
    by_wire = learned(*[call("int8", 100.0)] * 3)
    assert total_s(by_wire, "none") == pytest.approx(0.3355, rel=0.01)
    by_direct = learned(*[call("none", 100.0)] * 3)
    assert total_s(by_direct, "int8") == pytest.approx(0.0852 + 2e-4, rel=0.01)


@pytest.mark.parametrize(("used", "other"), [("int8", "none"), ("none", "int8")])
@pytest.mark.parametrize(("before", "after"), [(1000.0, 50.0), (50.0, 1000.0)])
def test_a_change_seen_one_way_counts_for_the_other(
    used: str, other: str, before: float, after: float
) -> None:
    model = learned(*[call(other, before)] * 3, *[call(used, before)] * 6)
    old_s = total_s(model, other)
    for _ in range(5):
        model.learn([call(used, after)])
    assert model.regime >= 1
    assert total_s(model, other) == pytest.approx(old_s * before / after, rel=0.1)
    assert model.measured(SEND, codec(other)) == 0


def test_calls_teach_what_their_parts_do_not_tell() -> None:
    model = learned(*[call("int8", 1000.0, extra_s=0.003)] * 4)
    own_s = total_s(model, "int8")
    assert own_s == pytest.approx(0.00852 + 2e-4 + 0.003, rel=0.02)
    # Another codec of the same shape, and a size near it, take what they took beyond their parts.
    parts_s = plan("all_reduce", "bf16", NUMEL, 2).bytes_sent * 8e-9 + 2e-4
    assert total_s(model, "bf16") == pytest.approx(parts_s + 0.003, rel=0.02)
    assert total_s(model, "int8", NUMEL // 4) < own_s
    # A direct call has nothing of it.
    assert total_s(model, "none") == pytest.approx(0.03355, rel=0.02)


def test_a_first_call_is_judged_by_what_calls_like_it_took() -> None:
    # Beyond its parts, 17 ms, bf16 takes the 50 ms that int8 took: its cold call is no sign of anything else.
    model = learned(*[call("int8", 1000.0, extra_s=0.05)] * 4)
    expected_s = total_s(model, "bf16")
    model.learn([call("bf16", 1000.0, extra_s=0.05)])
    assert total_s(model, "bf16") == pytest.approx(expected_s, rel=0.02)
    assert total_s(model, "bf16") > total_s(model, "int8")


@pytest.mark.parametrize(("seconds", "mean_s"), [((10.0, 1.0), 2.5), ((1.0, 10.0), 2.5), ((1.0, 2.0), 1.5)])
def test_a_stall_counts_for_no_more_than_four_calls_whenever_it_was(
    seconds: tuple[float, float], mean_s: float
) -> None:
    ledger = Ledger()
    for number, took_s in enumerate((50.0, *seconds), start=1):  # the first is cold
        send = Send(kind="all_reduce", round=number, numel=NUMEL, world=2)
        ledger.begin(send, NONE)
        ledger.observe(send, NONE, Outcome(seconds=took_s))
    assert ledger.read(ledger.figures())[-1].cost_s == pytest.approx(mean_s)


def test_a_stalled_call_changes_nothing() -> None:
    model = learned(*[call("int8", 100.0)] * 5)
    before_s = total_s(model, "int8")
    model.learn([call("int8", 100.0, extra_s=5.0)])
    assert total_s(model, "int8") == pytest.approx(before_s, rel=0.01)


def test_a_cold_first_call_is_forgotten() -> None:
    model = learned(call("int8", 100.0, extra_s=3.0))
    assert total_s(model, "int8") < 0.2  # believed up to twice its parts' time
    cost = model.cost(SEND, INT8)
    assert cost is not None
    assert model.least_s(SEND, INT8, cost) < 0.0854
    model.learn([call("int8", 100.0)])
    assert total_s(model, "int8") == pytest.approx(0.0854, rel=0.01)


def test_a_wire_that_nobody_timed_is_what_coding_leaves() -> None:
    model = GroupModel()
    model.speeds[INT8, False, "cpu"] = Speed(encode_s=1e-8, decode_s=1e-8)
    parts = plan("all_reduce", INT8, NUMEL, 2)
    coding_s = (parts.encoded + parts.decoded) * 1e-8
    seconds = 0.085 + coding_s
    told = AgreedCall(send=SEND, codec=INT8, seconds=seconds, cost_s=seconds, wire_s_per_byte=None)
    for _ in range(3):
        model.learn([told])
    assert total_s(model, "none") == pytest.approx(0.085 * 4194304 / parts.bytes_sent, rel=0.01)


def prospects(*seconds: float) -> list[Prospect]:
    codecs = (NONE, BF16, INT8)
    return [
        Prospect(codec=each, seconds=s, least_s=s, measured=9, direct=each is NONE)
        for each, s in zip(codecs, seconds, strict=True)
    ]


@pytest.mark.parametrize(
    ("seconds", "waited", "expected"),
    [
        ((1.0, 2.0, 0.97), 50, NONE),  # 3 % are not worth a change
        ((1.0, 2.0, 0.95), 50, INT8),
        ((1.0, 2.0, 0.80), 3, NONE),  # so soon after the last change it must be a quarter
        ((1.0, 2.0, 0.70), 3, INT8),
        ((1.0, 0.95, 0.94), 50, INT8),
    ],
)
def test_hysteresis_and_dwell(seconds: tuple[float, ...], waited: int, expected: object) -> None:
    course = Course(codec=NONE, measured=True, at=100, since=100 - waited, tried_at=100, agreed=9)
    assert least_time(prospects(*seconds), course, regime=0).codec == expected
    # Where the link has changed there is nothing to wait for.
    if waited < 8:
        assert least_time(prospects(*seconds), course, regime=1).codec == INT8


def test_trials_are_paid_for_and_few() -> None:
    doubtful = prospects(1.0, 2.0, 1.5)
    doubtful[2] = Prospect(codec=INT8, seconds=1.5, least_s=0.8, measured=1)
    course = Course(codec=NONE, measured=True, agreed=9)
    tried = []
    for at in range(4, 1000):
        course.at = at
        choice = least_time(doubtful, course, regime=0)
        commit(course, choice, (NONE, BF16, INT8), dwell=20, regime=0, measured=True)
        if choice.trial:
            assert choice.codec == INT8
            tried.append(at)
    # Expected: 0.25 * 1.5 + 0.75 * 0.8, no more than 1 s, so a trial counts 5 % of a call.
    assert len(tried) == 2
    assert tried[0] >= 5
    assert tried[1] - tried[0] >= 5
    course.at = 1000
    assert not least_time(doubtful, course, regime=0).trial
    commit(
        course, least_time(doubtful, course, regime=1), (NONE, BF16, INT8), dwell=20, regime=1, measured=True
    )
    course.at = 1010
    assert least_time(doubtful, course, regime=1).trial


def test_none_is_tried_early_where_it_may_be_best() -> None:
    course = Course(codec=INT8, measured=True, at=2, agreed=1)
    for least_s, tried in ((1.4, True), (1.6, False)):
        offered = prospects(2.0, 1.5, 1.0)
        offered[0] = Prospect(codec=NONE, seconds=2.0, least_s=least_s, measured=0, direct=True)
        choice = least_time(offered, course, regime=0)
        assert (choice.codec, choice.trial) == ((NONE, True) if tried else (INT8, False))
