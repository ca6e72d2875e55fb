"""Deep gradient compression (Lin et al. 2018): momentum correction, masking and warm-up of ErrorFeedback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from texts import in_small_blocks

import dance
from dance import codecs

SPARSE = [c for c in in_small_blocks() if isinstance(c, codecs.SPARSE)]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("masking", [True, False])
def test_momentum_correction_and_masking(masking: bool, library: str) -> None:
    """Section 3.2 of the paper, in float32 and in the order in which v is summed here: bit for bit."""
    rng = np.random.default_rng(7)
    m, k = np.float32(0.9), 20
    feedback = dance.ErrorFeedback("topk:ratio=0.1", momentum=0.9, masking=masking)
    u, v = np.zeros(200, np.float32), np.zeros(200, np.float32)
    for _ in range(20):
        g = rng.standard_normal(200).astype(np.float32)
        u, v = m * u + g, g + (v + m * u)
        chosen = np.sort(np.argsort(-np.abs(v), kind="stable")[:k])
        sent = np.zeros(200, np.float32)
        sent[chosen] = v[chosen]
        v[chosen] = 0.0
        if masking:
            u[chosen] = 0.0
        p = feedback.encode(torch.from_numpy(g) if library == "torch" else g, "w")
        assert np.array_equal(np.asarray(dance.decode(p)), sent)
        assert np.array_equal(np.asarray(feedback.residual("w")), v)
        assert np.array_equal(np.asarray(feedback.velocity("w")), u)


def test_without_masking_and_with_all_sent_momentum_is_plain_momentum() -> None:
    rng = np.random.default_rng(8)
    feedback = dance.ErrorFeedback("topk:ratio=1.0", momentum=0.5, masking=False)
    u = np.zeros(50, np.float32)
    for _ in range(10):
        g = rng.standard_normal(50).astype(np.float32)
        u = np.float32(0.5) * u + g
        assert np.allclose(dance.decode(feedback.encode(g)), u, rtol=0, atol=2.0**-22)


@pytest.mark.parametrize("codec", SPARSE, ids=str)
@pytest.mark.parametrize("dtype", codecs.DTYPES)
def test_momentum_with_every_sparse_codec_and_dtype(codec: dance.Codec, dtype: str) -> None:
    if not codec.bounded:
        pytest.skip("refused")
    feedback = dance.ErrorFeedback(codec, momentum=0.9)
    rng = np.random.default_rng(9)
    for step in range(5):
        x = torch.from_numpy(rng.standard_normal((20, 25)).astype(np.float32)).to(getattr(torch, dtype))
        p = feedback.encode(x.requires_grad_(), "w", seed=step)
        assert p.dtype == dtype
        velocity = feedback.velocity("w")
        assert velocity.dtype == torch.float32
        assert not velocity.requires_grad
        assert (velocity.view(-1)[torch.from_numpy(p.indices())] == 0.0).all()
        assert velocity.count_nonzero() > 0


def test_bad_gradients_do_not_stay_in_the_velocity() -> None:
    x = np.ones(40, np.float32)
    x[[3, 7]] = np.nan, np.inf
    for nonfinite in ("zero", "raise"):
        feedback = dance.ErrorFeedback("dgc:ratio=0.1", momentum=0.9)
        if nonfinite == "zero":
            feedback.encode(x, nonfinite="zero")
        else:
            with pytest.raises(dance.NonFiniteError, match="element 3"):
                feedback.encode(x)
        assert np.isfinite(feedback.velocity()).all()
        assert np.isfinite(feedback.residual()).all()
        assert (feedback.velocity()[[3, 7]] == 0.0).all()
        feedback.encode(np.ones(40, np.float32))


@pytest.mark.parametrize("codec", SPARSE, ids=str)
@pytest.mark.parametrize("library", [np.copy, torch.from_numpy])
def test_what_was_encoded_can_be_sent_after_a_bad_gradient(codec: dance.Codec, library: Any) -> None:
    if not codec.bounded:
        pytest.skip("refused")
    x = np.random.default_rng(3).standard_normal(500).astype(np.float32)
    bad = x.copy()
    bad[7] = np.nan
    zero, raised = (dance.ErrorFeedback(codec, momentum=0.9) for _ in range(2))
    for feedback in (zero, raised):
        feedback.encode(library(x))
    sent = zero.encode(library(bad), nonfinite="zero")
    with pytest.raises(dance.NonFiniteError, match="element 7") as caught:
        raised.encode(library(bad))
    assert caught.value.packet.to_bytes() == sent.to_bytes()
    assert raised.encode(library(x)).to_bytes() == zero.encode(library(x)).to_bytes()
    assert raised.state_dict()["unnamed_steps"] == 3


def test_warm_up_counts_the_encodes_of_each_key() -> None:
    feedback = dance.ErrorFeedback("dgc:ratio=0.004,values=int8", warmup=(0.25, 0.0625), warmup_steps=2)
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    ratios = [0.25, 0.25, 0.0625, 0.0625, 0.004, 0.004]
    for key in ("a", None):
        for ratio in ratios:
            c = feedback.codec_of(key)
            assert c == codecs.Dgc(ratio=ratio, values="int8")
            p = feedback.encode(x, key)
            assert p.codec == c
            least = c.count(1000)  # type: ignore[attr-defined]
            assert least <= p.indices().size <= 2 * least
    assert feedback.codec == feedback.codec_of("a") == codecs.Dgc(ratio=0.004, values="int8")
    assert str(feedback.codec_of("new")) == "dgc:ratio=0.25,values=int8"


@pytest.mark.parametrize(
    ("codec", "options", "says"),
    [
        ("dgc", {"momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ("dgc", {"momentum": float("nan")}, "momentum"),
        ("dgc", {"momentum": "a"}, r"momentum in \[0, 1\), got 'a'"),
        ("dgc", {"momentum": None}, r"momentum in \[0, 1\), got None"),
        ("dgc", {"warmup": 0.5, "warmup_steps": 1}, r"warmup ratios such as \(0.25, 0.0625\), got 0.5"),
        ("dgc", {"warmup": (0.25, 0.001), "warmup_steps": 1}, "at least the 0.01 .*got 0.001; begin"),
        ("int8", {"momentum": 0.9}, "sends every element.*sparse codec"),
        ("dgc", {"momentum": 0.9, "residual_dtype": "float16"}, "float32 residuals, got float16"),
        ("dgc", {"residual_dtype": "float64"}, "expected dtype float32, float16, bfloat16, got float64"),
        ("int8", {"warmup": (0.5,), "warmup_steps": 1}, "int8:block=256 has no ratio"),
        ("dgc", {"warmup": (0.5,)}, "warmup_steps of at least 1"),
        ("dgc", {"warmup": (0.5,), "warmup_steps": 1.5}, "got 1.5"),
        ("dgc", {"warmup_steps": 3}, "needs warmup"),
        ("dgc", {"warmup": (1.5,), "warmup_steps": 1}, "ratio in"),
    ],
)
def test_wrong_options_name_the_remedy(codec: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dance.ErrorFeedback(codec, **options)
