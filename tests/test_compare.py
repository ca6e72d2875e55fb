"""`dance compare`: methods from texts, plans, resuming, figures at equal bytes, and what the report holds."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from dance import cli
from dance.compare import Finished, Method, execute, parse_methods, read_run
from dance.compare.command import labelled
from dance.compare.curves import MEGABYTES, ROUNDS, at_most, curves_of, marks_of, points
from dance.compare.estimate import Estimate
from dance.compare.folder import mark_diverged, state_of
from dance.compare.method import _fields
from dance.compare.page import spans_of
from dance.compare.plan import PlannedRun, growing, plan
from dance.compare.table import cell_of, columns_of, rows_of, text_of
from dance.gan.config import RunConfig

SMALL = ["--simulate", "--rounds", "20", "--d-nodes", "2", "--evaluate-images", "100", "--batch-size", "8"]


def test_a_method_has_settings_and_a_name() -> None:
    (method,) = parse_methods(["ac-gan:gossip_codec=int8:block=256,rounding=stochastic,r1=0,label=A, B"])
    # A comma belongs to the value unless a setting's name follows it.
    assert method.changes == {"gossip_codec": "int8:block=256,rounding=stochastic", "r1": 0.0}
    assert method.label == "A, B"
    assert method.slug == "a-b"
    config = method.config(RunConfig(rounds=7), seed=3, out="x")
    assert (config.r1, config.rounds, config.seed, config.out) == (0.0, 7, 3, "x")


def test_settings_of_a_group_leave_its_others_alone() -> None:
    (method,) = parse_methods(["fl-gan:flgan.epochs=3"])
    base = RunConfig(flgan=replace(RunConfig().flgan, up_codec="int8"))
    config = method.config(base, seed=0, out="x")
    assert (config.flgan.epochs, config.flgan.up_codec) == (3, "int8")


def test_every_setting_can_be_given_as_text() -> None:
    for name, value in _flat(RunConfig().to_json()).items():
        if name in ("algorithm", "seed", "simulate", "resume", "out", "data"):
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        (method,) = parse_methods([f"ac-gan:{name}={text},label=x"])
        assert _flat(method.config(RunConfig(), seed=0, out="").to_json())[name] == value, name
    assert set(_flat(RunConfig().to_json())) == set(_fields())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a-gan", "choose from ac-gan"),
        ("ac-gan:rouns=3", "did you mean 'rounds'"),
        ("ac-gan:rounds=many", "expected int, got 'many'"),
        ("ac-gan:d_optimizer=adan", "block-adam"),
        ("ac-gan:seed=3", "common to all"),
        ("none.toml", "does not exist"),
    ],
)
def test_a_bad_method_names_value_and_remedy(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_methods([text])


def test_methods_from_files(tmp_path: Path) -> None:
    tables = [{"algorithm": "fl-gan", "label": "two epochs", "flgan": {"epochs": 2}}, {"algorithm": "md-gan"}]
    (tmp_path / "m.json").write_text(json.dumps({"methods": tables}))
    two, md = parse_methods([str(tmp_path / "m.json")])
    assert (two.label, two.changes, md.label) == ("two epochs", {"flgan.epochs": 2}, "md-gan")
    if sys.version_info >= (3, 11):
        text = '[[methods]]\nalgorithm = "fl-gan"\nlabel = "two epochs"\nflgan.epochs = 2\n'
        (tmp_path / "m.toml").write_text(text)
        assert parse_methods([str(tmp_path / "m.toml")]) == [two]


def test_a_plan_goes_seed_by_seed() -> None:
    methods = parse_methods(["ac-gan", "standalone"])
    planned = plan(methods, (0, 5), RunConfig(simulate=True, megabytes=3.0), Path("o"))
    assert [(run.method.label, run.seed) for run in planned.runs] == [
        ("ac-gan", 0), ("standalone", 0), ("ac-gan", 5), ("standalone", 5)
    ]  # fmt: skip
    assert len({run.folder for run in planned.runs}) == 4
    # What sends nothing is limited by rounds alone.
    assert [run.config.megabytes for run in planned.runs[:2]] == [3.0, None]
    with pytest.raises(ValueError, match="different seeds"):
        plan(methods, (1, 1), RunConfig(), Path("o"))


def test_rounds_at_growing_distances() -> None:
    rounds = growing(2500)
    assert rounds[-1] == 2500
    steps = [b - a for a, b in itertools.pairwise(rounds)]
    assert all(step >= 1 for step in steps)
    assert steps[:-2] == sorted(steps[:-2])
    assert len(rounds) < 25
    assert growing(1) == (1,)


def _run(label: str, seed: int, lines: list[dict[str, Any]], **summary: Any) -> Finished:
    config = RunConfig(simulate=True, seed=seed)
    return Finished(
        label=label, seed=seed, folder=Path("x"), config=config, summary=summary, lines=tuple(lines)
    )


def _line(round_index: int, megabytes: float, fid: float) -> dict[str, Any]:
    return {"round": round_index, "bytes_per_node": megabytes * 1e6, "fid": fid}


def test_figures_at_equal_bytes_are_of_what_had_been_paid_for() -> None:
    lines = [_line(0, 0.0, 900.0), _line(1, 4.0, 300.0), _line(2, 5.1, 200.0), _line(3, 8.0, 100.0)]
    assert at_most(lines, "fid", MEGABYTES, 3.0) is None  # nothing was evaluated that had cost a byte
    assert at_most(lines, "fid", MEGABYTES, 4.5) == 300.0
    assert at_most(lines, "fid", MEGABYTES, 5.0) == 200.0  # 2 % more still counts
    assert at_most(lines, "fid", MEGABYTES, 9.0) == 100.0
    assert at_most(lines, "fid", MEGABYTES, 11.0) is None  # it never came near 11 MB


def test_a_curve_is_the_mean_where_all_seeds_are() -> None:
    first = [_line(0, 1.0, 10.0), _line(1, 2.0, 6.0), _line(2, 3.0, 4.0)]
    second = [_line(0, 2.0, 8.0), _line(1, 4.0, 4.0)]
    runs = [_run("a", 0, first), _run("a", 1, second), _run("b", 0, first)]
    curve, alone = curves_of(runs, "fid", MEGABYTES)
    assert curve.x == (2.0, 3.0)
    assert curve.mean == (7.0, 5.0)  # (6 + 8) / 2, (4 + 6) / 2
    assert (curve.low, curve.high) == ((6.0, 4.0), (8.0, 6.0))
    assert alone.mean == (10.0, 6.0, 4.0)
    assert points(runs[0], "fid", ROUNDS) == [(0.0, 10.0), (1.0, 6.0), (2.0, 4.0)]
    assert marks_of(runs, MEGABYTES) == [1.0, 2.0]  # 3 MB: the second method's end


def test_the_table_has_mean_spread_and_the_best() -> None:
    runs = [
        _run("a", 0, [], fid=100.0, score=2.0, bytes_per_node=2e6, rounds=5),
        _run("a", 1, [], fid=120.0, score=2.0, bytes_per_node=2e6, rounds=5),
        _run("b", 0, [], fid=90.0, score=1.0, bytes_per_node=3e6, rounds=5),
    ]
    columns = columns_of(runs)
    names = [column.name for column in columns]
    a, b = rows_of(runs, columns)
    fid, sent = names.index("FID"), names.index("bytes a D-Node")
    assert text_of(a.cells[fid], columns[fid].form) == "110 ± 14"
    assert [row.cells[fid].best for row in (a, b)] == [False, True]
    assert [row.cells[names.index("score")].best for row in (a, b)] == [True, False]
    assert [row.cells[sent].best for row in (a, b)] == [True, False]
    assert text_of(a.cells[sent], columns[sent].form) == "2 MB"
    assert cell_of([None, None]).mean is None
    assert text_of(cell_of([2e6, 3e6]), columns[sent].form) == "2.5 ± 0.7 MB"


def test_codecs_over_time_are_stretches() -> None:
    lines = [
        {"round": 10, "codecs": {"gossip": "sign"}},
        {"round": 20, "codecs": {"gossip": "sign", "image": "int8"}},
        {"round": 30, "codecs": {"gossip": "int8", "image": "int8"}},
    ]
    assert spans_of(lines) == [
        ("gossip", [(0.0, 20.0, "sign"), (20.0, 30.0, "int8")]),
        ("image", [(10.0, 30.0, "int8")]),
    ]


class _Page(HTMLParser):
    """Collects what the page would fetch, and whether its tags close."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "polygon", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    words = ["compare", "--methods", "ac-gan", "md-gan:label=MD <&> GAN", "--seeds", "0", "1"]
    assert cli.main([*words, *SMALL, "--out", str(out)]) == 0
    return out


def test_the_report_is_whole_and_needs_no_network(compared: Path) -> None:
    text = (compared / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.addresses) == 2  # a grid of samples each
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    for word in ("MD <&> GAN", "FID at equal bytes", "Classes drawn", "Codecs over time", "dance compare"):
        assert word in page.text
    rows = json.loads((compared / "compare.json").read_text())
    assert [row["label"] for row in rows] == ["ac-gan", "ac-gan", *["MD <&> GAN"] * 2]
    markdown = (compared / "report.md").read_text(encoding="utf-8")
    assert "| ac-gan | 2 |" in markdown
    for row in rows:
        assert (compared / row["folder"] / "samples.png").exists()


def test_what_is_done_is_kept_and_more_rounds_go_on(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in compared.glob("*/seed-*/summary.json")}
    assert len(stamps) == 4
    words = ["compare", "--methods", "ac-gan", "--seeds", "0", "1", *SMALL, "--out", str(compared)]
    assert cli.main(words) == 0
    assert "2 of 2 runs are done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    folder = compared / "ac-gan" / "seed-0"
    words[words.index("20")] = "30"
    words.remove("1")
    assert cli.main(words) == 0
    assert "after round 20, until 30" in capsys.readouterr().out
    assert read_run(folder).summary["rounds"] == 30
    config = read_run(folder).config
    assert state_of(folder, config) == "done"
    assert state_of(folder, replace(config, rounds=40)) == "begun"
    assert state_of(folder, replace(config, r1=0.0)) == "changed"
    mark_diverged(folder, "NaN")
    assert state_of(folder, config) == "diverged"


def test_finished_folders_side_by_side(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(path) for path in sorted(compared.glob("*/seed-1"))]
    assert cli.main(["compare", *folders, "--out", str(tmp_path / "side")]) == 0
    assert "md-gan" in capsys.readouterr().out
    rows = json.loads((tmp_path / "side" / "compare.json").read_text())
    assert sorted(row["label"] for row in rows) == ["ac-gan", "md-gan"]


def test_one_algorithm_with_two_settings_is_two_methods(compared: Path) -> None:
    run = read_run(compared / "ac-gan" / "seed-0")
    runs = [
        replace(run, folder=Path(f"o/{name}/seed-0"), config=replace(run.config, r1=r1))
        for name, r1 in (("a", 0.5), ("b", 0.0))
    ]
    assert [each.label for each in labelled(runs)] == ["ac-gan (a/seed-0)", "ac-gan (b/seed-0)"]
    again = replace(runs[0], seed=1, config=replace(runs[0].config, seed=1), folder=Path("o/a/seed-1"))
    assert len({each.label for each in labelled([*runs, again])}) == 2


def test_a_budget_in_bytes_ends_a_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", "--methods", "ac-gan", "--seeds", "0", "--simulate", "--d-nodes", "2"]
    words += [
        "--layout",
        "model-parallel",
        "--megabytes",
        "0.8",
        "--evaluate-megabytes",
        "0.4",
        "--evaluate-images",
        "100",
    ]
    assert cli.main([*words, "--batch-size", "8", "--out", str(out)]) == 0
    run = read_run(out / "ac-gan" / "seed-0")
    rounds, spent = run.summary["rounds"], run.summary["bytes_per_node"] / 1e6
    assert 0.8 <= spent < 0.8 + 10 * spent / rounds  # asked every 10 rounds
    assert any(0.4 <= line["bytes_per_node"] / 1e6 < 0.4 + spent / rounds for line in run.lines)
    assert state_of(out / "ac-gan" / "seed-0", run.config) == "done"


def test_runs_of_one_method_and_seed_in_several_folders_are_followed_apart(tmp_path: Path) -> None:
    (method,) = parse_methods(["standalone"])
    base = RunConfig(simulate=True, rounds=10)
    runs = [
        PlannedRun(method=method, seed=0, config=method.config(base, seed=0, out=str(tmp_path / part)))
        for part in ("one", "other")
    ]
    estimate = Estimate(runs, 2)
    for one in runs:
        estimate.begin(one)
        one.folder.mkdir()
    (runs[1].folder / "metrics.jsonl").write_text('{"round": 5}\n')
    time.sleep(0.01)
    estimate.end(runs[0])  # took all of that time, and the other one will take half of it more
    left = estimate.left_s()
    assert left is not None
    assert left > 0


def test_runs_of_one_method_and_seed_side_by_side_each_have_their_own_settings(tmp_path: Path) -> None:
    (method,) = parse_methods(["standalone"])
    base = RunConfig(simulate=True, batch_size=8, evaluate_images=100, evaluate_every=0)
    runs = [
        PlannedRun(
            method=method,
            seed=0,
            config=method.config(replace(base, rounds=rounds), seed=0, out=str(tmp_path / str(rounds))),
        )
        for rounds in (3, 4)
    ]
    assert execute(runs, jobs=2).failures == {}
    assert [read_run(one.folder).summary["rounds"] for one in runs] == [3, 4]


def test_ctrl_c_and_the_next_call_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["compare", "--methods", "ac-gan", "--seeds", "0", "1", "--jobs", "2", *SMALL, "--out", str(out)]
    words[words.index("20")] = "100000"
    process = subprocess.Popen(
        [sys.executable, "-m", "dance", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/seed-*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # to the parent alone, as `kill -INT` does
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "the same command goes on" in text
    before = {seed: read_run(out / "ac-gan" / f"seed-{seed}").summary["rounds"] for seed in (0, 1)}
    assert all(rounds % 10 == 0 for rounds in before.values())
    words[words.index("100000")] = str(max(before.values()) + 10)
    assert cli.main(words) == 0
    assert "resuming" in (out / "ac-gan" / "seed-0" / "log.txt").read_text()
    after = [read_run(out / "ac-gan" / f"seed-{seed}").summary["rounds"] for seed in (0, 1)]
    assert after == [max(before.values()) + 10] * 2


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def test_a_method_is_a_value() -> None:
    method = Method(label="a", algorithm="ac-gan", changes={"r1": 0.0})
    assert method.to_json() == {"label": "a", "algorithm": "ac-gan", "r1": 0.0}
