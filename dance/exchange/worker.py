"""A thread that executes tasks in the order of their submission."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Worker:
    """A daemon thread, started with the first task; tasks deal with their own errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy = threading.Lock()  # held while a task is executed, by whatever thread
        self._pending = 0
        self._thread: threading.Thread | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Executes ``task`` after all that were submitted before it."""
        with self._lock:
            self._pending += 1
            if self._thread is None:
                arguments = (self._tasks, self._busy, self._finished)
                self._thread = threading.Thread(target=_work, args=arguments, name=self._name, daemon=True)
                self._thread.start()
        self._tasks.put(task)

    def run(self, task: Callable[[], None]) -> None:
        """Executes ``task`` in its turn and waits for it; in this thread, if nothing is before it.

        RuntimeError in the worker's own thread (a callback of what it executes): it would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"{self._name}: a call that waits, made in the group's own thread (a future's callback?), "
                "would wait for itself; wait for the Work in the thread that started it and call there"
            )
        with self._lock:
            here = self._pending == 0 and self._busy.acquire(blocking=False)
        if here:
            try:
                task()
            finally:
                self._busy.release()
            return
        done = threading.Event()

        def and_tell() -> None:
            try:
                task()
            finally:
                done.set()

        self.submit(and_tell)
        done.wait()

    def drain(self) -> None:
        """Waits until all that was submitted is done."""
        if self._pending:
            self.run(lambda: None)

    def close(self) -> None:
        """Ends the thread after what was submitted."""
        self._tasks.put(None)

    def _finished(self) -> None:
        with self._lock:
            self._pending -= 1


def _work(
    tasks: SimpleQueue[Callable[[], None] | None], busy: threading.Lock, finished: Callable[[], None]
) -> None:
    while (task := tasks.get()) is not None:
        with busy:
            task()
        finished()
        del task  # it may hold a process group
