"""What a bad run is told, before any process starts, and what a config keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dance.errors import DanceError
from dance.gan import AcganConfig, FlganConfig, GossipganConfig, MdganConfig, RunConfig, run
from dance.gan.config import codec_text, image_block, validate


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "wgan"}, ["wgan", "ac-gan", "standalone"]),
        ({"d_nodes": 0}, ["d_nodes", "0", "--d-nodes"]),
        ({"g_nodes": 0}, ["g_nodes", "0"]),
        ({"algorithm": "md-gan", "g_nodes": 2}, ["g_nodes", "2", "--g-nodes 1"]),
        ({"partition": "by-colour"}, ["by-colour", "iid", "classes:2", "dirichlet:0.2"]),
        ({"partition": "classes:x"}, ["classes:x"]),
        ({"partition": "dirichlet:-1"}, ["dirichlet:-1"]),
        ({"gossip_codec": "zip"}, ["gossip_codec", "zip", "sign"]),
        ({"codec": "int8:block=7"}, ["codec", "7"]),
        ({"algorithm": "md-gan", "mdgan": MdganConfig(image_codec="zip")}, ["mdgan.image_codec", "zip"]),
        ({"topology": "tree"}, ["topology", "tree", "hub"]),
        ({"topology": "one_peer_exponential", "d_nodes": 3}, ["3", "power of two"]),
        ({"layout": "rows"}, ["layout", "rows", "model-parallel"]),
        ({"layout": "data-parallel", "g_nodes": 2}, ["g_nodes", "2", "model-parallel"]),
        ({"layout": "adaptive", "acgan": AcganConfig(g_sync="exact")}, ["g_sync", "exact", "data-parallel"]),
        ({"layout": "data-parallel", "acgan": AcganConfig(aggregation="gradient")}, ["delta", "gradient"]),
        # What nobody would read is refused, by default too, where D-Nodes average low-rank gradients.
        ({"acgan": AcganConfig(period=5)}, ["acgan.period: 5", "low-rank", "--acgan.aggregation parameters"]),
        ({"acgan": AcganConfig(order="overlap")}, ["acgan.order: overlap", "low-rank"]),
        ({"acgan": AcganConfig(step_size=0.3)}, ["acgan.step_size: 0.3", "low-rank"]),
        (
            {"gossip_codec": "sign", "acgan": AcganConfig(aggregation="gradient")},
            ["gossip_codec: sign", "gradient"],
        ),
        ({"topology": "ring", "acgan": AcganConfig(aggregation="low-rank")}, ["topology: ring", "low-rank"]),
        (
            {"layout": "data-parallel", "acgan": AcganConfig(feedback_weights="f2a")},
            ["acgan.feedback_weights: f2a", "--layout model-parallel"],
        ),
        ({"layout": "data-parallel", "acgan": AcganConfig(fake_batch_size=8)}, ["fake_batch_size: 8"]),
        ({"layout": "data-parallel", "acgan": AcganConfig(order="overlap")}, ["acgan.order: overlap"]),
        ({"g_nodes": 5, "acgan": AcganConfig(attachment="partition")}, ["partition", "5", "--d-nodes"]),
        ({"d_optimizer": "lion"}, ["d_optimizer", "lion", "block-adam"]),
        ({"rounds": 0}, ["rounds", "0"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"d_learning_rate": -1.0}, ["d_learning_rate", "-1.0", "0.001"]),
        ({"g_learning_rate": float("inf")}, ["g_learning_rate", "inf", "0.001"]),
        ({"evaluate_images": 1}, ["evaluate_images", "1", "--evaluate-images 2"]),
        ({"ema": 1.0}, ["ema", "1.0"]),
        ({"beta1": 1.5}, ["beta1", "1.5"]),
        ({"links": "10mbit"}, ["links", "10mbit", "--simulate"]),
        ({"links": "fast", "simulate": True}, ["fast", "10mbit"]),
        ({"acgan": AcganConfig(period=0)}, ["acgan.period", "0"]),
        ({"acgan": AcganConfig(step_size=2.0)}, ["step_size", "2.0"]),
        ({"acgan": AcganConfig(sync_codec="int5")}, ["acgan.sync_codec", "int5"]),
        ({"acgan": AcganConfig(switch_above=float("nan"))}, ["switch_above", "nan"]),
        ({"d_decay_rounds": -1}, ["d_decay_rounds", "-1"]),
        ({"device": "cuda"}, ["device", "cuda", "cpu"]),
        ({"algorithm": "gossip-gan", "g_nodes": 2}, ["g_nodes", "2", "--g-nodes 1"]),
        ({"flgan": FlganConfig(participation=0.0)}, ["flgan.participation", "0.0", "0.5"]),
        ({"flgan": FlganConfig(participation=0.5, deltas=True)}, ["0.5", "deltas"]),
        ({"flgan": FlganConfig(weights="votes")}, ["flgan.weights", "votes", "fegan"]),  # type: ignore[arg-type]
        ({"flgan": FlganConfig(up_codec="zip")}, ["flgan.up_codec", "zip"]),
        ({"gossipgan": GossipganConfig(period=0)}, ["gossipgan.period", "0"]),
        ({"gossipgan": GossipganConfig(codec="zip")}, ["gossipgan.codec", "zip"]),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        validate(replace(RunConfig(), **changes))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 500}, ["500", "449", "--batch-size", "--d-nodes"]),
        ({"algorithm": "standalone", "batch_size": 500}, ["2000", "1797"]),
        ({"partition": "classes:2"}, ["classes:2", "classes:3"]),
        ({"data": "no-such-data"}, ["no-such-data", "digits"]),
        ({"resume": "no-such-run"}, ["no-such-run"]),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_any_process_starts(
    changes: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dance.gan.engine.launch", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises((ValueError, DanceError)) as caught:
        run(replace(RunConfig(), **changes))
    for word in words:
        assert word in str(caught.value)


def test_a_world_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"3 processes.*needs 5.*--nproc-per-node 5"):
        validate(RunConfig())
    validate(RunConfig(d_nodes=2))
    with pytest.raises(ValueError, match=r"simulate.*torchrun started 3"):
        validate(RunConfig(simulate=True))


def test_settings_of_a_gossip_go_with_one() -> None:
    for config in (
        RunConfig(gossip_codec="sign", acgan=AcganConfig(period=5, order="overlap", step_size=0.3)),
        RunConfig(topology="ring", acgan=AcganConfig(period=5)),
        RunConfig(layout="model-parallel", acgan=AcganConfig(feedback_weights="f2a", fake_batch_size=8)),
    ):
        assert config.aggregation == "parameters"
        validate(config)


def test_a_config_survives_json() -> None:
    config = RunConfig(g_widths=(7, 5), acgan=AcganConfig(period=3), codec="int8", resume="there")
    assert RunConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="colour"):
        RunConfig.from_json({"colour": 1})
    with pytest.raises(ValueError, match="d_widths is 5"):
        RunConfig.from_json({"d_widths": 5})


@pytest.mark.parametrize(
    ("numel", "block"),
    [(64, 64), (784, 784), (3072, 3072), (2, 32), (6, 36), (3 * 64 * 64, 4096), (4099, 4096)],
)
def test_block_of_an_image(numel: int, block: int) -> None:
    assert image_block(numel) == block
    assert codec_text("sign:block=image", numel) == f"sign:block={block}"


def test_one_image_one_scale() -> None:
    import torch

    import dance

    images = torch.randn(3, 1, 8, 8) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    decoded = dance.decode(dance.encode(images, codec_text("sign:block=image", 64)))
    for image, back in zip(images, decoded, strict=True):
        torch.testing.assert_close(back.abs(), image.abs().mean().expand(1, 8, 8))
