"""Whole runs: their files, resumption, real processes beside simulated nodes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from dance import checkpoint
from dance.errors import DanceError
from dance.files import write_atomic
from dance.gan import AcganConfig, FlganConfig, GossipganConfig, RunConfig, run
from dance.gan.recipes import Recipe, RecipeTable
from dance.launch import launch

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = RunConfig(
    layout="model-parallel",
    d_nodes=2,
    batch_size=100,  # of 898 images: an epoch is 8 rounds
    latent=6,
    g_widths=(9,),
    d_widths=(8,),
    rounds=6,
    evaluate_images=200,
    simulate=True,
)
ALGORITHMS = ("ac-gan", "md-gan", "fl-gan", "gossip-gan", "standalone")
# Switches after the third of its exchanges, whatever it measures.
SWITCHING = replace(
    TINY, layout="adaptive", acgan=AcganConfig(sync_period=3, switch_above=-1e9, switch_after=9)
)
LAYOUTS = {
    "data-parallel": replace(TINY, layout="data-parallel", acgan=AcganConfig(sync_period=7)),
    "choco": replace(TINY, layout="data-parallel", acgan=AcganConfig(g_sync="choco", sync_period=3)),
    "gradients": replace(
        TINY, layout="data-parallel", acgan=AcganConfig(g_sync="gradient", aggregation="gradient")
    ),
    "low-rank": replace(TINY, acgan=AcganConfig(aggregation="low-rank")),
    "adaptive": SWITCHING,
    "adaptive, gossip": replace(SWITCHING, acgan=replace(SWITCHING.acgan, aggregation="parameters")),
    "overlap": replace(TINY, topology="ring", acgan=AcganConfig(order="overlap", fake_batch_size=30)),
}
DELTAS = FlganConfig(deltas=True)
VARIANT_B = GossipganConfig(variant="b", period=3, codec="int8")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANCE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def state(out: Path, num_nodes: int) -> list[dict[str, torch.Tensor]]:
    folder = checkpoint.find(out)
    return [checkpoint.load(folder, node).tensors for node in range(num_nodes)]


def assert_equal_states(first: Path, second: Path, num_nodes: int) -> None:
    for one, other in zip(state(first, num_nodes), state(second, num_nodes), strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def lines(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    timed = ("wall_s", "virtual_s", "link_rate_mbps")
    read = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in read]


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    result = run(replace(TINY, out=str(tmp_path), evaluate_every=3, checkpoint_every=3))
    assert not result.interrupted
    assert result.rounds == 6
    assert result.raw_bytes > result.bytes_sent > 0
    assert result.score is not None
    assert result.fid is not None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    for key in ("algorithm", "data", "nodes", "rounds", "seconds", "codecs", "fid", "score"):
        assert summary[key] is not None
    assert isinstance(summary["bytes_sent"], int)
    assert isinstance(summary["raw_bytes"], int)
    assert len(summary["class_histogram"]) == 10
    assert summary["bytes_sent"] == sum(summary["bytes_sent_by_kind"].values())
    assert summary["codecs"] == {
        "feedback": "sign:block=64",
        "gossip": "sign:block=256",
        "image": "int4:block=256",
    }
    assert RunConfig.from_json(json.loads((tmp_path / "config.json").read_text())).out == str(tmp_path)
    assert [line["round"] for line in lines(tmp_path)] == [3, 6]
    assert lines(tmp_path)[-1]["bytes_sent"] == summary["bytes_sent"]
    for name in ("samples.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # A D-Node sends and receives all there is, but for what goes between others: with a hub, nothing.
    assert summary["bytes_per_node"] == summary["bytes_sent"] / 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_40_rounds_are_20_and_20_resumed(algorithm: Any, tmp_path: Path) -> None:
    config = replace(TINY, algorithm=algorithm, rounds=40, evaluate_every=10, checkpoint_every=20)
    run(replace(config, out=str(tmp_path / "whole")))
    run(replace(config, out=str(tmp_path / "split"), rounds=20))
    run(RunConfig(resume=str(tmp_path / "split"), rounds=40))
    assert_equal_states(tmp_path / "whole", tmp_path / "split", config.num_nodes)
    assert lines(tmp_path / "whole") == lines(tmp_path / "split")
    assert (tmp_path / "whole/samples.png").read_bytes() == (tmp_path / "split/samples.png").read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_20_rounds_are_8_and_12_resumed_in_every_layout(layout: str, tmp_path: Path) -> None:
    config = replace(LAYOUTS[layout], rounds=20)
    whole = run(replace(config, out=str(tmp_path / "whole")))
    run(replace(config, out=str(tmp_path / "split"), rounds=8))
    run(RunConfig(resume=str(tmp_path / "split"), rounds=20))
    assert_equal_states(tmp_path / "whole", tmp_path / "split", config.num_nodes)
    assert lines(tmp_path / "whole")[-1] == lines(tmp_path / "split")[-1]
    assert whole.summary.get("switched") == (9 if "adaptive" in layout else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fl-gan", "flgan": DELTAS, "codec": "int4"},
        {"algorithm": "fl-gan", "flgan": FlganConfig(participation=0.5, weights="fegan")},
        {"algorithm": "gossip-gan", "gossipgan": VARIANT_B},
    ],
)
def test_settings_of_rivals_resume_with_equal_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(TINY, rounds=24, **changes)
    run(replace(config, out=str(tmp_path / "whole")))
    run(replace(config, out=str(tmp_path / "split"), rounds=12))
    run(RunConfig(resume=str(tmp_path / "split"), rounds=24))
    assert_equal_states(tmp_path / "whole", tmp_path / "split", config.num_nodes)


def test_a_resumed_ring_and_a_resumed_folder_elsewhere(tmp_path: Path) -> None:
    config = replace(TINY, topology="ring", d_nodes=3, rounds=8, gossip_codec="topk:ratio=0.1")
    run(replace(config, out=str(tmp_path / "whole")))
    run(replace(config, out=str(tmp_path / "first"), rounds=4))
    run(RunConfig(resume=str(tmp_path / "first"), rounds=8, out=str(tmp_path / "second")))
    assert_equal_states(tmp_path / "whole", tmp_path / "second", 4)


def test_a_moved_run_goes_on_where_it_is_now(tmp_path: Path) -> None:
    run(replace(TINY, out=str(tmp_path / "before"), rounds=2))
    (tmp_path / "before").rename(tmp_path / "after")
    assert run(RunConfig(resume=str(tmp_path / "after"), rounds=4)).folder == tmp_path / "after"
    assert json.loads((tmp_path / "after" / "summary.json").read_text())["rounds"] == 4
    assert not (tmp_path / "before").exists()


def test_a_run_resumed_at_its_end_writes_the_same_files(tmp_path: Path) -> None:
    run(replace(TINY, out=str(tmp_path), rounds=2))
    before = {
        name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "summary.json", "samples.png")
    }
    run(RunConfig(resume=str(tmp_path), rounds=2))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run(replace(TINY, out=str(tmp_path), rounds=2))
    (tmp_path / "config.json").write_text('{"rounds": ')
    with pytest.raises(DanceError, match=r"config.json is damaged"):
        run(RunConfig(resume=str(tmp_path)))


def test_a_resumed_run_refuses_what_it_cannot_change(tmp_path: Path) -> None:
    run(replace(TINY, out=str(tmp_path), rounds=2))
    with pytest.raises(ValueError, match=r"seed is 0 .*got 5"):
        run(RunConfig(resume=str(tmp_path), seed=5))


def test_auto_reports_what_it_chose(tmp_path: Path) -> None:
    result = run(
        replace(TINY, out=str(tmp_path), codec="auto", links="100kbit,1ms", rounds=4, round_ms=100.0)
    )
    assert result.summary["codecs"]["gossip"] == "sign:block=256"
    rates = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[-1]["link_rate_mbps"]["1->0"] == pytest.approx(0.1, rel=0.5)
    assert result.summary["virtual_s"] > 0.1


def test_a_resumed_auto_run_still_knows_its_links(tmp_path: Path) -> None:
    config = replace(TINY, out=str(tmp_path), codec="auto", links="1gbit", round_ms=1000.0)
    assert (
        run(replace(config, rounds=1)).summary["codecs"]["image"] == "int4:block=256"
    )  # blind: the smallest
    result = run(RunConfig(resume=str(tmp_path), rounds=2))
    assert result.summary["codecs"] == {"feedback": "none", "gossip": "none", "image": "none"}


# ---- real processes ----------------------------------------------------------------------------------------


def _train_here(rank: int, port: int, folder: str) -> None:
    variables = {
        "RANK": rank,
        "WORLD_SIZE": 4,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "LOCAL_RANK": rank,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    # One group for all: a second one at the same port may meet the store of the first.
    torch.distributed.init_process_group("gloo")
    for name, config in _real_and_simulated(folder):
        run(replace(config, simulate=False, out=f"{folder}/real-{name}"))
    torch.distributed.destroy_process_group()


def _real_and_simulated(folder: Path | str) -> list[tuple[str, RunConfig]]:
    three = replace(TINY, d_nodes=3)
    # Of one recipe only: what links measure differs from run to run, what is decided does not.
    recipe = Recipe(gossip="int8", image="fp16", feedback="int8", period=3)
    table = RecipeTable(mbps=(1.0,), deviations=(0.0,), recipes=(recipe,), seconds=np.ones((1, 1, 1)))
    file = Path(folder) / "table.json"
    write_atomic(file, table.to_json().encode())
    weighted = AcganConfig(feedback_weights="f2a")
    return [
        ("ac-gan", replace(three, rounds=20)),
        ("ring", replace(three, topology="ring", gossip_codec="int8")),
        ("two-g", replace(TINY, g_nodes=2, d_nodes=2)),
        ("weighted", replace(TINY, g_nodes=2, d_nodes=2, acgan=weighted)),
        # Of an average at the hub the second G-Node hears nothing.
        ("two-g-adaptive", replace(SWITCHING, g_nodes=2, d_nodes=2, rounds=12)),
        ("two-g-gradients", replace(TINY, g_nodes=2, d_nodes=2, acgan=AcganConfig(aggregation="gradient"))),
        ("table", replace(three, gossip_codec="auto", table=str(file), rounds=24)),
        *(
            (name, replace(LAYOUTS[name], d_nodes=3, rounds=12))
            for name in ("adaptive", "gradients", "low-rank", "overlap")
        ),
        ("md-gan", replace(three, algorithm="md-gan", rounds=9)),
        ("fl-gan", replace(three, algorithm="fl-gan", rounds=9)),
        ("fl-gan-deltas", replace(three, algorithm="fl-gan", rounds=12, codec="int4", flgan=DELTAS)),
        ("gossip-gan-a", replace(TINY, algorithm="gossip-gan", d_nodes=4, rounds=9)),
        ("gossip-gan-b", replace(TINY, algorithm="gossip-gan", d_nodes=4, rounds=9, gossipgan=VARIANT_B)),
    ]


def test_simulated_nodes_equal_real_processes_bit_for_bit(tmp_path: Path) -> None:
    """Every algorithm in four gloo processes, as torchrun starts them, and in this one."""
    for name, config in _real_and_simulated(tmp_path):
        run(replace(config, out=str(tmp_path / f"simulated-{name}")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train_here, args=(port, str(tmp_path)), nprocs=4)
    for name, config in _real_and_simulated(tmp_path):
        real, simulated = tmp_path / f"real-{name}", tmp_path / f"simulated-{name}"
        assert_equal_states(real, simulated, config.num_nodes)
        assert lines(real) == lines(simulated)
        assert (real / "samples.png").read_bytes() == (simulated / "samples.png").read_bytes()


def test_a_failed_process_is_named_and_leaves_no_trace_in_the_environment() -> None:
    before = dict(os.environ), signal.getsignal(signal.SIGINT)
    with pytest.raises(DanceError, match=r"node [01] of 2 failed with exit code [12];"):
        launch("json.tool", ["no-such-file"], num_processes=2)
    after = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    assert (after, signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_leaves_a_run_that_resumes_with_equal_bits(tmp_path: Path) -> None:
    """`dance train` in processes of its own, stopped by SIGINT: exit code 130, all files, and resumable."""
    out = tmp_path / "stopped"
    arguments = [
        "--d-nodes",
        "2",
        "--batch-size",
        "100",
        "--latent",
        "6",
        "--g-widths",
        "9",
        "--d-widths",
        "8",
    ]
    arguments += ["--evaluate-images", "200", "--evaluate-every", "10", "--checkpoint-every", "0"]
    command = [sys.executable, "-m", "dance", "train", *arguments, "--rounds", "100000", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 90
        while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed, printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert summary["rounds"] % 10 == 0
    assert (out / "samples.png").exists()
    assert (out / "curves.png").exists()
    rounds = summary["rounds"] + 3
    run(RunConfig(resume=str(out), rounds=rounds, simulate=True))
    saved = RunConfig.from_json(json.loads((out / "config.json").read_text()))
    run(
        replace(
            saved, resume=None, simulate=True, rounds=rounds, evaluate_every=0, out=str(tmp_path / "whole")
        )
    )
    assert_equal_states(out, tmp_path / "whole", 3)
