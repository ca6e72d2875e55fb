"""The testbed: links have the rate that was asked for, follow a trace, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.testbed import namespaces  # noqa: E402
from benchmarks.testbed.namespaces import Testbed, why_unavailable  # noqa: E402
from benchmarks.testbed.ranks import Loopback, Ranks  # noqa: E402
from benchmarks.testbed.replay import Replay, parse_steps  # noqa: E402
from dance.bandwidth import Trace  # noqa: E402

# Ahead of other work on the machine: what is measured is the link.
TRANSFER = ["nice", "-n", "-15", sys.executable, str(ROOT / "tests" / "shaped_transfer.py")]
TESTBED = [sys.executable, "-m", "benchmarks.testbed"]
# Of the 1514 bytes that a full packet takes of the link, Ethernet 14, IPv4 20 and TCP 32 are headers.
PAYLOAD_SHARE = 1448 / 1514


@pytest.fixture(scope="module")
def links() -> None:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(f"no shaped links: {reason}")


def _transfer(bed: Testbed, receiver: int, senders: list[int], num_bytes: int) -> list[tuple[float, int]]:
    """Sends ``num_bytes`` from each sender to the receiver at once; returns what the receiver logged."""
    sink = subprocess.Popen(
        bed.command(receiver, [*TRANSFER, "receive", str(len(senders))]), stdout=subprocess.PIPE, text=True
    )
    assert sink.stdout is not None
    assert sink.stdout.readline() == "ready\n"
    command = [*TRANSFER, "send", bed.address(receiver), str(num_bytes)]
    sources = [subprocess.Popen(bed.command(sender, command)) for sender in senders]
    log = sink.communicate(timeout=60)[0]
    assert [source.wait(timeout=10) for source in sources] == [0] * len(senders)
    return [(float(seconds), int(count)) for seconds, count in json.loads(log)]


def _mbps(log: list[tuple[float, int]], start_s: float, end_s: float) -> float:
    """The rate between two times, of payload, raised to what the link carried."""
    times, counts = np.array([t for t, _ in log]), np.array([n for _, n in log])
    first, last = np.searchsorted(times, start_s), np.searchsorted(times, end_s, side="right") - 1
    return float((counts[last] - counts[first]) * 8e-6 / (times[last] - times[first]) / PAYLOAD_SHARE)


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("rate_mbps", [2.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("senders", [[0], [1, 2]])
def test_a_link_has_its_rate_both_ways(rate_mbps: float, senders: list[int]) -> None:
    """From one node the sender's side limits it; two could send twice as much as the receiver's lets by."""
    receiver = 2 if senders == [0] else 0
    num_bytes = max(300_000, int(rate_mbps * 1e6 / 8 * 0.4)) // len(senders)  # many times the bucket
    measured = []
    with Testbed(3, rate_mbps=rate_mbps) as bed:
        for _ in range(4):  # where other work holds the CPUs up, less may pass, but never more
            log = _transfer(bed, receiver, senders, num_bytes)
            measured.append(_mbps(log, log[0][0], log[-1][0]))
            if measured[-1] > 0.9 * rate_mbps:
                break
    assert max(measured) == pytest.approx(rate_mbps, rel=0.1)


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
def test_set_rate_changes_every_link() -> None:
    with Testbed(2, rate_mbps=500.0) as bed:
        bed.set_rate(20.0)
        for node in range(2):
            log = _transfer(bed, node, [1 - node], 1_000_000)
            assert _mbps(log, log[0][0], log[-1][0]) == pytest.approx(20.0, rel=0.1)
        with pytest.raises(ValueError, match=r"expected a rate of at least 0\.01 Mbit/s, got 0"):
            bed.set_rate(0.0)


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
def test_a_delay_leaves_the_rate_as_it_is() -> None:
    with Testbed(3, rate_mbps=50.0, delay_s=0.02) as bed:
        knock = bed.command(1, [*TRANSFER, "knock", bed.address(0), "9"])
        seconds = json.loads(subprocess.run(knock, capture_output=True, check=True).stdout)
        log = _transfer(bed, 2, [0], 6_000_000)
    assert 0.04 <= min(seconds) < 0.05
    assert 0.04 <= float(np.median(seconds)) < 0.08, "the switch is held up where the machine is busy"
    begin_s, end_s = log[0][0], log[-1][0]
    rates = [_mbps(log, start_s, start_s + 0.3) for start_s in np.arange(begin_s, end_s - 0.3, 0.05)]
    assert max(rates) == pytest.approx(50.0, rel=0.1), "once TCP's slow start is over"
    for wrong in (-0.1, 2.0):
        with pytest.raises(ValueError, match=f"expected a delay of 0 to 1 s, got {wrong}"):
            Testbed(2, rate_mbps=1.0, delay_s=wrong)


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
def test_replay_changes_the_rate_while_packets_are_under_way() -> None:
    steps = Trace(times_s=np.array([0.0, 1.0, 1.2, 1.7]), mbps=np.array([40.0, 0.0, 8.0, 8.0]))
    with Testbed(2, rate_mbps=1000.0) as bed, Replay(bed, steps, floor_mbps=1.0) as replay:
        log = _transfer(bed, 1, [0], 9_000_000)
    assert [change.mbps for change in replay.changes][:4] == [40.0, 1.0, 8.0, 40.0], "over and over"
    times_s = [change.time_s for change in replay.changes][:4]
    assert all(due <= time_s < due + 0.5 for due, time_s in zip([0.0, 1.0, 1.2, 2.2], times_s, strict=True))
    assert _mbps(log, log[0][0], replay.started + 0.95) == pytest.approx(40.0, rel=0.1)
    # What the steps before had queued at the bridge is through by then.
    start_s, end_s = times_s[2] + 0.4, 2.15
    assert _mbps(log, replay.started + start_s, replay.started + end_s) == pytest.approx(8.0, rel=0.1)


def test_steps_are_a_trace() -> None:
    steps = parse_steps("100mbit@10s, 10mbit@500ms,1gbit@2s")
    assert steps.period_s == 12.5
    assert [
        float(steps.mbps[np.searchsorted(steps.times_s, t, side="right") - 1]) for t in (0, 9.9, 10.2)
    ] == [
        100.0,
        100.0,
        10.0,
    ]
    assert set(steps.mbps[steps.times_s[:-1] >= 10.5]) == {1000.0}
    for wrong in ("100mbit", "100mbit@10", "fast@1s", "", "1mbit@-1s", "1mbit@1s,"):
        with pytest.raises(ValueError, match="expected"):
            parse_steps(wrong)


def _environment_of(bed: Testbed | Loopback, lines: list[str]) -> None:
    for rank in range(2):
        expected = f"[{rank}] {rank} 2 0 1 {bed.address(0)} {bed.port} {bed.device} 1"
        assert expected in lines, lines


SHOW = ["sh", "-c", "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT "
        "$GLOO_SOCKET_IFNAME $OMP_NUM_THREADS"]  # fmt: skip


def test_ranks_have_the_environment_of_torchrun(capsys: pytest.CaptureFixture[str]) -> None:
    bed = Loopback(2)
    with Ranks(bed, SHOW) as ranks:
        assert ranks.wait() == 0
    _environment_of(bed, capsys.readouterr().out.splitlines())


def test_the_first_failure_ends_all_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    script = "echo begun; [ $RANK = 1 ] && sleep 0.5 && exit 7; sleep 600 & wait"
    with Ranks(Loopback(3), ["sh", "-c", script]) as ranks:
        assert ranks.wait(timeout_s=60.0) == 7
    printed = capsys.readouterr()
    assert {f"[{rank}] begun" for rank in range(3)} == set(printed.out.splitlines())
    assert "rank 1 failed with 7" in printed.err
    with Ranks(Loopback(1), ["sh", "-c", "kill -SEGV $$"]) as ranks:
        assert ranks.wait() == 128 + signal.SIGSEGV
    with Ranks(Loopback(1), ["sleep", "60"]) as ranks, pytest.raises(TimeoutError, match="not done after"):
        ranks.wait(timeout_s=0.1)


def _namespaces(pids: Iterable[int]) -> set[str]:
    """The network namespaces that processes are in."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended just now
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    return found


def _all_processes() -> list[int]:
    return [int(process.name) for process in Path("/proc").glob("[0-9]*")]


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _descendants(int(child)))]


def _name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def _until(condition: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < ends_at, what
        time.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command line with two ranks, each with a child, that have begun and would go on for a minute."""
    script = f"touch {tmp_path}/$RANK; sleep 60 & wait"
    command = [*TESTBED, "--ranks", "2", "--steps", "10mbit@100ms,20mbit@100ms", "--", "sh", "-c", script]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        _until(lambda: len(list(tmp_path.iterdir())) == 2 or process.poll() is not None, "no rank began")
        assert process.poll() is None, process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(run: subprocess.Popen[str], number: signal.Signals) -> None:
    family = _descendants(run.pid)
    own = _namespaces(family) - _namespaces([os.getpid()])
    assert len(own) == 3, "two ranks and the bridge"
    run.send_signal(number)
    if (
        number == signal.SIGKILL
    ):  # nobody is left to end what the ranks started, but the kernel ends the ranks
        run.wait(timeout=15)
        _until(lambda: not any(_name(pid) == "sh" for pid in family), "ranks are left")
        for pid in family:
            if _name(pid) == "sleep":
                os.kill(pid, signal.SIGKILL)
    else:
        assert run.wait(timeout=15) == 128 + number
    _until(lambda: not own & _namespaces(_all_processes()), f"namespaces of {own} are still in use")
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "processes are left")


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
def test_nothing_is_left_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    holders: list[subprocess.Popen[bytes]] = []
    real = namespaces._hold_namespace

    def hold() -> subprocess.Popen[bytes]:
        holders.append(real())
        return holders[-1]

    monkeypatch.setattr(namespaces, "_hold_namespace", hold)
    with pytest.raises(ZeroDivisionError), Testbed(2, rate_mbps=10.0):
        raise ZeroDivisionError
    assert len(holders) == 3
    monkeypatch.setattr(namespaces, "DEVICE", "a name too long for a device")
    with pytest.raises(RuntimeError, match="ip link add port0"), Testbed(2, rate_mbps=10.0):
        raise AssertionError("no such device can be made")
    assert len(holders) == 6
    assert [holder.poll() for holder in holders] == [0] * 6


@pytest.mark.shaped
@pytest.mark.usefixtures("links")
def test_command_line(tmp_path: Path) -> None:
    log = tmp_path / "rates.json"
    command = [*TESTBED, "--ranks", "2", "--trace", "steps:30,5@9s", "--json", str(log), "--", *SHOW]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    with Testbed(1, rate_mbps=1.0) as bed:
        _environment_of(bed, done.stdout.splitlines())
    written = json.loads(log.read_text())
    assert (written["ranks"], written["changes"]) == (2, [{"time_s": 0.0, "mbps": 30.0}])
    failing = [*TESTBED, "--", "sh", "-c", "exit $((5 * RANK))"]
    assert subprocess.run(failing, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "10mbit"], "expected a command after --"),
        (["--rate", "fast", "--", "true"], "expected 10mbit"),
        (["--rate", "steps:30,5@9s", "--", "true"], "pass --trace steps:30,5@9s"),
        (["--rate", "10mbit/50mbit", "--", "true"], "one rate for both directions"),
        (["--steps", "10mbit", "--", "true"], "expected 100mbit@10s"),
        (["--steps", "1mbit@1s", "--trace", "x", "--", "true"], "expected --steps or --trace, got both"),
        (["--trace", "no/such/file", "--", "true"], "cannot be read"),
        (["--trace", "no_such:20", "--", "true"], "unknown generator"),
    ],
)
def test_command_line_says_what_it_expects(words: list[str], message: str) -> None:
    done = subprocess.run(
        [*TESTBED, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_says_why_there_are_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in (why_unavailable() or "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert why_unavailable() == "the tool ip is missing; install iproute2"
