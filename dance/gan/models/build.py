"""From a RunConfig to networks: which model, how wide, with which norm, and at which learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dance.gan.config import RunConfig
from dance.gan.models import dcgan, mlp, sngan
from dance.gan.models.flat import FlatModule
from dance.gan.models.own import factory_named, is_own
from dance.gan.models.shape import NetShape


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What a config leaves open (None) for a model."""

    norm: str
    g_learning_rate: float
    d_learning_rate: float


# Rates of mlp: docs/results.md. Those of the convolutions are what their papers use with Adam (Radford et al.
# 2016, Miyato et al. 2018) and are not swept here: benchmarks/studies/models.py does it.
_DEFAULTS = {
    "mlp": _Defaults(norm="none", g_learning_rate=1e-3, d_learning_rate=1e-3),
    "dcgan": _Defaults(norm="none", g_learning_rate=2e-4, d_learning_rate=2e-4),
    "sngan": _Defaults(norm="spectral", g_learning_rate=2e-4, d_learning_rate=2e-4),
}
_OWN = _Defaults(norm="none", g_learning_rate=2e-4, d_learning_rate=2e-4)


def net_shape(config: RunConfig, image_shape: Sequence[int]) -> NetShape:
    """What the networks of a run on images of this shape are made for."""
    channels, height, width = image_shape
    return NetShape(
        latent=config.latent,
        image=(channels, height, width),
        classes=config.num_classes if config.conditional else 0,
    )


def generator(config: RunConfig, image_shape: Sequence[int]) -> nn.Module:
    """A generator with fresh weights. Raises ValueError where the model cannot make such images."""
    shape = net_shape(config, image_shape)
    text = config.generator or config.model
    if text == "mlp":
        return mlp.Generator(shape, config.g_widths)
    if text == "dcgan":
        return dcgan.Generator(shape, config.channels)
    if text == "sngan":
        return sngan.Generator(shape, config.channels)
    return factory_named(text)(shape)


def discriminator(config: RunConfig, image_shape: Sequence[int]) -> nn.Module:
    """A discriminator with fresh weights. Raises ValueError where the model cannot take such images."""
    shape = net_shape(config, image_shape)
    text = config.discriminator or config.model
    norm = config.d_norm or _defaults(text).norm
    if text == "mlp":
        return mlp.Discriminator(shape, config.d_widths, norm)
    if text == "dcgan":
        return dcgan.Discriminator(shape, config.channels, norm)
    if text == "sngan":
        return sngan.Discriminator(shape, config.channels, norm)
    return factory_named(text)(shape)


def g_learning_rate(config: RunConfig) -> float:
    """The config's, or the generator's own default."""
    return config.g_learning_rate or _defaults(config.generator or config.model).g_learning_rate


def d_learning_rate(config: RunConfig) -> float:
    """The config's, or the discriminator's own default."""
    return config.d_learning_rate or _defaults(config.discriminator or config.model).d_learning_rate


def seeded_generator(seed: int, config: RunConfig, image_shape: Sequence[int]) -> FlatModule:
    """A generator whose first weights follow from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlatModule(generator(config, image_shape))


def seeded_discriminator(seed: int, config: RunConfig, image_shape: Sequence[int]) -> FlatModule:
    """A discriminator whose first weights follow from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlatModule(discriminator(config, image_shape))


def check_models(config: RunConfig, image_shape: Sequence[int]) -> None:
    """Make both networks once and try them. Raises ValueError naming what does not fit, and the remedy."""
    shape = net_shape(config, image_shape)
    labels = [torch.zeros(2, dtype=torch.int64)] if shape.classes else []
    g, d = seeded_generator(0, config, image_shape), seeded_discriminator(0, config, image_shape)
    with torch.no_grad():
        for text, net, given, wanted in (
            (config.generator or config.model, g, torch.zeros(2, shape.latent), (2, *shape.image)),
            (config.discriminator or config.model, d, torch.zeros(2, *shape.image), (2, 1)),
        ):
            try:
                made = tuple(net.module(given, *labels).shape)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"model {text}: cannot take {tuple(given.shape)}: {error}") from error
            if made != wanted:
                raise ValueError(f"model {text}: {tuple(given.shape)} gives {made}; it must give {wanted}")


def _defaults(text: str) -> _Defaults:
    return _OWN if is_own(text) else _DEFAULTS[text]
