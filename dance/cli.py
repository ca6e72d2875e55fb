"""The command line: `dance info|bench|calibrate|train|compare|data`; a command imports what it needs."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dance.errors import DanceError

_INTERRUPTED = 130
_LET_RANK_0_SPEAK_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for what failed, 2 for wrong arguments, 130 after Ctrl-C.

    Errors are one line on stderr; DANCE_TRACEBACK=1 shows where they were raised.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch("dance", COMMANDS, given)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", _INTERRUPTED)
    except BrokenPipeError:  # `dance info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DanceError as error:
        return _fail(str(error), 1)
    except ValueError as error:
        # Under torchrun every process finds the same fault in the same arguments; one of them says so. The
        # others wait, since torchrun ends all processes as soon as one has ended.
        if _rank() not in (None, "0") and not _traceback():
            time.sleep(_LET_RANK_0_SPEAK_S)
            return 2
        return _fail(str(error), 2)
    except ImportError as error:
        ours = error.name is None or error.name.partition(".")[0] == "dance"
        remedy = f"this command needs {error.name}; pip install 'dance-gan[gan]'"
        return _fail(str(error) if ours else remedy, 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", 1)


def _fail(text: str, code: int) -> int:
    if _traceback():
        raise  # only called while an exception is handled
    node = "" if _rank() is None else f" node {_rank()}:"
    print(f"dance:{node} {text}", file=sys.stderr)
    return code


def _traceback() -> bool:
    return os.environ.get("DANCE_TRACEBACK", "") not in ("", "0")


def _rank() -> str | None:
    return os.environ.get("RANK")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A word of the command line: what help says of it, and what it runs with the arguments after it."""

    summary: str
    run: Callable[[list[str]], int]


def _dispatch(program: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_commands(program, commands)
        return 0 if arguments else 2
    word, rest = arguments[0], arguments[1:]
    if word == "--version" and program == "dance":
        import dance

        print(f"dance {dance.__version__}")
        return 0
    command = commands.get(word)
    if command is None:
        close = difflib.get_close_matches(word, commands, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown command {word!r}; {hint}{program} knows: {', '.join(commands)}")
    return command.run(rest)


def _print_commands(program: str, commands: Mapping[str, Command]) -> None:
    print(f"usage: {program} COMMAND [OPTIONS]\n")
    if program == "dance":
        print(
            "Fewer bytes over slow links: compressed packets, gossip, and GANs trained where the data is.\n"
        )
    print("commands:")
    for name, command in commands.items():
        print(f"  {name:<11}{command.summary}")
    print(f"\n`{program} COMMAND --help` explains one of them.")
    if program == "dance":
        print("\nexamples:")
        print("  dance info")
        print("  dance bench --codec int8 sign --numel 1Mi")
        print("  dance train --rounds 200 --d-nodes 4 --out runs/first")


def _parse(kind: Any, program: str, description: str, arguments: list[str]) -> Any:
    import tyro

    flags = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, prog=program, description=description, args=arguments, config=flags)


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    json: bool = False
    """Print JSON instead of a table."""


def _info(arguments: list[str]) -> int:
    description = "Show the version, the CPU targets built and in use, threads, and what there is of CUDA."
    config = _parse(InfoConfig, "dance info", description, arguments)
    import dance

    values = dance.info()
    if config.json:
        print(json.dumps(values))
        return 0
    from rich.console import Console
    from rich.table import Table

    words = {
        "version": values["version"],
        "CPU targets built": ", ".join(values["cpu_targets"]),
        "CPU target in use": f"{values['cpu_target']} (DANCE_CPU forces one)",
        "threads": str(values["threads"]),
        "CUDA built": "yes" if values["cuda_built"] else "no",
        "CUDA available": "yes" if values["cuda_available"] else "no",
        "CUDA architectures": ", ".join(str(a) for a in values["cuda_architectures"]) or "none",
    }
    table = Table.grid(padding=(0, 3))
    for name, text in words.items():
        table.add_row(name, text)
    Console(highlight=False).print(table)
    return 0


def _bench(arguments: list[str]) -> int:
    from dance import bench

    description = """Measure the codecs on this machine: every case and libc's memcpy of its input in turn,
round after round; figures are medians over rounds.

columns:
  GB/s      1e9 bytes of input a second, whatever the operation
  x memcpy  memcpy's time over ours, round by round (above 1: faster than a copy), and min..max over rounds
  roof      the rate of the bytes that must move (each array once over the memory bus: 4 + 1.02 an element
            for int8 encode, 4 + 8 + 1.02 with feedback; docs/performance.md has all), over the best rate of
            three plain loops at this size in the same rounds: memcpy (8 bytes an element must move), y += x
            (12) and y = -y (8), by NumPy or, with --device cuda, by torch on the current stream
  B/elem.   bytes an element on the wire, header included
  error     ||decoded - x|| / ||x|| on Gaussian data

Below 64Ki elements the calls themselves, from Python, take most of the time, those of the roof too. Residuals
and references get their first values back before every call, untimed. Threads concern codecs and roof; memcpy
has one.

examples:
  dance bench
  dance bench --codec int8 topk:ratio=0.01 --operation encode encode_feedback --numel 64Ki 16Mi
  dance bench --peers --codec int8        with torch, fbgemm, piquant, bitsandbytes ... if installed
  dance bench --device cuda --numel 64Mi --json > bench.json"""
    arguments = _joined(arguments, ("--codec", "--operation", "--numel"))
    config = _parse(bench.BenchConfig, "dance bench", description, arguments)

    if config.json:
        print(json.dumps(bench.report(config, bench.measure(config)), indent=1))
        return 0
    from rich.console import Console

    with Console(stderr=True).status("measuring") as status:
        run = bench.measure(config, lambda case: status.update(f"measuring {case.codec} {case.operation}"))
    bench.print_table(config, run)
    return 0


def _calibrate(arguments: list[str]) -> int:
    if arguments[:1] == ["gan"]:
        return _calibrate_gan(arguments[1:])
    from dance import calibrate

    description = """Measure the codecs on this machine and compute which of them is best for a collective,
by size of the tensor, mean rate of the link and deviation of that rate. The file is a map for
dance.policy.Table, which looks the link up that it measures while training. Takes seconds to a minute;
Ctrl-C leaves a file of before as it was.

examples:
  dance calibrate --world 4
  dance calibrate --world 8 --numel 1Mi 25Mi --feedback --out here.json
  dance calibrate --mbps 5 20 80 --deviation 0 0.5 --codec none int8 topk:ratio=0.01
  dance calibrate gan --help    the same for all messages of a GAN

then, at all ranks with the same file:
  dance.distributed.all_reduce(t, codec=dance.policy.Table("calibration.json"))"""
    arguments = _joined(arguments, ("--codec", "--numel", "--mbps", "--deviation"))
    config = _parse(calibrate.CalibrateConfig, "dance calibrate", description, arguments)
    from rich.console import Console
    from rich.progress import Progress

    out = Path(config.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"calibrate: --out: expected the path of a file in a folder there is, got {out}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        found = calibrate.calibrate(
            config,
            lambda text, done, total: progress.update(task, description=text, completed=done, total=total),
        )
    calibrate.write(found, out)
    calibrate.print_best(found)
    print(f"{out} is written; use it: dance.policy.Table({str(out)!r})")
    return 0


def _calibrate_gan(arguments: list[str]) -> int:
    import tyro

    from dance import calibrate_gan
    from dance.files import write_atomic
    from dance.gan.config import RunConfig

    kind = calibrate_gan.CalibrateGanConfig
    kind.__annotations__["run"] = Annotated[RunConfig, tyro.conf.arg(name="")]
    description = """Time a training round and the codecs on this machine and compute which recipe for a GAN's
messages (codecs, gossip period) reaches the target first, by mean rate of the links and deviation of that
rate. The file is a map for `dance train --layout model-parallel --codec auto --table FILE`, which looks the
links up that it measures while training; without a table it forecasts. Other flags are those of `dance
train`: data, networks, number of D-Nodes.

examples:
  dance calibrate gan --d-nodes 4
  dance calibrate gan --data fashion-mnist --d-nodes 8 --mbps 1 10 100 --to here.json"""
    config = _parse(kind, "dance calibrate gan", description, _joined(arguments, ("--mbps", "--deviation")))
    from rich.console import Console
    from rich.progress import Progress

    out = Path(config.to)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"calibrate: --to: expected the path of a file in a folder there is, got {out}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing", total=None)
        found = calibrate_gan.calibrate_gan(
            config,
            lambda text, done, total: progress.update(task, description=text, completed=done, total=total),
        )
    write_atomic(out, (found.to_json() + "\n").encode())
    calibrate_gan.print_recipes(found)
    print(f"{out} is written; use it: dance train --layout model-parallel --codec auto --table {out}")
    return 0


def _joined(arguments: list[str], flags: Sequence[str]) -> list[str]:
    """The arguments with all values of a flag that is given several times behind its first occurrence."""
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    into = rest
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in flags:
            into = values.setdefault(flag, [])
            if equals:
                into.append(value)
        elif argument.startswith("--"):
            into = rest
            rest.append(argument)
        else:
            into.append(argument)
    return rest + [word for flag, given in values.items() for word in (flag, *given)]


def _train(arguments: list[str]) -> int:
    from dance.gan.config import RunConfig

    description = """Train a GAN over generator nodes (G-Nodes) and discriminator nodes (D-Nodes) that
exchange compressed packets. Each node is a process of its own, started here or by torchrun; with --simulate
all live in this process, with the same results. The folder of --out gets metrics.jsonl,
summary.json, samples.png, curves.png and checkpoints; Ctrl-C leaves them usable.

examples:
  dance train --rounds 2000 --d-nodes 4 --out runs/first
  dance train --resume runs/first --rounds 4000
  dance train --data fashion-mnist --partition classes:2 --d-nodes 8 --simulate
  dance train --data photos --image-size 32 --model dcgan --d-nodes 4
  torchrun --nproc-per-node 5 -m dance train --d-nodes 4 --out runs/first"""
    config = _parse(RunConfig, "dance train", description, arguments)
    from dance.gan.engine import run

    result = run(config)
    if result.summary:  # under torchrun only node 0 has it
        _print_end(result.summary, result.folder, result.interrupted)
    return _INTERRUPTED if result.interrupted else 0


def _print_end(summary: Mapping[str, Any], folder: Path, interrupted: bool) -> None:
    from dance.report import megabytes

    state = "stopped" if interrupted else "done"
    print(f"\n{state} after {summary['rounds']} rounds, {summary['seconds']:.0f} s of training")
    if summary.get("score") is not None:
        drawn = sum(share > 0.02 for share in summary["class_histogram"])
        classes = f"; {drawn} of {len(summary['class_histogram'])} classes drawn"
        print(f"  score     {summary['score']:.2f} (FID {summary['fid']:.3g}{classes})")
    elif summary.get("fid") is not None:
        print(f"  FID       {summary['fid']:.3g}")
    if summary.get("modes") is not None:
        total = len(summary["class_histogram"])
        print(f"  modes     {summary['modes']} of {total}; {summary['near']:.0%} of the points are near one")
    if summary["bytes_sent"]:
        factor = summary["raw_bytes"] / summary["bytes_sent"]
        print(
            f"  sent      {megabytes(summary['bytes_sent'])}; uncompressed {megabytes(summary['raw_bytes'])} "
            f"({factor:.1f} times as much)"
        )
    if "switched" in summary:  # ac-gan's adaptive layout
        if summary["switched"] is not None:
            layout = f"model parallel since round {summary['switched']}"
        elif "delta" in summary["bytes_sent_by_kind"]:
            layout = "data parallel to the end"
        else:
            layout = "data parallel without an exchange: the generator is untrained"
        print(f"  layout    {layout}")
    print(f"  pictures  {folder / 'samples.png'}  {folder / 'curves.png'}")
    if interrupted:
        print(f"  go on     dance train --resume {folder}")


def _compare(arguments: list[str]) -> int:
    import tyro

    from dance.compare import command
    from dance.gan.config import RunConfig

    if arguments and not arguments[0].startswith("-"):
        _annotate(command.FoldersConfig, "folders", tyro.conf.Positional[tuple[str, ...]])
        config = _parse(command.FoldersConfig, "dance compare", command.FOLDERS, arguments)
        command.compare_folders(config)
        return 0
    # The flags of `dance train`, not `--run.rounds`; and --algorithms, as --methods was called once.
    _annotate(command.CompareConfig, "run", Annotated[RunConfig, tyro.conf.arg(name="")])
    _annotate(
        command.CompareConfig, "methods", Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--algorithms"])]
    )
    config = _parse(command.CompareConfig, "dance compare", command.DESCRIPTION, arguments)
    return _INTERRUPTED if command.compare(config, arguments) else 0


def _annotate(kind: type[Any], name: str, annotation: Any) -> None:
    """Tell tyro what a field of `kind` looks like on the command line; annotations are texts elsewhere."""
    kind.__annotations__[name] = annotation


def _data_list(arguments: list[str]) -> int:
    @dataclass(frozen=True)
    class ListConfig:
        pass

    _parse(ListConfig, "dance data list", "List the data sets known by name and where they are.", arguments)
    from dance.data import available

    for entry in available():
        print(f"{entry.name:<15}{entry.title}")
        place = entry.folder if entry.folder is not None else f"not here; `dance data fetch {entry.name}`"
        print(f"{'':<15}{place}")
    print("\nYour own: --data PATH of a folder of images (sub-folders are classes), of an .npz file with the")
    print("key images (and labels), or of a folder of IDX files; --partition folders for one folder a node.")
    return 0


def _data_fetch(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True)
    class FetchConfig:
        name: Any
        """mnist, fashion-mnist or cifar10"""

    FetchConfig.__annotations__["name"] = tyro.conf.Positional[str]
    description = """Download a data set from its public home, checked by SHA-256, into $DANCE_DATA/NAME or
the cache folder. A download that broke off is continued.

example:
  dance data fetch fashion-mnist"""
    config = _parse(FetchConfig, "dance data fetch", description, arguments)
    from dance.data import fetch

    print(f"{config.name} is in {fetch(config.name)}")
    return 0


_DATA_COMMANDS = {
    "list": Command(summary="the data sets known by name, and where they are", run=_data_list),
    "fetch": Command(summary="download mnist, fashion-mnist or cifar10", run=_data_fetch),
}

COMMANDS = {
    "info": Command(summary="what this build and this machine offer", run=_info),
    "bench": Command(summary="measure the codecs on this machine", run=_bench),
    "calibrate": Command(
        summary="find the best codec for each kind of link, from codec speeds here", run=_calibrate
    ),
    "train": Command(summary="train a GAN over several nodes", run=_train),
    "compare": Command(summary="train with several algorithms, one table at the end", run=_compare),
    "data": Command(
        summary="list or fetch data sets",
        run=lambda arguments: _dispatch("dance data", _DATA_COMMANDS, arguments),
    ),
}
