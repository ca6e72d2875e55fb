"""What every codec is: a frozen value, its text, and how it lies in a payload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from operator import index
from typing import Any, ClassVar, TypeAlias, TypeVar

from dance import _native

HEADER_NBYTES = 64
DTYPES = ("float32", "float16", "bfloat16")  # position = number in the wire header
_MAX_LAYOUTS = 1024  # how many sizes a codec remembers for a dtype

# The parameters as the core takes them for so many elements, the most payload bytes, and whether it is always
# these.
Layout: TypeAlias = "tuple[_native.Spec, int, bool]"
C = TypeVar("C", bound="Codec")


def _nothing_yet() -> tuple[dict[int, Layout], ...]:
    return tuple({} for _ in DTYPES)


@dataclass(frozen=True, kw_only=True)
class Codec:
    """What all codecs have in common; use the subclasses or `codec`."""

    name: ClassVar[str]
    id: ClassVar[int]
    principal: ClassVar[str | None] = None  # the option that the text of a codec always shows
    examples: ClassVar[tuple[str, ...]]  # texts that together show every option; tests iterate over them

    parallel_numel: ClassVar[int] = _native.PARALLEL_NUMEL  # from which on the number of threads matters

    # By dtype and numel: the answers of the core, asked for once. Not part of the value.
    _layouts: tuple[dict[int, Layout], ...] = field(
        default_factory=_nothing_yet, init=False, repr=False, compare=False
    )

    @property
    def contraction(self) -> float | None:
        """w with ``||C(x) - x||^2 <= (1 - w) ||x||^2`` for all float32 x of normal range, or None.

        Of a stochastic codec the left side is an expectation over seeds (Koloskova et al. 2019, assumption
        1).
        """
        raise NotImplementedError

    @property
    def bounded(self) -> bool:
        """Whether error feedback keeps residuals bounded: by contraction, or by an absolute bound."""
        return self.contraction is not None

    @property
    def fixed_size(self) -> bool:
        """Whether the size of a packet follows from the number of its elements."""
        return True

    @property
    def unbiased(self) -> bool:
        """Whether what is decoded is x in expectation over seeds."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether a packet depends on its seed."""
        return False

    def spec(self, numel: int) -> _native.Spec:
        """Returns the parameters that the header of a packet of ``numel`` elements carries."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls: type[C], spec: _native.Spec, numel: int) -> C:
        """Returns the codec that a header of ``numel`` elements describes; ValueError if there is none."""
        raise NotImplementedError

    def accepts(self, spec: _native.Spec, numel: int) -> bool:
        """Returns whether a packet with these parameters is one of this codec."""
        return self.layout(numel)[0].decodes_like(spec)

    def layout(self, numel: int, dtype: int = 0) -> Layout:
        """Returns (parameters, most payload bytes, whether always so many), remembered for ``numel``."""
        known = self._layouts[dtype].get(numel)
        if known is None:
            if not 0 <= numel < 1 << 62:
                raise ValueError(f"{self}: expected a number of elements in [0, 2^62), got {numel}")
            spec = self.spec(numel)
            known = (spec, _native.payload_bound(spec, dtype, numel), self.fixed_size)
            if len(self._layouts[dtype]) >= _MAX_LAYOUTS:
                self._layouts[dtype].clear()
            self._layouts[dtype][numel] = known
        return known

    def packet_nbytes(self, numel: int, dtype: str = "float32") -> int:
        """Returns the bytes of a packet of ``numel`` elements, its 64-byte header included.

        Exact for codecs of `fixed_size`, else no packet is larger. ``dtype`` is that of the array.
        """
        try:
            count = index(numel)
        except TypeError:
            raise ValueError(
                f"{self}: expected an integer number of elements, got {numel!r}; pass x.size or x.numel()"
            ) from None
        return HEADER_NBYTES + self.layout(count, dtype_number(self.name, dtype))[1]

    def __str__(self) -> str:
        options = [
            f"{option.name}={_option_text(getattr(self, option.name))}"
            for option in options_of(type(self))
            if option.name == self.principal or getattr(self, option.name) != option.default
        ]
        return f"{self.name}:{','.join(options)}" if options else self.name

    # A codec is its options; what it remembers of sizes stays behind when it is copied or pickled.
    def __reduce__(self) -> tuple[Callable[..., Codec], tuple[type[Codec], dict[str, Any]]]:
        return _rebuilt, (
            type(self),
            {option.name: getattr(self, option.name) for option in options_of(type(self))},
        )


def _rebuilt(kind: type[Codec], options: dict[str, Any]) -> Codec:
    return kind(**options)


def _option_text(value: Any) -> str:
    """An option as text; that of a codec within a codec shows what differs from the defaults alone."""
    if not isinstance(value, Codec):
        return str(value)
    options = [
        f"{option.name}={getattr(value, option.name)}"
        for option in options_of(type(value))
        if getattr(value, option.name) != option.default
    ]
    return f"{value.name}:{';'.join(options)}" if options else value.name


def options_of(kind: type[Codec]) -> list[Field[Any]]:
    return [option for option in fields(kind) if option.init]


def dtype_number(who: str, dtype: Any) -> int:
    """Returns the number of a dtype, given as text or as that of torch or NumPy."""
    text = getattr(dtype, "__name__", None) or str(dtype).removeprefix("torch.")
    if text not in DTYPES:
        raise ValueError(f"{who}: expected dtype {', '.join(DTYPES)}, got {text}; cast first")
    return DTYPES.index(text)


def parse(text: str, kinds: Mapping[str, type[Codec]]) -> Codec:
    """Returns the codec among ``kinds`` that ``text`` describes; ValueError says what is wrong and what there
    is.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    kind = kinds.get(name)
    if kind is None:
        raise unknown_codec(text, {each: kinds[each].examples[0] for each in kinds})
    known = {option.name: option for option in options_of(kind)}
    listing = (
        ", ".join(
            f"{option.name}={'...' if option.default is MISSING else _option_text(option.default)}"
            for option in known.values()
        )
        or "no options"
    )
    if colon and not rest:
        raise ValueError(f"codec {text!r}: nothing after the colon; {name} has {listing}")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            what = f"expected option=value, got {item.strip()!r}" if key else "remove the superfluous comma"
            raise ValueError(f"codec {text!r}: {what}; {name} has {listing}")
        if key not in known:
            hint = _semicolon(options.get("values"), key, item.strip(), kinds)
            raise ValueError(f"codec {text!r}: unknown option {item.strip()!r}; {name} has {listing}{hint}")
        if key in options:
            raise ValueError(f"codec {text!r}: option {key} is given twice")
        options[key] = _value(text, key, value, str(known[key].type))
    for option in known.values():
        if option.default is MISSING and option.name not in options:
            raise ValueError(f"codec {text!r}: needs {option.name}=..., such as {kind.examples[0]}")
    return kind(**options)


def unknown_codec(text: str, examples: Mapping[str, str]) -> ValueError:
    """The error for a text whose name is none of ``examples``, of which it shows the nearest."""
    from difflib import get_close_matches  # of use after a mistake alone

    word = text.lower().replace(",", ":").partition(":")[0].strip()
    meant = "".join(f"did you mean {examples[name]}? " for name in get_close_matches(word, examples, 1))
    return ValueError(f"unknown codec {text!r}; {meant}choose from {', '.join(examples)}")


def _semicolon(values: Any, key: str, item: str, kinds: Mapping[str, type[Codec]]) -> str:
    """What to write for an option that the codec of the values has."""
    inner = kinds.get(str(values).partition(":")[0])
    if inner is None or key not in {option.name for option in options_of(inner)}:
        return ""
    spelled = f"{values}{';' if ':' in values else ':'}{item}"
    return f"; options of values are separated by semicolons: values={spelled}"


def _value(text: str, key: str, value: str, annotation: str) -> Any:
    kind, expected = {"int": (int, "an integer"), "float": (float, "a number")}.get(annotation, (str, ""))
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"codec {text!r}: expected {expected} for {key}, got {value!r}") from None


def check_integer(who: str, option: str, value: Any, bounds: tuple[int, int]) -> None:
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{who}: expected an integer {option} in [{low}, {high}], got {value!r}")


def check_choice(who: str, option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{who}: expected {option}={'|'.join(choices)}, got {value!r}")
