"""G-Nodes and D-Nodes: pure steps on tensors, no messages; the algorithms decide what travels between them.

Noise and batches are functions of (run seed, round, node), so a node has no random state to save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dance.gan.config import RunConfig
from dance.gan.labels import drawn_labels, repeated, shown_labels
from dance.gan.losses import Discriminate, gradient_penalty, loss_named, r1_penalty
from dance.gan.models import FlatModule
from dance.gan.models.build import (
    d_learning_rate,
    g_learning_rate,
    seeded_discriminator,
    seeded_generator,
)
from dance.gan.optimizers import BlockAdam, Ema, Optimizer, Rates, decayed, optimizer
from dance.gan.parts import Part
from dance.packet import derive_seed


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Private images in batches: an epoch is one seeded permutation, without its last incomplete batch."""

    images: Tensor | Part
    size: int
    seed: int
    node: int
    # The permutation of the epoch that was asked for last: an epoch has hundreds of batches.
    _order: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def per_epoch(self) -> int:
        return len(self.images) // self.size

    def batch(self, step: int) -> Tensor:
        """Batch number `step` since the run began; equal for equal seeds, whatever was drawn before."""
        return self.images[self._chosen(step)]

    def labels(self, step: int) -> Tensor:
        """The labels of batch number `step`, int64."""
        assert isinstance(self.images, Part)
        assert self.images.labels is not None
        return self.images.labels[self._chosen(step)]

    def _chosen(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        if epoch not in self._order:
            seed = derive_seed(self.seed, epoch, self.node, "epoch", "data")
            order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
            self._order.clear()
            self._order[epoch] = order
        return self._order[epoch][place * self.size : (place + 1) * self.size]


class GNode:
    """One generator, its optimizer and its running average."""

    def __init__(self, node: int, net: FlatModule, solver: Optimizer, config: RunConfig) -> None:
        self.node = node
        self.net = net
        self.solver = solver
        self.ema = Ema(net.theta, config.ema)
        self.seed = config.seed
        self.batch_size = config.batch_size
        self.latent = config.latent
        self.config = config
        self.decay_rounds = config.g_decay_rounds
        self._round = 0
        self._keys: list[int] = []
        self._output: Tensor | None = None

    def generate(self, round_index: int, keys: Sequence[int]) -> dict[int, Tensor]:
        """A batch of images for each key (a D-Node, or a batch's number); remembers how they came about."""
        noise = torch.cat([self._noise(round_index, key, self.batch_size) for key in keys])
        self._round = round_index
        self._keys = list(keys)
        self._output = self.net.module(noise, *self._labels(round_index, len(noise)))
        return dict(zip(keys, torch.split(self._output.detach(), self.batch_size), strict=True))

    def absorb(self, feedback: Mapping[int, Tensor], num_images: int) -> None:
        """One step along the feedback: each key's gradient of the loss at its images; `num_images` in all."""
        self.differentiate(feedback, num_images)
        self.step(self._round)

    def differentiate(self, feedback: Mapping[int, Tensor], num_images: int) -> None:
        """Leaves in `net.gradient` the gradient along which `absorb` takes its step."""
        assert self._output is not None
        assert set(feedback) == set(self._keys)
        weight = torch.cat([feedback[key] for key in self._keys]).div_(num_images)
        self.net.backward(self._output, weight)
        self._output = None

    def step(self, round_index: int) -> None:
        """One step along `net.gradient`."""
        scale = decayed(round_index, self.decay_rounds)
        self.solver.step(self.net.theta, self.net.gradient, scale)
        _keep_own_moment(self.solver)
        self.ema.update(self.net.theta)

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        """The same noise every time, through the averaged generator (or the raw one); shape (n, c, h, w)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0, self.node, "noise", "sample"))
        noise = torch.randn(num_images, self.latent, generator=generator)
        given = [noise]
        if self.config.conditional:
            given.append(shown_labels(num_images, self.config.num_classes))
        kept = self.net.theta.clone()
        if not raw and self.ema.decay:
            self.net.theta.copy_(self.ema.average)
        with torch.no_grad():
            parts = zip(*(torch.split(each, 1000) for each in given), strict=True)
            images = torch.cat([self.net.module(*part) for part in parts])
        self.net.theta.copy_(kept)
        return images

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "w": self.net.theta,
            **_prefixed("ema.", self.ema.state_dict()),
            **_prefixed("g_solver.", self.solver.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.net.theta.copy_(state["w"])
        self.ema.load_state_dict(under("ema.", state))
        self.solver.load_state_dict(under("g_solver.", state))

    def _labels(self, round_index: int, num_images: int) -> list[Tensor]:
        """In a conditional run the labels of all batches of a round, else nothing."""
        if not self.config.conditional:
            return []
        return [repeated(drawn_labels(self.config, round_index, self.batch_size), num_images)]

    def _noise(self, round_index: int, key: int, size: int) -> Tensor:
        seed = derive_seed(self.seed, round_index, self.node, f"noise.{key}", "image")
        return torch.randn(size, self.latent, generator=torch.Generator().manual_seed(seed))


class DNode:
    """One discriminator, its optimizer and its private images."""

    def __init__(
        self, node: int, net: FlatModule, solver: Optimizer, batches: Batches, config: RunConfig
    ) -> None:
        self.node = node
        self.net = net
        self.solver = solver
        self.batches = batches
        self.config = config
        self.local_steps = config.local_steps
        self.loss = loss_named(config.loss)
        self.r1 = 0.0 if self.loss.penalised else config.r1
        self.r1_every = config.r1_every
        self.decay_rounds = config.d_decay_rounds
        self.gradient_penalty = config.gradient_penalty if self.loss.penalised else 0.0
        self._round = 0
        # How many of a round's generated images are one G-Node's, which all draw the same labels; None: all.
        self.fakes_of_one: int | None = None
        # Of the last step; unknown, and null in the report, until there was one.
        self.d_loss = math.nan
        self.g_loss = math.nan

    def local_update(self, round_index: int, fakes: Tensor) -> None:
        """The round's local steps: real batches of its own against the same `fakes` (n, c, h, w)."""
        for step in range(self.local_steps):
            self.differentiate(round_index, step, fakes)
            self.step(round_index)

    def differentiate(self, round_index: int, step: int, fakes: Tensor) -> None:
        """Leaves in `net.gradient` the gradient of the round's local step number `step`."""
        self._round = round_index
        number = round_index * self.local_steps + step
        reals = self.batches.batch(number)
        real_labels: list[Tensor] = []
        fake_labels: list[Tensor] = []
        if self.config.conditional:
            real_labels = [self.batches.labels(number)]
            drawn = drawn_labels(self.config, round_index, self.fakes_of_one or len(fakes))
            fake_labels = [repeated(drawn, len(fakes))]
        both = [torch.cat(pair) for pair in zip([reals, *real_labels], [fakes, *fake_labels], strict=True)]
        real_logits, fake_logits = self.net.module(*both).split([len(reals), len(fakes)])
        loss = self.loss.real(real_logits) + self.loss.fake(fake_logits)
        self.d_loss = loss.item()
        if self.r1 and round_index % self.r1_every == 0:
            loss = loss + self.r1 * self.r1_every * r1_penalty(self._given(real_labels), reals)
        if self.gradient_penalty:
            pairs = reals[torch.arange(len(fakes)) % len(reals)]
            mix = self.mix(number, len(fakes))
            penalty = gradient_penalty(self._given(fake_labels), pairs, fakes, mix)
            loss = loss + self.gradient_penalty * penalty
        self.net.backward(loss)

    def step(self, round_index: int) -> None:
        """One step along `net.gradient`."""
        scale = decayed(round_index, self.decay_rounds)
        self.solver.step(self.net.theta, self.net.gradient, scale)

    def end_round(self) -> None:
        """Close the round of an optimizer that shares nothing with other nodes."""
        _keep_own_moment(self.solver)

    def feedback(self, images: Tensor) -> Tensor:
        """Gradient of the generator's loss at each image, of the images' shape; not averaged over them.

        The images are of the round of the last local step.
        """
        points = images.detach().requires_grad_(True)
        labels = [drawn_labels(self.config, self._round, len(images))] if self.config.conditional else []
        loss = self.loss.generator(self.net.module(points, *labels))
        self.g_loss = loss.item() / len(images)
        (gradient,) = torch.autograd.grad(loss, points)
        return gradient

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of its logit at each image, of the images' shape, and the logits, (n,)."""
        points = images.detach().requires_grad_(True)
        labels = [drawn_labels(self.config, self._round, len(images))] if self.config.conditional else []
        logits = self.net.module(points, *labels)
        self.g_loss = self.loss.generator(logits).item() / len(images)
        (gradient,) = torch.autograd.grad(logits.sum(), points)
        return gradient, logits.detach().view(-1)

    def _given(self, labels: list[Tensor]) -> Discriminate:
        """The discriminator of images whose labels (if any) are these."""
        return lambda images: self.net.module(images, *labels)

    def mix(self, step: int, num_pairs: int) -> Tensor:
        """Places between real and generated images at which wgan-gp looks at the gradient."""
        seed = derive_seed(self.config.seed, step, self.node, "mix", "data")
        return torch.rand(num_pairs, 1, 1, 1, generator=torch.Generator().manual_seed(seed))

    def state_dict(self) -> dict[str, Tensor]:
        return {"theta": self.net.theta, **_prefixed("d_solver.", self.solver.state_dict())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.net.theta.copy_(state["theta"])
        self.solver.load_state_dict(under("d_solver.", state))


def build_generator(config: RunConfig, image_shape: Sequence[int], node: int) -> GNode:
    """A G-Node; all of a run start from the same weights."""
    net = seeded_generator(derive_seed(config.seed, 0, 0, "w", "init"), config, image_shape)
    rates = Rates(learning_rate=g_learning_rate(config), beta1=config.beta1, beta2=config.beta2)
    return GNode(node, net, optimizer(config.g_optimizer, net.sizes, rates), config)


def discriminator_net(config: RunConfig, image_shape: Sequence[int]) -> FlatModule:
    """The discriminator, theta_0, that all D-Nodes of a run start from."""
    return seeded_discriminator(derive_seed(config.seed, 0, 0, "theta", "init"), config, image_shape)


def build_discriminator(config: RunConfig, solver: str, batches: Batches) -> DNode:
    """A D-Node with the optimizer named `solver`; all of a run start from the same weights."""
    net = discriminator_net(config, tuple(batches.images.shape[1:]))
    return DNode(batches.node, net, discriminator_solver(config, solver, net), batches, config)


def discriminator_solver(config: RunConfig, solver: str, net: FlatModule) -> Optimizer:
    """A fresh optimizer named `solver` for a discriminator."""
    rates = Rates(learning_rate=d_learning_rate(config), beta1=config.beta1, beta2=config.beta2)
    return optimizer(solver, net.sizes, rates)


def _keep_own_moment(solver: Optimizer) -> None:
    if isinstance(solver, BlockAdam):
        solver.moment_in(solver.moment_out())


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
