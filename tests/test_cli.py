"""The command line as a person meets it: help, one-line errors and exit codes, what it needs installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import dance
from dance import cli

COMMANDS = ["info", "bench", "train", "compare", "data list", "data fetch"]


def dance_process(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dance", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line on stderr."""
    code = cli.main(arguments)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("dance: ")
    return code, text


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.split()[0] in text
    assert "examples:" in text
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert dance.__version__ in capsys.readouterr().out
    assert cli.main(["data", "--help"]) == 0
    assert "fetch" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: dance {command}" in text
    if command in ("bench", "train", "compare", "data fetch"):
        assert "example" in text


def test_every_flag_of_train_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for flag in (
        "--algorithm",
        "--d-nodes",
        "--gossip-codec",
        "--simulate",
        "--resume",
        "--out",
        "--acgan.period",
    ):
        assert flag in text


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dance.info()
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert dance.__version__ in text
    assert dance.info()["cpu_target"] in text
    assert "CUDA available" in text


def test_info_needs_only_numpy_tyro_and_rich() -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'sklearn', 'scipy', 'PIL', 'matplotlib',"
        " 'safetensors', 'torchmetrics', 'pooch'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from dance.cli import main\n"
        "assert main(['info']) == 0\n"
        "assert main(['bench', '--numel', '1Ki', '--repetitions', '1', '--codec', 'int8']) == 0\n"
        "sys.exit(main(['train']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "dance-gan[gan]" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "bench",
        "--json",
        "--numel",
        "1Ki",
        "--codec",
        "int8",
        "sign:block=64",
        "--repetitions",
        "1",
    ]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert {entry["codec"] for entry in report["results"]} == {"int8:block=256", "sign:block=64", "-"}
    assert set(report["results"][0]) == {
        "codec",
        "operation",
        "numel",
        "peer",
        "median_s",
        "min_s",
        "max_s",
        "gb_s",
        "memcpy_ratio",
        "memcpy_ratio_min",
        "memcpy_ratio_max",
        "roof_share",
        "bytes_moved",
        "bytes_per_element",
        "relative_error",
    }


def test_bench_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--numel", "1Ki", "--repetitions", "1"]) == 0
    text = capsys.readouterr().out
    for word in (
        "1Ki float32 elements",
        "x memcpy",
        "int8:block=256",
        "topk:ratio=0.01",
        "encode_feedback",
        "mix",
    ):
        assert word in text


def test_wrong_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = fails(capsys, "trian")
    assert code == 2
    assert "did you mean 'train'?" in text
    code, text = fails(capsys, "data", "fetsch")
    assert code == 2
    assert "did you mean 'fetch'?" in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["info", "--jsno"])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert "--json" in shown.out + shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bench", "--codec", "int9"], 2, "unknown codec 'int9'"),
        (["bench", "--numel", "lots"], 2, "'lots'"),
        (["data", "fetch", "mnits"], 2, "mnist, fashion-mnist"),
        (["train", "--d-nodes", "0"], 2, "d_nodes"),
        (["train", "--gossip-codec", "int9"], 2, "int9"),
        (["train", "--data", "mnits"], 2, "mnits"),
        (["train", "--data", "mnist"], 1, "dance data fetch mnist"),
        (["train", "--partition", "classes:2", "--simulate"], 2, "use classes:3 or 5 nodes"),
        (["train", "--resume", "nowhere"], 1, "nowhere"),
        (["compare", "--algorithms", "ac-gan", "a-gan"], 2, "'a-gan'"),
        (["compare", "--algorithms", "ac-gan", "ac-gan"], 2, "label="),
        (["compare", "--algorithm", "md-gan"], 2, "--methods"),
        (["compare", "--methods", "ac-gan:gosip_codec=int4"], 2, "did you mean 'gossip_codec'"),
        (["compare", "nowhere"], 1, "nowhere"),
        (["compare", "--resume", "x"], 2, "dance train --resume"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANCE_DATA", str(tmp_path))
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path))
    if words == "dance data fetch mnist":  # this message lists folders, a line each
        assert cli.main(arguments) == code
        text = capsys.readouterr().err
    else:
        got, text = fails(capsys, *arguments)
        assert got == code
    assert words in text
    assert not (tmp_path / "runs").exists()


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANCE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="int9"):
        cli.main(["bench", "--codec", "int9"])


def test_under_torchrun_one_process_speaks_of_wrong_arguments(capfd: pytest.CaptureFixture[str]) -> None:
    for rank, lines in (("0", 1), ("3", 0)):
        done = dance_process(["bench", "--codec", "int9"], RANK=rank, WORLD_SIZE="5")
        assert done.returncode == 2
        assert done.stderr.count("\n") == lines


def test_data_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("DANCE_DATA", str(tmp_path))
    assert cli.main(["data", "list"]) == 0
    text = capsys.readouterr().out
    for name in ("digits", "mnist", "fashion-mnist"):
        assert name in text


def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m dance bench --numel 1Ki --repetitions 1 --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


SHORT = [
    "--layout",
    "model-parallel",
    "--rounds",
    "6",
    "--evaluate-every",
    "3",
    "--evaluate-images",
    "200",
    "--checkpoint-every",
    "3",
    "--d-nodes",
    "2",
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("runs") / "one"
    done = dance_process(["train", "--simulate", *SHORT, "--out", str(folder)])
    assert done.returncode == 0, done.stderr
    assert "round 6/6" in done.stdout
    assert "uncompressed" in done.stdout
    assert str(folder / "samples.png") in done.stdout
    return folder


def test_train_leaves_what_it_promises(run_folder: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "summary.json", "samples.png", "curves.png", "checkpoints"):
        assert (run_folder / name).exists()
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [3, 6]
    summary = json.loads((run_folder / "summary.json").read_text())
    for key in (
        "algorithm",
        "data",
        "nodes",
        "rounds",
        "seconds",
        "codecs",
        "fid",
        "score",
        "bytes_per_node",
    ):
        assert key in summary
    assert isinstance(summary["bytes_sent"], int)
    assert isinstance(summary["raw_bytes"], int)
    assert 0 < summary["bytes_sent"] < summary["raw_bytes"]
    assert len(summary["class_histogram"]) == 10
    assert lines[-1]["bytes_sent"] == summary["bytes_sent"]


def test_a_corrupt_checkpoint_is_named(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = run_folder.glob("checkpoints/round-00000006/node-001.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    try:
        code, text = fails(capsys, "train", "--resume", str(run_folder), "--rounds", "8")
        assert code == 1
        assert str(path) in text
    finally:
        path.write_bytes(whole)


def test_ctrl_c_leaves_a_usable_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "run"
    arguments = ["train", "--simulate", "--rounds", "100000", "--d-nodes", "1", "--evaluate-images", "200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dance", *arguments, "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"dance train --resume {out}" in text
    for name in ("summary.json", "samples.png", "curves.png"):
        assert (out / name).exists()
    rounds = json.loads((out / "summary.json").read_text())["rounds"]
    assert (out / "checkpoints" / f"round-{rounds:08d}").is_dir()
