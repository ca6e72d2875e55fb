"""Networks: shapes for any image, flat parameters, spectral norms against the SVD, labels, own modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus

from dance.gan.config import MODELS, RunConfig
from dance.gan.models import FlatModule, Models, NetShape, SpectralConv2d, SpectralLinear
from dance.gan.models.build import check_models, discriminator, generator, seeded_discriminator
from dance.gan.models.own import factory_named, known
from dance.gan.models.shape import one_hot

CONFIG = RunConfig(latent=5, g_widths=(7,), d_widths=(6, 5), channels=4)
CASES = [
    ("mlp", (1, 1, 2)),
    ("mlp", (3, 5, 7)),
    ("dcgan", (1, 8, 8)),
    ("dcgan", (1, 28, 28)),
    ("dcgan", (3, 30, 45)),
    ("dcgan", (3, 64, 64)),
    ("sngan", (1, 8, 9)),
    ("sngan", (1, 28, 28)),
    ("sngan", (3, 32, 32)),
    ("sngan", (3, 64, 48)),
]


def images(shape: tuple[int, ...], count: int = 3) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("model", "shape"), CASES)
def test_networks_take_images_of_any_size(model: str, shape: tuple[int, int, int], classes: int) -> None:
    config = replace(CONFIG, model=model, conditional=classes > 0, num_classes=classes)
    labels = [torch.tensor([0, 2, 1])] if classes else []
    made = generator(config, shape)(torch.zeros(3, 5), *labels)
    assert made.shape == (3, *shape)
    assert made.abs().max() <= 1
    assert discriminator(config, shape)(made, *labels).shape == (3, 1)
    check_models(config, shape)


@pytest.mark.parametrize("model", ["dcgan", "sngan"])
def test_images_too_small_for_convolutions_are_named(model: str) -> None:
    for make in (generator, discriminator):
        with pytest.raises(ValueError, match=r"7 x 20 are too small.*8 x 8.*mlp"):
            make(replace(CONFIG, model=model), (1, 7, 20))


@pytest.mark.parametrize("norm", ["none", "spectral", "layer"])
@pytest.mark.parametrize("model", MODELS)
def test_all_state_is_parameters_and_no_image_sees_another(model: str, norm: str) -> None:
    config = replace(CONFIG, model=model, d_norm=norm)  # type: ignore[arg-type]
    shape = (1, 12, 12)
    for net in (generator(config, shape), discriminator(config, shape)):
        assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    d = discriminator(config, shape)
    torch.testing.assert_close(d(images(shape))[1:2], d(images(shape)[1:2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_flat_module_shares_memory_in_name_order(model: str) -> None:
    module = discriminator(replace(CONFIG, model=model), (1, 8, 8))
    named = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    flat = FlatModule(module)
    expected = torch.cat([named[name].reshape(-1) for name in sorted(named)])
    assert torch.equal(flat.theta, expected)
    assert sum(flat.sizes) == len(flat.theta)
    flat.theta.zero_()
    assert all(bool((parameter == 0).all()) for parameter in module.parameters())


@pytest.mark.parametrize("norm", ["none", "spectral", "layer"])
@pytest.mark.parametrize("model", MODELS)
def test_flat_gradient_is_that_of_autograd_and_replaces_the_last_one(model: str, norm: str) -> None:
    config = replace(CONFIG, model=model, d_norm=norm)  # type: ignore[arg-type]
    flat = FlatModule(discriminator(config, (1, 8, 8)))
    for _ in range(2):
        loss = softplus(flat.module(images((1, 8, 8)))).mean()
        parameters = [parameter for _, parameter in sorted(flat.module.named_parameters())]
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        flat.backward(loss)
        assert torch.equal(flat.gradient, torch.cat([g.reshape(-1) for g in expected]))


def weights(steps: int = 0) -> list[nn.Module]:
    """Layers with fresh weights, or with weights pushed along a few random directions as training does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers: list[nn.Module] = [
            SpectralLinear(784, 256),
            SpectralLinear(6, 1),
            SpectralConv2d(32, 64, 4, 2, 1),
            SpectralConv2d(3, 16, 3, 1, 1),
        ]
        for layer in layers:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            for _ in range(steps):
                low_rank = torch.randn(len(weight), 1) @ torch.randn(1, weight[0].numel())
                weight.data += 0.2 * weight.std() * low_rank.view_as(weight)
    return layers


def largest_singular_value(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2))


@pytest.mark.parametrize(("steps", "tolerance"), [(0, 0.08), (1, 0.001)])
def test_spectral_layers_divide_by_the_largest_singular_value(steps: int, tolerance: float) -> None:
    """A power iteration never overestimates; 16 steps miss a few percent of a random weight's norm."""
    for layer in weights(steps):
        weight, normalised = layer.weight, layer.normalised
        assert isinstance(weight, Tensor)
        assert isinstance(normalised, nn.Module)
        norm = largest_singular_value(normalised(weight))
        assert 1 - 1e-5 <= norm <= 1 + tolerance
        nn.init.zeros_(weight)
        assert bool((normalised(weight) == 0).all())


def test_spectral_gradient_is_that_of_the_papers_equation_12() -> None:
    """With u, v from the SVD: d/dW f(W / sigma) = (G - <G, W> u v^T / sigma) / sigma."""
    layer = SpectralLinear(5, 3)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():  # a leading direction, so that 16 steps have converged
        layer.weight.copy_(torch.diag(torch.tensor([5.0, 1.0, 0.5, 0, 0]))[:3] + 0.1 * torch.randn(3, 5))
    x, g = torch.randn(4, 5), torch.randn(4, 3)
    (ours,) = torch.autograd.grad((layer(x) * g).sum(), layer.weight)
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    inner = g.T @ x  # gradient by W / sigma
    expected = (inner - (inner * layer.weight.detach()).sum() / s[0] * torch.outer(u[:, 0], vh[0])) / s[0]
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_spectral_layers_are_functions_of_their_parameters_alone() -> None:
    """Layers that lived differently and then got equal weights give equal outputs: averaging needs it."""
    first, second = SpectralConv2d(2, 3, 3), SpectralConv2d(2, 3, 3)
    for _ in range(3):
        first(images((2, 8, 8)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images((2, 8, 8))), second(images((2, 8, 8))))


@pytest.mark.parametrize("model", MODELS)
def test_discriminators_can_be_stacked(model: str) -> None:
    """torch.func.vmap over nodes, as the simulation may run them, agrees with one after the other."""
    config = replace(CONFIG, model=model, d_norm="spectral", conditional=True, num_classes=3)
    nets = [seeded_discriminator(seed, config, (1, 8, 8)).module for seed in range(3)]
    given, labels = images((3, 1, 8, 8), 3), torch.tensor([[0, 1, 2], [2, 2, 1], [1, 0, 0]])
    parameters, buffers = stack_module_state(nets)

    def one(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = functional_call(nets[0], (p, b), (x, y))
        return made

    stacked = vmap(one)(parameters, buffers, given, labels)
    for k, net in enumerate(nets):
        torch.testing.assert_close(stacked[k], net(given[k], labels[k]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_labels_change_what_is_made_and_what_is_thought_of_it(model: str) -> None:
    config = replace(CONFIG, model=model, conditional=True, num_classes=3)
    g, d = generator(config, (1, 8, 8)), discriminator(config, (1, 8, 8))
    noise, given = torch.zeros(1, 5), images((1, 8, 8), 1)
    seen_g = {tuple(g(noise, torch.tensor([k])).flatten().tolist()) for k in range(3)}
    seen_d = {d(given, torch.tensor([k])).item() for k in range(3)}
    assert len(seen_g) == len(seen_d) == 3


def test_projection_is_the_inner_product_with_the_labels_embedding() -> None:
    config = replace(CONFIG, conditional=True, num_classes=3)
    d = discriminator(config, (1, 3, 3))
    given, labels = images((1, 3, 3)), torch.tensor([2, 0, 2])
    features = d.layers(given)  # type: ignore[operator]
    embedding = dict(d.named_parameters())["logit.embedding.weight"]
    expected = d.logit.layer(features) + (features * embedding[labels]).sum(1, keepdim=True)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(d(given, labels), expected)
    assert torch.equal(one_hot(labels, 3), torch.eye(3)[labels])


def own_generator(shape: NetShape) -> nn.Module:
    return nn.Sequential(nn.Linear(shape.latent, 64), nn.Unflatten(1, shape.image), nn.Tanh())


def normalising(shape: NetShape) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1))


def wrong_shape(shape: NetShape) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def test_own_modules_by_name_and_by_hand() -> None:
    name = f"{__name__}:own_generator"
    assert factory_named(name) is own_generator
    check_models(replace(CONFIG, generator=name), (1, 8, 8))
    with known(own_generator, "generator") as text:
        assert text == name
    with known(lambda shape: own_generator(shape), "generator") as text:
        assert text is not None
        check_models(replace(CONFIG, generator=text), (1, 8, 8))
    with pytest.raises(ValueError, match=r"models=Models"):
        factory_named(text)
    assert Models().generator is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", r"'no_such_module:f'.*module:function"),
        (f"{__name__}:no_such_function", "no_such_function"),
        (f"{__name__}:CONFIG", "RunConfig, not a function"),
        (f"{__name__}:normalising", r"'1.num_batches_tracked' is state.*GroupNorm"),
        (f"{__name__}:wrong_shape", r"gives \(2, 2\); it must give \(2, 1\)"),
        (f"{__name__}:own_generator", r"cannot take \(2, 1, 8, 8\)"),
    ],
)
def test_bad_own_modules_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_models(replace(CONFIG, discriminator=name), (1, 8, 8))
