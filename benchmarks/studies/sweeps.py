"""Studies that vary one thing: d (nodes), e (codecs), f (bandwidth) and g (8 Gaussians)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from benchmarks.studies.frame import Results, Study, Wanted
from benchmarks.studies.images import FORMER, OURS, WITH_OUR_CODECS
from benchmarks.studies.text import at_bytes, finals
from dance.compare import Method
from dance.compare.plan import growing
from dance.compare.table import cell_of, short, text_of

FASHION = {"data": "fashion-mnist", "evaluate_every": 0, "checkpoint_every": 500, "stack": "auto"}
RIVAL = {"d_learning_rate": 1e-3, "g_learning_rate": 1e-3, "beta1": 0.5}
# As measured first: images in int8.
HUB = {"layout": "model-parallel", "image_codec": "int8"}
LOW: Mapping[str, Any] = {"layout": "model-parallel", "acgan.aggregation": "low-rank"}


def _method(label: str, algorithm: str = "ac-gan", **changes: Any) -> Method:
    return Method(label=label, algorithm=algorithm, changes=changes)


def _length(rounds: int, growth: float = 1.6) -> dict[str, Any]:
    return {"rounds": rounds, "evaluate_at": list(growing(rounds, growth=growth))}


def _grouped(results: Results, groups: Sequence[str], marks: Sequence[float] = ()) -> str:
    parts = []
    for group in groups:
        labels = results.labels(group)
        if not labels:
            continue
        parts += [f"#### {group}", finals(results, group, labels)]
        if marks:
            parts += ["FID at most so many MB a D-Node:", at_bytes(results, group, labels, marks)]
    return "\n\n".join(parts)


# Rounds for each number of nodes.
SCALES = {4: 1000, 16: 600, 64: 300}
_SCALED = (
    _method("AC-GAN adaptive"),
    _method("AC-GAN hub, sign", **HUB),
    _method("MD-GAN", "md-gan", **RIVAL),
    _method("FL-GAN", "fl-gan", **RIVAL),
)


def _scaling(results: Results) -> list[Wanted]:
    """Rounds are equal for all methods; classes:5 divides evenly at each N. The adaptive layout decides after
    a third of the rounds, as in 2,500 by default.
    """
    return [
        Wanted(
            group=f"N = {nodes}",
            method=method,
            seed=0,
            common={
                **FASHION,
                "partition": "classes:5",
                "d_nodes": nodes,
                **_length(rounds, 2.5),
                "acgan.switch_after": 4 * (rounds // 12),
                "acgan.sync_period": rounds // 12,
            },
        )
        for nodes, rounds in SCALES.items()
        for method in _SCALED
    ]


_CODECS: Mapping[str, Mapping[str, Any]] = {
    "sign": {},
    "low-rank": LOW,
    "none": {"gossip_codec": "none"},
    "int4": {"gossip_codec": "int4"},
    "int8": {"gossip_codec": "int8"},
    "sign, every 2 rounds": {"acgan.period": 2},
    "sign, int4 images": {"image_codec": "int4"},
    "sign, int8 feedback": {"feedback_codec": "int8"},
    "low-rank, rank 1": {**LOW, "acgan.rank": 1},
    "low-rank, rank 4, factors int4": {**LOW, "acgan.rank": 4, "acgan.factor_codec": "int4"},
    "low-rank, images int4": {**LOW, "image_codec": "int4"},
    "low-rank, images int2": {**LOW, "image_codec": "int2"},
    "low-rank, 8 images a batch": {**LOW, "acgan.fake_batch_size": 8},
    "int2": {"gossip_codec": "int2"},
    "ternary": {"gossip_codec": "ternary"},
    "topk 10 %": {"gossip_codec": "topk:ratio=0.1"},
    "fp16": {"gossip_codec": "fp16"},
    "qsgd 15 levels": {"gossip_codec": "qsgd:levels=15"},
    "mxfp4": {"gossip_codec": "mxfp4"},
    "sign, fp16 images": {"image_codec": "fp16"},
}
_CODEC_GROUP = "classes:2, 1,000 rounds"


def _codecs(results: Results) -> list[Wanted]:
    common = {**FASHION, "partition": "classes:2", "d_nodes": 8, **_length(1000, 2.0)}
    return [
        Wanted(group=_CODEC_GROUP, method=_method(label, **{**HUB, **changes}), seed=seed, common=common)
        for seed in (0, 1, 2)
        for label, changes in _CODECS.items()
    ]


# dance calibrate gan --data fashion-mnist --d-nodes 8 --compute-ms 20 --hub-mbps 1000 --to FILE
TABLE = "benchmarks/results/gan_calibration.json"
_TRACES = {
    "10 Mbit/s, 5 ms": "10mbit,5ms; 0: 1gbit",
    "50 to 2 Mbit/s and back every 20 s": "steps:50,2@20s; 0: 1gbit",
    "cellular around 20 Mbit/s": "cellular:20,deviation=0.5,seed={node}; 0: 1gbit",
}
_FIXED = {
    "auto": {**HUB, "codec": "auto"},
    "auto, by a table": {**HUB, "codec": "auto", "table": TABLE},
    "auto, 100 ms a round": {**HUB, "codec": "auto", "round_ms": 100.0},
    "sign": HUB,
    "int8": {**HUB, "codec": "int8"},
    "none": {**HUB, "codec": "none"},
    "adaptive layout": {},
    "adaptive layout, auto": {"codec": "auto"},
}
_SECONDS = 40.0


def _bandwidth(results: Results) -> list[Wanted]:
    """Equal virtual seconds; a group a link, which D-Nodes have, the G-Node's is fast. In that time `none`
    does few rounds and `sign` many."""
    common = {
        **FASHION, "partition": "classes:2", "d_nodes": 8, "virtual_seconds": _SECONDS, "rounds": 3000,
        "compute": "20ms", "evaluate_at": list(growing(3000, growth=2.0)),
    }  # fmt: skip
    return [
        Wanted(group=group, method=_method(label, **changes), seed=0, common={**common, "links": links})
        for group, links in _TRACES.items()
        for label, changes in _FIXED.items()
    ]


def _bandwidth_tables(results: Results) -> str:
    parts = []
    for group in _TRACES:
        labels = results.labels(group)
        if labels:
            parts += [f"#### {group}", finals(results, group, labels), _codecs_used(results, group, labels)]
    return "\n\n".join(parts)


def _codecs_used(results: Results, group: str, labels: Sequence[str]) -> str:
    words = []
    for label in labels:
        for run in results.of(group, label)[:1]:
            used = run["summary"].get("codecs", {})
            words.append([label, ", ".join(f"{kind} {text}" for kind, text in used.items())])
    return table(["method", "codecs in use at the end"], words, 2)


_GAUSSIANS = "8 Gaussians, one mode a node"


def _gaussians(results: Results) -> list[Wanted]:
    rounds = 2000
    common = {
        "data": "gaussians", "partition": "classes:1", "d_nodes": 8, "batch_size": 64, "evaluate_every": 0,
        "checkpoint_every": 0, "latent": 8, "g_widths": [128, 128], "d_widths": [128, 128],
        **_length(rounds),
    }  # fmt: skip
    methods = (
        _method("AC-GAN adaptive"),
        _method("AC-GAN hub, sign", **HUB),
        _method("AC-GAN hub, sign, local Adam", d_optimizer="adam", **HUB),
        _method("AC-GAN hub, float32", gossip_codec="none", **HUB),
        _method("MD-GAN", "md-gan", beta1=0.5),
        _method(f"MD-GAN, {OURS}", "md-gan", beta1=0.5, **WITH_OUR_CODECS["MD-GAN"]),
        _method("FL-GAN", "fl-gan", beta1=0.5),
        _method("Gossip GAN", "gossip-gan", beta1=0.5),
        _method("standalone, all modes in one place", "standalone"),
    )
    return [
        Wanted(group=_GAUSSIANS, method=method, seed=seed, common=common)
        for seed in (0, 1, 2)
        for method in methods
    ]


def _gaussian_tables(results: Results) -> str:
    lines = []
    for label in results.labels(_GAUSSIANS):
        runs = [run for run in results.of(_GAUSSIANS, label) if run["diverged"] is None]
        cells = [cell_of([run["summary"].get(name) for run in runs]) for name in ("modes", "near", "fid")]
        forms = (short, "{:.0%}".format, "{:.4f}".format)
        texts = [text_of(cell, form) for cell, form in zip(cells, forms, strict=True)]
        lines.append([label, str(len(runs)), *texts])
    return table(["method", "seeds", "modes of 8", "points near a mode", "FID of points"], lines, 1)


SCALING = Study(
    name="d",
    question="Fashion-MNIST over 4, 16 and 64 nodes",
    wanted=_scaling,
    tables=lambda results: _grouped(results, [f"N = {nodes}" for nodes in SCALES]),
    cut="One seed, classes:5, learning rates not swept; fewer rounds for more nodes, and shorter periods, "
    "with which the threshold of the skew was not measured. " + FORMER,
)
CODECS = Study(
    name="e",
    question="Codecs of AC-GAN: quality against bytes",
    wanted=_codecs,
    tables=lambda results: _grouped(results, [_CODEC_GROUP], (5.0, 10.0, 20.0, 30.0, 45.0, 60.0)),
    cut="Fashion-MNIST, 8 nodes, through the hub, 1,000 rounds.",
)
BANDWIDTH = Study(
    name="f",
    question="Fixed codecs against auto on changing links",
    wanted=_bandwidth,
    tables=_bandwidth_tables,
    cut=f"Fashion-MNIST, 8 nodes, {_SECONDS:.0f} s of the virtual clock, 20 ms of compute a round, "
    "the G-Node at 1 Gbit/s; one seed. The table: `dance calibrate gan --data fashion-mnist --d-nodes 8 "
    f"--compute-ms 20 --hub-mbps 1000 --to {TABLE}`. {FORMER}",
)
GAUSSIANS = Study(
    name="g",
    question=_GAUSSIANS,
    wanted=_gaussians,
    tables=_gaussian_tables,
)
