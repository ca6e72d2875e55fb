"""NaN, infinity and overflow: what is sent, what a state keeps, and which element is named."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from texts import in_small_blocks
from values import bits, wave

import dance
from dance import _native, codecs

CODECS = in_small_blocks()
PLAIN = ("none", "fp16", "bf16")  # without scales


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("operation", ["feedback", "difference"])
def test_bad_values_leave_their_state_and_the_rest_goes_on(
    codec: dance.Codec, bad_value: float, operation: str
) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(150).astype(np.float32)
    x[[40, 50, 149]] = bad_value  # blocks 1 and 4 of 32; block 4 is the short one
    before = rng.standard_normal(150).astype(np.float32)
    before[[40, 45]] = -0.0
    run = dance.encode_feedback if operation == "feedback" else dance.encode_difference

    zeroed = before.copy()
    p = run(x, zeroed, codec, nonfinite="zero")
    bad = np.zeros(150, bool)
    if codec.name not in PLAIN and not isinstance(codec, codecs.SPARSE):
        bad[32:64] = bad[128:] = True
    else:
        bad[[40, 50, 149]] = True
    decoded = dance.decode(p)
    assert np.isfinite(decoded).all()
    # The reference follows the receivers, who add +0.0 (and what a sparse packet's values make of it).
    follows = np.zeros(150, bool)
    if operation == "difference":
        follows[p.indices() if isinstance(codec, codecs.SPARSE) else slice(None)] = True
        received = before.copy()
        dance.decode(p, out=received, add=True)
        assert (bits(received) == bits(zeroed)).all()
    assert (bits(zeroed)[bad & ~follows] == bits(before)[bad & ~follows]).all()
    assert (bits(zeroed)[bad & follows] == bits(before + decoded)[bad & follows]).all()
    assert np.isfinite(zeroed).all()
    if not isinstance(codec, codecs.SPARSE):
        assert (bits(decoded)[bad] & 0x7FFFFFFF == 0).all()
        v = x + before if operation == "feedback" else x - before
        moved = v - decoded if operation == "feedback" else before + decoded
        assert (bits(zeroed)[~bad] == bits(moved.astype(np.float32))[~bad]).all()

    # "raise" does the same and then says so, naming the first index.
    raised = before.copy()
    with pytest.raises(dance.NonFiniteError, match=r"element 40 .*nonfinite='zero'") as caught:
        run(x, raised, codec)
    assert caught.value.index == 40
    assert (bits(raised) == bits(zeroed)).all()


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_is_not_finite_does_not_take_the_rest_along(codec: dance.Codec) -> None:
    x = wave()
    x[40] = np.nan
    for run in (dance.encode_feedback, dance.encode_difference):
        kept, raised = np.ones(70, np.float32), np.ones(70, np.float32)
        sent = run(x, kept, codec, nonfinite="zero", seed=3)
        with pytest.raises(dance.NonFiniteError) as caught:
            run(x, raised, codec, seed=3)
        assert caught.value.packet.to_bytes() == sent.to_bytes()
        assert raised.tobytes() == kept.tobytes()
    with pytest.raises(dance.NonFiniteError) as caught:
        dance.encode(x, codec, seed=3)
    assert caught.value.packet.to_bytes() == dance.encode(x, codec, seed=3, nonfinite="zero").to_bytes()


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_first_bad_index_is_named_for_any_number_of_threads(codec: dance.Codec) -> None:
    x = np.ones(cases.THREADED, np.float32)
    x[[17_777, 20_000, cases.THREADED - 1]] = np.nan
    try:
        for num_threads in (1, 2, 7):
            dance.set_num_threads(num_threads)
            with _native.small_grains(), pytest.raises(dance.NonFiniteError) as caught:
                dance.encode(x, codec)
            assert caught.value.index == 17_777
    finally:
        dance.set_num_threads(1)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_sum_that_overflows_is_not_finite(codec: dance.Codec) -> None:
    x = np.full(40, cases.FLT_MAX, np.float32)
    residual = np.zeros(40, np.float32)
    residual[35] = cases.FLT_MAX
    with pytest.raises(dance.NonFiniteError, match="element 35"):
        dance.encode_feedback(x, residual, codec)
    assert residual[35] == cases.FLT_MAX


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_finite_input_never_leaves_a_non_finite_state(codec: dance.Codec) -> None:
    rng = np.random.default_rng(2)
    for values in ("huge", "mixed", "half", "denormal"):
        x = cases.VALUES[values](rng, 500)
        residual, reference = np.zeros(500, np.float32), np.zeros(500, np.float32)
        for _ in range(3):
            dance.encode_feedback(x, residual, codec, nonfinite="zero")
            dance.encode_difference(x, reference, codec, nonfinite="zero")
            assert np.isfinite(residual).all()
            assert np.isfinite(reference).all()
        if not isinstance(codec, codecs.SPARSE) or not codec.bounded:
            continue
        for library in (np.copy, torch.from_numpy):
            for masking in (False, True):
                feedback = dance.ErrorFeedback(codec, momentum=0.9, masking=masking)
                for _ in range(12):
                    feedback.encode(library(np.copysign(2e38, x)), nonfinite="zero")
                    assert np.isfinite(np.asarray(feedback.residual())).all()
                    assert np.isfinite(np.asarray(feedback.velocity())).all()
                feedback.encode(library(np.zeros_like(x)))  # and it goes on
