"""The non-finite policy, residuals and references in place, and ErrorFeedback."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch

import dance

CODECS = ["none", "fp16", "bf16", "int8:block=32", "sign:block=32", "topk:ratio=0.1"]
BLOCKED = ("int8:block=32", "sign:block=32")


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operation", ["feedback", "difference"])
def test_bad_values_leave_their_state_and_the_rest_goes_on(
    codec: str, bad_value: float, operation: str
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(150).astype(np.float32)
    x[[40, 50, 149]] = bad_value  # blocks 1 and 4 of 32; block 4 is the short one
    before = rng.standard_normal(150).astype(np.float32)
    run = dance.encode_feedback if operation == "feedback" else dance.encode_difference

    zeroed = before.copy()
    p = run(x, zeroed, codec, nonfinite="zero")
    bad = np.zeros(150, bool)
    if codec in BLOCKED:
        bad[32:64] = bad[128:] = True
    else:
        bad[[40, 50, 149]] = True
    decoded = dance.decode(p)
    assert (bits(decoded)[bad] == 0).all()
    assert (bits(zeroed)[bad] == bits(before)[bad]).all()
    assert np.isfinite(zeroed).all()
    if not codec.startswith("topk"):
        v = x + before if operation == "feedback" else x - before
        moved = v - decoded if operation == "feedback" else before + decoded
        assert (bits(zeroed)[~bad] == bits(moved.astype(np.float32))[~bad]).all()

    # "raise" does the same and then says so, naming the first index.
    raised = before.copy()
    with pytest.raises(dance.NonFiniteError, match=r"element 40 .*nonfinite='zero'") as caught:
        run(x, raised, codec)
    assert caught.value.index == 40
    assert (bits(raised) == bits(zeroed)).all()


@pytest.mark.parametrize("codec", CODECS)
def test_the_first_bad_index_is_named_for_any_number_of_threads(codec: str) -> None:
    x = np.ones(cases.LARGE, np.float32)
    x[[777_777, 900_000, cases.LARGE - 1]] = np.nan
    try:
        for num_threads in (1, 2, 7):
            dance.set_num_threads(num_threads)
            with pytest.raises(dance.NonFiniteError) as caught:
                dance.encode(x, codec)
            assert caught.value.index == 777_777
    finally:
        dance.set_num_threads(1)


@pytest.mark.parametrize("codec", CODECS)
def test_a_sum_that_overflows_is_not_finite(codec: str) -> None:
    x = np.full(40, cases.FLT_MAX, np.float32)
    residual = np.zeros(40, np.float32)
    residual[35] = cases.FLT_MAX
    with pytest.raises(dance.NonFiniteError, match="element 35"):
        dance.encode_feedback(x, residual, codec)
    assert residual[35] == cases.FLT_MAX


@pytest.mark.parametrize("codec", CODECS)
def test_finite_input_never_leaves_a_non_finite_state(codec: str) -> None:
    rng = np.random.default_rng(2)
    for values in ("huge", "mixed", "half", "denormal"):
        x = cases.VALUES[values](rng, 500)
        residual, reference = np.zeros(500, np.float32), np.zeros(500, np.float32)
        for _ in range(3):
            dance.encode_feedback(x, residual, codec, nonfinite="zero")
            dance.encode_difference(x, reference, codec, nonfinite="zero")
            assert np.isfinite(residual).all()
            assert np.isfinite(reference).all()


@pytest.mark.parametrize("codec", CODECS)
def test_receivers_hold_the_same_reference_bit_for_bit(codec: str) -> None:
    """What encode_difference adds to its reference is what decode adds at a receiver."""
    rng = np.random.default_rng(3)
    reference, copy = np.zeros(700, np.float32), np.zeros(700, np.float32)
    for _ in range(5):
        p = dance.encode_difference(rng.standard_normal(700).astype(np.float32), reference, codec)
        dance.decode(dance.Packet.from_bytes(p.to_bytes()), out=copy, add=True)
    assert (bits(reference) == bits(copy)).all()


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_sent_and_what_is_left_add_up(codec: str) -> None:
    """Over many steps the sum of what was decoded is the sum of the inputs up to the last residual."""
    rng = np.random.default_rng(4)
    feedback = dance.ErrorFeedback(codec)
    total, sent = np.zeros(300), np.zeros(300)
    for _ in range(50):
        x = rng.standard_normal(300).astype(np.float32)
        total += x
        sent += dance.decode(feedback.encode(x))
    # Each step rounds v = x + residual and v - decoded once; magnitudes stay below 2^8 here.
    assert np.abs(total - sent - feedback.residual()).max() <= 50 * 2 * 2.0**8 * 2.0**-24


def test_error_feedback_keeps_a_residual_per_key() -> None:
    feedback = dance.ErrorFeedback("sign:block=32")
    a, b = np.linspace(-1, 1, 40, dtype=np.float32), np.linspace(0, 3, 33, dtype=np.float32)
    feedback.encode(a, key="a")
    feedback.encode(b, key="b", seed=9)
    feedback.encode(b)
    expected = np.zeros_like(a)
    dance.encode_feedback(a, expected, "sign:block=32")
    assert (feedback.residual("a") == expected).all()
    assert feedback.residual("c") is None
    with pytest.raises(ValueError, match=r"'a' has shape \(40,\).*\(33,\)"):
        feedback.encode(b, key="a")
    with pytest.raises(ValueError, match="give each tensor a key"):
        feedback.encode(a)
    with pytest.raises(ValueError, match="cast first"):
        feedback.encode(np.ones(7), key="d")
    assert feedback.residual("d") is None


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_error_feedback_resumes_with_equal_bits(library: str) -> None:
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal((5, 30)).astype(np.float32) for _ in range(6)]
    if library == "torch":
        inputs = [torch.from_numpy(x) for x in inputs]
    straight, first, second = (dance.ErrorFeedback("int8:block=32") for _ in range(3))
    whole = [(straight.encode(x, "w").to_bytes(), straight.encode(x).to_bytes()) for x in inputs]
    for x in inputs[:3]:
        first.encode(x, "w")
        first.encode(x)
    state = first.state_dict()
    assert state["codec"] == "int8:block=32"
    assert type(state["residuals"]["w"]) is type(inputs[0])
    for x in inputs[3:]:  # the snapshot is a copy
        first.encode(x, "w")
    second.load_state_dict(state)
    assert [(second.encode(x, "w").to_bytes(), second.encode(x).to_bytes()) for x in inputs[3:]] == whole[3:]


def test_the_wrong_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="'raise' or 'zero', got 'ignore'"):
        dance.encode(np.ones(3, np.float32), "int8", nonfinite="ignore")
