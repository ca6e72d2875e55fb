"""Study h: how far from an equilibrium a run ends, by the number of its generators.

The game's value V(G, D) = E log D(x) + E log(1 - D(G(z))), G being the even mixture of all generators. From
the last checkpoint D takes K ascent steps with G held, and G takes K descent steps with D held; the gap is
V(G, D after K) - V(G after K, D), 0 where nobody can gain (the duality gap of Grnarova et al. 2019, with K
steps in place of the best answer, so a lower estimate of it). D is the mean of the D-Nodes'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.markdown import table
from benchmarks.studies.frame import Results, Study, Wanted
from benchmarks.studies.images import FORMER
from benchmarks.studies.text import finals
from dance import checkpoint
from dance.compare import Method, PlannedRun
from dance.compare.plan import growing
from dance.compare.table import cell_of, text_of
from dance.data import load
from dance.gan.nodes import build_generator, discriminator_net
from dance.packet import derive_seed

STEPS = 200
_BATCH = 256
_RATE = 1e-3
GENERATORS = (1, 2, 4)
GROUP = "digits, 4 D-Nodes, classes:5"


def gap_of(run: PlannedRun, *, steps: int = STEPS) -> dict[str, float]:
    """The gap of a run's last checkpoint, both its parts, and the value."""
    torch.set_num_threads(1)  # beside other runs, threads of so small a network only wait for each other
    config = run.config
    data = load(config.data)
    shape = tuple(data.images.shape[1:])
    folder = checkpoint.find(Path(run.folder))

    def fresh() -> tuple[list[nn.Module], nn.Module]:
        generators = []
        for node in range(config.g_nodes):
            net = build_generator(config, shape, node).net
            net.theta.copy_(checkpoint.load(folder, node).tensors["w"])
            generators.append(net.module)
        judge = discriminator_net(config, shape)
        ids = range(config.g_nodes, config.g_nodes + config.d_nodes)
        judge.theta.copy_(
            torch.stack([checkpoint.load(folder, node).tensors["theta"] for node in ids]).mean(0)
        )
        return generators, judge.module

    tests = data.test_images[torch.randperm(len(data.test_images), generator=_random(config.seed, "test"))]
    tests = tests[:2000]
    generators, judge = fresh()
    before = _value(generators, judge, tests, config.latent, config.seed)
    _play(list(judge.parameters()), -1.0, generators, judge, data.images, (config.latent, config.seed, steps))
    best_d = _value(generators, judge, tests, config.latent, config.seed)
    generators, judge = fresh()
    moved = [parameter for net in generators for parameter in net.parameters()]
    _play(moved, 1.0, generators, judge, data.images, (config.latent, config.seed, steps))
    best_g = _value(generators, judge, tests, config.latent, config.seed)
    return {"value": before, "d_gain": best_d - before, "g_gain": before - best_g, "gap": best_d - best_g}


def _play(
    moved: Sequence[nn.Parameter],
    sign: float,
    generators: Sequence[nn.Module],
    judge: nn.Module,
    reals: Tensor,
    about: tuple[int, int, int],
) -> None:
    """Steps of Adam on V (sign 1: down) for the parameters that move; the others stand still."""
    latent, seed, steps = about
    random = _random(seed, "play")
    # Parameters of a flat module hold views as gradients; torch's own optimizer sets its own.
    solver = torch.optim.Adam(moved, _RATE, betas=(0.5, 0.999))
    for _ in range(steps):
        x = reals[torch.randint(len(reals), (_BATCH,), generator=random)]
        z = torch.randn(_BATCH, latent, generator=random)
        solver.zero_grad()
        value = _of(judge, x, _mixture(generators, z))
        torch.autograd.backward(sign * value, inputs=list(moved))
        solver.step()


def _value(generators: Sequence[nn.Module], judge: nn.Module, reals: Tensor, latent: int, seed: int) -> float:
    z = torch.randn(len(reals), latent, generator=_random(seed, "value"))
    with torch.no_grad():
        return float(_of(judge, reals, _mixture(generators, z)))


def _mixture(generators: Sequence[nn.Module], noise: Tensor) -> Tensor:
    return torch.cat([net(part) for net, part in zip(generators, noise.chunk(len(generators)), strict=True)])


def _of(judge: nn.Module, reals: Tensor, fakes: Tensor) -> Tensor:
    return F.logsigmoid(judge(reals)).mean() + F.logsigmoid(-judge(fakes)).mean()


def _random(seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, 0, 0, what, "gap"))


def _wanted(results: Results) -> list[Wanted]:
    rounds = 1500
    common = {
        "data": "digits", "partition": "classes:5", "d_nodes": 4, "rounds": rounds,
        "evaluate_every": 0, "evaluate_at": list(growing(rounds, growth=1.8)), "checkpoint_every": 0,
    }  # fmt: skip
    return [
        Wanted(
            group=GROUP,
            method=Method(
                label=f"{count} G-Nodes",
                algorithm="ac-gan",
                changes={"g_nodes": count, "layout": "model-parallel"},
            ),
            seed=seed,
            common=common,
        )
        for seed in (0, 1, 2)
        for count in GENERATORS
    ]


def _tables(results: Results) -> str:
    lines = []
    for label in results.labels(GROUP):
        runs = [run["extra"] for run in results.of(GROUP, label) if run.get("extra")]
        form: Callable[[float], str] = "{:.3f}".format
        cells = [cell_of([run[name] for run in runs]) for name in ("gap", "d_gain", "g_gain", "value")]
        lines.append([label, str(len(runs)), *(text_of(cell, form) for cell in cells)])
    gaps = table(["", "seeds", "gap", "D gains", "G gains", "V(G, D)"], lines, 1)
    means = [
        (label, fmean(run["extra"]["gap"] for run in own))
        for label in results.labels(GROUP)
        if (own := [run for run in results.of(GROUP, label) if run.get("extra")])
    ]
    words = ", ".join(f"{label} {value:.3f}" for label, value in means)
    return f"{gaps}\n\nMean gaps: {words}.\n\n{finals(results, GROUP, results.labels(GROUP))}"


STUDY = Study(
    name="h",
    question="Number of generators against the gap of the game",
    wanted=_wanted,
    tables=_tables,
    extra=gap_of,
    cut=f"K = {STEPS} Adam steps on batches of {_BATCH} pooled images; V on the data's test images. {FORMER}",
)
