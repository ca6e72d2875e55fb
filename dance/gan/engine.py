"""run(RunConfig) -> Result: checks, data, nodes, the loop over rounds, checkpoints and a clean end."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dance import checkpoint
from dance.bandwidth import parse_links
from dance.data import ImageData, from_dataset
from dance.data.dataset import save as save_data
from dance.errors import DanceError
from dance.exchange import Exchange, ProcessGroupExchange, SimulatedExchange
from dance.files import write_atomic, writing
from dance.gan.acgan import acgan
from dance.gan.budget import Budget
from dance.gan.computing import parse_computing
from dance.gan.config import RunConfig, under_torchrun, validate
from dance.gan.flgan import Flgan
from dance.gan.gossipgan import Gossipgan
from dance.gan.mdgan import Mdgan
from dance.gan.messages import Post
from dance.gan.models import Models
from dance.gan.models.build import check_models
from dance.gan.models.own import is_here_only, known
from dance.gan.parts import Part, RunData, run_data, with_classes
from dance.gan.rows import Algorithm, Measuring, gathered, line, summary
from dance.gan.settings import WHERE_AND_WHEN
from dance.gan.standalone import Standalone
from dance.launch import launch
from dance.metrics import NOT_MEASURED, Evaluation, Evaluator
from dance.pictures import are_points
from dance.report import Progress, RunWriter, read_metrics

# All nodes ask each other for Ctrl-C only so often: the question costs a message a node.
STOP_EVERY = 10
# A Ctrl-C so long after the first one means it.
_IMPATIENT_S = 2.0
# Node 0 may have to train the classifier before the first round, and evaluates while the others wait.
_TIMEOUT_S = 1800.0
# On the picture of samples.
_SHOWN_IMAGES, _SHOWN_POINTS = 100, 2000
_SHOWN = ("d_loss", "g_loss", "score", "fid", "bytes_sent", "raw_bytes", "link_rate_mbps", "codecs")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended; `summary` is summary.json, and empty in processes other than that of node 0."""

    folder: Path
    rounds: int
    interrupted: bool
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """Inception score by our own classifier; None without labels."""
        return self.summary.get("score")

    @property
    def fid(self) -> float | None:
        """Frechet distance on that classifier's features; only comparable on the same data."""
        return self.summary.get("fid")

    @property
    def bytes_sent(self) -> int:
        """What all nodes sent, headers included."""
        return int(self.summary.get("bytes_sent", 0))

    @property
    def raw_bytes(self) -> int:
        """What the same messages would have been uncompressed."""
        return int(self.summary.get("raw_bytes", 0))


def run(config: RunConfig, *, data: Any = None, models: Models | None = None) -> Result:
    """Train as `config` says and write the run's folder.

    data: an ImageData, or any map-style torch Dataset, in place of what `config.data` names
    (dance.data.from_dataset says what its items may be). models: own networks; functions that can be imported
    by name also work in a run over local processes, others only with `simulate`.
    Under torchrun a process group that is initialised already is used, and left so: a script that trains
    several GANs should make one. Where the run needs several nodes, is not simulated and was not started by
    torchrun, local processes are started and waited for. Raises ValueError for a bad value and DanceError for
    missing data, both before any process starts, and DanceError for a failed node.
    """
    if config.resume is not None:
        config = resumed(config)
    given = None if data is None else data if isinstance(data, ImageData) else from_dataset(data)
    if given is not None:
        config = dataclasses.replace(config, data=given.name)
    models = models or Models()
    with known(models.generator, "generator") as g, known(models.discriminator, "discriminator") as d:
        config = dataclasses.replace(
            config, generator=g or config.generator, discriminator=d or config.discriminator
        )
        validate(config)
        if under_torchrun() and not config.simulate:
            return _under_torchrun(config, given)
        found = run_data(config, given)
        config = _checked(config, found)
        if config.simulate or config.num_nodes == 1:
            count = config.num_nodes
            computing = parse_computing(config.compute, config.stragglers, count, config.seed)
            exchange = SimulatedExchange(
                count, parse_links(config.links, count), None if computing is None else computing.seconds
            )
            return _run(config, exchange, found)
        return _in_processes(config, given)


def resumed(config: RunConfig) -> RunConfig:
    """The config of the run that is resumed, in its folder unless `out` says otherwise.

    Rounds and when the run evaluates and saves may change. A field at its default counts as not given,
    `rounds` only while the run has not done all of its own; hence `simulate` can be switched on, not off.
    Raises ValueError for another field that is given with another value than the run began with.
    """
    folder = Path(config.resume or "")
    file = folder / "config.json"
    if not file.is_file():
        raise DanceError(f"resume: no {file}; give the folder of a run, the one that holds config.json")
    try:
        saved = RunConfig.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DanceError(f"resume: {file} is damaged ({error}); start a new run without --resume") from None
    free = {*WHERE_AND_WHEN, "simulate", "links", "compute", "stragglers", "stack"}
    default = RunConfig()
    changes: dict[str, Any] = {"resume": config.resume}
    if checkpoint.round_of(checkpoint.find(folder)) >= saved.rounds:
        changes["rounds"] = config.rounds
    for f in dataclasses.fields(RunConfig):
        given = getattr(config, f.name)
        if given in (getattr(default, f.name), getattr(saved, f.name)):
            continue
        if f.name not in free:
            raise ValueError(
                f"resume: {f.name} is {getattr(saved, f.name)!r} in {file}, got {given!r}; "
                "drop that flag, or start a new run without --resume"
            )
        changes[f.name] = given
    changes["out"] = config.out or config.resume  # also where the folder was moved since
    return dataclasses.replace(saved, **changes)


def _checked(config: RunConfig, data: RunData) -> RunConfig:
    """The config with what follows from its data. Raises ValueError where data and networks do not fit."""
    config = with_classes(config, data)
    channels, height, width = data.parts[0].shape[1:]
    check_models(config, (channels, height, width))
    return config


def _in_processes(config: RunConfig, data: ImageData | None) -> Result:
    """Start a process a node and wait; what node 0 found is read from the run's folder."""
    for text in (config.generator, config.discriminator):
        if text is not None and is_here_only(text):
            raise ValueError(
                "models: other processes cannot import a lambda, an inner function or one of a script; put "
                "it into a module of its own, or use RunConfig(simulate=True)"
            )
    if config.resume is not None:  # a damaged checkpoint is found here, once, and not by every process
        folder = checkpoint.find(Path(config.resume))
        for node in range(config.num_nodes):
            checkpoint.load(folder, node)
    file = config.folder / "summary.json"
    with writing(config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
    before = file.stat().st_mtime_ns if file.exists() else None
    with tempfile.TemporaryDirectory(prefix="dance-") as folder_of_request:
        request = Path(folder_of_request) / "config.json"
        write_atomic(request, json.dumps(config.to_json()).encode())
        arguments = [str(request)]
        if data is not None:
            arguments.append(str(Path(folder_of_request) / "data.safetensors"))
            save_data(data, Path(arguments[1]))
        count = config.num_nodes
        interrupted = launch("dance.gan", arguments, num_processes=count, threads=config.threads)
    if not file.exists() or file.stat().st_mtime_ns == before:  # stopped before the first round
        return Result(folder=config.folder, rounds=0, interrupted=True)
    summary = json.loads(file.read_text(encoding="utf-8"))
    return Result(folder=config.folder, rounds=summary["rounds"], interrupted=interrupted, summary=summary)


def _under_torchrun(config: RunConfig, data: ImageData | None) -> Result:
    """With the process group of the caller, who may train several GANs in one job, or one of its own."""
    own = not torch.distributed.is_initialized()
    if own:
        torch.distributed.init_process_group("gloo")
    try:
        found = run_data(config, data, _everyone)
        config = _checked(config, found)
        return _run(config, ProcessGroupExchange(timeout_s=_TIMEOUT_S), found)
    finally:
        if own:
            torch.distributed.destroy_process_group()


def _everyone(values: Tensor) -> Tensor:
    """The vectors of all ranks, a row each."""
    rows = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, values)
    return torch.stack(rows)


def build(config: RunConfig, exchange: Exchange, parts: Sequence[Part]) -> Algorithm:
    """The nodes of this process, under the algorithm's visible loop."""
    if config.algorithm == "fl-gan":
        labels = [part.labels for part in parts if isinstance(part, Part) and part.labels is not None]
        return Flgan(config, exchange, parts, labels)
    kinds: dict[str, Any] = {
        "ac-gan": acgan,
        "md-gan": Mdgan,
        "gossip-gan": Gossipgan,
        "standalone": Standalone,
    }
    algorithm: Algorithm = kinds[config.algorithm](config, exchange, parts)
    return algorithm


def _run(config: RunConfig, exchange: Exchange, data: RunData) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with _stop_requests() as stop:
            return _Run(config, exchange, data.real, build(config, exchange, data.parts)).train(stop)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs; Ctrl-C again, later, interrupts at once."""
    stop = threading.Event()
    first_s = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _: object) -> None:
        nonlocal first_s
        # A terminal and torchrun may both pass one Ctrl-C on; that is no second one.
        if stop.is_set() and number == signal.SIGINT and time.monotonic() - first_s > _IMPATIENT_S:
            raise KeyboardInterrupt
        first_s = first_s or time.monotonic()
        stop.set()

    kept = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Run:
    """The plain state of a run in one process: rounds, seconds, nodes, and at node 0 the writer."""

    def __init__(
        self, config: RunConfig, exchange: Exchange, real: ImageData | None, algorithm: Algorithm
    ) -> None:
        self.config = config
        self.exchange = exchange
        self.algorithm = algorithm
        self.post = Post(exchange=exchange, seed=config.seed)
        self.done = 0
        self.seconds = 0.0
        self.last: dict[str, Any] = {}
        if config.resume is not None:
            self._restore(checkpoint.find(Path(config.resume)))
        self.budget = Budget(config, exchange)
        # Only node 0's process writes the run's folder; the others write their checkpoints into it.
        self.writer: RunWriter | None = None
        if 0 in exchange.nodes:
            self.evaluator: Evaluator | None = None
            if real is not None:
                self.evaluator = Evaluator(real, seed=0, num_images=config.evaluate_images, on_training=print)
            else:
                print(
                    f"no {config.data}/test at the G-Node: images are drawn, score and FID are not measured",
                    flush=True,
                )
            if real is not None and "node-1" in real.class_names:
                print(
                    f"data {config.data}: node-1 and other sub-folders count as classes and all images are "
                    "divided anew; add --partition folders so that each D-Node reads its own",
                    flush=True,
                )
            resume_round = self.done if config.resume is not None else None
            self.writer = RunWriter(config.folder, config.to_json(), resume_round=resume_round)
            if self.writer.set_aside is not None:
                print(f"the earlier run in {config.folder} is now in {self.writer.set_aside}", flush=True)
            if config.resume is not None:
                print(f"resuming {config.resume} after round {self.done}, until {config.rounds}", flush=True)

    def train(self, stop: threading.Event) -> Result:
        config, interrupted = self.config, False
        ended = config.simulate and self.budget.is_spent()  # a run that is resumed at its end
        title, shown = config.algorithm, self.writer is not None
        # A simulated link without a limit has no rate to tell.
        unlimited = config.simulate and config.links is None
        shown_fields = [name for name in _SHOWN if not (unlimited and name == "link_rate_mbps")]
        with Progress(config.rounds, start=self.done, title=title, show=shown) as progress:
            while self.done < config.rounds and not ended:
                began = time.perf_counter()
                if isinstance(self.exchange, SimulatedExchange):
                    self.exchange.round = self.done
                self.algorithm.round(self.done)
                self.done += 1
                if self.done % STOP_EVERY == 0:
                    spent = self.budget.is_spent()
                    ended = self.exchange.any(stop.is_set() or spent)
                    interrupted = ended and not (self.budget.limited and self._anyone(spent))
                self.seconds += time.perf_counter() - began
                last = ended or self.done == config.rounds
                due = _due(self.done, config.evaluate_every) or self.done in config.evaluate_at
                if self.budget.passes_mark() or due or last:
                    self._evaluate()
                if last or _due(self.done, config.checkpoint_every):
                    self._save()
                fresh = self.last if self.last.get("round") == self.done else {}
                progress.update(self.done, **{name: fresh.get(name) for name in shown_fields})
        if not self.last:  # resumed at its end: nothing was trained, but the files are written again
            self._evaluate(again=True)
        self._finish(interrupted)
        # Nobody leaves before node 0 has written: torchrun takes an early end for a failure of the others.
        self.exchange.any(False)
        summary = self.last if self.writer is not None else {}
        return Result(folder=config.folder, rounds=self.done, interrupted=interrupted, summary=summary)

    def _anyone(self, flag: bool) -> bool:
        """As `Exchange.any`, without a message where all nodes live here: a resumed run counts the same."""
        alone = len(self.exchange.nodes) == self.exchange.num_nodes
        return flag if alone else self.exchange.any(flag)

    def _evaluate(self, *, again: bool = False) -> None:
        """Collect the nodes' rows; at node 0 draw and score images. Its cost is in no byte and no second.

        With `again` a line that the run has already written for this round is taken as it is.
        """
        rows = gathered(self.exchange, self.algorithm, self.post, self.done)
        self.last = {"round": self.done}
        if self.writer is None:
            return
        written = read_metrics(self.config.folder / "metrics.jsonl") if again else []
        if written and written[-1]["round"] == self.done:
            self.last = written[-1]
            return
        evaluation = self._evaluated(raw=False)
        raw = self._evaluated(raw=True) if self.config.ema else evaluation
        self.last = line(rows, self.config, evaluation)
        self.last |= {"fid_raw": raw.fid, "score_raw": raw.score}
        if isinstance(self.algorithm, Measuring):
            self.last |= self.algorithm.measured()
        self.last |= {"round": self.done, "wall_s": round(self.seconds, 3)}
        if self.config.simulate:
            self.last["virtual_s"] = max(self.exchange.elapsed_s(node) for node in self.exchange.nodes)
        self.writer.metrics(self.last)

    def _evaluated(self, *, raw: bool) -> Evaluation:
        """The averaged generator's images, or the raw one's."""
        if self.evaluator is None:
            return NOT_MEASURED
        images = self.algorithm.sample(self.config.evaluate_images, raw=raw)
        return self.evaluator.evaluate(_drawn_from(images))

    def _save(self) -> None:
        folder = self.config.folder / "checkpoints"
        for node in self.exchange.nodes:
            tensors, meta = self.algorithm.state(node)
            traffic = self.exchange.counts.state_dict()
            traffic["rows"] = [
                row for row in traffic["rows"] if row[traffic["columns"].index("node")] == node
            ]
            head = {"seconds": self.seconds, "traffic": traffic, "algorithm": meta}
            head["links"] = self.exchange.links.state_dict(node)
            if isinstance(self.exchange, SimulatedExchange):
                head["clock"] = self.exchange.state_dict()
            checkpoint.save(folder, node, tensors, head, round=self.done, num_nodes=self.exchange.num_nodes)

    def _restore(self, folder: Path) -> None:
        traffic: dict[str, Any] = {"columns": [], "rows": []}
        for node in self.exchange.nodes:
            saved = checkpoint.load(folder, node)
            if saved.num_nodes != self.exchange.num_nodes:
                raise DanceError(
                    f"resume: {folder} is of {saved.num_nodes} nodes, this run has {self.exchange.num_nodes}"
                )
            self.algorithm.restore(node, saved.tensors, saved.meta["algorithm"])
            traffic["columns"] = saved.meta["traffic"]["columns"]
            traffic["rows"] += saved.meta["traffic"]["rows"]
            self.exchange.links.load_state_dict(saved.meta["links"])
            self.done, self.seconds = saved.round, saved.meta["seconds"]
            if isinstance(self.exchange, SimulatedExchange) and "clock" in saved.meta:
                self.exchange.load_state_dict(saved.meta["clock"])
        self.exchange.counts.load_state_dict(traffic)

    def _finish(self, interrupted: bool) -> None:
        if self.writer is None:
            return
        config = self.config
        self.last = summary(config, self.last, interrupted)
        images = self.algorithm.sample(_SHOWN_POINTS)
        self.writer.samples(images if are_points(images.shape[1:]) else images[:_SHOWN_IMAGES])
        self.writer.curves()
        self.writer.summary(self.last)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _drawn_from(images: Tensor) -> Callable[[int], Tensor]:
    """A sampler that hands out `images` in order."""
    rest = [images]

    def draw(num_images: int) -> Tensor:
        drawn, rest[0] = rest[0][:num_images], rest[0][num_images:]
        return drawn

    return draw
