"""The benchmarks of the collectives: what their tables say of given figures, and that runs keep figures."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run_ranks

from dance.bandwidth import LinkEstimate
from dance.policy import Auto

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import auto_links, auto_tables, collective_tables  # noqa: E402
from benchmarks.auto_tables import PAYLOAD_SHARE  # noqa: E402
from benchmarks.command import command_of  # noqa: E402
from benchmarks.findings import Findings, load, machine  # noqa: E402
from benchmarks.markdown import table  # noqa: E402
from benchmarks.testbed.ranks import Loopback  # noqa: E402
from benchmarks.testbed.trial import trial  # noqa: E402


def _found(records: list[dict[str, Any]]) -> Findings:
    return Findings(command="python -m some", machine=machine(), records=records, complete=True)


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| :")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_command_is_told_without_folders() -> None:
    arguments = [
        "--out",
        "/a/b/found.json",
        "--traces=/c/d e/",
        "--rates",
        "10mbit",
        "--codecs",
        "topk:ratio=0.1",
    ]
    assert command_of(["some", *arguments]) == (
        "some --out found.json '--traces=d e' --rates 10mbit --codecs topk:ratio=0.1"
    )


def test_a_table_is_markdown() -> None:
    assert table(["a", "bb"], [["xyz", "1"]], left=1) == "| a   |  bb |\n| :-- | --: |\n| xyz |   1 |"


@pytest.mark.parametrize(
    ("seconds", "coding_s", "verdict"),
    [([0.2, 0.3, 0.2], 0.001, "ok"), ([0.5, 0.6, 0.5], 0.001, "slow"), ([0.2, 0.3, 0.2], 0.01, "coding")],
)
def test_speed_is_the_median_of_ratios_within_rounds(
    seconds: list[float], coding_s: float, verdict: str
) -> None:
    common = {"link": "100mbit", "ranks": 2, "numel": 1 << 20, "relative_error": 0.01}
    base = {
        **common,
        "codec": "torch float32",
        "seconds": [0.8, 0.3, 0.9],
        "bytes_sent": 4,
        "coding_s": [0.0],
        "checking_s": [0.0],
    }
    int8 = {**common, "codec": "int8", "seconds": seconds, "bytes_sent": 1, "coding_s": [coding_s] * 3}
    int8["checking_s"] = [0.05] * 3
    row = _rows(collective_tables.collectives(_found([base, int8])))[-1]
    ratios = sorted(slow / fast for slow, fast in zip([0.8, 0.3, 0.9], seconds, strict=True))
    assert row[4] == f"{ratios[1]:.2f} ({ratios[0]:.2f}..{ratios[2]:.2f})"
    assert row[5:7] == [">= 2.5", verdict]


def test_targets_are_those_of_the_link() -> None:
    target = collective_tables.target_of
    assert [target("int8", link, 2) for link in ("loopback", "1gbit", "100mbit", "10mbit")] == [
        None,
        2.4,
        2.5,
        2.5,
    ]
    assert [target("sign", "100mbit", ranks) for ranks in (2, 4)] == [None, 12.0]
    assert target("topk:ratio=0.01", "10mbit", 4) == 10.0
    assert target("int4", "1gbit", 2) is None


def _steady(link: str, auto_s: float) -> list[dict[str, Any]]:
    common = {"what": "steady", "link": link, "ranks": 2, "numel": 1 << 20}
    first = [9.0, 9.0]  # what comes before the third call does not count
    auto = {**common, "codec": "auto", "seconds": [*first, *[auto_s] * 4], "codecs": ["int8"] * 6}
    fixed = {"none": 0.1, "int8": 0.05} if link == "100mbit" else {"none": 0.05, "int8": 0.0501}
    return [auto, *({**common, "codec": codec, "seconds": [s] * 6} for codec, s in fixed.items())]


@pytest.mark.parametrize(
    ("link", "auto_s", "verdict"),
    [
        ("100mbit", 0.051, "ok"),
        ("100mbit", 0.052, "slow"),
        ("loopback", 0.051, "ok"),
        ("loopback", 0.06, "slow"),
    ],
)
def test_auto_is_compared_with_the_best(link: str, auto_s: float, verdict: str) -> None:
    row = _rows(auto_tables.auto_links(_found(_steady(link, auto_s))))[-1]
    assert row[6].split(",")[0] == ("int8" if link == "100mbit" else "none")
    assert float(row[7].split()[0]) == pytest.approx(auto_s / 0.05, abs=1e-3)
    assert row[-1] == verdict


@pytest.mark.parametrize(
    ("codecs", "kept", "since"),
    [
        ("i n i i", "i i i i", 1),  # one trial
        ("i n n n b n", "i n n n n n", 2),
        ("i b n i i", "i i i i i", 1),  # two
        ("i b n n i i n", "i i n n i i i", 5),
        ("i i", "i i", 1),
    ],
)
def test_a_codec_is_settled_after_its_last_change_that_is_no_trial(
    codecs: str, kept: str, since: int
) -> None:
    held = auto_tables.held(codecs.split())
    assert held == kept.split()
    assert auto_tables.settled_by(held) == since


def test_a_codec_that_changes_late_is_told_apart_from_trials() -> None:
    auto, *fixed = _steady("100mbit", 0.05)
    for codecs, expected in (
        (["int8", "none", "int8", "int8", "none", "int8"], ["int8", "1", "2", "ok"]),
        (["int8", "int8", "int8", "int8", "none", "none"], ["none", "5", "0", "late"]),
    ):
        row = _rows(auto_tables.auto_links(_found([{**auto, "codecs": codecs}, *fixed])))[-1]
        assert [*row[2:5], row[-1]] == expected


def test_totals_are_over_the_set_and_over_everything() -> None:
    def varying(codec: str, total_s: float, link: str = "walk:20") -> dict[str, Any]:
        common = {"what": "varying", "link": link, "ranks": 2, "mean_mbps": 55.0, "numel": 1000}
        idle = {"calls": 1, "codecs": ["int8"], "starts_s": [0.0], "believed_mbps": [None]}
        return {**common, **idle, "codec": codec, "total_s": total_s, "changes": [[0.0, 100.0]]}

    records = [*_steady("100mbit", 0.05), varying("none", 20.0), varying("int8", 17.0), varying("auto", 1.0)]
    text = auto_tables.auto_links(_found([*records, varying("auto", 3.0)]))
    rows = {row[0]: row[1:] for row in _rows(text.partition("### All links")[2].partition("###")[0])}
    assert rows["auto"][0] == "20.20"  # 2 calls of 9 s, 4 of 0.05 s, and the mean of 1 and 3
    assert rows["none"] == ["20.60", "+2.0%", "ok"]  # 6 of 0.1 s
    assert rows["int8"] == ["17.30", "-14.4%", "falls short"]
    for link, part in ((auto_tables.STEPPING, 1.0), ("10gbit@2s,100mbit@2s", 100.0)):
        records += [varying(codec, part, link) for codec in ("none", "int8")] + [varying("auto", 2.0, link)]
    text = auto_tables.auto_links(_found([*records, varying("auto", 3.0)]))
    rows = {row[0]: row[1:] for row in _rows(text.partition("### The set")[2].partition("###")[0])}
    assert rows["auto"][0] == "4.00"  # neither steady links nor the other one that steps
    assert rows["int8"] == ["18.00", "+350.0%", "ok"]
    rows = {row[0]: row[1:] for row in _rows(text.partition("### All links")[2].partition("###")[0])}
    assert rows["int8"][0] == "118.30"
    assert "Over 2 cases: the link that steps" in text
    assert "Over 4 cases: all links" in text


class _Clock:
    """Time that passes only while a benchmark takes notes of auto."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    perf_counter = monotonic


class _Notes:
    """What a parent is told of a trial at one rank."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def ask(self, what: dict[str, Any]) -> None:
        pass

    def tell(self, record: dict[str, Any]) -> None:
        self.told.append(record)


def _noted(rank: int) -> list[dict[str, Any]]:
    clock, notes = _Clock(), _Notes()

    def link_estimate(auto: Auto) -> LinkEstimate | None:
        clock.now_s += 1.0
        return LinkEstimate(rate_mbps=7.0, latency_s=0.0)

    auto_links.time, Auto.link_estimate = clock, link_estimate  # type: ignore[assignment,method-assign]
    work = {"what": "varying", "candidates": ["none", "int8"], "numel": 1 << 14, "calls": 6}
    auto_links.measure(work, notes)  # type: ignore[arg-type]
    assert clock.now_s > 0.0
    return notes.told


def test_what_a_benchmark_notes_of_auto_is_no_time_of_auto() -> None:
    for told in run_ranks(_noted, 2):
        assert [record["total_s"] for record in told] == [0.0] * 4
        for record in (told[0], told[-1]):
            assert len(record["believed_mbps"]) == len(record["codecs"]) == 6
            assert record["believed_mbps"][0] is None
            assert record["believed_mbps"][-1] == 7.0


def test_calls_until_a_rate_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A call each second; after 25 calls the rate falls to a tenth, and four calls later that is believed, but
    # for a moment more than 20 calls later.
    believed = [100.0 * PAYLOAD_SHARE] * 29 + [10.0 * PAYLOAD_SHARE] * 26
    believed[52] *= 2.0
    run = {
        "what": "varying",
        "link": "steps",
        "ranks": 2,
        "mean_mbps": 55.0,
        "numel": 1000,
        "calls": 55,
        "codec": "auto",
        "total_s": 55.0,
        "codecs": ["int8"] * 55,
        "starts_s": [float(k) for k in range(55)],
        "believed_mbps": believed,
        "changes": [[0.0, 100.0], [25.0, 10.0]],
    }
    slow = {**run, "believed_mbps": [None] * 55}
    for records, expected in (
        ([run], ["1", "4", "4", "0", "ok"]),
        ([run, slow], ["2", "inf", "inf", "1", "falls short"]),
    ):
        row = _rows(auto_tables.auto_links(_found(records)))[-1]
        assert row[1:6] == expected
    other = {**run, "codec": "int8", "total_s": 66.0}
    assert "+20.0%" in auto_tables.auto_links(_found([run, other]))
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(auto_tables, "PLOT", tmp_path / "plot.png")
    auto_tables.plot(_found([run, {**run, "link": "another"}, {**run, "link": "a third"}, other]))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_ddp_accuracies_are_means_over_seeds() -> None:
    def record(hook: str, seed: int, accuracy: float) -> dict[str, Any]:
        return {"hook": hook, "seed": seed, "steps": 9, "ranks": 2, "accuracy": accuracy}

    records = [record("no hook", 0, 0.98), record("no hook", 1, 0.96)]
    records += [
        record("int8", 0, 0.96),
        record("int8", 1, 0.971),
        record("sign", 0, 0.9),
        record("sign", 1, 0.9),
    ]
    rows = _rows(collective_tables.accuracy(_found(records)))
    assert [row[1:4] for row in rows[-2:]] == [["96.55%", "-0.45", "ok"], ["90.00%", "-7.00", "worse"]]


SMALL = [sys.executable, "-m", "benchmarks.collectives", "--quick", "--ranks", "2", "--codecs", "int8"]


def test_a_run_keeps_what_was_measured_before_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run = subprocess.Popen(
        [*SMALL, "--rates", *["loopback"] * 9, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    begun = 0
    for line in run.stderr:
        begun += "loopback, 2 ranks" in line
        if begun == 2:
            break
    run.send_signal(signal.SIGINT)
    printed, said = run.communicate(timeout=120)
    assert run.returncode == 1, said
    found = load(out)
    assert found is not None
    assert [record["codec"] for record in found.records] == ["torch float32", "int8"]
    assert not found.complete
    assert "Interrupted" in printed


def test_a_trial_reports_a_rank_that_fails() -> None:
    with (
        pytest.raises(RuntimeError, match="a rank ended with status 1"),
        trial("benchmarks.no_such_module", Loopback(1), {}) as records,
    ):
        list(records)
