"""The typed face of the C++ extension (csrc/bindings); import dance._native instead."""

from typing import Any, TypeAlias, TypedDict

from numpy.typing import NDArray
from typing_extensions import Buffer

Readable: TypeAlias = Buffer | NDArray[Any]

class CodecEntry(TypedDict):
    id: int
    name: str

class HeaderFields(TypedDict):
    codec: int
    block: int
    count: int
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
def payload_nbytes(codec: int, block: int, count: int, numel: int) -> int: ...
def encode(
    operation: int,
    codec: int,
    block: int,
    count: int,
    x: int,
    state: int,
    payload: int,
    payload_nbytes: int,
    numel: int,
    seed: int,
    device: int,
    stream: int,
    nonfinite: int = 0,
    scratch: int = 0,
) -> int: ...
def decode(
    codec: int,
    block: int,
    count: int,
    payload: int,
    payload_nbytes: int,
    out: int,
    numel: int,
    add: bool,
    weight: float,
    device: int,
    stream: int,
) -> None: ...
def mix(
    x: int, neighbour_sum: int, reference: int, step_size: float, numel: int, device: int, stream: int
) -> None: ...
def cuda_scratch_nbytes(codec: int, block: int, count: int, numel: int) -> int: ...
def header_write(
    codec: int,
    block: int,
    count: int,
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
def cuda_built() -> bool: ...
def cuda_available() -> bool: ...
def cuda_architectures() -> list[int]: ...
