"""GANs as real processes on shaped links, beside what the simulator predicts for the same runs.

    python -m benchmarks.prototype                            10 and 50 Mbit/s and one replayed trace
    python -m benchmarks.prototype --links 50mbit --rounds 60

Each node is a process in a network namespace of its own behind a link of that rate (benchmarks.testbed;
needs root). Processes of one machine share its cores, real nodes would not; so compute is taken out: the
network part is the time of a run on the links minus that of the same run over loopback, and it is compared
with the simulator's clock on the same links, on which computing takes no time. A trace begins with the first
round and goes on while nodes compute and one evaluates; there the simulator computes as long as the run over
loopback did, which is taken off again, but evaluations take it no time: have few (--growth), of few images
(--evaluate-images). Real and simulated runs have equal bits, hence equal FIDs by rounds. "s to FID" is
of the real run, with this machine's compute; its prediction is the simulator's time plus that of the run over
loopback until the same evaluation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.command import command_of
from benchmarks.markdown import table
from benchmarks.testbed.namespaces import Testbed, why_unavailable
from benchmarks.testbed.ranks import Bed, Loopback, Ranks, end_on_sigterm
from benchmarks.testbed.replay import Replay
from dance.bandwidth import parse_link
from dance.compare.plan import growing
from dance.compare.report import machine
from dance.gan import RunConfig, run
from dance.report import read_metrics

LOOPBACK = "loopback"
_FLOOR_MBPS = 0.1
_TIMEOUT_S = 9000.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Config:
    links: tuple[str, ...] = ("10mbit", "50mbit", "steps:20,4@10s")
    """Links of all nodes: a rate, or a trace (a file, or a synthetic one), which is replayed."""
    methods: tuple[str, ...] = ("ac-gan", "md-gan", "fl-gan")
    """Algorithms, with their default codecs."""
    d_nodes: int = 4
    """D-Nodes; each algorithm has a server or G-Node besides."""
    rounds: int = 240
    """Rounds of every run."""
    batch_size: int = 64
    """Images in a batch; large enough for FL-GAN's epoch to end within the rounds."""
    data: str = "fashion-mnist"
    """Data set."""
    partition: str = "classes:5"
    """How it is split."""
    growth: float = 1.25
    """Evaluations are at rounds that grow by this factor."""
    evaluate_images: int = 10_000
    """Images of an evaluation."""
    json: Path | None = None
    """Where to write the figures."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one link; seconds."""

    link: str
    method: str
    real_s: float
    loopback_s: float
    predicted_network_s: float
    target_fid: float
    real_to_fid_s: float | None
    predicted_to_fid_s: float | None

    @property
    def network_s(self) -> float:
        return self.real_s - self.loopback_s

    @property
    def error(self) -> str:
        """Of the prediction of the network part, relative to what was measured; a dash where that is lost in
        the noise of compute: not above 0."""
        share = self.predicted_network_s / self.network_s - 1.0 if self.network_s > 0 else None
        return "-" if share is None else f"{share:+.0%}"


def main() -> int:
    config = tyro.cli(Config, description=__doc__, prog="python -m benchmarks.prototype")
    if reason := why_unavailable():
        print(f"no shaped links here: {reason}", file=sys.stderr)
        return 1
    end_on_sigterm()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dance-prototype-") as place:
        try:
            measure(config, Path(place), rows)
        except KeyboardInterrupt:
            print("stopped; what was measured:", file=sys.stderr)
    if rows:
        print(report(config, rows))
    if config.json is not None:
        words = command_of(["python", "-m", "benchmarks.prototype", *sys.argv[1:]])
        entry = {"command": words, "machine": machine(), "rows": [asdict(row) for row in rows]}
        config.json.write_text(json.dumps(entry, indent=1) + "\n")
    return 0


def measure(config: Config, place: Path, rows: list[Row]) -> None:
    """Appends a row a link and method, as soon as it is known."""
    loopback: dict[str, list[dict[str, Any]]] = {}
    for method in config.methods:
        loopback[method] = _real(config, method, LOOPBACK, place)
    # What all are timed to: where md-gan, or else the first method, is at the end.
    target = loopback["md-gan" if "md-gan" in loopback else config.methods[0]][-1]["fid"]
    for link in config.links:
        for method in config.methods:
            real = _real(config, method, link, place)
            alone = loopback[method]
            # A trace goes on while nodes compute; links that stay as they are do not mind when.
            compute_ms, computed = 0.0, [0.0] * len(alone)
            if parse_link(link).trace is not None:
                unit = [line["virtual_s"] for line in _simulated(config, method, None, place, 1.0)]
                compute_ms = alone[-1]["wall_s"] / unit[-1]
                computed = [compute_ms * seconds for seconds in unit]
            simulated = _simulated(config, method, link, place, compute_ms)
            check_equal(real, simulated)
            network = [line["virtual_s"] - s for line, s in zip(simulated, computed, strict=True)]
            predicted = [
                {"fid": line["fid"], "wall_s": seconds + line["wall_s"]}
                for seconds, line in zip(network, alone, strict=True)
            ]
            rows.append(
                Row(
                    link=link,
                    method=method,
                    real_s=real[-1]["wall_s"],
                    loopback_s=alone[-1]["wall_s"],
                    predicted_network_s=network[-1],
                    target_fid=target,
                    real_to_fid_s=seconds_to(real, target),
                    predicted_to_fid_s=seconds_to(predicted, target),
                )
            )
            row = rows[-1]
            print(
                f"{link} {method}: network {row.network_s:.1f} s, predicted {row.predicted_network_s:.1f} s "
                f"(error {row.error})",
                flush=True,
            )


def seconds_to(lines: Sequence[Mapping[str, Any]], fid: float) -> float | None:
    """Seconds until the first evaluation at or below that FID."""
    return next((float(line["wall_s"]) for line in lines if line["fid"] <= fid), None)


def check_equal(real: Sequence[Mapping[str, Any]], simulated: Sequence[Mapping[str, Any]]) -> None:
    """Raises RuntimeError unless both runs had equal FIDs and bytes: else they are not the same run."""
    for one, other in zip(real, simulated, strict=True):
        for name in ("round", "fid", "bytes_sent"):
            if one[name] != other[name]:
                raise RuntimeError(
                    f"round {one['round']}: {name} is {one[name]} really and {other[name]} simulated"
                )


def report(config: Config, rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        reached = ["-" if s is None else f"{s:.1f}" for s in (row.real_to_fid_s, row.predicted_to_fid_s)]
        lines.append(
            [
                row.link,
                row.method,
                f"{row.real_s:.1f}",
                f"{row.loopback_s:.1f}",
                f"{row.network_s:.1f}",
                f"{row.predicted_network_s:.1f}",
                row.error,
                *reached,
            ]
        )
    heads = [
        "links", "method", "s on the links", "s on loopback", "network s", "predicted", "error",
        f"s to FID {rows[0].target_fid:.0f}", "predicted",
    ]  # fmt: skip
    where = "; ".join(f"{name} {value}" for name, value in machine().items())
    size = f"{config.d_nodes} D-Nodes, {config.rounds} rounds of {config.batch_size} images"
    return f"{config.data}, {config.partition}, {size}; {where}\n\n{table(heads, lines, 2)}"


def _run_config(config: Config, method: str, out: Path) -> RunConfig:
    return RunConfig(
        algorithm=method,  # type: ignore[arg-type]
        data=config.data,
        partition=config.partition,
        d_nodes=config.d_nodes,
        rounds=config.rounds,
        batch_size=config.batch_size,
        evaluate_every=0,
        evaluate_at=growing(config.rounds, growth=config.growth),
        evaluate_images=config.evaluate_images,
        checkpoint_every=0,
        out=str(out),
    )


def _real(config: Config, method: str, link: str, place: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run whose nodes are processes on that link."""
    out = place / "real"
    shutil.rmtree(out, ignore_errors=True)
    request = place / "config.json"
    wanted = _run_config(config, method, out)
    request.write_text(json.dumps(wanted.to_json()))
    command = [sys.executable, "-m", "dance.gan", str(request)]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # warnings: that addresses of namespaces have no host names
    with contextlib.ExitStack() as stack:
        bed: Bed = Loopback(wanted.num_nodes)
        if link != LOOPBACK:
            parsed = parse_link(link)
            rate = 10.0 if parsed.trace is not None else parsed.rate_mbps
            testbed = Testbed(wanted.num_nodes, rate_mbps=rate, delay_s=2 * parsed.delay_s)
            bed = stack.enter_context(testbed)
        log = stack.enter_context(open(place / "log.txt", "w"))
        ranks = stack.enter_context(Ranks(bed, command, environment=quiet, output=log))
        if link != LOOPBACK and parsed.trace is not None:
            # Its time begins with the run's, as the simulator's does: with what is written before round 1.
            while not (out / "config.json").exists() and ranks.poll() is None:
                time.sleep(_POLL_S)
            stack.enter_context(Replay(testbed, parsed.trace, floor_mbps=_FLOOR_MBPS))
        status = ranks.wait(_TIMEOUT_S)
    if status:
        words = (place / "log.txt").read_text().splitlines()[-5:]
        raise RuntimeError(f"{shlex.join(command)} ended with {status}: {' / '.join(words)}")
    return read_metrics(out / "metrics.jsonl")


def _simulated(
    config: Config, method: str, link: str | None, place: Path, compute_ms: float
) -> list[dict[str, Any]]:
    """The same run in this process, on a clock on which a node's computing of a round takes `compute_ms`."""
    out = place / "simulated"
    shutil.rmtree(out, ignore_errors=True)
    compute = f"{compute_ms:.6g}ms"
    wanted = dataclasses.replace(_run_config(config, method, out), simulate=True, links=link, compute=compute)
    with contextlib.redirect_stdout(sys.stderr):
        run(wanted)
    return read_metrics(out / "metrics.jsonl")


if __name__ == "__main__":
    sys.exit(main())
