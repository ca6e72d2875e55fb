"""The non-finite policy, residuals and references in place, and ErrorFeedback."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import cases
import numpy as np
import pytest
import torch

import dance
from dance import codecs


def with_block_32(text: str) -> dance.Codec:
    c: Any = dance.codec(text)
    return replace(c, block=32) if isinstance(c, codecs.DENSE) and "block" in c.__dataclass_fields__ else c


CODECS = [with_block_32(text) for kind in codecs.CODECS for text in kind.examples]
BOUNDED = [c for c in CODECS if c.bounded]
SPARSE = [c for c in CODECS if isinstance(c, codecs.SPARSE)]
PLAIN = ("none", "fp16", "bf16")  # without scales


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


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
    # A sparse packet may hold a bad element, as +0.0, which its values' codec need not give back: then the
    # reference follows the receivers.
    follows = np.zeros(150, bool)
    if isinstance(codec, codecs.SPARSE) and operation == "difference":
        follows[p.indices()] = True
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
def test_the_first_bad_index_is_named_for_any_number_of_threads(codec: dance.Codec) -> None:
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


# ---- deep gradient compression (Lin et al. 2018)


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


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_momentum_and_warm_up_resume_with_equal_bits(library: str) -> None:
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal((5, 30)).astype(np.float32) for _ in range(6)]
    if library == "torch":
        inputs = [torch.from_numpy(x) for x in inputs]

    def fresh() -> dance.ErrorFeedback:
        return dance.ErrorFeedback("dgc:ratio=0.02", momentum=0.9, warmup=(0.5, 0.1), warmup_steps=2)

    straight, first, second = fresh(), fresh(), fresh()
    whole = [(straight.encode(x, "w").to_bytes(), straight.encode(x).to_bytes()) for x in inputs]
    for x in inputs[:3]:
        first.encode(x, "w")
        first.encode(x)
    state = first.state_dict()
    assert state["steps"] == {"w": 3}
    for x in inputs[3:]:  # the snapshot is a copy
        first.encode(x, "w")
    if library == "torch":  # it goes through a file without pickled objects
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    second.load_state_dict(state)
    assert [(second.encode(x, "w").to_bytes(), second.encode(x).to_bytes()) for x in inputs[3:]] == whole[3:]
    with pytest.raises(ValueError, match="holds velocities; pass the momentum"):
        dance.ErrorFeedback("dgc:ratio=0.02").load_state_dict(state)


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


def test_the_wrong_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="'raise' or 'zero', got 'ignore'"):
        dance.encode(np.ones(3, np.float32), "int8", nonfinite="ignore")


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


def test_what_is_no_snapshot_is_refused_and_changes_nothing() -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)
    feedback = dance.ErrorFeedback("topk:ratio=0.1", momentum=0.9)
    feedback.encode(x, "w")
    good = feedback.state_dict()
    other = dance.ErrorFeedback("topk:ratio=0.1", momentum=0.9)
    other.encode(x[:9], "w")
    before = other.state_dict()
    for state, says in (
        (None, "expected what state_dict gave, got NoneType"),
        ([], "got list"),
        ({}, "lacks 'codec'"),
        ({"codec": "int8"}, "lacks 'residuals'"),
        ({key: value for key, value in good.items() if key != "codec"}, "lacks 'codec'"),
        ({**good, "codec": "int9"}, "unknown codec"),
        ({**good, "residuals": [x]}, "expected residuals by key, got list"),
        ({**good, "residuals": {"w": 3.0}}, "residual of 'w': expected an array"),
        ({**good, "residuals": {"w": x.astype(np.float16)}}, "float16, .* pass residual_dtype='float16'"),
        ({**good, "residuals": {"w": x.astype(np.float64)}}, "residual of 'w': .*got float64"),
        ({**good, "residuals": {}}, r"velocity of 'w' is a numpy ndarray \(40,\), the residual"),
        ({**good, "velocities": {"w": x[:7]}}, r"velocity of 'w' is a numpy ndarray \(7,\)"),
        ({**good, "velocities": {"w": torch.zeros(40)}}, "velocity of 'w' is a torch Tensor"),
        ({**good, "steps": {"w": -1}}, "steps of 'w' to be a count, got -1"),
        ({**good, "steps": {"w": 1.5}}, "got 1.5"),
    ):
        with pytest.raises(ValueError, match=says):
            other.load_state_dict(state)  # type: ignore[arg-type]
    after = other.state_dict()
    assert after["steps"] == before["steps"]
    assert (after["residuals"]["w"] == before["residuals"]["w"]).all()
    other.load_state_dict(good)
    assert other.encode(x, "w").to_bytes() == feedback.encode(x, "w").to_bytes()
