"""Conditional runs: labels derived alike at every node, balanced, and given to both G and D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_gan import gradient_of
from torch import Tensor
from torch.nn.functional import softplus

from dance.data import ImageData
from dance.exchange import SimulatedExchange
from dance.gan.config import RunConfig, validate
from dance.gan.engine import build
from dance.gan.labels import drawn_labels, repeated, shown_labels
from dance.gan.nodes import Batches, build_discriminator, build_generator
from dance.gan.parts import Part, parts_of, run_data, with_classes
from dance.gan.settings import AcganConfig

CONFIG = RunConfig(
    layout="model-parallel",
    conditional=True,
    num_classes=3,
    batch_size=6,
    latent=4,
    g_widths=(8,),
    d_widths=(7,),
    d_nodes=2,
    r1=0.0,
)


def part(count: int = 12) -> Part:
    generator = torch.Generator().manual_seed(1)
    return Part(
        images=torch.rand(count, 1, 3, 3, generator=generator) * 2 - 1, labels=torch.arange(count) % 3
    )


def labelled(own: Part) -> ImageData:
    return ImageData(
        name="d",
        images=own.images,
        labels=own.labels,
        test_images=own.images,
        test_labels=None,
        num_classes=3,
    )


def test_labels_are_balanced_and_follow_from_seed_and_round() -> None:
    for number in range(20):
        labels = drawn_labels(CONFIG, number, 16)
        assert labels.dtype == torch.int64
        assert all(5 <= count <= 6 for count in torch.bincount(labels, minlength=3))
        assert torch.equal(labels, drawn_labels(replace(CONFIG, algorithm="md-gan"), number, 16))
    assert not torch.equal(drawn_labels(CONFIG, 0, 16), drawn_labels(CONFIG, 1, 16))
    assert not torch.equal(drawn_labels(CONFIG, 0, 16), drawn_labels(replace(CONFIG, seed=1), 0, 16))


def test_labels_have_the_shares_that_were_stated() -> None:
    config = replace(CONFIG, label_shares=(1.0, 0.0, 3.0))
    counts = sum(torch.bincount(drawn_labels(config, number, 10), minlength=3) for number in range(200))
    assert isinstance(counts, Tensor)
    # 2,000 labels of systematic samples: each of 200 is within one of its share.
    assert abs(counts[0].item() - 500) <= 100
    assert counts[1] == 0
    with pytest.raises(ValueError, match="label_shares"):
        validate(replace(config, label_shares=(0.0, 0.0)))
    with pytest.raises(ValueError, match="2 shares for 3 classes"):
        with_classes(replace(config, label_shares=(1.0, 2.0)), run_data(CONFIG, labelled(part())))


def test_labels_of_several_batches_and_of_a_sample() -> None:
    assert repeated(torch.tensor([2, 0]), 6).tolist() == [2, 0, 2, 0, 2, 0]
    assert shown_labels(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_batches_keep_images_and_labels_together() -> None:
    own = part()
    batches = Batches(images=own, size=5, seed=0, node=1)
    assert own.labels is not None
    for step in range(4):
        for image, label in zip(batches.batch(step), batches.labels(step), strict=True):
            (place,) = (own.images == image).flatten(1).all(1).nonzero().flatten().tolist()
            assert own.labels[place] == label


def test_a_conditional_step_is_that_of_autograd() -> None:
    """D's gradient and its feedback with the labels that G used, written out."""
    g = build_generator(CONFIG, (1, 3, 3), 0)
    d = build_discriminator(CONFIG, "sgd", Batches(images=part(), size=6, seed=0, node=1))
    fakes = g.generate(5, [1])[1]
    labels = drawn_labels(CONFIG, 5, 6)
    torch.testing.assert_close(fakes, g.net.module(g._noise(5, 1, 6), labels).detach())
    real = softplus(-d.net.module(d.batches.batch(5), d.batches.labels(5))).mean()
    loss = real + softplus(d.net.module(fakes, labels)).mean()
    expected = gradient_of(loss, d.net)
    d.differentiate(5, 0, fakes)
    torch.testing.assert_close(d.net.gradient, expected)
    points = fakes.clone().requires_grad_()
    (expected,) = torch.autograd.grad(softplus(-d.net.module(points, labels)).sum(), points)
    torch.testing.assert_close(d.feedback(fakes), expected)
    for config in (replace(CONFIG, r1=1.0, r1_every=1), replace(CONFIG, loss="wgan-gp")):
        d = build_discriminator(config, "sgd", Batches(images=part(), size=6, seed=0, node=1))
        d.local_update(0, fakes)
        assert bool(torch.isfinite(d.net.gradient).all())


# After its third round, whatever it measures.
SWITCHING = AcganConfig(sync_period=1, switch_above=-1e9, switch_after=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "standalone"},
        {"algorithm": "fl-gan"},
        {"algorithm": "md-gan"},
        {"layout": "model-parallel", "g_nodes": 2},
        {"layout": "model-parallel", "g_nodes": 2, "acgan": AcganConfig(fake_batch_size=4)},
        {"layout": "data-parallel"},
        {"layout": "adaptive", "g_nodes": 2, "acgan": replace(SWITCHING, fake_batch_size=3)},
    ],
)
def test_every_algorithm_gives_the_same_labels_to_both_sides(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a D-Node is told of an image is what its G-Node made it from, with several batches and G-Nodes."""
    config = replace(CONFIG, codec="none", model="mlp", **changes)  # type: ignore[arg-type]
    made: dict[bytes, int] = {}
    told: list[tuple[bytes, int]] = []

    def watched(forward: Callable[..., Tensor], note: Callable[[Tensor, Tensor, Tensor], None]) -> object:
        def call(self: object, given: Tensor, labels: Tensor) -> Tensor:
            out = forward(self, given, labels)
            note(given, labels, out)
            return out

        return call

    def note_made(_: Tensor, labels: Tensor, images: Tensor) -> None:
        made.update({x.detach().numpy().tobytes(): int(y) for x, y in zip(images, labels, strict=True)})

    def note_told(images: Tensor, labels: Tensor, _: Tensor) -> None:
        told.extend((x.detach().numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True))

    from dance.gan.models import mlp

    monkeypatch.setattr(mlp.Generator, "forward", watched(mlp.Generator.forward, note_made))
    monkeypatch.setattr(mlp.Discriminator, "forward", watched(mlp.Discriminator.forward, note_told))
    algorithm = build(config, SimulatedExchange(config.num_nodes), parts_of(config, labelled(part(24))))
    for number in range(2):
        algorithm.round(number)
    known = [(made[image], label) for image, label in told if image in made]
    assert len(known) >= 2 * 2 * config.batch_size / 2
    assert all(here == there for here, there in known)
    assert algorithm.sample(5).shape == (5, 1, 3, 3)


def test_data_without_labels_is_refused() -> None:
    data = labelled(part())
    bare = replace(data, labels=None, num_classes=0)
    with pytest.raises(ValueError, match=r"conditional.*no labels.*sub-folder for each class"):
        run_data(CONFIG, bare)
    with pytest.raises(ValueError, match=r"num_classes.*3 classes, got 4"):
        run_data(replace(CONFIG, num_classes=4), data)
