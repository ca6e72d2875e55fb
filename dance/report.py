"""What a run shows and leaves behind: the live line, metrics.jsonl, summary.json, pictures, calls.jsonl."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dance.errors import DanceError, UnavailableError
from dance.files import write_atomic, writing
from dance.pictures import are_points, curves_png, grid_png, scatter_png

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from dance.codecs import Codec
    from dance.policy import Decision, Explanation, Figures, Outcome, Policy, Send

# What a run writes besides config.json, which a starting process may be reading.
_FILES = ("config.json", "metrics.jsonl", "summary.json", "samples.png", "curves.png", "checkpoints")


class RunWriter:
    """Writes the folder of a run: only one process of the run holds one.

    resume_round: None for a new run, whose folder is cleared of an earlier run's results: they are moved to
    previous-1, previous-2 and so on inside it. A round: what was written after it is dropped, and the run
    goes on. Every method raises DanceError with path and remedy where the disk is full or not writable.
    """

    def __init__(self, out: Path, config: Mapping[str, Any], resume_round: int | None = None) -> None:
        for module, package in (("PIL", "pillow"), ("matplotlib", "matplotlib")):
            if find_spec(module) is None:  # now, and not after hours of training
                raise UnavailableError(f"the pictures of a run need {package}; pip install 'dance-gan[gan]'")
        self.out = Path(out)
        self._metrics = self.out / "metrics.jsonl"
        self.set_aside: Path | None = None  # where an earlier run's results went, if there were any
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            if resume_round is None:
                self._set_aside()
            else:
                self._drop_after(resume_round)
        self._write_json("config.json", config)

    def metrics(self, values: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl. Integers stay integers; numbers that are not finite become null."""
        line = json.dumps(plain(values), allow_nan=False) + "\n"
        with writing(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        return read_metrics(self._metrics)

    def samples(self, images: torch.Tensor, name: str = "samples.png") -> Path:
        """Write images (n, c, h, w) in [-1, 1] as a grid, small ones enlarged; points (n, 1, 1, 2) dotted."""
        path = self.out / name
        write_atomic(path, scatter_png(images) if are_points(images.shape[1:]) else grid_png(images))
        return path

    def curves(self, name: str = "curves.png") -> Path:
        """Draw metrics.jsonl: losses, score, FID and bytes against rounds."""
        path = self.out / name
        write_atomic(path, curves_png(self.lines()))
        return path

    def summary(self, values: Mapping[str, Any]) -> Path:
        """Write summary.json; the last thing a run does."""
        return self._write_json("summary.json", values)

    def _write_json(self, name: str, values: Mapping[str, Any]) -> Path:
        path = self.out / name
        write_atomic(path, (json.dumps(plain(values), indent=2, allow_nan=False) + "\n").encode())
        return path

    def _set_aside(self) -> None:
        old = [self.out / name for name in _FILES if (self.out / name).exists()]
        if not any(path.name != "config.json" for path in old):
            return
        number = 1
        while (self.out / f"previous-{number}").exists():
            number += 1
        folder = self.out / f"previous-{number}"
        folder.mkdir()
        for path in old:
            path.rename(folder / path.name)
        self.set_aside = folder

    def _drop_after(self, last_round: int) -> None:
        if self._metrics.exists():
            kept = [line for line in self.lines() if line.get("round", 0) <= last_round]
            write_atomic(self._metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a last line cut short by a crash is left out, any other bad line a DanceError."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DanceError(f"{path} cannot be read ({error}); move it away and resume again") from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(texts):
                break
            raise DanceError(f"{path}, line {number} is damaged ({error}); delete that line") from error
        lines.append(line)
    return lines


def plain(value: Any) -> Any:
    """The value as JSON knows it: NumPy and torch numbers as Python's, tuples as lists, nan as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays: integers stay integers
        return plain(value.tolist())
    raise ValueError(f"report: {value!r} ({type(value).__name__}) is no JSON value; give numbers or texts")


_UNDER_WAY = 256  # calls whose outcome may be awaited


class CallLog:
    """A policy that writes what another predicted beside what came of it: a JSON line a call, in ``path``.

    Give it to collectives in place of ``policy``: ``dd.all_reduce(t, codec=CallLog(Auto(), "calls.jsonl"))``.
    It chooses as ``policy`` does. A line has round, kind, target, numel, codec, num_bytes, predicted_s (null
    before anything is known) with its parts, and measured seconds, encode_s, decode_s, wire_s, wire_bytes.
    Write it at one rank, or in a file for each. What is logged of policies and restored is the policy's own.
    Of a `PerLayer` its policies have lines, fixed codecs none: nothing is predicted of those.
    """

    def __init__(self, policy: Policy, path: str | Path) -> None:
        self.policy = policy
        self.path = Path(path)
        self._predicted: dict[tuple[int, str, str], dict[str, Any]] = {}
        self._parts: dict[int, CallLog] = {}  # of policies for each name, by id; they keep theirs alive
        self._lock = threading.Lock()
        with writing(self.path):
            self.path.touch()  # now, and not in the middle of training

    @property
    def log(self) -> list[Decision]:
        return self.policy.log

    @property
    def round(self) -> Any:
        """Where the policy's calls have got to, if it counts them itself."""
        policy: Any = self.policy
        return policy.round

    def rule_of(self, target: str) -> Codec | Policy | None:
        """Returns what a `PerLayer` has for ``target``, logged in the same file; None: no rule for it."""
        find = getattr(self.policy, "rule_of", None)
        return None if find is None else self._part(find(target))

    @property
    def default(self) -> Any:
        """What counts where there is no rule: a codec or a policy."""
        policy: Any = self.policy
        return self._part(policy.default) if hasattr(policy, "rule_of") else self

    def _part(self, part: Any) -> Any:
        if not hasattr(part, "choose"):
            return part
        if id(part) not in self._parts:
            self._parts[id(part)] = CallLog(part, self.path)
        return self._parts[id(part)]

    def choose(self, send: Send) -> Codec:
        explanation = self.policy.explain(send)
        codec = self.policy.choose(send)
        # A trial may differ from what was explained; its row is there all the same.
        row = next((row for row in explanation.rows if row.codec == str(codec)), explanation.chosen)
        cost = row.cost
        with self._lock:
            if len(self._predicted) >= _UNDER_WAY:  # calls that failed leave no line
                del self._predicted[next(iter(self._predicted))]
            self._predicted[send.round, send.kind, send.target] = {
                "num_bytes": row.num_bytes,
                "predicted_s": None if cost is None else cost.total_s,
                "predicted_encode_s": None if cost is None else cost.encode_s,
                "predicted_wire_s": None if cost is None else cost.wire_s,
                "predicted_decode_s": None if cost is None else cost.decode_s,
            }
        return codec

    def explain(self, send: Send) -> Explanation:
        return self.policy.explain(send)

    def observe(self, send: Send, codec: Codec, outcome: Outcome) -> None:
        """Writes the call's line, and passes the outcome on; from any thread."""
        self.policy.observe(send, codec, outcome)
        with self._lock:
            predicted = self._predicted.pop((send.round, send.kind, send.target), {})
            values = {
                "round": send.round,
                "kind": send.kind,
                "target": send.target,
                "numel": send.numel,
                "codec": str(codec),
                **predicted,
                **asdict(outcome),
            }
            line = json.dumps(plain(values), allow_nan=False) + "\n"
            with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(line)

    def shares(self, call: int) -> bool:
        return self.policy.shares(call)

    def figures(self) -> Figures:
        return self.policy.figures()

    def agree(self, figures: Figures) -> None:
        self.policy.agree(figures)

    def state_dict(self) -> dict[str, Any]:
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state)


# A rate above is no link's: it is the memory of one machine, or a simulation without links.
_FASTEST_MBPS = 1e6


class Progress:
    """How far a run is: one live line in a terminal, plain lines elsewhere (about twenty, or one in 30 s).

    with Progress(2000) as progress: progress.update(done, g_loss=..., d_loss=..., score=..., bytes_sent=...)

    A field keeps its last value on the live line until another comes; plain lines show it once. Known
    fields: g_loss, d_loss, score, fid, bytes_sent, raw_bytes, link_rate_mbps (a number, or a mapping: the
    slowest is shown), codecs (a text, or a mapping).
    """

    def __init__(
        self, total: int, *, start: int = 0, title: str = "", show: bool = True, terminal: bool | None = None
    ) -> None:
        from rich.console import Console

        self._total, self._start, self._done = total, start, start
        self._title = title
        self._show = show
        self._console = Console(stderr=False, highlight=False, soft_wrap=True)
        self._live = show and (self._console.is_terminal if terminal is None else terminal)
        self._fields: dict[str, Any] = {}
        self._news = False  # whether a field has come since the last plain line
        self._bar: Any = None
        self._task: Any = None
        self._began = self._printed_at = 0.0
        self._printed = start
        self._printed_codecs: Any = None

    def __enter__(self) -> Self:
        self._began = self._printed_at = time.monotonic()
        if self._live:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
            )
            self._task = self._bar.add_task(
                self._title or "round", total=self._total, completed=self._start, text=""
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and self._printed != self._done:
            self._print_line()

    def update(self, done: int, **fields: Any) -> None:
        """Say that `done` rounds are done; None leaves a field as it is."""
        self._done = done
        fresh = {name: value for name, value in fields.items() if value is not None}
        self._fields.update(fresh)
        self._news = self._news or bool(fresh)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self.text())
        elif self._show:
            evaluated = fields.get("score") is not None or fields.get("fid") is not None
            often = done - self._printed >= max(1, self._total // 20) or done >= self._total
            if done != self._printed and (evaluated or often or time.monotonic() - self._printed_at > 30):
                self._print_line()

    def line(self, text: str) -> None:
        """Print a line of text, above the live line where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        elif self._show:
            print(text, flush=True)

    def text(self, *, codecs: bool = True) -> str:
        """The fields as one line, the most wanted first."""
        fields, parts = self._fields, []
        if "d_loss" in fields and "g_loss" in fields:
            parts.append(f"loss D {fields['d_loss']:.2f} G {fields['g_loss']:.2f}")
        if "score" in fields:
            parts.append(f"score {fields['score']:.2f}")
        if "fid" in fields:
            parts.append(f"FID {fields['fid']:.3g}")
        if "bytes_sent" in fields:
            raw = fields.get("raw_bytes")
            parts.append(f"sent {megabytes(fields['bytes_sent'])}" + (f" of {megabytes(raw)}" if raw else ""))
        rate = _slowest(fields.get("link_rate_mbps"))
        if rate is not None and rate < _FASTEST_MBPS:
            parts.append(f"slowest link {rate:.3g} Mbit/s")
        used = fields.get("codecs")
        if used and codecs:
            named = used.items() if isinstance(used, Mapping) else [("codec", used)]
            parts.append(", ".join(f"{kind} {text}" for kind, text in named))
        return "  ".join(parts)

    def _print_line(self) -> None:
        rounds = self._done - self._start
        speed = rounds / max(1e-9, time.monotonic() - self._began)
        left = (self._total - self._done) / speed if speed > 0 else 0.0
        head = f"{self._title + ' ' if self._title else ''}round {self._done}/{self._total}"
        text = self.text(codecs=self._fields.get("codecs") != self._printed_codecs) if self._news else ""
        self._news = False
        print(f"{head}  {speed:.1f} rounds/s  {left:.0f} s left  {text}".rstrip(), flush=True)
        self._printed_codecs = self._fields.get("codecs")
        self._printed, self._printed_at = self._done, time.monotonic()


def megabytes(num_bytes: float) -> str:
    """Bytes for people: 12.3 kB, 4.56 MB, 1.20 GB; 1 kB is 1,000 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return (
                f"{num_bytes / size:.3g} {unit}"
                if num_bytes < 100 * size
                else f"{num_bytes / size:.0f} {unit}"
            )
    return f"{num_bytes:.0f} B"


def _slowest(rate: Any) -> float | None:
    values = [value for value in rate.values() if value] if isinstance(rate, Mapping) else [rate]
    return min((float(value) for value in values if value is not None), default=None)
