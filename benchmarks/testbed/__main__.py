"""Runs a command as every rank of a group whose links are shaped; needs root, ip, tc and util-linux.

    python -m benchmarks.testbed --ranks 4 --rate 100mbit -- python train.py

Each rank runs in a network namespace of its own, with torchrun's environment, behind a link of that rate in
both directions. --steps and --trace change the rate of all links while the command runs, over and over. The
first rank that fails ends all; nothing is left behind, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.testbed.namespaces import Testbed, why_unavailable
from benchmarks.testbed.ranks import Ranks, end_on_sigterm
from benchmarks.testbed.replay import Replay, parse_steps
from dance.bandwidth import Link, Trace, parse_link, parse_trace, read_trace

COMMAND = "python -m benchmarks.testbed"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The links, and what changes their rate."""

    ranks: int = 2
    """How many ranks, each in a namespace of its own."""
    rate: str = "100mbit"
    """Rate of every link, both directions, all headers included: 100mbit, 1gbit, 500kbit."""
    delay: str = "0ms"
    """What every frame takes from node to node beyond that, one way: 20ms."""
    steps: str | None = None
    """Rates and how long each lasts, over and over: 100mbit@10s,10mbit@10s."""
    trace: str | None = None
    """A file of the rate over time (dance.bandwidth.read_trace), or a synthetic one such as
    cellular:20,seed=1 (dance.bandwidth.parse_trace), over and over."""
    floor: str = "100kbit"
    """Rates of a trace below this are raised to it: TCP would be minutes in noticing the end of an outage."""
    json: Path | None = None
    """Where to write what the rate was, and when."""


def main() -> int:
    import tyro

    own, command = _split(sys.argv[1:])
    config = tyro.cli(Config, args=own, prog=COMMAND, description=__doc__)
    if not command:
        raise SystemExit("testbed: expected a command after --, as in: --rate 100mbit -- python train.py")
    try:
        trace = _trace(config)
        link = _link(config)
        reason = why_unavailable()
        if reason is not None:
            raise SystemExit(f"testbed: no shaped links here: {reason}")
        return _run(config, link, trace, command)
    except ValueError as error:
        raise SystemExit(f"testbed: {error}") from None


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _link(config: Config) -> Link:
    link = parse_link(f"{config.rate},{config.delay}")
    if link.trace is not None:
        raise ValueError(f"expected a rate such as 100mbit, got a trace; pass --trace {config.rate}")
    if link.down_mbps is not None:
        raise ValueError(
            f"expected one rate for both directions, got {config.rate!r}; pass {config.rate.split('/')[0]!r}"
        )
    return link


def _trace(config: Config) -> Trace | None:
    if config.steps is not None and config.trace is not None:
        raise ValueError("expected --steps or --trace, got both; leave one out")
    if config.trace is not None:
        is_file = Path(config.trace).exists() or ":" not in config.trace
        return read_trace(config.trace) if is_file else parse_trace(config.trace)
    return None if config.steps is None else parse_steps(config.steps)


def _run(config: Config, link: Link, trace: Trace | None, command: list[str]) -> int:
    end_on_sigterm()
    try:
        with contextlib.ExitStack() as stack:
            bed = stack.enter_context(Testbed(config.ranks, rate_mbps=link.rate_mbps, delay_s=link.delay_s))
            replay = None
            if trace is not None:
                floor_mbps = parse_link(config.floor).rate_mbps
                replay = stack.enter_context(Replay(bed, trace, floor_mbps=floor_mbps))
            with Ranks(bed, command) as ranks:
                code = ranks.wait()
            if config.json is not None:
                config.json.write_text(json.dumps(_entry(config, bed, replay), indent=1) + "\n")
            return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _entry(config: Config, bed: Testbed, replay: Replay | None) -> dict[str, object]:
    changes = {"changes": [{"time_s": 0.0, "mbps": bed.rate_mbps}]} if replay is None else replay.entry()
    return {"ranks": config.ranks, **changes}


if __name__ == "__main__":
    raise SystemExit(main())
