"""Residuals and references in place, and ErrorFeedback: what is left, under which key, with which seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from texts import in_small_blocks
from values import bits

import dance
from dance import codecs

CODECS = in_small_blocks()
BOUNDED = [c for c in CODECS if c.bounded]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_receivers_hold_the_same_reference_bit_for_bit(codec: dance.Codec) -> None:
    """What encode_difference adds to its reference is what decode adds at a receiver."""
    rng = np.random.default_rng(3)
    reference, copy = np.zeros(700, np.float32), np.zeros(700, np.float32)
    for step in range(8):
        x = rng.standard_normal(700).astype(np.float32)
        if step % 2:
            x[rng.integers(0, 700, 20)] = np.nan
        p = dance.encode_difference(x, reference, codec, seed=step, nonfinite="zero")
        dance.decode(dance.Packet.from_bytes(p.to_bytes()), out=copy, add=True)
        assert (bits(reference) == bits(copy)).all()


@pytest.mark.parametrize("codec", BOUNDED, ids=str)
def test_what_was_sent_and_what_is_left_add_up(codec: dance.Codec) -> None:
    """Over many steps the sum of what was decoded is the sum of the inputs up to the last residual."""
    rng = np.random.default_rng(4)
    feedback = dance.ErrorFeedback(codec)
    total, sent, largest = np.zeros(300), np.zeros(300), 0.0
    for step in range(50):
        x = rng.standard_normal(300).astype(np.float32)
        total += x
        decoded = dance.decode(feedback.encode(x, seed=step))
        sent += decoded
        largest = max(largest, float(np.abs(decoded).max() + np.abs(feedback.residual()).max()))
    # Each step rounds v = x + residual and v - decoded once, both of at most that magnitude.
    assert np.abs(total - sent - feedback.residual()).max() <= 50 * 2 * largest * 2.0**-24


@pytest.mark.parametrize("codec", BOUNDED, ids=str)
def test_residuals_stay_bounded(codec: dance.Codec) -> None:
    """With ||x|| = 1 in each step E ||residual||^2 <= 4 (1 - w) / w^2 (Karimireddy et al. 2019, lemma 3)."""
    rng = np.random.default_rng(6)
    feedback = dance.ErrorFeedback(codec)
    numel, largest = 256, 0.0
    for step in range(300):
        x = rng.standard_normal(numel)
        feedback.encode((x / np.linalg.norm(x)).astype(np.float32), seed=step)
        largest = max(largest, float(np.sum(feedback.residual().astype(np.float64) ** 2)))
    w = codec.contraction
    if w is None:  # threshold: what is left is below the value, and what quantisation of values leaves
        assert isinstance(codec, codecs.Threshold)
        left = codec.dense.contraction
        assert left is not None
        assert largest <= numel * (codec.value + 1.0 + left) ** 2
    else:
        assert largest <= 4.0 * (1.0 - w) / w**2 + 1e-9


@pytest.mark.parametrize("codec", ["int2:block=256,rounding=stochastic", "qsgd:levels=3"])
def test_codecs_that_leave_residuals_unbounded_are_refused(codec: str) -> None:
    with pytest.raises(ValueError, match=r"have no bound; choose a codec .*more levels or smaller blocks"):
        dance.ErrorFeedback(codec)


@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_residuals_are_float32_unless_told(dtype: str) -> None:
    x = torch.linspace(-1, 1, 40).to(getattr(torch, dtype))
    feedback = dance.ErrorFeedback("topk:ratio=0.1")
    assert dance.decode(feedback.encode(x)).dtype == x.dtype
    assert feedback.residual().dtype == torch.float32
    for other in codecs.DTYPES:
        feedback = dance.ErrorFeedback("topk:ratio=0.1", residual_dtype=other)
        feedback.encode(x)
        residual = torch.zeros(40, dtype=getattr(torch, other))
        dance.encode_feedback(x, residual, "topk:ratio=0.1")
        assert torch.equal(feedback.residual(), residual)


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
        feedback.encode(np.ones(7, np.int64), key="d")
    assert feedback.residual("d") is None


def test_a_key_stays_in_the_library_it_was_first_seen_in() -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)
    for options in ({}, {"momentum": 0.9}):
        for first, second, says in (
            (x, torch.from_numpy(x), "numpy ndarray, the input a torch Tensor"),
            (torch.from_numpy(x), x, "torch Tensor, the input a numpy ndarray"),
        ):
            feedback = dance.ErrorFeedback("topk:ratio=0.1", **options)  # type: ignore[arg-type]
            feedback.encode(first, "w")
            with pytest.raises(ValueError, match=f"residual of 'w' is a {says}; pass arrays of the library"):
                feedback.encode(second, "w")
        feedback = dance.ErrorFeedback("topk:ratio=0.1", **options)  # type: ignore[arg-type]
        feedback.encode(torch.from_numpy(x), "w")
        feedback.encode(torch.nn.Parameter(torch.from_numpy(x)), "w")


REFUSED = (
    ({"seed": -1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"nonfinite": "ignore"}, "'raise' or 'zero'"),
    ({"out": dance.encode(np.zeros(3, np.float32), "none")}, "room for"),
    ({"out": np.zeros(70, np.float32)}, "out is a Packet"),
    ({"x": np.ones(70, np.int64)}, "cast first"),
    ({"x": np.ones(71, np.float32)}, "has shape"),
    ({"x": [1.0] * 70}, "expected an array"),
)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_a_refused_call_changes_nothing(options: dict[str, Any], says: str, momentum: float) -> None:
    feedback = dance.ErrorFeedback("topk:ratio=0.1", momentum=momentum)
    x = np.random.default_rng(3).standard_normal(70).astype(np.float32)
    for _ in range(3):
        feedback.encode(x, "w")
    before = feedback.state_dict()
    with pytest.raises(ValueError, match=says):
        feedback.encode(**{"x": x, "key": "w", **options})
    after = feedback.state_dict()
    assert (bits(after["residuals"]["w"]) == bits(before["residuals"]["w"])).all()
    if momentum:
        assert (bits(after["velocities"]["w"]) == bits(before["velocities"]["w"])).all()
    assert after["steps"] == before["steps"] == {"w": 3}
    if "shape" not in says:  # a new key is not remembered
        with pytest.raises(ValueError, match=says):
            feedback.encode(**{"x": x, "key": "new", **options})
        assert feedback.residual("new") is feedback.velocity("new") is None
        assert list(feedback.state_dict()["steps"]) == ["w"]


@pytest.mark.parametrize("codec", [c for c in BOUNDED if c.stochastic], ids=str)
def test_without_a_seed_each_step_has_its_own(codec: dance.Codec) -> None:
    feedback = dance.ErrorFeedback(codec)
    x = np.ones(500, np.float32)
    seeds = {(key, feedback.encode(x, key).seed) for key in ("a", "b", None) for _ in range(20)}
    assert len({seed for _, seed in seeds}) == 60
    assert ("a", dance.derive_seed(0, 19, 0, "a", "feedback")) in seeds
    assert (None, dance.derive_seed(0, 0, 0, "", "feedback")) in seeds
    again = dance.ErrorFeedback(codec)
    again.load_state_dict(feedback.state_dict())
    assert again.encode(x, "a").to_bytes() == feedback.encode(x, "a").to_bytes()
    assert again.encode(x, "a", seed=0).seed == 0
    assert dance.ErrorFeedback("int8").encode(x).seed == 0


@pytest.mark.parametrize("codec", [c for c in BOUNDED if c.stochastic], ids=str)
def test_residuals_stay_bounded_without_a_seed(codec: dance.Codec) -> None:
    """The same gradient in each step, as `test_residuals_stay_bounded`; one seed for all would send one part
    of it alone, and leave step^2 (1 - ratio) of the rest.
    """
    numel = 256
    x = np.full(numel, 1.0 / np.sqrt(numel), np.float32)
    feedback, largest = dance.ErrorFeedback(codec), 0.0
    for _ in range(300):
        feedback.encode(x)
        largest = max(largest, float(np.sum(feedback.residual().astype(np.float64) ** 2)))
    w = codec.contraction
    assert w is not None
    assert largest <= 4.0 * (1.0 - w) / w**2 + 1e-9
    # The bound grows with 1 / w^2; where it is above what one seed leaves, the residual at least stays below.
    one = dance.ErrorFeedback(codec)
    if isinstance(codec, codecs.RandK):
        for _ in range(300):
            one.encode(x, seed=0)
        assert largest < np.sum(one.residual().astype(np.float64) ** 2) / 4.0
