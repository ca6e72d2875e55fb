"""Bytes that the exchange counts against those that the kernel counts at a shaped interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.testbed.namespaces import DEVICE, Testbed, why_unavailable  # noqa: E402

NODES, NUMEL, ROUNDS = 3, 300_000, 6
RATE_MBPS = 40.0
# Ethernet 14, IPv4 20, TCP 20 with 12 of options: of every packet, acknowledgements included.
HEADERS_A_PACKET = 66


def _line(pipe: IO[str] | None, process: subprocess.Popen[str]) -> str:
    assert pipe is not None
    line = pipe.readline().strip()
    if not line:
        process.kill()
        raise AssertionError(f"a node ended early:\n{process.communicate()[1]}")
    return line


def _answer(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.shaped
def test_counted_bytes_agree_with_the_interface(tmp_path: Path) -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(f"no shaped links: {reason}")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}
    with Testbed(NODES, rate_mbps=RATE_MBPS) as bed:
        script = [sys.executable, str(ROOT / "tests" / "shaped_node.py")]
        processes = [
            subprocess.Popen(
                bed.command(
                    node, [*script, str(node), str(NODES), str(tmp_path / "store"), str(NUMEL), str(ROUNDS)]
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for node in range(NODES)
        ]
        try:
            for process in processes:
                assert _line(process.stdout, process) == "ready"
            start = [bed.counters(node) for node in range(NODES)]
            for process in processes:
                _answer(process)
            counted = [json.loads(_line(process.stdout, process)) for process in processes]
            seen = [bed.counters(node) - start[node] for node in range(NODES)]
            for process in processes:
                _answer(process)
            for process in processes:
                assert process.wait(timeout=30) == 0
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.communicate()
    for node in range(NODES):
        sent = seen[node].sent_bytes - HEADERS_A_PACKET * seen[node].sent_packets
        received = seen[node].received_bytes - HEADERS_A_PACKET * seen[node].received_packets
        print(
            f"node {node}: counted {counted[node]}, interface {seen[node]}, without headers {sent} {received}"
        )
        assert sent == pytest.approx(counted[node]["sent"], rel=0.03)
        assert received == pytest.approx(counted[node]["received"], rel=0.03)
        assert seen[node].sent_bytes > counted[node]["sent"], "the interface's bytes hold all of ours"
        # tbf lets a burst through at once: the meter may see more than the rate, not less than half of it.
        assert 0.5 * RATE_MBPS < counted[node]["rate_mbps"] < 2.0 * RATE_MBPS
