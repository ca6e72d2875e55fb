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
from types import FrameType

from benchmarks.testbed.namespaces import Testbed, why_unavailable
from benchmarks.testbed.ranks import Ranks
from benchmarks.testbed.replay import Replay, parse_steps
from dance.bandwidth import Trace, parse_link, read_trace

COMMAND = "python -m benchmarks.testbed"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The links, and what changes their rate."""

    ranks: int = 2
    """How many ranks, each in a namespace of its own."""
    rate: str = "100mbit"
    """Rate of every link, both directions, all headers included: 100mbit, 1gbit, 500kbit."""
    steps: str | None = None
    """Rates and how long each lasts, over and over: 100mbit@10s,10mbit@10s."""
    trace: Path | None = None
    """A file of the rate over time, replayed over and over; see dance.bandwidth.read_trace."""
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
        rate_mbps = parse_link(config.rate).rate_mbps
        reason = why_unavailable()
        if reason is not None:
            raise SystemExit(f"testbed: no shaped links here: {reason}")
        return _run(config, rate_mbps, trace, command)
    except ValueError as error:
        raise SystemExit(f"testbed: {error}") from None


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _trace(config: Config) -> Trace | None:
    if config.steps is not None and config.trace is not None:
        raise ValueError("expected --steps or --trace, got both; leave one out")
    if config.trace is not None:
        return read_trace(config.trace)
    return None if config.steps is None else parse_steps(config.steps)


def _run(config: Config, rate_mbps: float, trace: Trace | None, command: list[str]) -> int:
    signal.signal(signal.SIGTERM, _end)
    try:
        with contextlib.ExitStack() as stack:
            bed = stack.enter_context(Testbed(config.ranks, rate_mbps=rate_mbps))
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


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
