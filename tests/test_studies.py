"""The frame of benchmarks/studies: what is asked for when, results that outlive runs, tables from curves."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tyro")

from benchmarks.studies import frame, images
from benchmarks.studies.frame import RUNS, Results, Wanted, best_rate, planned
from benchmarks.studies.listing import STUDIES
from benchmarks.studies.text import at_bytes, factors, finals
from dance.gan import RunConfig


def _write(run_folder: Path, config: RunConfig, fids: list[float], *, megabytes_a_line: float) -> None:
    """A run's folder as `dance train` leaves it, with these evaluations."""
    run_folder.mkdir(parents=True)
    lines = [
        {
            "round": 10 * k,
            "bytes_per_node": k * megabytes_a_line * 1e6,
            "fid": fid,
            "fid_raw": fid + 1,
            "score": 2,
        }
        for k, fid in enumerate(fids, start=1)
    ]
    (run_folder / "config.json").write_text(json.dumps(config.to_json()))
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    histogram = [0.5, 0.49, 0.01]
    summary = {**lines[-1], "rounds": lines[-1]["round"], "class_histogram": histogram, "seconds": 1.23456789}
    (run_folder / "summary.json").write_text(json.dumps(summary))


def _done(
    results: Results, wanted: Wanted, fids: list[float], tmp_path: Path, megabytes_a_line: float = 5.0
) -> None:
    run = planned(wanted, results)
    folder = tmp_path / run.folder
    if not folder.exists():
        _write(folder, run.config, fids, megabytes_a_line=megabytes_a_line)
    results.add(wanted, run)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.chdir(tmp_path)
    return Results("x", tmp_path / "results")


def _first(results: Results, label: str, group: str = images.SKEWED, seed: int = 0) -> Wanted:
    return next(
        each
        for each in images.FASHION.wanted(results)
        if (each.group, each.method.label, each.seed) == (group, label, seed)
    )


def test_every_study_asks_for_runs_that_can_run(tmp_path: Path) -> None:
    for name, study in STUDIES.items():
        results = Results(name, tmp_path)
        wanted = study.wanted(results)
        assert wanted, name
        keys = [each.key for each in wanted]
        assert len(set(keys)) == len(keys), name
        folders = {planned(each, results).folder for each in wanted}
        assert len(folders) == len(wanted), name
        assert all(folder.is_relative_to(RUNS) for folder in folders)


@pytest.mark.parametrize("name", ["digits", "models", "rounds", "skew"])
def test_scripts_of_their_own_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"benchmarks.studies.{name}").main


def test_a_result_outlives_its_run(results: Results, tmp_path: Path) -> None:
    hub = _first(results, images.HUB)
    assert not results.has(hub)
    _done(results, hub, [300.0, 200.0], tmp_path)
    again = Results("x", tmp_path / "results")
    assert again.has(hub)
    (machine,) = again.machines
    assert {"CPU", "cores", "torch", "dance"} <= set(machine)
    (run,) = again.of(images.SKEWED, images.HUB)
    assert run["summary"]["seconds"] == 1.23457  # six digits: the file is to stay small
    assert [point["fid"] for point in run["curve"]] == [300.0, 200.0]
    other = Wanted(group=hub.group, method=hub.method, seed=0, common={**hub.common, "rounds": 7})
    assert not again.has(other)  # other settings are another run


def test_the_best_rate_is_known_once_all_are(results: Results, tmp_path: Path) -> None:
    labels = {rate: f"MD-GAN, rate {rate:g}" for rate in images.RATES}
    ends = dict(zip(images.RATES, (300.0, 250.0, 290.0), strict=True))
    for rate, label in labels.items():
        assert best_rate(results, images.SKEWED, labels) is None
        asked = [each.method.label for each in images.FASHION.wanted(results) if each.seed == 1]
        assert not any(other.startswith("MD-GAN") for other in asked)
        _done(results, _first(results, label), [400.0, ends[rate], ends[rate] + 6.0, ends[rate]], tmp_path)
    best = best_rate(results, images.SKEWED, labels)
    assert best == images.RATES[1]
    asked = [each.method.label for each in images.FASHION.wanted(results) if each.seed == 1]
    assert [label for label in asked if label.startswith("MD-GAN")] == [
        f"MD-GAN, rate {best:g}", f"MD-GAN, rate {best:g}, {images.OURS}"
    ]  # fmt: skip


def test_tables_are_read_off_the_curves(results: Results, tmp_path: Path) -> None:
    rival = f"MD-GAN, rate {images.RATES[0]:g}"
    _done(results, _first(results, images.HUB), [300.0, 200.0, 100.0], tmp_path)
    _done(results, _first(results, rival), [390.0, 310.0, 250.0, 200.0], tmp_path, megabytes_a_line=10.0)
    labels = results.labels(images.SKEWED)
    assert labels == [images.HUB, rival]
    hub, md = _rows(at_bytes(results, images.SKEWED, labels, (5.0, 10.0, 20.0)))
    assert hub == [
        images.HUB,
        "301",
        "**201**",
        "**[101]**",
    ]  # it ended at 15 MB; what stands alone is no best
    assert md == [rival, "-", "391", "311"]
    _, ended = _rows(at_bytes(results, images.SKEWED, labels, (5.0, 10.0, 90.0)))
    assert ended == [rival, "-", "391", "[201]"]
    (row,) = _rows(factors(results, images.SKEWED, [images.HUB], [rival]))
    # 100 / 200; 15 MB of 40; it was at 200 with 10 MB, a quarter of 40.
    assert row == [images.HUB, rival, "0.50", "0.38", "4.0x"]
    first = _rows(finals(results, images.SKEWED, labels))[0]
    assert first[:3] == [images.HUB, "1", "**100**"]
    assert "2" in first  # classes over 2 %


@pytest.mark.parametrize(("still", "gains"), [(170.0, True), (190.0, False)])
def test_a_rival_goes_without_momentum_where_that_is_better_by_a_tenth(
    still: float, gains: bool, results: Results, tmp_path: Path
) -> None:
    for rate, end in zip(images.RATES, (200.0, 300.0, 300.0), strict=True):
        _done(results, _first(results, f"MD-GAN, rate {rate:g}"), [400.0, end, end, end], tmp_path)
    best = f"MD-GAN, rate {images.RATES[0]:g}"
    _done(results, _first(results, f"{best}, {images.STILL}"), [400.0, still, still, still], tmp_path)
    taken = f"{best}, {images.STILL}" if gains else best
    asked = [each.method for each in images.FASHION.wanted(results) if each.seed == 1]
    momenta = {method.label: method.changes["beta1"] for method in asked if method.label.startswith("MD")}
    assert momenta == dict.fromkeys((taken, f"{taken}, {images.OURS}"), 0.0 if gains else 0.5)
    assert images._names(images.FASHION, results, images.SKEWED).md == taken


def test_runs_with_other_defaults_are_wanted_again(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _first(results, images.HUB)
    _done(results, wanted, [300.0], tmp_path)
    assert results.has(wanted)
    monkeypatch.setattr(frame, "default_step_size", lambda _: 0.5)
    assert not results.has(wanted)


def test_claims_are_judged_by_the_figures(results: Results, tmp_path: Path) -> None:
    rivals = [f"{name}, rate {images.RATES[0]:g}" for name in (images.MD, images.FL)]
    figures = {
        images.HUB: ([300.0, 200.0, 110.0], 5.0),
        images.ADAPTIVE: ([170.0, 90.0], 5.0),
        images.LOCAL: ([300.0, 220.0], 5.0),
        rivals[0]: ([390.0, 310.0, 250.0, 200.0], 10.0),
        rivals[1]: ([199.0, 99.0], 5.0),
    }
    for label, (fids, step) in figures.items():
        _done(results, _first(results, label), fids, tmp_path, megabytes_a_line=step)
    text = images.tables(images.FASHION, results).split("#### What was aimed at")[1].strip()
    found = {row[0].split(": ")[1]: row[2:] for row in _rows(text)}
    md, fl = rivals
    assert found[f"FID of {images.HUB} / {md}"] == ["0.55", "yes"]
    assert found[f"FID of {images.HUB} / {fl}"] == ["1.11", "no"]
    assert found[f"bytes of {images.HUB} / {md}"] == ["0.38", "yes"]  # 15 of 40 MB
    assert found[f"bytes of {md} / {images.HUB}, until the former's last FID"] == ["4.0x", "no"]  # 40 / 10
    assert found[f"FID of {images.HUB} / {images.LOCAL}"] == ["0.50", "yes"]
    # Raw FIDs, one higher: 171 / 200 at 5 MB, 91 / 100 at 10 and, as both had ended, beyond.
    assert found[f"FID of {images.ADAPTIVE} / {fl} at 5, 10, 20, 30 MB, worst seed and mark"] == [
        "0.91",
        "no",
    ]
    assert found[f"FID of {images.ADAPTIVE} / {fl} at 45, 60, 120 MB, worst seed and mark"] == ["0.91", "no"]


def test_a_quick_run_has_files_of_its_own(results: Results, tmp_path: Path) -> None:
    quick = Results("x", tmp_path / "results", quick=True)
    assert quick.path != results.path
    hub = _first(quick, images.HUB)
    one, other = planned(hub, quick), planned(hub, results)
    assert one.folder != other.folder
    assert one.config.rounds < 20 < other.config.rounds


def _rows(text: str) -> list[list[Any]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
