"""Local processes, one a node, started by torchrun's own API."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dance.errors import DanceError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# What a process returns that was stopped by Ctrl-C and came to a clean end.
INTERRUPTED = 130
# After a signal torchrun gives its processes so long to come to an end, then kills them.
_SHUTDOWN_S = 300
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _blame(failure: ProcessFailure) -> tuple[bool, int]:
    """The first failure comes first, but those after it that torchrun itself ended by its SIGTERM."""
    return failure.exitcode in (-signal.SIGTERM, INTERRUPTED), failure.timestamp


def launch(module: str, arguments: Sequence[str], *, num_processes: int, threads: int = 1) -> bool:
    """Run `python -m module arguments` in local processes; returns whether Ctrl-C or SIGTERM ended them.

    The processes have torchrun's variables (RANK, WORLD_SIZE and so on) and print to this one's terminal. The
    signal is passed on to them and they are waited for. Raises DanceError when one of them failed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failed process has said what was wrong; the agent's report of signals sent and exit codes hides it.
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    variables = {
        # Processes of one machine share its cores; without this each would start a thread a core.
        "OMP_NUM_THREADS": str(threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SHUTDOWN_S),  # older torch: 30 s, whatever this says
    }
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    # torchrun's agent sets handlers, in the main thread only, and leaves them behind.
    main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in _SIGNALS if main}
    try:
        elastic_launch(settings, sys.executable)("-m", module, *arguments)
    except SignalException:
        return True
    except ChildFailedError as error:
        node, failure = min(error.failures.items(), key=lambda each: _blame(each[1]))
        if failure.exitcode == INTERRUPTED:
            return True
        raise DanceError(
            f"node {node} of {num_processes} failed with exit code {failure.exitcode}; its message is above"
        ) from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for name in added:
            del os.environ[name]
    return False
