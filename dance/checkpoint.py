"""Checkpoints: a safetensors file and a JSON file per node and round, written atomically, checked when read.

    FOLDER/round-00000040/node-003.safetensors     the node's tensors
    FOLDER/round-00000040/node-003.json            length and SHA-256 of that file, and the node's other state

The JSON file is written last: a node's part of a round exists when its JSON file does. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dance.errors import DanceError
from dance.files import write_atomic, writing

if TYPE_CHECKING:
    import torch

_FORMAT = 1
_ROUND = re.compile(r"round-(\d{8,})")
_NODE = re.compile(r"node-(\d{3,})\.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one node saved: tensors by name (on the CPU), other state, rounds done, the run's nodes."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    round: int
    num_nodes: int


def save(
    folder: Path,
    node_id: int,
    tensors: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any],
    *,
    round: int,
    num_nodes: int = 1,
    keep: int = 3,
) -> Path:
    """Write a node's state after `round` rounds below `folder`; returns the folder of that round.

    A reader sees the old files or the new ones, whenever the process or the machine stops. This node's files
    of rounds older than the `keep` newest complete ones are removed, and of later rounds, which a resume from
    an earlier round has left behind. meta: JSON values, finite numbers only.
    """
    from safetensors.torch import save as to_bytes

    if keep < 1:
        raise ValueError(f"checkpoint: expected to keep at least 1 round, got {keep}")
    target = folder / f"round-{round:08d}"
    # A copy each: safetensors refuses tensors that share memory, which views of one flat vector do.
    payload = to_bytes({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})
    head = {
        "format": _FORMAT,
        "node": node_id,
        "round": round,
        "num_nodes": num_nodes,
        "num_bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "meta": dict(meta),
    }
    try:
        text = json.dumps(head, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: meta must be finite JSON values ({error})") from error
    head["check"] = hashlib.sha256(text.encode()).hexdigest()
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / f"node-{node_id:03d}.safetensors", payload)
    write_atomic(target / f"node-{node_id:03d}.json", json.dumps(head, sort_keys=True, indent=1).encode())
    _prune(folder, node_id, round, keep)
    return target


def load(path: Path, node_id: int) -> Checkpoint:
    """Read what `node_id` saved in the round folder `path` (see `latest`).

    Raises DanceError that names the file and the remedy where a file is missing, truncated or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    head = _read_head(path / f"node-{node_id:03d}.json", node_id)
    file = path / f"node-{node_id:03d}.safetensors"
    payload = _read(file)
    if len(payload) != head["num_bytes"]:
        raise _corrupt(file, f"has {len(payload)} bytes instead of {head['num_bytes']}")
    if hashlib.sha256(payload).hexdigest() != head["sha256"]:
        raise _corrupt(file, "does not have the bytes that were written")
    try:
        tensors: dict[str, torch.Tensor] = from_bytes(payload)
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise _corrupt(file, f"is no safetensors file ({error})") from error
    return Checkpoint(
        tensors=tensors, meta=dict(head["meta"]), round=int(head["round"]), num_nodes=int(head["num_nodes"])
    )


def latest(path: Path) -> Path | None:
    """The newest complete round at `path`: a run's folder, its checkpoints folder or a round's own folder.

    A round is complete when every node's part is there; None where there is none.
    """
    if _ROUND.fullmatch(path.name):
        return path if _is_complete(path) else None
    for folder in (path / "checkpoints", path):
        complete = _complete_rounds(folder)
        if complete:
            return complete[-1]
    return None


def find(path: Path) -> Path:
    """As `latest`, but DanceError with the remedy where there is no complete round."""
    found = latest(path)
    if found is None:
        state = "holds no complete checkpoint" if path.exists() else "does not exist"
        raise DanceError(
            f"resume: {path} {state}; give the --out folder of a run that wrote checkpoints "
            "(round-*/node-*.json), or start without --resume"
        )
    return found


def round_of(path: Path) -> int:
    """The number of rounds done at a round's folder."""
    match = _ROUND.fullmatch(path.name)
    if match is None:
        raise ValueError(
            f"{path} is not the folder of a checkpoint's round; expected a name like round-00000040"
        )
    return int(match[1])


def _read_head(file: Path, node_id: int) -> dict[str, Any]:
    try:
        head = json.loads(_read(file))
        check = head.pop("check")
        text = json.dumps(head, sort_keys=True, allow_nan=False)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _corrupt(file, "is no complete JSON file") from error
    if hashlib.sha256(text.encode()).hexdigest() != check:
        raise _corrupt(file, "does not have the content that was written")
    if head["format"] != _FORMAT:
        raise DanceError(
            f"checkpoint {file} has format {head['format']}, this version reads format {_FORMAT}; "
            "resume with the version that wrote it"
        )
    if head["node"] != node_id:
        raise _corrupt(file, f"belongs to node {head['node']}, not {node_id}")
    result: dict[str, Any] = head
    return result


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DanceError(
            f"checkpoint {file} is missing; resume from another round's folder beside it, "
            "or start without --resume"
        ) from error
    except OSError as error:
        raise DanceError(
            f"checkpoint {file} cannot be read: {error.strerror or error}; check the disk"
        ) from error


def _corrupt(file: Path, what: str) -> DanceError:
    return DanceError(
        f"checkpoint {file} is corrupt: it {what}; delete {file.parent} and resume from the round before it, "
        "or start without --resume"
    )


def _rounds(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _ROUND.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=round_of)


def _complete_rounds(folder: Path) -> list[Path]:
    return [path for path in _rounds(folder) if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    """Whether all nodes' parts are there; how many there must be is said by any readable one."""
    try:
        heads = sorted(name for name in os.listdir(path) if _NODE.fullmatch(name))
    except OSError:
        return False
    for name in heads:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return len(heads) == int(json.loads((path / name).read_bytes())["num_nodes"])
    # All unreadable: `load` says which file is corrupt, instead of a silent start from an older round.
    return bool(heads)


def _prune(folder: Path, node_id: int, newest: int, keep: int) -> None:
    complete = [number for number in map(round_of, _complete_rounds(folder)) if number <= newest]
    oldest = complete[-keep] if len(complete) >= keep else 0
    for path in _rounds(folder):
        if not oldest <= round_of(path) <= newest:
            # The JSON file first: what is left of a half-removed part does not count.
            for name in (f"node-{node_id:03d}.json", f"node-{node_id:03d}.safetensors"):
                with suppress(OSError):
                    (path / name).unlink()
            with suppress(OSError):  # not empty: other nodes remove their own parts
                path.rmdir()
