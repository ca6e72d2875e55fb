"""The speed of dd.all_reduce with a codec, in times that of torch's own in float32, over several links.

    python -m benchmarks.collectives          about 5 minutes, as root, on an idle machine; --help for less

In every round all ranks run torch's all_reduce and then each codec's, so that a ratio compares neighbours in
time; what is shown is the median over rounds, each of which begins with another one. A round's time is that
of the slowest rank. Writes
benchmarks/results/collectives.json and the table of docs/collective_results.md.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import collective_tables
from benchmarks.findings import RESULTS, findings, say
from benchmarks.testbed.ranks import end_on_sigterm
from benchmarks.testbed.trial import Parent, at_rank, bed_of, trial

MODULE = "benchmarks.collectives"
FLOAT32 = "torch float32"
_MI = 1 << 20
# link: float32 elements, rounds. At 10 Mbit/s float32 takes 3 to 5 s for 4 MB.
_SETTINGS = {
    "loopback": (16 * _MI, 15),
    "1gbit": (16 * _MI, 9),
    "100mbit": (_MI, 9),
    "10mbit": (_MI, 3),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured; the defaults are those of docs/collective_results.md."""

    rates: tuple[str, ...] = tuple(_SETTINGS)
    """Links: loopback, or rates such as 1gbit."""
    ranks: tuple[int, ...] = (2, 4)
    """Group sizes."""
    codecs: tuple[str, ...] = ("bf16", "int8", "int4", "sign", "topk:ratio=0.01")
    """Codecs beside torch's own float32."""
    quick: bool = False
    """Two rounds of an eighth of the elements: to see that everything runs; writes no document."""
    out: Path | None = None
    """Where the JSON goes; by default to benchmarks/results, and with --quick nowhere."""


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=f"python -m {MODULE}", description=__doc__)
    end_on_sigterm()
    path = config.out or (None if config.quick else RESULTS / "collectives.json")
    with findings(MODULE, path) as found:
        for ranks in config.ranks:
            for link in config.rates:
                say(f"{link}, {ranks} ranks")
                numel, rounds = _setting(link, config.quick)
                work = {"numel": numel, "rounds": rounds, "codecs": config.codecs, "warm_up": rounds > 3}
                try:
                    with bed_of(link, ranks) as bed, trial(MODULE, bed, work) as records:
                        for record in records:
                            found.records.append({"link": link, "ranks": ranks, **record})
                except (RuntimeError, TimeoutError) as error:
                    found.failures.append(f"{link}, {ranks} ranks: {error}")
                    say(found.failures[-1])
    print(collective_tables.collectives(found))
    if not config.quick:
        collective_tables.write_document()
    return 0 if found.complete else 1


def _setting(link: str, quick: bool) -> tuple[int, int]:
    numel, rounds = _SETTINGS.get(link, (_MI, 5))
    return (numel // 8, 2) if quick else (numel, rounds)


def measure(work: dict[str, Any], parent: Parent) -> None:
    """At every rank: the rounds; tells a record for each codec."""
    import torch
    import torch.distributed as dist

    import dance.distributed as dd

    x = torch.randn(work["numel"], generator=torch.Generator().manual_seed(dist.get_rank()))
    t = x.clone()
    names = [FLOAT32, *work["codecs"]]
    # Rows: seconds, seconds in codecs, seconds of checksums and checks, bytes sent.
    measured = torch.zeros(4, len(names), work["rounds"], dtype=torch.float64)
    exact, errors = torch.empty_like(x), [0.0] * len(names)

    def reduce(name: str, t: torch.Tensor) -> tuple[float, float, float]:
        if name == FLOAT32:
            dist.all_reduce(t)
            return 0.0, 0.0, 2 * (dist.get_world_size() - 1) / dist.get_world_size() * t.nbytes
        work = dd.all_reduce(t, codec=name, async_op=True, min_bytes=0)
        assert work is not None
        work.wait()
        stats = work.stats()
        return stats.encode_s + stats.decode_s - stats.check_s, stats.check_s, float(stats.bytes_sent)

    for name in names:  # connections are made, and where it costs little, memory is touched
        reduce(name, t if work["warm_up"] else t[: 1 << 14])
    for number in range(work["rounds"]):
        first = number % len(names)
        for k in [*range(first, len(names)), *range(first)]:
            name = names[k]
            t.copy_(x)
            dist.barrier()
            start = time.perf_counter()
            counted = reduce(name, t)
            measured[:, k, number] = torch.tensor([time.perf_counter() - start, *counted])
            if number == 0:  # torch's own, the exact one, came first
                if name == FLOAT32:
                    exact.copy_(t)
                errors[k] = float((t - exact).norm() / exact.norm())
    dist.all_reduce(measured, dist.ReduceOp.MAX)
    for k, name in enumerate(names):
        seconds, coding_s, checking_s, num_bytes = measured[:, k].tolist()
        parent.tell(
            {
                "codec": name,
                "numel": work["numel"],
                "seconds": seconds,
                "coding_s": coding_s,
                "checking_s": checking_s,
                "bytes_sent": int(max(num_bytes)),
                "relative_error": errors[k],
            }
        )


if __name__ == "__main__":
    sys.exit(0 if at_rank(measure) else main())
