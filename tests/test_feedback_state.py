"""The state of ErrorFeedback: snapshots, resuming with equal bits, what is no snapshot."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import dance


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
