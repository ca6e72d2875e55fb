"""Ranks that measure differently decide alike, and ranks that were set up differently find out together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dance.codec_speed import Speed
from dance.codecs import Codec, Uncompressed
from dance.codecs import codec as to_codec
from dance.policy import Auto, Fixed, Outcome, PerLayer, Policy, Send
from dance.policy.figures import Ledger


@pytest.fixture(autouse=True, scope="module")
def speeds() -> object:
    """Every rank's codecs have other speeds."""
    random = np.random.default_rng(1)

    def measure(codec: Codec, **_: object) -> Speed:
        encode_s, decode_s = 1e-10 * 10.0 ** random.uniform(-1.0, 2.0, 2)
        return Speed(encode_s=encode_s, decode_s=decode_s)

    patch = pytest.MonkeyPatch()
    patch.setattr("dance.codec_speed.measure_speed", measure)
    yield
    patch.undo()


seconds = st.floats(min_value=1e-6, max_value=100.0)
outcome = st.builds(
    lambda total, encode, decode, wire, some: (total, encode, decode, wire if some else None),
    *(seconds, seconds, seconds, seconds, st.booleans()),
)
call = st.tuples(
    st.integers(min_value=1, max_value=1 << 22),  # numel
    st.booleans(),  # feedback
    st.sampled_from(["a", "b.bias", "c"]),
    st.lists(outcome, min_size=3, max_size=3),  # a rank's each
    st.integers(min_value=0, max_value=3),  # after how many more calls the outcome comes
)
MAKERS = {
    "auto": Auto,
    "auto within a budget": lambda: Auto(budget_s=0.01),
    "per layer": lambda: PerLayer({"*.bias": Auto(max_error=1.0), "c": "fp16"}, default=Auto()),
}


@settings(max_examples=60)
@given(calls=st.lists(call, min_size=5, max_size=40), lag=st.integers(min_value=1, max_value=3))
@pytest.mark.parametrize("maker", MAKERS)
def test_ranks_choose_alike_whatever_they_measure(maker: str, calls: Sequence[tuple], lag: int) -> None:
    policies: list[Policy] = [MAKERS[maker]() for _ in range(3)]
    pending: list[tuple[int, np.ndarray]] = []
    waiting: list[tuple[int, int, Send, Codec, Outcome]] = []
    for number, (numel, feedback, target, measured, after) in enumerate(calls, start=1):
        while pending and pending[0][0] <= number:
            for policy in policies:
                policy.agree(pending[0][1])
            pending.pop(0)
        send = Send(kind="all_reduce", target=target, round=number, numel=numel, world=3, feedback=feedback)
        codecs = [policy.choose(send) for policy in policies]
        assert codecs == [codecs[0]] * 3
        assert {str(policy.explain(send)) for policy in policies}  # explaining changes nothing
        for rank, (total_s, encode_s, decode_s, wire_s) in enumerate(measured):
            if codecs[0].name == "none":
                wire_s = None
            told = Outcome(
                seconds=total_s, encode_s=encode_s, decode_s=decode_s, wire_bytes=numel, wire_s=wire_s
            )
            waiting.append((number + after * rank, rank, send, codecs[rank], told))
        for due in [each for each in waiting if each[0] <= number]:
            policies[due[1]].observe(*due[2:])
            waiting.remove(due)
        shares = [policy.shares(number) for policy in policies]
        assert shares == [shares[0]] * 3
        if shares[0]:
            figures = [policy.figures() for policy in policies]
            assert {each.shape for each in figures} == {figures[0].shape}
            assert all(np.isfinite(each).all() for each in figures)
            pending.append((number + lag, np.max(figures, axis=0)))
    assert [policy.log for policy in policies] == [policies[0].log] * 3


@pytest.mark.parametrize(
    "other",
    [
        lambda: Auto(["none", "int8"]),
        lambda: Auto(max_error=0.5),
        lambda: Auto(headroom=0.5),
        lambda: Auto(objective="error"),
    ],
)
def test_ranks_with_other_arguments_are_told(other: object) -> None:
    policies = [Auto(), other()]  # type: ignore[operator]
    send = Send(kind="all_reduce", round=1, numel=1000, world=2)
    for policy in policies:
        policy.choose(send)
    agreed = np.max([policy.figures() for policy in policies], axis=0)
    for policy in policies:
        with pytest.raises(ValueError, match="ranks of this group have decided differently; give all"):
            policy.agree(agreed)


def test_ranks_in_different_calls_are_told() -> None:
    policies = [Auto(), Auto()]
    policies[0].choose(Send(kind="all_reduce", round=1, numel=1000, world=2))
    policies[1].choose(Send(kind="all_reduce", round=1, numel=1001, world=2))
    agreed = np.max([policy.figures() for policy in policies], axis=0)
    with pytest.raises(ValueError, match="same calls in the same order"):
        policies[0].agree(agreed)


@pytest.mark.parametrize("text", ["none", "int8"])
def test_a_late_rank_makes_nobody_slow(text: str) -> None:
    # Rank 0 waits 50 ms for rank 1 in every call; the calls themselves take 2 ms, 1.6 of them on the wire,
    # but what is sent to rank 1 has long been there when it begins.
    policies = [Auto([text]), Auto([text])]
    for number in range(1, 80):
        send = Send(kind="all_reduce", round=number, numel=1 << 18, world=2)
        for policy, waited_s in zip(policies, (0.05, 0.0), strict=True):
            codec = policy.choose(send)
            direct = codec.name == "none"
            wire_s = 0.0016 if waited_s else 1e-5
            told = Outcome(
                seconds=0.002 + waited_s if direct else 4e-4 + wire_s + waited_s,
                encode_s=1e-4,
                decode_s=1e-4,
                wire_bytes=codec.packet_nbytes(1 << 18),
                wire_s=None if direct else wire_s,
            )
            policy.observe(send, codec, told)
        if policies[0].shares(number):
            agreed = np.max([policy.figures() for policy in policies], axis=0)
            for policy in policies:
                policy.agree(agreed)
    chosen = policies[0].explain(Send(kind="all_reduce", round=99, numel=1 << 18, world=2)).chosen
    assert chosen.predicted_s == pytest.approx(0.002, rel=0.05)


def test_policies_that_measure_nothing_share_nothing() -> None:
    for policy in (Fixed("int8"), PerLayer({"*.bias": "bf16"}, default="int8")):
        policy.choose(Send(kind="all_reduce", round=1, numel=10, world=2))
        assert not policy.shares(1)
        assert policy.figures().size == 0
        policy.agree(policy.figures())


def test_too_many_candidates() -> None:
    with pytest.raises(ValueError, match="at most 24 candidates"):
        Auto(
            [f"int8:block={32 * k}" for k in range(1, 9)] + [f"topk:ratio={k / 100}" for k in range(1, 20)],
            max_error=1.0,
        ).choose(Send(kind="all_reduce", round=1, numel=10, world=2))


@pytest.mark.parametrize("lag", [1, 2])
def test_outcomes_are_booked_on_their_own_calls_however_rarely_they_are_exchanged(lag: int) -> None:
    """Calls alternate between two sizes, and figures are handed over ``lag`` calls after they were taken."""
    numels = (1 << 12, 1 << 20)
    ledger = Ledger()
    pending: list[tuple[int, np.ndarray]] = []
    booked: set[int] = set()
    for number in range(1, 400):
        while pending and pending[0][0] <= number:
            for call in ledger.read(pending.pop(0)[1]):
                assert call.seconds == float(call.send.numel)
                booked.add(call.send.round)
        send = Send(kind="all_reduce", round=number, numel=numels[number % 2], world=2)
        codec = Uncompressed()
        ledger.begin(send, codec)
        ledger.observe(send, codec, Outcome(seconds=float(send.numel)))
        if number % 32 == 0:
            pending.append((number + lag, ledger.figures()))
    assert booked == set(range(1, 385))


def test_figures_are_not_booked_on_the_next_call_of_a_slot() -> None:
    numels, codec = (1 << 12, 1 << 20), Uncompressed()
    taken = Ledger()
    for number in range(1, 61):
        send = Send(kind="all_reduce", round=number, numel=numels[0], world=2)
        taken.begin(send, codec)
        taken.observe(send, codec, Outcome(seconds=1.0))
    figures = taken.figures()
    for number in range(61, 100):
        taken.begin(Send(kind="all_reduce", round=number, numel=numels[1], world=2), codec)
    assert [call.send.round for call in taken.read(figures)] == list(range(36, 61))


def test_a_codec_that_came_into_use_after_the_figures_has_no_speed_yet() -> None:
    ledger = Ledger()
    send = Send(kind="all_reduce", round=1, numel=1 << 16, world=2)
    ledger.code([to_codec("int8"), Uncompressed()], send)
    ledger.begin(send, Uncompressed())
    figures = ledger.figures()
    ledger.code([to_codec("fp16")], send)
    ledger.read(figures)
    assert {codec.name for codec, _, _ in ledger.agreed_speeds} == {"int8", "none"}


def test_ranks_may_name_candidates_in_another_order_of_kinds() -> None:
    lists = {"all_reduce": ["none", "int8"], "": ["none", "fp16"]}
    policies = [Auto(lists), Auto(dict(reversed(lists.items())))]
    send = Send(kind="all_reduce", round=1, numel=1 << 16, world=2)
    assert len({policy.choose(send) for policy in policies}) == 1
    figures = np.max([policy.figures() for policy in policies], axis=0)
    for policy in policies:
        policy.agree(figures)
