"""RunConfig: all that decides a training run, as one frozen value; its fields are `dance train`'s flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dance
from dance import topology
from dance.bandwidth import parse_links
from dance.gan.computing import parse_computing
from dance.gan.layout_check import check_layout, check_recipes
from dance.gan.settings import (
    OPTIMIZERS,
    AcganConfig,
    FlganConfig,
    GossipganConfig,
    MdganConfig,
    Optimizer,
    at_least,
    one_of,
)

ALGORITHMS = ("ac-gan", "md-gan", "fl-gan", "gossip-gan", "standalone")
LAYOUTS = ("model-parallel", "data-parallel", "adaptive")
PARTITIONS = ("iid", "classes:2", "dirichlet:0.2", "folders")
LOSSES = ("non-saturating", "minimax", "lsgan", "hinge", "wgan-gp")
MODELS = ("mlp", "dcgan", "sngan")
NORMS = ("none", "spectral", "layer")

Layout = Literal["model-parallel", "data-parallel", "adaptive"]
Loss = Literal["non-saturating", "minimax", "lsgan", "hinge", "wgan-gp"]
Norm = Literal["none", "spectral", "layer"]
Algorithm = Literal["ac-gan", "md-gan", "fl-gan", "gossip-gan", "standalone"]
Stack = Literal["off", "on", "auto"]

# The bounds that the block of an int8 or sign packet has (docs/format.md).
MIN_BLOCK, MAX_BLOCK = 32, 4096


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. A round is, for every method, `local_steps` D steps and one G step at each node."""

    algorithm: Algorithm = "ac-gan"
    """Which algorithm trains: ac-gan, its rivals md-gan, fl-gan and gossip-gan, or standalone, which has all
    data in one place."""
    data: str = "digits"
    """A data set's name (dance data list), a folder of images, or an .npz file."""
    image_size: int | None = None
    """Resize and centre-crop images of a folder to so many pixels a side; None: all must have one size."""
    image_channels: int | None = None
    """1: images of a folder are made grey, 3: colour; None: grey if all are."""
    partition: str = "iid"
    """How images are split over the D-Nodes: iid, classes:2 (two classes a node), dirichlet:0.2 (skewed), or
    folders (each D-Node reads DATA/node-1, DATA/node-2, ... itself; DATA/test is what FID compares with)."""
    d_nodes: int = 4
    """Discriminator nodes, each with a private part of the data; standalone multiplies its batch by it."""
    g_nodes: int = 1
    """Generator nodes (more than one: ac-gan, model parallel; the first is the one that is evaluated)."""
    layout: Layout = "adaptive"
    """Where G and D live (ac-gan): model-parallel (on different nodes), data-parallel (both at every worker)
    or adaptive (data parallel; after acgan.switch_after rounds model parallel, if the data proved skewed)."""
    topology: str = "hub"
    """Who gossips with whom: hub (relayed by G-Node 0), or D-Nodes in a ring, complete or other graph."""
    rounds: int = 2000
    """Rounds to train."""
    megabytes: float | None = None
    """End earlier, once a D-Node has sent and received so many MB (1 MB = 1,000,000 bytes), on average."""
    virtual_seconds: float | None = None
    """End earlier, after so many seconds of the virtual clock (needs --simulate)."""
    seed: int = 0
    """The run's only seed: weights, data, noise and packets follow from it."""
    codec: str | None = None
    """One codec for every message, for example none, int8 or auto; it overrides the codecs below."""
    gossip_codec: str | None = None
    """Codec of the discriminators' gossip, or auto; None: sign. With one, the adaptive layout gossips. auto
    through the hub chooses the gossip's period, too."""
    image_codec: str | None = None
    """Codec of the images a G-Node sends, or auto; None: int4, or int8 for points in the plane."""
    feedback_codec: str = "sign:block=image"
    """Codec of the feedback a D-Node sends, or auto; block=image: one scale an image."""
    d_optimizer: Optimizer | None = None
    """Optimizer of the D-Nodes (ac-gan, standalone); None: adam where all step along one averaged gradient
    (acgan.aggregation), elsewhere block-adam, which shares its second moment between nodes."""
    g_optimizer: Optimizer = "adam"
    """Optimizer of every generator."""
    batch_size: int = 16
    """Images in one batch of one node."""
    local_steps: int = 1
    """D steps in a round (L)."""
    d_learning_rate: float | None = None
    """Learning rate of the discriminators; None: the model's own (mlp 1e-3, others 2e-4)."""
    g_learning_rate: float | None = None
    """Learning rate of the generators; None: the model's own (mlp 1e-3, others 2e-4)."""
    d_decay_rounds: int = 0
    """Rounds in which the discriminators' learning rate falls linearly to zero; 0: it does not."""
    g_decay_rounds: int = 0
    """Rounds in which the generators' learning rate falls linearly to zero; 0: it does not."""
    beta1: float = 0.0
    """First-moment decay of Adam and block Adam, momentum of sgd; 0: no momentum."""
    beta2: float = 0.999
    """Second-moment decay of Adam and block Adam."""
    loss: Loss = "non-saturating"
    """The game: non-saturating, minimax, lsgan, hinge or wgan-gp (whose penalty takes the place of R1)."""
    gradient_penalty: float = 10.0
    """Weight of the penalty (|gradient of D between real and generated| - 1)^2; wgan-gp only."""
    r1: float = 0.5
    """Weight of the R1 penalty r1 / 2 * |gradient of D at a real image|^2; 0: none."""
    r1_every: int = 4
    """R1 is applied every so many rounds, times so many."""
    ema: float = 0.995
    """Decay a round of the averaged generator that is evaluated; 0: evaluate the raw one."""
    model: str = "mlp"
    """Networks of both sides: mlp, dcgan (from 8 x 8 pixels), sngan (residual, made for 32 x 32)."""
    generator: str | None = None
    """Another generator: one of those, or your own function as module:function (docs/tutorial.md)."""
    discriminator: str | None = None
    """Another discriminator, likewise."""
    d_norm: Norm | None = None
    """Norm of the discriminator: none, spectral or layer; None: the model's own (sngan: spectral)."""
    latent: int = 64
    """Length of a generator's noise vector."""
    g_widths: tuple[int, ...] = (256, 256)
    """Hidden widths of an mlp generator."""
    d_widths: tuple[int, ...] = (256, 128)
    """Hidden widths of an mlp discriminator."""
    channels: int = 32
    """Width of dcgan (at its largest map) and of sngan."""
    conditional: bool = False
    """Give labels to G and D; all nodes draw those of generated images alike. D-Nodes need labelled data."""
    num_classes: int = 0
    """Classes of a conditional run; 0: as many as the data has."""
    label_shares: tuple[float, ...] = ()
    """Shares of the classes among generated images of a conditional run, if known to all; none: equal."""
    links: str | None = None
    """Simulated links: 10mbit,5ms (rate, delay), 10mbit/50mbit (up, down), a trace's file, or a synthetic
    trace such as steps:100,10@30s or markov:100,10@10s,seed={node} in Mbit/s. Groups of nodes may differ:
    "50mbit,5ms; 0: 1gbit; 3-5: slow.trace", or @FILE with such clauses (needs --simulate)."""
    compute: str | None = None
    """Virtual time that a node's training of one round takes, such as 20ms or 20ms,spread=0.5,jitter=0.1
    (lognormal over nodes, and over rounds), by groups like links; None: measured here (needs --simulate)."""
    stragglers: str | None = None
    """With compute: how often and how much a node is slow in a round, such as 0.1x5, by groups like links."""
    stack: Stack = "off"
    """Compute the discriminators of simulated nodes together: off (bits of real nodes), on (equal to them up
    to rounding), auto (on for mlp without labels; docs/simulation.md says what it gains)."""
    simulate: bool = False
    """All nodes in this process, with the same bits as real ones."""
    resume: str | None = None
    """Continue the run in this folder, from its last checkpoint."""
    out: str | None = None
    """Folder the run writes to; None: runs/ALGORITHM-DATA."""
    evaluate_every: int = 500
    """Rounds between two evaluations; 0: only at the end."""
    evaluate_at: tuple[int, ...] = ()
    """Further rounds after which to evaluate."""
    evaluate_megabytes: tuple[float, ...] = ()
    """Evaluate also when a D-Node has sent and received so many MB (needs --simulate)."""
    evaluate_images: int = 10_000
    """Generated images an evaluation draws."""
    checkpoint_every: int = 500
    """Rounds between two checkpoints; 0: only at the end."""
    round_ms: float | None = None
    """With auto: milliseconds that a round's messages may take, shared equally by those that follow each
    other: four with gossip (images, up and down, feedback), six with low-rank; None: 100, but for ac-gan's
    gossip through the hub, whose codecs and period are then those that promise to reach a target first."""
    table: str | None = None
    """With --layout model-parallel --codec auto, ac-gan through the hub: a file of `dance calibrate gan`, in
    which codecs and the gossip's period are looked up by the links as they are measured (what is not auto
    stays as it is, whatever the table supposed); None: forecast from them."""
    threads: int = 1
    """Torch threads of one node."""
    device: str = "cpu"
    """Where nodes compute: cpu."""
    acgan: AcganConfig = field(default_factory=AcganConfig)
    """Settings of ac-gan."""
    mdgan: MdganConfig = field(default_factory=MdganConfig)
    """Settings of md-gan."""
    flgan: FlganConfig = field(default_factory=FlganConfig)
    """Settings of fl-gan."""
    gossipgan: GossipganConfig = field(default_factory=GossipganConfig)
    """Settings of gossip-gan."""

    @property
    def aggregation(self) -> str:
        """What D-Nodes average (`acgan.aggregation`), where they do so other than by exchanging models."""
        if self.acgan.aggregation is not None:
            return self.acgan.aggregation
        low_rank = self.layout == "adaptive" and self.topology == "hub" and self.gossip_codec is None
        return "low-rank" if low_rank else "parameters"

    @property
    def follows_recipes(self) -> bool:
        """Whether the hub chooses codecs and the gossip's period together, for all nodes (`Controller`)."""
        return (
            self.algorithm == "ac-gan"
            and self.topology == "hub"
            and self.layout != "data-parallel"
            and self.aggregation == "parameters"
            and (self.codec or self.gossip_codec) == "auto"
            and (self.table is not None or (self.round_ms is None and self.d_nodes > 1))
        )

    @property
    def num_nodes(self) -> int:
        """Nodes of the run: processes, when it is not simulated. Standalone is one node; gossip-gan has no
        server."""
        if self.algorithm == "standalone":
            return 1
        return self.d_nodes + (self.g_nodes if self.has_hub else 0)

    @property
    def has_hub(self) -> bool:
        """Whether node 0 is no D-Node; only workers that gossip all, on a graph or at random, need none."""
        if self.algorithm == "gossip-gan":
            return False
        gossips = self.acgan.g_sync == "choco" and self.topology != "hub"
        return not (self.algorithm == "ac-gan" and self.layout == "data-parallel" and gossips)

    @property
    def folder(self) -> Path:
        """The folder the run writes to."""
        return Path(self.out or self.resume or f"runs/{self.algorithm}-{Path(self.data).name}")

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values, nested groups as nested objects."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_json`. Raises ValueError for a field this version does not know."""
        groups: dict[str, Any] = {
            "acgan": AcganConfig,
            "mdgan": MdganConfig,
            "flgan": FlganConfig,
            "gossipgan": GossipganConfig,
        }
        known = {f.name for f in dataclasses.fields(cls)}
        given = dict(values)
        if unknown := sorted(set(given) - known):
            raise ValueError(f"config: unknown field {unknown[0]!r}; written by another version of dance?")
        for name, group in groups.items():
            if name in given:
                try:
                    given[name] = group(**given[name])
                except TypeError as error:
                    raise ValueError(f"config: bad group {name!r}: {error}") from None
        for name in ("g_widths", "d_widths", "label_shares", "evaluate_at", "evaluate_megabytes"):
            if name in given:
                if not isinstance(given[name], (list, tuple)):
                    raise ValueError(f"config: {name} is {given[name]!r}; expected a list of numbers")
                given[name] = tuple(given[name])
        return cls(**given)


def validate(config: RunConfig) -> None:
    """Check all that can be checked without data or processes. Raises ValueError naming value and remedy."""
    one_of("algorithm", config.algorithm, ALGORITHMS)
    _check_topology(config)
    one_of("device", config.device, ("cpu",))
    one_of("g_optimizer", config.g_optimizer, OPTIMIZERS)
    if config.d_optimizer is not None:
        one_of("d_optimizer", config.d_optimizer, OPTIMIZERS)
    for group in (config.acgan, config.mdgan, config.flgan, config.gossipgan):
        group.validate()
    counts = (
        "d_nodes",
        "g_nodes",
        "rounds",
        "batch_size",
        "local_steps",
        "r1_every",
        "latent",
        "channels",
        "threads",
    )
    for name in counts:
        at_least(name, getattr(config, name), 1)
    at_least("evaluate_images", config.evaluate_images, 2)  # one has no covariance
    for name in (
        "evaluate_every",
        "checkpoint_every",
        "seed",
        "num_classes",
        "d_decay_rounds",
        "g_decay_rounds",
    ):
        at_least(name, getattr(config, name), 0)
    _check_budget(config)
    if config.round_ms is not None and not config.round_ms > 0:
        raise ValueError(f"round_ms: {config.round_ms} must be positive, for example 100")
    for name in ("d_learning_rate", "g_learning_rate"):
        rate = getattr(config, name)
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"{name}: {rate} must be positive, for example 0.001")
    for name in ("beta1", "beta2", "ema"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)} must be in [0, 1)")
    for name in ("r1", "gradient_penalty"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"{name}: {getattr(config, name)} must be 0 (no penalty) or positive")
    _check_models(config)
    if not all(width >= 1 for width in (*config.g_widths, *config.d_widths)):
        raise ValueError(
            f"g_widths {config.g_widths} and d_widths {config.d_widths}: every width must be at least 1"
        )
    if config.g_nodes > 1 and config.algorithm != "ac-gan":
        raise ValueError(
            f"g_nodes: {config.algorithm} has one generator, got {config.g_nodes}; use --g-nodes 1"
        )
    if config.algorithm == "ac-gan":
        one_of("layout", config.layout, LAYOUTS)
        check_layout(config)
    check_partition(config.partition)
    _check_codecs(config)
    check_recipes(config)
    _check_world_size(config)
    _check_simulation(config)


def check_partition(text: str) -> None:
    """Raises ValueError unless `text` names a way to split the data (dance.data.partition)."""
    name, _, value = text.partition(":")
    try:
        good = (
            text in ("iid", "folders")
            or (name == "classes" and int(value) >= 1)
            or (name == "dirichlet" and float(value) > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise ValueError(
            f"partition: unknown {text!r}; use one of {', '.join(PARTITIONS)} (or other numbers)"
        )


def image_block(image_numel: int) -> int:
    """The block that gives one scale an image, or a near one when an image has not 32..4096 elements.

    Smaller images: the least multiple of an image that is allowed (some images share a scale). Larger: the
    largest divisor of an image that is allowed (some scales an image), or 4096 if it has none.
    """
    if MIN_BLOCK <= image_numel <= MAX_BLOCK:
        return image_numel
    if image_numel < MIN_BLOCK:
        return image_numel * -(-MIN_BLOCK // image_numel)
    divisors = [block for block in range(MIN_BLOCK, MAX_BLOCK + 1) if image_numel % block == 0]
    return max(divisors, default=MAX_BLOCK)


def codec_text(text: str, image_numel: int) -> str:
    """The codec text with `block=image` replaced by the block that images of this size get."""
    return text.replace("block=image", f"block={image_block(image_numel)}")


def under_torchrun() -> bool:
    """Whether torchrun, or anything that sets its variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _check_simulation(config: RunConfig) -> None:
    one_of("stack", config.stack, ("off", "on", "auto"))
    try:
        parse_links(config.links, config.num_nodes)
    except ValueError as error:
        raise ValueError(f"links: {error}") from None
    parse_computing(config.compute, config.stragglers, config.num_nodes, config.seed)
    if config.stack == "on" and config.conditional:
        raise ValueError("stack: labels do not go through a stack yet; use --stack off or drop --conditional")
    if config.simulate or config.algorithm == "standalone":
        return
    if config.links is not None:
        raise ValueError(
            f"links: {config.links!r} shapes simulated links only; add --simulate or drop --links"
        )
    if config.compute is not None:
        raise ValueError(f"compute: {config.compute!r} is a virtual time; add --simulate or drop --compute")
    if config.stack != "off":
        raise ValueError(f"stack: {config.stack!r} is for nodes of one process; add --simulate or drop it")


def _check_budget(config: RunConfig) -> None:
    for name in ("megabytes", "virtual_seconds"):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}: {value} must be positive, for example 30")
    if config.megabytes is not None and config.algorithm == "standalone":
        raise ValueError("megabytes: standalone sends nothing; limit it by --rounds")
    for name in ("virtual_seconds", "evaluate_megabytes"):
        if getattr(config, name) and not config.simulate:
            raise ValueError(f"{name}: only a simulated run knows it; add --simulate or drop it")


def _check_topology(config: RunConfig) -> None:
    if config.topology == "hub" or config.algorithm != "ac-gan":
        return
    try:
        graph = topology.named(config.topology, config.d_nodes, seed=config.seed)
    except ValueError as error:
        raise ValueError(f"topology: {error}; or hub") from None
    if not graph.symmetric or (config.d_nodes > 1 and graph.spectral_gap() == 0):
        raise ValueError(f"topology: {graph} does not bring its nodes together; use hub or ring")


def _check_models(config: RunConfig) -> None:
    one_of("loss", config.loss, LOSSES)
    if config.d_norm is not None:
        one_of("d_norm", config.d_norm, NORMS)
    for name in ("model", "generator", "discriminator"):
        text = getattr(config, name)
        if text is not None and (name == "model" or ":" not in text):
            one_of(name, text, MODELS)
    shares = config.label_shares
    if shares and not (min(shares) >= 0 and 0 < sum(shares) < float("inf")):
        raise ValueError(f"label_shares: {shares} must be shares of at least 0, not all 0")
    if config.image_size is not None:
        at_least("image_size", config.image_size, 4)
    if config.image_channels is not None and config.image_channels not in (1, 3):
        raise ValueError(f"image_channels: {config.image_channels} must be 1 (grey) or 3 (colour)")
    if ":" in (config.discriminator or "") and config.d_norm is not None:
        raise ValueError(
            f"d_norm: {config.d_norm!r} does not reach into {config.discriminator}; build it in with "
            "dance.gan.models.SpectralLinear and SpectralConv2d, and drop --d-norm"
        )


def _check_codecs(config: RunConfig) -> None:
    texts = {
        "codec": config.codec,
        "gossip_codec": config.gossip_codec,
        "image_codec": config.image_codec,
        "feedback_codec": config.feedback_codec,
        **config.acgan.codec_texts,
        **config.mdgan.codec_texts,
        **config.flgan.codec_texts,
        **config.gossipgan.codec_texts,
    }
    for name, text in texts.items():
        if text in (None, "auto"):
            continue
        try:
            dance.codec(codec_text(text, 64))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _check_world_size(config: RunConfig) -> None:
    if not under_torchrun():
        return
    world = int(os.environ["WORLD_SIZE"])
    if config.simulate:
        if world > 1:
            raise ValueError(
                f"simulate: all nodes live in one process, but torchrun started {world}; "
                "run `dance train --simulate` without torchrun, or drop --simulate"
            )
        return
    if world != config.num_nodes:
        raise ValueError(
            f"world size: torchrun started {world} processes, but {config.algorithm} with "
            f"g_nodes {config.g_nodes} and d_nodes {config.d_nodes} needs {config.num_nodes}; "
            f"use --nproc-per-node {config.num_nodes} or change --d-nodes"
        )
