"""`dance bench`: every case is measured, figures mean what they say, errors are clear; no time is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dance
from dance import bench, cli, roofline
from dance.bench import BenchConfig, Case
from dance.codecs import CODECS
from dance.errors import UnavailableError

ROOT = Path(__file__).parents[1]
QUICK = BenchConfig(numel=("100", "4Ki"), repetitions=2)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_every_codec_and_operation_is_measured() -> None:
    threads = dance.info()["threads"]
    seen: list[Case] = []
    run = bench.measure(QUICK, seen.append)
    assert dance.info()["threads"] == threads
    names = {kind.name for kind in CODECS}
    assert {result.case.codec.partition(":")[0] for result in run.results} == names | {"-"}
    # Each codec with every operation but mix.
    assert len(seen) == 2 * ((len(bench.OPERATIONS) - 1) * len(names) + 1)
    assert len(run.results) == len(seen)
    assert not run.not_built
    for result in run.results:
        assert result.median_s > 0
        assert result.gb_s == pytest.approx(4e-9 * result.case.numel / result.median_s)
        assert len(result.rounds_s) == len(result.copies_s) == 2
        entry = result.entry()
        assert entry["memcpy_ratio_min"] <= entry["memcpy_ratio"] <= entry["memcpy_ratio_max"]
        assert entry["min_s"] <= entry["median_s"] <= entry["max_s"]
        moved = result.bytes_moved * result.case.numel / result.median_s
        assert entry["roof_share"] == pytest.approx(1e-9 * moved / max(run.roofs[result.case.numel].values()))
    json.dumps(bench.report(QUICK, run), allow_nan=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_input_of_16_bits(dtype: Any) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("torch")
    run = bench.measure(BenchConfig(codec=("int8", "topk"), numel=("4Ki",), repetitions=1, dtype=dtype))
    assert not run.not_built
    assert len(run.results) == 2 * (len(bench.OPERATIONS) - 1) + 1
    moved = {(r.case.codec, r.case.operation): r.bytes_moved for r in run.results}
    assert moved["-", "mix"] == 8
    assert moved["int8:block=256", "decode"] == pytest.approx(2 + 1 + 4 / 256)
    assert all(r.gb_s == pytest.approx(2e-9 * 4096 / r.median_s) for r in run.results)


def test_bytes_and_error_are_those_of_the_packet() -> None:
    codecs = ("int8", "topk:ratio=0.1", "none")
    config = BenchConfig(codec=codecs, operation=("encode", "decode"), numel=("1000",), repetitions=1)
    x = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    for result in bench.measure(config).results:
        packet = dance.encode(x, result.case.codec)
        assert result.bytes_per_element == packet.nbytes / 1000
        if result.case.operation == "encode":
            error = np.linalg.norm(dance.decode(packet) - x) / np.linalg.norm(x)
            assert result.relative_error == pytest.approx(error, rel=1e-5)
        else:
            assert result.relative_error is None


@pytest.mark.parametrize("operation", [o for o in bench.OPERATIONS if o != "reduce"])
def test_work_does_what_its_name_says(operation: str) -> None:
    bed = bench.Bed(bench.CpuMachine(), 777)
    state, target = bed.state.copy(), bed.target.copy()
    work = bed.work(Case(codec="int8", operation=operation, numel=777))
    work.call()
    stateful = operation in ("encode_feedback", "encode_difference")
    assert (work.before is not None) == (stateful or operation == "mix")
    assert (bed.state != state).any() == stateful
    assert (bed.target != target).any() == (operation in ("decode", "decode_add", "mix"))
    bed.reset()
    assert (bed.state == state).all()


def test_reduce_takes_packets_of_one_codec_to_another() -> None:
    bed = bench.Bed(bench.CpuMachine(), 777)
    packet = bed.work(Case(codec="none", operation="reduce", numel=777)).call()
    assert np.allclose(dance.decode(packet), roofline.REDUCED * bed.x, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_of_every_dtype(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("torch")
    machine = bench.CpuMachine()
    values = np.random.default_rng(2).standard_normal(33, dtype=np.float32)
    array, target = machine.array(values, dtype), machine.array(np.zeros(33, np.float32), dtype)
    assert array.nbytes == 33 * roofline.element_nbytes(dtype)
    machine.copy(array, target)()
    assert np.allclose(machine.host(target), values, rtol=1e-2)
    assert (machine.host(target) == machine.host(array)).all()


@pytest.mark.parametrize(
    ("codec", "operation", "payload", "moved"),
    [
        ("fp16", "encode", 2.0, 6.0),
        ("int8", "encode", 1.015625, 5.015625),
        ("int8", "encode_feedback", 1.015625, 13.015625),
        ("int8", "encode_difference", 1.015625, 13.015625),
        ("int8", "decode", 1.015625, 5.015625),
        ("int8", "decode_add", 1.015625, 9.015625),
        ("int8", "reduce", 1.015625, 5 * 1.015625),
        ("sign", "encode_feedback", 0.140625, 12.140625),
        ("topk", "encode", 0.08, 4.08),
        ("topk", "encode_feedback", 0.08, 12.08),
        ("topk", "decode", 0.08, 4.08),
        (None, "mix", 0.0, 16.0),
    ],
)
def test_bytes_that_must_move(codec: str | None, operation: str, payload: float, moved: float) -> None:
    kind = None if codec is None else dance.codec(codec)
    kept = 0.01 if codec == "topk" else 1.0
    assert roofline.bytes_moved(kind, operation, payload=payload, kept=kept) == pytest.approx(moved)


def test_sparse_codecs_touch_whole_lines() -> None:
    """One element in a hundred, alone in its line of 16: 64 bytes of 6,400 move, so 15 % of the array."""
    moved = roofline.bytes_moved(dance.codec("topk"), "decode_add", payload=0.08, kept=0.01)
    assert moved == pytest.approx(0.08 + 8 * (1 - 0.99**16))


def test_seconds_runs_what_comes_before_every_call() -> None:
    events: list[str] = []
    work = bench.Work(call=lambda: events.append("call"), before=lambda: events.append("before"))
    bench.CpuMachine().seconds(work, 1)
    assert events == ["before", "call"]
    events.clear()
    bench.CpuMachine().seconds(work, 3)
    assert events == ["call", *["before", "call"] * 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_probes_of_the_roof(threads: int) -> None:
    machine = bench.CpuMachine()
    try:
        probes = machine.probes(1000, threads)
        assert [probe.name for probe in probes] == ["memcpy", "add in place", "negate in place"]
        for probe in probes:
            assert probe.num_bytes >= 8 * 1000
            assert machine.seconds(probe.work, 1) > 0
    finally:
        machine.close()


@pytest.mark.parametrize(("text", "numel"), [("1", 1), ("4096", 4096), ("64Ki", 65536), ("1Mi", 1 << 20)])
def test_sizes(text: str, numel: int) -> None:
    assert bench.elements(text) == numel
    assert bench.elements(bench.sized(numel)) == numel


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BenchConfig(numel=("0",)), "1 to 1Gi elements"),
        (BenchConfig(numel=("-4",)), "1 to 1Gi elements"),
        (BenchConfig(numel=("many",)), "'many'"),
        (BenchConfig(numel=("2Gi",)), "1 to 1Gi elements"),
        (BenchConfig(numel=()), "nothing to measure"),
        (BenchConfig(codec=("int9",)), "unknown codec"),
        (BenchConfig(operation=("squeeze",)), "unknown operation 'squeeze'"),
        (BenchConfig(repetitions=0), "at least 1"),
        (BenchConfig(threads=0), "at least 1"),
        (BenchConfig(dtype="int64"), "--dtype: expected one of float32, float16, bfloat16, got 'int64'"),  # type: ignore[arg-type]
    ],
)
def test_errors(config: BenchConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.measure(config)


def test_what_is_not_built_is_named_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UnavailableError("none of that yet")

    monkeypatch.setattr(dance, "encode_feedback", refuse)
    config = BenchConfig(
        codec=("int8",), operation=("encode", "encode_feedback"), numel=("64",), repetitions=1
    )
    run = bench.measure(config)
    assert [result.case.operation for result in run.results] == ["encode"]
    assert [(case.operation, reason) for case, reason in run.not_built] == [
        ("encode_feedback", "none of that yet")
    ]
    only = BenchConfig(codec=("int8",), operation=("encode_feedback",), numel=("64",), repetitions=1)
    with pytest.raises(UnavailableError, match="none of that yet"):
        bench.measure(only)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, TypeError, ValueError])
def test_errors_of_the_program_are_not_taken_for_what_is_not_built(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("a mistake")

    monkeypatch.setattr(dance, "encode_feedback", fail)
    config = BenchConfig(
        codec=("int8",), operation=("encode", "encode_feedback"), numel=("64",), repetitions=1
    )
    with pytest.raises(error, match="a mistake"):
        bench.measure(config)


def test_cuda_without_a_gpu_says_what_to_do() -> None:
    if dance.info()["cuda_available"]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="--device cpu"):
        bench.measure(BenchConfig(device="cuda", numel=("1Ki",)))


@pytest.mark.cuda
def test_cuda() -> None:
    run = bench.measure(BenchConfig(device="cuda", numel=("64Ki",), repetitions=2))
    assert all(result.gb_s > 0 for result in run.results)


def test_cli_takes_lists_and_repeated_flags(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--codec int8 --operation=encode --codec sign none --numel 64 --numel 1Ki --repetitions 1 --json"
    )
    code, out, _ = run_cli(capsys, *arguments.split())
    assert code == 0
    report = json.loads(out)
    found = {(entry["codec"], entry["numel"]) for entry in report["results"]}
    assert found == {(codec, n) for codec in ("int8:block=256", "sign:block=256", "none") for n in (64, 1024)}
    assert {entry["operation"] for entry in report["results"]} == {"encode"}
    assert [roof["numel"] for roof in report["roof"]] == [64, 1024]
    assert (report["device"], report["dtype"], report["threads"]) == ("cpu", "float32", 1)
    assert report["not_built"] == []


def test_cli_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(
        capsys, "--codec", "int8", "--numel", "1Ki", "--repetitions", "1", "--threads", "2"
    )
    assert code == 0
    for word in (
        "1Ki float32 elements",
        "2 thread(s)",
        "roof",
        "min..max",
        "int8:block=256",
        "decode_add",
        "mix",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--codec int9", 2, "unknown codec 'int9'"),
        ("--operation squeeze", 2, "unknown operation 'squeeze'"),
        ("--numel lots", 2, "'lots'"),
        ("--threads 0", 2, "bench: --threads: expected at least 1, got 0"),
        ("--repetitions 0", 2, "at least 1"),
    ],
)
def test_cli_errors_name_the_value(
    arguments: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run_cli(capsys, *arguments.split())
    assert got == code
    assert words in err
    assert err.count("\n") == 1


def test_cli_refuses_unknown_devices_and_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, known in (("--device", "tpu", "cuda"), ("--dtype", "int8", "bfloat16")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", flag, value])
        assert stop.value.code == 2
        shown = capsys.readouterr()
        assert value in shown.out + shown.err
        assert known in shown.out + shown.err


def test_help_says_how_the_roof_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("memcpy", "roof", "bytes that must move", "--peers", "examples"):
        assert word in text


def test_peers_need_the_source_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "dance" / "bench.py"))
    bench.load_peers.cache_clear()
    with pytest.raises(UnavailableError, match="run from the source tree"):
        bench.load_peers()
    bench.load_peers.cache_clear()


def test_peers_stand_beside_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    peers = bench.load_peers()
    installed = peers.installed
    monkeypatch.setattr(peers, "installed", lambda name: installed(name) if name == "torch" else None)
    config = BenchConfig(
        codec=("int8", "sign:block=64"),
        operation=("encode", "decode_add"),
        numel=("1Ki", "100"),
        repetitions=1,
        peers=True,
    )
    results = bench.measure(config).results
    beside = [r for r in results if r.peer is not None]
    # Peers have blocks of 256 and default options.
    assert {(r.case.codec, r.case.numel) for r in beside} == {("int8:block=256", 1024)}
    prepack = next(r for r in beside if r.peer == "torch embedding_bag_byte_prepack")
    assert prepack.bytes_per_element == (256 + 8) / 256
    assert 0 < prepack.relative_error < 0.01
    in_place = next(r for r in beside if r.peer == "torch, in place" and r.case.operation == "encode")
    own = next(r for r in results if r.peer is None and r.case == in_place.case)
    assert in_place.relative_error == pytest.approx(own.relative_error, rel=0.01)


@pytest.mark.parametrize("operation", ["encode", "encode_feedback"])
@pytest.mark.parametrize(
    ("codec", "name", "other"),
    [
        ("int8", "cupy", "torch, in place"),
        ("sign", "cupy, efsignsgd", "efsignsgd in torch, in place"),
        ("topk:ratio=0.1", "cupy argpartition", "torch.topk"),
    ],
)
def test_the_peers_of_cupy_compute_what_those_of_torch_do(
    codec: str, name: str, other: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NumPy in the place of CuPy, whose functions have its names."""
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "cupy", np)
    peers = bench.load_peers()
    results = []
    for wanted in (name, other):
        generator = torch.Generator().manual_seed(1)
        x, state = (torch.randn(2048, generator=generator) for _ in range(2))
        arrays = peers.peer.Arrays(
            x=x, state=state, target=x.clone(), codec=dance.codec(codec), threads=1, buffers={}
        )
        (one,) = (p for p in peers.PEERS if (p.name, p.codec, p.operation) == (wanted, codec[:4], operation))
        step = one.make(arrays)
        step.call()
        results.append((state.clone(), step.decoded().clone().reshape(-1)))
    for ours, theirs in zip(*results, strict=True):
        # Means are sums of 256 in another order: a few units in the last place.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_without_peers_the_table_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.load_peers(), "installed", lambda name: None)
    arguments = "--peers --codec int8 --operation encode --numel 1Ki --repetitions 1"
    _, out, _ = run_cli(capsys, *arguments.split())
    assert "no peers: they need torch" in out


def test_every_peer_stands_for_an_operation_and_a_codec_of_ours() -> None:
    peers = bench.load_peers()
    designed = {"none", "fp16", "bf16", "fp8", "mxfp8", "mxfp4", "int8", "int4", "int2", "qsgd", "sign"}
    designed |= {"ternary", "topk", "randk", "threshold", "dgc"}
    for peer in peers.PEERS:
        assert peer.operation in bench.OPERATIONS
        assert peer.codec in designed
        assert peer.package == "torch.compile" or peer.package in peers.PACKAGES
    keys = [(peer.name, peer.codec, peer.operation) for peer in peers.PEERS]
    assert len(keys) == len(set(keys))


def test_performance_document_has_its_markers() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    first, last = (f"<!-- measured: {place} -->" for place in ("begin", "end"))
    assert text.count(first) == text.count(last) == 1
    assert text.index(first) < text.index(last)
