"""`dance calibrate` and codec speeds: what is measured, what is computed from it, and the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dance
from dance import cli, codec, codec_speed
from dance.calibrate import CalibrateConfig, calibrate
from dance.codec_speed import CodecSpeeds, Speed, measure_speed
from dance.codecs import Codec
from dance.plan import plan
from dance.policy import Table, read_calibration


def fixed_speed(codec: Codec, **_: Any) -> Speed:
    return Speed(
        encode_s=0.0 if codec.name == "none" else 1e-9, decode_s=0.0 if codec.name == "none" else 2e-9
    )


def test_a_steady_link_takes_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dance.calibrate.measure_speed", fixed_speed)
    config = CalibrateConfig(
        world=4, codec=("none", "int8"), numel=("64Ki",), mbps=(100.0,), deviation=(0.0,), latency_ms=2.0
    )
    none_s, int8_s = calibrate(config).seconds[0, 0, 0]
    none, int8 = (plan("all_reduce", text, 1 << 16, 4) for text in ("none", "int8"))
    assert none_s == pytest.approx(none.bytes_sent * 8e-8 + none.phases * 2e-3, rel=1e-9)
    coding_s = int8.encoded * 1e-9 + int8.decoded * 2e-9
    # And a fifth of a millisecond that a compressed call takes of itself (dance.policy).
    assert int8_s == pytest.approx(2e-4 + int8.bytes_sent * 8e-8 + int8.phases * 2e-3 + coding_s, rel=1e-9)


def test_a_link_that_varies_takes_longer_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dance.calibrate.measure_speed", fixed_speed)
    config = CalibrateConfig(
        codec=("none", "int8"), numel=("1Mi",), mbps=(20.0, 200.0), deviation=(0.0, 0.5, 1.0)
    )
    found = calibrate(config)
    assert (np.diff(found.seconds[:, :, :, 0], axis=2) > 0).all()
    assert (np.diff(found.seconds, axis=1) < 0).all()
    assert calibrate(config).to_json() == found.to_json()


def test_the_candidates_are_those_of_auto() -> None:
    tiny = {"numel": ("1Ki",), "mbps": (1.0,), "deviation": (0.0,)}
    names = [
        [each.name for each in calibrate(CalibrateConfig(feedback=f, **tiny)).codecs] for f in (False, True)
    ]
    assert names == [["none", "fp16", "bf16", "int8"], ["none", "fp16", "bf16", "int8", "int4"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mbps": (0.0,)}, "--mbps: expected rates above 0"),
        ({"deviation": (-1.0,)}, "--deviation: expected shares in"),
        ({"latency_ms": -1.0}, "--latency-ms: expected at least 0"),
        ({"world": 1}, "--world: expected at least 2 ranks, got 1"),
        ({"numel": ("0",)}, "^calibrate: --numel: expected 1 to 1Gi elements"),
        ({"codec": ("zip",)}, "^calibrate: --codec: unknown codec 'zip'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(CalibrateConfig(**change))


def test_cuda_without_a_gpu_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if dance.info()["cuda_available"]:
        pytest.skip("this machine has a GPU")
    out = tmp_path / "gpu.json"
    assert cli.main(["calibrate", "--device", "cuda", "--numel", "16Ki", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "dance: calibrate: --device cuda: " in said
    assert "or use --device cpu" in said
    assert not out.exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "here.json"
    arguments = ["calibrate", "--out", str(path), "--numel", "4Ki", "--numel", "64Ki", "--mbps", "10", "1000"]
    assert cli.main([*arguments, "--deviation", "0", "0.5", "--world", "2"]) == 0
    text = capsys.readouterr().out
    assert "all_reduce, 4Ki elements, 2 ranks: fastest codec, times none\n" in text
    assert "int8" in text
    found = read_calibration(path)
    assert (found.numels, found.mbps, found.deviations) == ((4096, 65536), (10.0, 1000.0), (0.0, 0.5))
    assert found.about["device"] == "cpu"
    assert Table(path).calibration.world == 2
    assert cli.main(["calibrate", "--out", str(tmp_path / "no" / "x.json")]) == 2
    assert "expected the path of a file in a folder there is" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["calibrate", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "dance.policy.Table" in text
    cli.main(["--help"])
    assert "calibrate" in capsys.readouterr().out


def test_ctrl_c_leaves_an_earlier_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("before")
    arguments = ["calibrate", "--out", str(path), "--numel", "4Mi", "--codec", *["topk:ratio=0.01", "qsgd"]]
    rates = ["--mbps", *(str(k) for k in range(1, 2000))]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "dance", *arguments, *rates],
        cwd=tmp_path,  # not the source tree, whose dance/ may have no extension
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    for _ in range(50):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)  # the latter: before the command began
    if process.returncode == 130:
        assert "stopped by Ctrl-C" in errors
        assert "Traceback" not in errors
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["table.json"]


def test_speeds_are_the_best_of_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a clock that only the calls move: the first encode is not timed, the fastest of the next counts.
    now = 0.0
    takes = {"encode": [9.0, 5e-4, 3e-4, 4e-4, 8e-4, 2e-4, 1e-4], "decode": [9.0, 2e-3, 3e-3, 1e-3, 1e-9]}

    def after(name: str, work: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal now
            if "out" in options:  # not the packet they all write to
                now += takes[name].pop(0)
            return work(*arguments, **options)

        return call

    monkeypatch.setattr(codec_speed, "time", SimpleNamespace(perf_counter=lambda: now))
    for name in takes:
        monkeypatch.setattr(codec_speed, name, after(name, getattr(codec_speed, name)))
    speed = measure_speed(codec("int8"), numel=1000)
    assert speed.encode_s == pytest.approx(2e-4 / 1000)  # of five
    assert speed.decode_s == pytest.approx(1e-3 / 1000)  # of three: together they took more than 5 ms
    assert [len(rest) for rest in takes.values()] == [1, 1]


def test_speeds_of_real_calls() -> None:
    speed = measure_speed(codec("int8"))
    assert speed.encode_s > 0.0
    assert speed.decode_s > 0.0
    assert measure_speed(codec("none")) == Speed(encode_s=0.0, decode_s=0.0)
    assert measure_speed(codec("topk:ratio=0.01"), feedback=True, numel=4096).encode_s > 0.0


def test_speeds_follow_what_calls_take(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Codec] = []

    def measure(codec: Codec, **_: Any) -> Speed:
        measured.append(codec)
        return Speed(encode_s=1e-9, decode_s=1e-9)

    monkeypatch.setattr(codec_speed, "measure_speed", measure)
    speeds = CodecSpeeds()
    int8 = codec("int8")
    assert speeds.of(int8).encode_s == speeds.of(int8).decode_s == 1e-9
    assert measured == [int8]  # once
    for _ in range(30):
        speeds.observe(int8, Speed(encode_s=3e-9, decode_s=0.0))
    assert speeds.of(int8).encode_s == pytest.approx(3e-9, rel=0.01)
    assert speeds.of(int8).decode_s == 1e-9  # nothing was decoded
    speeds.observe(int8, Speed(encode_s=1.0, decode_s=1e-9))  # a call that was put aside for a second
    assert speeds.of(int8).encode_s < 7e-9
    assert speeds.of(int8, feedback=True).encode_s == 1e-9


def test_the_file_is_json_of_moderate_size(tmp_path: Path) -> None:
    found = calibrate(CalibrateConfig(numel=("1Ki",), mbps=(1.0,), deviation=(0.0,)))
    values = json.loads(found.to_json())
    assert values["format"] == "dance calibration"
    assert values["version"] == 1
