"""What nodes report at an evaluation, and metrics.jsonl's line and summary.json that are made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

import dance
from dance.exchange import Exchange, Expected, Message
from dance.gan.config import RunConfig
from dance.gan.messages import Post, content
from dance.metrics import Evaluation

# The JSON row that a node reports at an evaluation, one byte an element.
_ROW_NUMEL = 4096
# Of a node's incoming links a row names the slowest.
_MAX_RATES = 32
# Rows of the report exist only to write metrics.jsonl; they are counted apart and are no part of any total.
REPORT = "report"


class Algorithm(Protocol):
    """What the engine needs from an algorithm; `node` is always one that lives in this process."""

    def round(self, round_index: int) -> None: ...

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor: ...

    def losses(self, node: int) -> tuple[float, float] | None: ...

    def codecs(self, node: int) -> dict[str, str]: ...

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Measuring(Protocol):
    """An algorithm that adds figures of its own to metrics.jsonl, known at node 0."""

    def measured(self) -> dict[str, Any]: ...


def gathered(exchange: Exchange, algorithm: Algorithm, post: Post, round_index: int) -> list[dict[str, Any]]:
    """The nodes' rows, in order: at node 0 those of all nodes, elsewhere of those that live here."""
    rows = {node: _row(exchange, algorithm, node) for node in exchange.nodes}
    if len(rows) == exchange.num_nodes:
        return [rows[node] for node in sorted(rows)]
    codec = dance.codec("none")
    outbox: list[Message] = []
    expected: list[Expected] = []
    for node in range(1, exchange.num_nodes):
        if node in rows:
            outbox.append(post.message(_packed(rows[node]), codec, node, 0, REPORT, round_index))
        if 0 in rows:
            shape = (_ROW_NUMEL,)
            expected.append(
                Expected(source=node, target=0, kind=REPORT, shape=shape, codec=codec, round=round_index)
            )
    for message in exchange.deliver(outbox, expected):
        rows[message.source] = _unpacked(content(message.packet))
    return [rows[node] for node in sorted(rows)]


def _row(exchange: Exchange, algorithm: Algorithm, node: int) -> dict[str, Any]:
    counts = {
        kind: [count.sent_bytes, count.received_bytes, count.raw_sent_bytes]
        for (counted, kind), count in exchange.counts.items()
        if counted == node and kind != REPORT
    }
    rates = {source: meter.rate_mbps for (source, target), meter in exchange.links.items() if target == node}
    measured = [(rate, source) for source, rate in rates.items() if rate and math.isfinite(rate)]
    losses = algorithm.losses(node)
    return {
        "node": node,
        "counts": counts,
        "losses": losses if losses and all(map(math.isfinite, losses)) else None,
        "codecs": algorithm.codecs(node),
        "rates": {str(source): round(rate, 3) for rate, source in sorted(measured)[:_MAX_RATES]},
    }


def _packed(row: Mapping[str, Any]) -> Tensor:
    text = json.dumps(row, allow_nan=False).encode()
    assert len(text) <= _ROW_NUMEL, f"a node's row has {len(text)} bytes"
    return torch.tensor([*text, *bytes(_ROW_NUMEL - len(text))], dtype=torch.float32)


def _unpacked(tensor: Tensor) -> dict[str, Any]:
    text = bytes(tensor.to(torch.uint8).tolist()).rstrip(b"\0")
    row: dict[str, Any] = json.loads(text)
    return row


def line(rows: Sequence[Mapping[str, Any]], config: RunConfig, evaluation: Evaluation) -> dict[str, Any]:
    """One line of metrics.jsonl; round and time are for the caller to fill in."""
    sent_by_kind: dict[str, int] = {}
    codecs: dict[str, list[str]] = {}
    for row in rows:
        for kind, (sent, _, _) in row["counts"].items():
            sent_by_kind[kind] = sent_by_kind.get(kind, 0) + sent
        for kind, text in row["codecs"].items():
            codecs.setdefault(kind, [])
            codecs[kind] += [text] if text not in codecs[kind] else []
    losses = [row["losses"] for row in rows if row["losses"] is not None]
    d_rows = rows[-config.d_nodes :] if config.algorithm != "standalone" else []
    touched = [sent + received for row in d_rows for sent, received, _ in row["counts"].values()]
    return {
        "round": 0,
        "wall_s": 0.0,
        "bytes_sent": sum(sent_by_kind.values()),
        "raw_bytes": sum(raw for row in rows for _, _, raw in row["counts"].values()),
        "bytes_per_node": sum(touched) / max(1, len(d_rows)),
        "bytes_sent_by_kind": dict(sorted(sent_by_kind.items())),
        "bytes_sent_by_node": {
            str(row["node"]): {kind: sent for kind, (sent, _, _) in row["counts"].items()} for row in rows
        },
        "d_loss": _mean([d for d, _ in losses]),
        "g_loss": _mean([g for _, g in losses]),
        "codecs": {kind: " ".join(texts) for kind, texts in sorted(codecs.items())},
        "link_rate_mbps": {f"{s}->{row['node']}": rate for row in rows for s, rate in row["rates"].items()},
        "score": evaluation.score,
        "fid": evaluation.fid,
        "kid": evaluation.kid,
        "class_histogram": evaluation.class_histogram,
        "entropy": evaluation.entropy,
        "num_images": evaluation.num_images,
        "num_real": evaluation.num_real,
        **({} if evaluation.modes is None else {"modes": evaluation.modes, "near": evaluation.near}),
    }


def summary(config: RunConfig, last: Mapping[str, Any], interrupted: bool) -> dict[str, Any]:
    kept = (
        "bytes_sent",
        "raw_bytes",
        "bytes_per_node",
        "bytes_sent_by_kind",
        "codecs",
        "fid",
        "kid",
        "modes",
        "near",
        "fid_raw",
        "score",
        "score_raw",
        "skew",
        "switched",
        "class_histogram",
        "num_images",
        "num_real",
        "virtual_s",
    )
    return {
        "algorithm": config.algorithm,
        "data": config.data,
        "partition": config.partition,
        "nodes": config.num_nodes,
        "rounds": last["round"],
        "seconds": last["wall_s"],
        **{name: last[name] for name in kept if name in last},
        "seed": config.seed,
        "interrupted": interrupted,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
