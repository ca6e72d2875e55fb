"""Settings of all tests: where the oracle is found, what Hypothesis may take, which tests need a GPU."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# Examples are cheap here, machines are shared: no deadline, and the same examples every time.
settings.register_profile(
    "dance", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("dance")


# A shell's `&` has Ctrl-C ignored in what it starts, and so in the processes that tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one, as in the processes of run_ranks."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from dance import info

    if info()["cuda_available"]:
        return
    skip = pytest.mark.skip(reason="dance.info() finds no usable CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
