"""`dance calibrate gan`: which recipe for a GAN's messages reaches the target first over which link.

    time to target = (compute + code + bytes / rate + latency) * rounds

for each recipe of dance.gan.rounds, mean rate and deviation: rounds through a hub are played over a seeded
synthetic trace (dance.bandwidth.cellular), as Oboe plays video (Akhtar et al., SIGCOMM 2018). Computing and
codecs are timed here. All links have the rate of the row, unless that of the hub is given: it carries the
messages of all D-Nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import torch

import dance
from dance.bandwidth import Trace
from dance.calibrate import trace_of
from dance.codec_speed import measure_speed
from dance.data import load
from dance.gan.config import RunConfig, validate
from dance.gan.controller import recipe_codec
from dance.gan.nodes import Batches, build_discriminator, build_generator
from dance.gan.recipes import KINDS, Recipe, RecipeTable
from dance.gan.rounds import ROUNDS

_STARTS = 20  # places on a trace, at equal distances, at which rounds are played
_TIMED = 8  # rounds of which the median computing time counts


@dataclass(frozen=True, kw_only=True)
class CalibrateGanConfig:
    """What is calibrated; its fields are the flags of `dance calibrate gan`."""

    to: str = "gan-calibration.json"
    """The file to write."""
    mbps: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
    """Mean rates of the links in Mbit/s."""
    deviation: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    """Standard deviations of the rate, as shares of the mean."""
    hub_mbps: float | None = None
    """Rate of the G-Node's own link, which carries the messages of all D-Nodes; None: that of the others."""
    latency_ms: float = 5.0
    """Time of a message without bytes, in milliseconds."""
    compute_ms: float | None = None
    """Computing of a round in milliseconds; None: timed here."""
    run: RunConfig = field(default_factory=RunConfig)
    """The run whose networks, batches and number of D-Nodes count."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """One kind of message of one recipe: bytes of one, and seconds to code and decode all of a round."""

    num_bytes: int
    code_s: float


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What is the same for all recipes; `hub_mbps` None: the trace is also that of the hub's link."""

    compute_s: float
    latency_s: float
    d_nodes: int
    hub_mbps: float | None = None

    def arrival_s(self, start_s: float, num_bytes: int, trace: Trace) -> float:
        """Returns when all D-Nodes' messages of so many bytes have passed."""
        if self.hub_mbps is None:
            return trace.finish_s(start_s, self.d_nodes * num_bytes) + self.latency_s
        hub_s = start_s + self.d_nodes * num_bytes * 8e-6 / self.hub_mbps
        return max(trace.finish_s(start_s, num_bytes), hub_s) + self.latency_s


def calibrate_gan(
    config: CalibrateGanConfig, on_step: Callable[[str, int, int], None] | None = None
) -> RecipeTable:
    """Measures and computes; ``on_step`` hears what is being done, how many steps are done and of how many.

    Raises ValueError for what is out of range.
    """
    rates, deviations = tuple(sorted(set(config.mbps))), tuple(sorted(set(config.deviation)))
    if not rates or not all(0.0 < rate < float("inf") for rate in rates):
        raise ValueError(f"calibrate: --mbps: expected rates above 0, got {list(config.mbps)}")
    if not deviations or not all(0.0 <= each <= 3.0 for each in deviations):
        raise ValueError(f"calibrate: --deviation: expected shares in [0, 3], got {list(config.deviation)}")
    if config.hub_mbps is not None and not 0.0 < config.hub_mbps < float("inf"):
        raise ValueError(f"calibrate: --hub-mbps: expected a rate above 0, got {config.hub_mbps}")
    for name in ("latency_ms", "compute_ms"):
        value = getattr(config, name)
        if value is not None and not 0.0 <= value < float("inf"):
            raise ValueError(f"calibrate: --{name.replace('_', '-')}: expected at least 0, got {value}")
    run = config.run
    validate(run)
    recipes = tuple(ROUNDS)
    total = 1 + len(recipes) + len(rates)

    def step(text: str, done: int) -> None:
        if on_step is not None:
            on_step(text, done, total)

    shape = tuple(load(run.data).images.shape[1:])
    step("timing a round", 0)
    compute_s, theta_numel = _round_s(run, shape)
    if config.compute_ms is not None:
        compute_s = config.compute_ms / 1e3
    loads = []
    for done, recipe in enumerate(recipes):
        step(f"measuring {recipe}", 1 + done)
        loads.append(_loads(recipe, run, shape, theta_numel))
    seconds = np.empty((len(rates), len(deviations), len(recipes)))
    for i, rate in enumerate(rates):
        step(f"playing over {rate:g} Mbit/s", 1 + len(recipes) + i)
        for j, deviation in enumerate(deviations):
            trace = trace_of(rate, deviation, run.seed)
            for r, recipe in enumerate(recipes):
                fixed = Fixed(
                    compute_s=compute_s,
                    latency_s=config.latency_ms / 1e3,
                    d_nodes=run.d_nodes,
                    hub_mbps=config.hub_mbps,
                )
                seconds[i, j, r] = ROUNDS[recipe] * played_s(recipe.period, loads[r], fixed, trace)
    step("done", total)
    about = {
        "made_on": date.today().isoformat(),
        "dance": dance.info()["version"],
        "data": run.data,
        "d_nodes": run.d_nodes,
        "batch_size": run.batch_size,
        "discriminator": theta_numel,
        "hub_mbps": config.hub_mbps,
        "latency_ms": config.latency_ms,
        "compute_ms": round(1e3 * compute_s, 3),
        "seconds": "to the target, in units of rounds of uncompressed messages",
    }
    return RecipeTable(mbps=rates, deviations=deviations, recipes=recipes, seconds=seconds, about=about)


def played_s(period: int, loads: dict[str, Load], fixed: Fixed, trace: Trace) -> float:
    """Returns the mean seconds of a round over ``trace``."""
    starts = (
        np.linspace(0.0, trace.period_s, _STARTS, endpoint=False).tolist() if len(trace.mbps) > 1 else [0.0]
    )
    total_s = 0.0
    for start_s in starts:
        at_s = start_s
        for r in range(period):
            at_s += fixed.compute_s
            gossips = ("gossip", "gossip") if r == period - 1 else ()
            for kind in ("image", *gossips, "feedback"):
                at_s = fixed.arrival_s(at_s, loads[kind].num_bytes, trace) + loads[kind].code_s
        total_s += (at_s - start_s) / period
    return total_s / len(starts)


def _loads(recipe: Recipe, run: RunConfig, shape: tuple[int, ...], theta_numel: int) -> dict[str, Load]:
    image_numel = int(np.prod(shape))
    loads = {}
    for kind in KINDS:
        codec = recipe_codec(recipe, kind, image_numel)
        numel = theta_numel if kind == "gossip" else run.batch_size * image_numel
        speed = measure_speed(codec, feedback=kind == "gossip", numel=numel)
        # One end codes or decodes the messages of all, the other its own.
        code_s = numel * (speed.encode_s + speed.decode_s) * (run.d_nodes + 1) / 2
        loads[kind] = Load(num_bytes=codec.packet_nbytes(numel), code_s=code_s)
    return loads


def _round_s(run: RunConfig, shape: tuple[int, ...]) -> tuple[float, int]:
    """Returns the median seconds that one round computes, and the discriminator's parameters.

    A G-Node makes and takes in batches for all D-Nodes; a D-Node takes its steps and answers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    try:
        images = torch.zeros((run.batch_size, *shape))
        g = build_generator(run, shape, 0)
        batches = Batches(images=images, size=run.batch_size, seed=run.seed, node=1)
        d = build_discriminator(run, run.d_optimizer or "block-adam", batches)
        d_ids = range(1, 1 + run.d_nodes)
        times = []
        for r in range(_TIMED):
            began = time.perf_counter()
            fakes = g.generate(r, d_ids)
            d.local_update(r, fakes[1])
            d.end_round()
            feedback = d.feedback(fakes[1])
            g.absorb(dict.fromkeys(d_ids, feedback), run.d_nodes * run.batch_size)
            times.append(time.perf_counter() - began)
        return float(np.median(times)), d.net.theta.numel()
    finally:
        torch.set_num_threads(threads)


def print_recipes(table: RecipeTable) -> None:
    """Prints the best recipe of every link, and how many times faster it is than not compressing."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=f"{table.about['data']}, {table.about['d_nodes']} D-Nodes: the recipe that reaches the target "
        "first (gossip, its period, images, feedback), times the first recipe",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("Mbit/s", justify="right", no_wrap=True)
    for deviation in table.deviations:
        shown.add_column(f"dev. {deviation:.0%}")
    for i, rate in enumerate(table.mbps):
        cells = []
        for row in table.seconds[i]:
            best = int(row.argmin())
            recipe = table.recipes[best]
            names = [text.partition(":")[0] for text in (recipe.gossip, recipe.image, recipe.feedback)]
            cells.append(f"{names[0]}/{recipe.period} {names[1]} {names[2]}  {row[0] / row[best]:.1f}x")
        shown.add_row(f"{rate:g}", *cells)
    Console(highlight=False).print(shown)
