"""A method: an algorithm with settings of its own and a name, from a text or from a TOML or JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dance.errors import UnavailableError
from dance.gan.config import ALGORITHMS, RunConfig

# What is the same for all methods, or decided by the comparison itself.
_COMMON = ("algorithm", "seed", "simulate", "resume", "out", "data")


@dataclass(frozen=True, kw_only=True)
class Method:
    """An algorithm and what differs from the common settings: `{"codec": "int4", "flgan.epochs": 2}`."""

    label: str
    algorithm: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: RunConfig, *, seed: int, out: str) -> RunConfig:
        """The config of a run; `base` has the common settings."""
        values = base.to_json() | {"algorithm": self.algorithm, "seed": seed, "out": out}
        for name, value in self.changes.items():
            group, _, last = name.rpartition(".")
            if group:
                values[group] = values[group] | {last: value}
            else:
                values[last] = value
        return RunConfig.from_json(values)

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "algorithm": self.algorithm, **self.changes}

    @property
    def slug(self) -> str:
        """The label as the name of a folder."""
        kept = "".join(c if c.isalnum() else "-" for c in self.label.lower())
        return "-".join(word for word in kept.split("-") if word) or "method"


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """The methods of texts such as `md-gan`, `ac-gan:gossip_codec=int4,label=AC-GAN int4` or `plan.toml`.

    A file has a list `methods` of tables with `algorithm`, perhaps `label`, and settings; groups are nested
    or dotted. Raises ValueError for an unknown name or a value of the wrong kind, with the nearest good one.
    """
    methods: list[Method] = []
    for text in texts:
        if Path(text).suffix in (".toml", ".json"):
            methods += [_from_table(table, text) for table in _tables(Path(text))]
        else:
            methods.append(_from_text(text))
    if not methods:
        raise ValueError("compare: --methods: expected at least one, for example ac-gan md-gan")
    seen: dict[str, Method] = {}
    for method in methods:
        if method.slug in seen:
            raise ValueError(
                f"compare: two methods are called {method.label!r}; give one another name: "
                f"{method.algorithm}:label=..."
            )
        seen[method.slug] = method
    return methods


def _from_text(text: str) -> Method:
    algorithm, _, rest = text.partition(":")
    changes: dict[str, str] = {}
    last = ""
    for piece in rest.split(",") if rest else []:
        name, equals, value = piece.partition("=")
        name = name.strip().replace("-", "_")
        if equals and (name == "label" or name in _fields() or "." in name):
            changes[name], last = value.strip(), name
        elif last:  # a comma within a value, as in int8:block=256,rounding=nearest
            changes[last] += f",{piece}"
        else:
            raise ValueError(f"compare: {text!r}: {_unknown(name)}")
    return _method(algorithm, changes, text)


def _from_table(table: object, place: str) -> Method:
    if not isinstance(table, Mapping) or "algorithm" not in table:
        raise ValueError(f"compare: {place}: every method needs an `algorithm`, got {table!r}")
    changes: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            changes |= {f"{name}.{inner}": each for inner, each in value.items()}
        elif name != "algorithm":
            changes[name.replace("-", "_")] = value
    return _method(str(table["algorithm"]), changes, place)


def _method(algorithm: str, changes: Mapping[str, Any], place: str) -> Method:
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"compare: {place!r}: unknown algorithm {algorithm!r}; choose from {', '.join(ALGORITHMS)}"
        )
    known, good = _fields(), {}
    for name, value in changes.items():
        if name == "label":
            continue
        if name not in known:
            raise ValueError(f"compare: {place!r}: {_unknown(name)}")
        if name in _COMMON:
            raise ValueError(f"compare: {place!r}: {name} is common to all methods; give it as a flag")
        good[name] = _value(name, value, known[name], place)
    plain = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in good.items())
    label = str(changes.get("label") or (f"{algorithm} {plain}" if plain else algorithm))
    return Method(label=label, algorithm=algorithm, changes=good)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _fields(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`dance train --help` lists the settings"
    return f"unknown setting {name!r}; {hint}"


def _fields() -> dict[str, Any]:
    """The kind of every setting by its name; those of groups dotted."""
    return dict(_walk(RunConfig, ""))


def _walk(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{name}.")
        elif name in {each.name for each in dataclasses.fields(kind)}:
            yield prefix + name, hint


def _value(name: str, value: Any, kind: Any, place: str) -> Any:
    """The value as JSON has it, converted from a text where it is one."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "None":
            return None
        (kind,) = (each for each in inside if each is not type(None))
        return _value(name, value, kind, place)
    if origin is typing.Literal:
        if value not in inside:
            raise ValueError(
                f"compare: {place!r}: {name}: unknown {value!r}; choose from {', '.join(map(str, inside))}"
            )
        return value
    if origin is tuple:
        items = value.split() if isinstance(value, str) else list(value)
        return [_value(name, item, inside[0], place) for item in items]
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        if kind in (int, float) and not isinstance(value, bool):
            return kind(value)
    except ValueError:
        pass
    if not isinstance(value, kind):
        raise ValueError(f"compare: {place!r}: {name}: expected {kind.__name__}, got {value!r}")
    return value


def _tables(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"compare: {path} does not exist; it would hold a list of methods") from None
    try:
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            if sys.version_info < (3, 11):
                raise UnavailableError("TOML needs Python 3.11 or later; write the methods as JSON")
            tomllib: Any = importlib.import_module("tomllib")  # by name: type checkers look at 3.10
            values = tomllib.loads(text)
    except ValueError as error:  # both decoders' errors are of this kind
        raise ValueError(f"compare: {path}: {error}") from None
    tables = values.get("methods") if isinstance(values, Mapping) else values
    if not isinstance(tables, list):
        raise ValueError(f"compare: {path}: expected a list `methods`, got {type(tables).__name__}")
    return tables
