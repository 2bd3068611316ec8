"""Mapping a function over slices of a corpus on the machines of a Ray cluster.

The slices are cut on the machine where the command runs, travel to workers anywhere, and what comes
back is taken in their order, so that the output is that of any other engine. Imported only where it
is asked for: Ray is an extra.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from tencentpretrain.data.engine import IN_FLIGHT, available_cores
from tencentpretrain.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

RETRIES: Final = 3
"""How often a slice is given out again after the worker that had it was lost."""
SECONDS_TO_ANSWER: Final = 10.0
QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Settings of Ray, unless the user has others: nothing is sent elsewhere, no remark on GPUs."""


class RayEngine:
    """Tasks of Ray, each a slice on one core.

    The cluster is the one that RAY_ADDRESS names or that runs on this machine (`ray start`);
    otherwise one is started for this process alone, and ends with it. A slice whose worker or
    machine is lost is given out again.

    Args:
        workers: slices computed at once; None is the number of cores of the cluster.

    Raises:
        DataError: if Ray is not installed.
    """

    def __init__(self, workers: int | None = None) -> None:
        if find_spec("ray") is None:
            raise DataError(
                "engine=ray needs Ray, which is not installed; install the extra with `pip install "
                "'tencentpretrain[ray]'`, or leave engine=local"
            )
        self._workers = workers

    def map(
        self, make: Callable[[], Callable[[T], R]], items: Iterable[T]
    ) -> Generator[R, None, None]:
        """Results of the items in their order; `items` is read as far as there are free hands.

        Raises:
            DataError: if there is no cluster, or a slice lost its worker more than RETRIES times.
                What the function raises comes out as it is.
        """
        with _connected(self._workers) as ray:
            workers = self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            # One copy for each machine, read by a worker when it has its first slice.
            shared = ray.put(make)
            task = ray.remote(num_cpus=1, max_retries=RETRIES)(run_slice)
            name = uuid.uuid4().hex
            waiting: deque[Any] = deque()
            try:
                for item in items:
                    waiting.append(task.remote(name, [shared], item))
                    if len(waiting) >= IN_FLIGHT * workers:
                        yield _result(ray, waiting.popleft())
                while waiting:
                    yield _result(ray, waiting.popleft())
            finally:
                for reference in waiting:
                    ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any) -> Any:
    """What a task returned or raised."""
    try:
        # Not `ray.get`, in which what a signal's handler raises is lost.
        return reference.future().result()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise DataError(
            f"a slice of the corpus lost its worker {RETRIES + 1} times, perhaps for lack of "
            f"memory; nothing was written; try fewer `workers` ({type(error).__name__})"
        ) from error


@contextmanager
def _connected(workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster; what was not connected before is not afterwards."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    with _kept_signals():
        import ray

        was_connected = ray.is_initialized()
        if not was_connected:
            _connect(ray, workers)
    try:
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    """Join a running cluster, or start one here."""
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _knock(address)
        ray.init("auto", **quiet)
    except OSError as error:  # the kind of ConnectionError too
        if address:
            raise DataError(
                f"the Ray cluster at RAY_ADDRESS={address} does not answer ({error}); start it "
                "with `ray start --head` under the same RAY_AUTH_MODE, or unset RAY_ADDRESS to use "
                "this machine alone"
            ) from error
        cores = workers or available_cores()
        logger.info(f"no Ray cluster is running; one with {cores} cores is started here")
        ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)


def _knock(address: str) -> None:
    """Fail at once where nothing listens; Ray itself tries for minutes.

    Raises:
        OSError: if nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Take back the signals that Ray would answer by leaving at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)


# The function of the run that this worker process works for, by the name of the run.
_made: dict[str, Callable[[Any], Any]] = {}


def run_slice(name: str, shared: list[Any], item: Any) -> Any:
    """Apply the function of a run to one slice, in a worker.

    Args:
        name: Of the run, so that the function is made once for each.
        shared: Reference to what makes the function; in a list Ray does not read it for each slice.
        item: The slice.
    """
    if name not in _made:
        import ray

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        _made.clear()
        _made[name] = ray.get(shared[0])()
    return _made[name](item)
