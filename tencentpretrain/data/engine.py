"""Mapping a function over slices of a corpus: in this process, over many, or over machines."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Final, Literal, Protocol, TypeVar

from tencentpretrain.errors import DataError

EngineName = Literal["local", "ray"]

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 3
"""Items for each worker that are given out and not yet taken back; bounds the memory."""
PRELOADED: Final = ["tencentpretrain.data.encode"]


class Engine(Protocol):
    """Runs one function on many items; which engine it is never changes the results."""

    def map(
        self, make: Callable[[], Callable[[T], R]], items: Iterable[T]
    ) -> Generator[R, None, None]:
        """Results of the items in their order; `items` is read as far as there are free hands.

        Args:
            make: called once by each worker; returns the function that it applies.
            items: what to work on.

        Raises:
            DataError: if a worker died. What the function raises comes out as it is.
        """
        ...


class SerialEngine:
    """Everything in this process."""

    def map(
        self, make: Callable[[], Callable[[T], R]], items: Iterable[T]
    ) -> Generator[R, None, None]:
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            yield from map(make(), items)
        finally:
            if before is None:
                del os.environ["TOKENIZERS_PARALLELISM"]
            else:
                os.environ["TOKENIZERS_PARALLELISM"] = before


class ProcessEngine:
    """Processes of this machine.

    They are forked from a fresh server process, so that they share nothing with this one: no
    threads, no locks, no large libraries, not the script. They end with this process, however it
    ends.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(
        self, make: Callable[[], Callable[[T], R]], items: Iterable[T]
    ) -> Generator[R, None, None]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        lifeline, held = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(self._workers, context, _start, (make, lifeline))
        try:
            yield from self._results(pool, items)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for lack of memory; nothing was written; try "
                "fewer `workers`"
            ) from error
        finally:
            # Without their lifeline the workers leave at once, in the middle of what they do.
            held.close()
            pool.shutdown(wait=True, cancel_futures=True)
            lifeline.close()

    def _results(self, pool: ProcessPoolExecutor, items: Iterable[T]) -> Generator[Any, None, None]:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            with _no_main_module():
                waiting.append(pool.submit(_run, item))
            if len(waiting) >= IN_FLIGHT * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep new workers from importing the script that runs, with all that it imports."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def make_engine(workers: int | None = None, name: EngineName = "local") -> Engine:
    """The engine of a name.

    Args:
        workers: None is one for each core, of this machine or of the cluster.
        name: `local`, or `ray` for the machines of a Ray cluster.

    Raises:
        DataError: if Ray is not installed.
    """
    if name == "ray":
        from tencentpretrain.data.ray_engine import RayEngine

        return RayEngine(workers)
    workers = available_cores() if workers is None else workers
    return SerialEngine() if workers == 1 else ProcessEngine(workers)


# What a worker process holds; a pool has no other place for what lives as long as its worker.
_function: Callable[[Any], Any] | None = None
_failure: Exception | None = None


def _start(make: Callable[[], Callable[[Any], Any]], lifeline: Connection) -> None:
    """Prepare a worker process."""
    global _function, _failure
    # The parent hears the signals and decides; one library's threads for each worker are one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with_parent, args=(lifeline,), daemon=True).start()
    try:
        _function = make()
    except Exception as error:  # raised again in `_run`, from where it reaches the parent
        _failure = error


def _leave_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)


def _run(item: Any) -> Any:
    if _failure is not None:
        raise _failure
    assert _function is not None
    return _function(item)
