"""The typed face of the C++ extension (csrc/bindings); import dance._native instead."""

from typing import Any, TypeAlias, TypedDict

from numpy.typing import NDArray
from typing_extensions import Buffer

Readable: TypeAlias = Buffer | NDArray[Any]

class Spec:
    """The parameters of a codec as a header carries them; immutable."""

    def __init__(
        self,
        *,
        id: int,
        mode: int = 0,
        values: int = 0,
        block: int = 0,
        levels: int = 0,
        scope: int = 0,
        count: int = 0,
        argument: float = 0.0,
    ) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def values(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def levels(self) -> int: ...
    @property
    def scope(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def argument(self) -> float: ...
    def with_count(self, count: int) -> Spec: ...
    def decodes_like(self, other: Spec) -> bool: ...

class Reduction:
    """A reduce: its packets, then where the sum goes, then run."""

    def __init__(self, numel: int, weight: float, device: int, stream: int) -> None: ...
    def add(
        self, codec: Spec, dtype: int, seed: int, payload: int, payload_nbytes: int, numel: int
    ) -> None: ...
    def store(self, out: int, out_dtype: int) -> None: ...
    def encode(
        self,
        codec: Spec,
        dtype: int,
        residual: int,
        residual_dtype: int,
        seed: int,
        payload: int,
        payload_nbytes: int,
        flags: int,
    ) -> None: ...
    def scratch_nbytes(self) -> int: ...
    def run(self, scratch: int) -> tuple[int, int]: ...

class CodecEntry(TypedDict):
    id: int
    name: str
    sparse: bool
    fixed_size: bool
    seeded: bool

class HeaderFields(TypedDict):
    spec: Spec
    dtype: int
    numel: int
    payload_nbytes: int
    seed: int
    round: int
    sender: int
    payload_crc: int

version: str

def codecs() -> list[CodecEntry]: ...
def address(array: Readable) -> int: ...
def payload_nbytes(codec: Spec, dtype: int, numel: int) -> int: ...
def payload_bound(codec: Spec, dtype: int, numel: int) -> int: ...
def num_values(codec: Spec, numel: int) -> int: ...
def encode(
    codec: Spec,
    operation: int,
    x: int,
    dtype: int,
    state: int,
    state_dtype: int,
    numel: int,
    seed: int,
    payload: int,
    payload_nbytes: int,
    device: int,
    stream: int,
    flags: int,
    scratch: int,
) -> tuple[int, int]: ...
def decode(
    codec: Spec,
    dtype: int,
    seed: int,
    payload: int,
    payload_nbytes: int,
    out: int,
    out_dtype: int,
    numel: int,
    add: bool,
    weight: float,
    device: int,
    stream: int,
    scratch: int,
) -> None: ...
def indices(
    codec: Spec, dtype: int, seed: int, payload: int, payload_nbytes: int, numel: int, out: int
) -> None: ...
def mix(
    x: int,
    neighbour_sum: int,
    reference: int,
    dtype: int,
    step_size: float,
    numel: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_scratch_nbytes(codec: Spec, dtype: int, numel: int) -> int: ...
def header_write(
    codec: Spec,
    dtype: int,
    numel: int,
    seed: int,
    round: int,
    sender: int,
    payload: int,
    payload_nbytes: int,
) -> bytes: ...
def header_parse(buffer: Readable) -> HeaderFields: ...
def payload_check(header: Readable, payload: int, payload_nbytes: int) -> None: ...
def crc32c(buffer: Readable) -> int: ...
def cpu_target() -> str: ...
def cpu_targets() -> list[str]: ...
def get_num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...
def set_grain_shift(shift: int) -> None: ...
def num_begun_together() -> int: ...
def cuda_built() -> bool: ...
def cuda_available() -> bool: ...
def cuda_architectures() -> list[int]: ...
