"""`dance calibrate`: measures codec speeds here and computes which codec is best for which link.

For every size, mean rate and deviation, calls are played over a seeded synthetic trace of these
(dance.bandwidth.cellular), as Oboe plays video (Akhtar et al., SIGCOMM 2018), once with each codec. What a
call takes is what `dance.policy.Auto` predicts, the codec speeds measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np

import dance
from dance.bandwidth import Trace, cellular
from dance.bench import codec_of, elements, sized
from dance.codec_speed import Speed, measure_speed
from dance.codecs import Codec, Uncompressed
from dance.files import write_atomic
from dance.plan import plan
from dance.policy import Calibration, Send
from dance.policy.candidates import Candidates
from dance.policy.cost import call_cost
from dance.roofline import torch_with_gpu

_CALLS = 40  # played over each trace, begun at equal distances
_LARGEST = 1 << 22  # elements that a speed is measured with; larger ones are as fast from memory


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """What is calibrated; its fields are the flags of `dance calibrate`."""

    out: str = "calibration.json"
    """The file to write."""
    world: int = 4
    """Ranks of the collective."""
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"] = (
        "all_reduce"
    )
    """The collective to calibrate for."""
    codec: tuple[str, ...] = ()
    """Candidates; none given: those of the policy `auto`, with or without --feedback. The policy Table leaves
    out those that lose more than its max_error."""
    numel: tuple[str, ...] = ("64Ki", "1Mi", "16Mi")
    """Sizes in elements; 64Ki, 1Mi and plain numbers are understood."""
    mbps: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    """Mean rates of the link in Mbit/s."""
    deviation: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    """Standard deviations of the rate, as shares of the mean."""
    latency_ms: float = 0.2
    """Time of a message without bytes, in milliseconds."""
    feedback: bool = False
    """For collectives with error feedback: it allows coarser codecs, and encoding takes longer."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the codecs run; cuda needs a GPU and torch."""
    seed: int = 0
    """Seed of the synthetic traces."""


def calibrate(config: CalibrateConfig, on_step: Callable[[str, int, int], None] | None = None) -> Calibration:
    """Measures and computes; ``on_step`` hears what is being done, how many steps are done and of how many.

    Raises ValueError for what is unknown or out of range, UnavailableError where there is no GPU to measure.
    """
    codecs = tuple(dict.fromkeys(codec_of(text, "calibrate") for text in config.codec)) or _candidates(config)
    numels = tuple(sorted({elements(text, "calibrate") for text in config.numel}))
    rates, deviations = tuple(sorted(set(config.mbps))), tuple(sorted(set(config.deviation)))
    if not rates or not all(0.0 < rate < float("inf") for rate in rates):
        raise ValueError(f"calibrate: --mbps: expected rates above 0, got {list(config.mbps)}")
    if not deviations or not all(0.0 <= each <= 3.0 for each in deviations):
        raise ValueError(f"calibrate: --deviation: expected shares in [0, 3], got {list(config.deviation)}")
    if not 0.0 <= config.latency_ms < float("inf"):
        raise ValueError(f"calibrate: --latency-ms: expected at least 0, got {config.latency_ms}")
    if config.world < 2:
        raise ValueError(f"calibrate: --world: expected at least 2 ranks, got {config.world}")
    if config.device == "cuda":
        torch_with_gpu("calibrate")
    steps = [(codec, numel) for codec in codecs for numel in numels]
    total = len(steps) + len(numels) * len(rates)

    def step(text: str, done: int) -> None:
        if on_step is not None:
            on_step(text, done, total)

    speeds: dict[tuple[Codec, int], Speed] = {}
    for done, (codec, numel) in enumerate(steps):
        step(f"measuring {codec}, {sized(numel)} elements", done)
        speeds[codec, numel] = measure_speed(
            codec, feedback=config.feedback, device=config.device, numel=min(numel, _LARGEST)
        )
    seconds = np.empty((len(numels), len(rates), len(deviations), len(codecs)))
    for i, numel in enumerate(numels):
        for j, rate in enumerate(rates):
            step(f"playing {sized(numel)} elements over {rate:g} Mbit/s", len(steps) + i * len(rates) + j)
            for k, deviation in enumerate(deviations):
                trace = trace_of(rate, deviation, config.seed)
                for c, codec in enumerate(codecs):
                    seconds[i, j, k, c] = _play(config, codec, numel, speeds[codec, numel], trace)
    step("done", total)
    info = dance.info()
    about = {
        "made_on": date.today().isoformat(),
        "dance": info["version"],
        "cpu_target": info["cpu_target"],
        "threads": info["threads"],
        "device": config.device,
        "feedback": config.feedback,
        "latency_ms": config.latency_ms,
        "seed": config.seed,
    }
    return Calibration(
        collective=config.collective,
        world=config.world,
        numels=numels,
        mbps=rates,
        deviations=deviations,
        codecs=codecs,
        seconds=seconds,
        about=about,
    )


def _candidates(config: CalibrateConfig) -> tuple[Codec, ...]:
    world = max(config.world, 2)  # a collective, whatever was given
    send = Send(kind=config.collective, round=1, numel=1, world=world, feedback=config.feedback)
    return Candidates(None, None).of(send)


def trace_of(mbps: float, deviation: float, seed: int) -> Trace:
    """Returns a link of that mean rate whose deviation is that share of it."""
    if deviation == 0.0:
        return Trace(times_s=np.zeros(1), mbps=np.array([mbps]))
    trace = cellular(mbps, deviation=deviation, seed=seed)
    # Ten minutes of fading have not quite the mean that they are drawn from.
    return Trace(times_s=trace.times_s[:-1], mbps=trace.mbps * (mbps / trace.mbps.mean()))


def _play(config: CalibrateConfig, codec: Codec, numel: int, speed: Speed, trace: Trace) -> float:
    """Returns the mean seconds of calls over ``trace``."""
    parts = plan(config.collective, codec, numel, config.world)
    phases = max(1, parts.phases)
    total_s = 0.0
    for start_s in np.linspace(0.0, trace.period_s, _CALLS, endpoint=False).tolist():
        wire_s = trace.finish_s(start_s, parts.bytes_sent) - start_s + phases * config.latency_ms * 1e-3
        total_s += call_cost(parts, speed, wire_s).total_s
    return total_s / _CALLS


def write(calibration: Calibration, path: Path) -> None:
    """Writes the file whole or not at all; DanceError where that fails."""
    write_atomic(path, (calibration.to_json() + "\n").encode())


def print_best(calibration: Calibration) -> None:
    """Prints the best codec of every link, one table a size; none where not compressing is best."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for i, numel in enumerate(calibration.numels):
        print(  # not the title of the table, which is cut into lines of its width
            f"{calibration.collective}, {sized(numel)} elements, {calibration.world} ranks: "
            "fastest codec, times none"
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("Mbit/s", justify="right", no_wrap=True)
        for deviation in calibration.deviations:
            table.add_column(f"dev. {deviation:.0%}", no_wrap=True)
        for j, rate in enumerate(calibration.mbps):
            table.add_row(
                f"{rate:g}", *(_cell(calibration, i, j, k) for k in range(len(calibration.deviations)))
            )
        console.print(table)


def _cell(calibration: Calibration, i: int, j: int, k: int) -> str:
    seconds = calibration.seconds[i, j, k]
    best = int(seconds.argmin())
    none = next((c for c, each in enumerate(calibration.codecs) if isinstance(each, Uncompressed)), None)
    codec = calibration.codecs[best]
    alone = sum(each.name == codec.name for each in calibration.codecs) == 1
    text = codec.name if alone else str(codec)
    return text if none in (None, best) else f"{text}  {seconds[none] / seconds[best]:.1f}x"
