"""Batches in an order that is a function of (seed, sample number), whoever makes them."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tencentpretrain.config import ConfigError
from tencentpretrain.data.order import permute
from tencentpretrain.data.packing import Integers
from tencentpretrain.errors import CheckpointError, DataError, UserError
from tencentpretrain.types import Batch

AHEAD: Final = 2
"""Steps that each worker process makes before they are asked for."""


class Examples(Protocol):
    """What batches are made of: the objectives of pre-training, the tasks of fine-tuning.

    `make` must be a pure function; its result and what `collate` is given are of one kind.
    """

    def __len__(self) -> int: ...
    def make(self, epoch: int, index: int) -> Any: ...
    def collate(self, examples: list[Any]) -> Batch: ...


class Order(Protocol):
    """Which example each sample of a run is; a pure function."""

    def __call__(self, numbers: Integers) -> tuple[Integers, Integers]: ...


class ShuffledEpochs:
    """Sample number g is example permute(g % size) of epoch g // size.

    Args:
        size: number of examples.
        key: the permutation is that of this key and the epoch.
    """

    def __init__(self, size: int, *key: int) -> None:
        self._size = size
        self._key = key

    def __call__(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Epoch and index of the samples `numbers` [N]."""
        epochs, places = np.divmod(numbers, self._size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = permute(places[here], self._size, *self._key, epoch)
        return epochs, indices


class Loader:
    """Endless training batches; iterating yields the micro-batches of one step at a time.

    The samples of a run are numbered, and `order` says which example each is. Step k holds the
    samples from k times the batch size on, so that batches run across the ends of epochs and are
    always full.

    Args:
        examples: what to draw from.
        batch_size: samples of a step on all ranks together.
        micro_batch_size: greatest number of samples in a forward pass of one rank.
        seed: of the order.
        workers: processes that make batches ahead of time; 0 makes them when they are asked for.
        samples: samples of earlier steps, on all ranks together; they are skipped at no cost.
        rank: number of this process; each takes a slice of every step.
        world: number of processes.
        order: of the samples; None is `ShuffledEpochs` with the seed as its key.

    Raises:
        DataError: if there are no examples.
        ConfigError: if the ranks cannot share the batch equally.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        workers: int = 0,
        samples: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Order | None = None,
    ) -> None:
        if not len(examples):
            raise DataError("there is no example to train on; give data with at least one")
        require_equal_shares(batch_size, world)
        self.examples = examples
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.workers = workers
        self.samples = samples
        self._share = batch_size // world
        self._first = rank * self._share
        self._order = order or ShuffledEpochs(len(examples), seed)

    def __iter__(self) -> Iterator[list[Batch]]:
        steps = itertools.count(self.samples, self.batch_size)
        for batches in serve(_Steps(self), steps, self.workers):
            # Counted before the batches are handed out: a checkpoint is saved after their step.
            self.samples += self.batch_size
            yield batches

    def step_samples(self, samples: int) -> list[tuple[int, int]]:
        """Epoch and index of the samples of this rank in the step that follows `samples` others."""
        numbers = samples + self._first + np.arange(self._share)
        epochs, indices = self._order(numbers)
        return list(zip(epochs.tolist(), indices.tolist(), strict=True))

    def skip(self, samples: int) -> None:
        """Leave out the next `samples` samples; takes effect where iteration starts anew."""
        self.samples += samples

    def state_dict(self) -> dict[str, int]:
        """All that the order depends on beside the configuration."""
        return {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken; takes effect where iteration starts anew.

        Raises:
            CheckpointError: if `state` is not of a loader.
        """
        samples = state.get("samples")
        if not isinstance(samples, int) or samples < 0:
            raise CheckpointError(
                f"the loader's state must have a number `samples` of at least 0, but is {state}"
            )
        self.samples = samples


def require_equal_shares(batch_size: int, world: int) -> None:
    """Refuse a batch that `world` ranks cannot share equally.

    Raises:
        ConfigError: if there is a remainder.
    """
    if batch_size % world:
        raise ConfigError.at(
            "trainer.batch_size",
            f"must be a multiple of the number of processes, {world}, but is {batch_size}",
        )


class Shared(NamedTuple):
    """A batch for one of several ranks; `counts` is False where another one has it, too."""

    batch: Batch
    counts: bool


def shared_batches(
    examples: Examples,
    micro_batch_size: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    is_shuffled: bool = False,
) -> Iterator[Shared]:
    """Each example of epoch 0 once, in their order; of more than `limit`, as many evenly spread.

    Batches are dealt to `world` ranks, of which each gets as many; `workers` processes make them.
    With `is_shuffled` the order is another one, always the same: files often have all of a class
    side by side, which must not be what a batch is compared within.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    places = range(0, count, micro_batch_size)
    turns = range(rank, -(-len(places) // world) * world, world)
    keys = [places[min(turn, len(places) - 1)] for turn in turns]
    made = serve(_Rows(examples, micro_batch_size, count, is_shuffled), keys, workers)
    for turn, batches in zip(turns, made, strict=True):
        for batch in batches:
            yield Shared(batch, turn < len(places))


class _Steps(Dataset[Any]):
    """Micro-batches of a step by the number of samples before it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, samples: int) -> list[Batch]:
        loader = self._loader
        made = [loader.examples.make(*sample) for sample in loader.step_samples(samples)]
        return _collate(loader.examples, made, loader.micro_batch_size)


class _Rows(Dataset[Any]):
    """Batches for evaluation by the number of examples before them."""

    def __init__(self, examples: Examples, size: int, count: int, is_shuffled: bool) -> None:
        self._examples = examples
        self._size = size
        self._count = count
        self._is_shuffled = is_shuffled

    def __getitem__(self, place: int) -> list[Batch]:
        total, stop = len(self._examples), min(place + self._size, self._count)
        numbers = np.arange(place, stop)
        if self._is_shuffled:
            numbers = permute(numbers, self._count, 0)
        indices = (numbers * total // self._count).tolist()
        made = [self._examples.make(0, index) for index in indices]
        return _collate(self._examples, made, self._size)


def _collate(examples: Examples, made: list[Any], size: int) -> list[Batch]:
    return [examples.collate(made[start : start + size]) for start in range(0, len(made), size)]


class _Reporting(Dataset[Any]):
    """Hands errors of a worker over as values.

    What is meant for the user stays one sentence, and no error's traceback keeps torch's iterator,
    which ends its workers only when it is deleted.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: int) -> list[Batch] | Exception:
        try:
            batches: list[Batch] = self._dataset[key]
        except UserError as error:
            return error
        except Exception:
            return RuntimeError(f"a worker of the loader failed:\n{traceback.format_exc()}")
        return batches


class _Exact(Dataset[list[Batch]]):
    """Items of a dataset, made in full precision whatever a model is evaluated in.

    Whoever asks may be in torch's autocast, which would round filter banks and resampled sounds.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: int) -> list[Batch]:
        with torch.autocast("cpu", enabled=False):
            batches: list[Batch] = self._dataset[key]
        return batches


def serve(dataset: Dataset[Any], keys: Iterable[int], workers: int) -> Iterator[list[Batch]]:
    """The items of `dataset` at `keys`, in that order, made here or by `workers` processes.

    Raises:
        UserError: as a worker raised it.
        RuntimeError: for any other error of a worker, with its traceback.
    """
    exact = _Exact(dataset)
    served: DataLoader[Any] = DataLoader(
        _Reporting(exact) if workers else exact,
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        # Otherwise the global generator would be moved by every start of an iteration.
        generator=torch.Generator(),
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of locks that other threads hold while a process forks. The threads
        # here are torch's, which a worker does not use: it computes on one thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
        items = iter(served)
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        # The traceback of an error keeps this frame; without `items` the workers end all the same.
        del items


def _start_worker(number: int) -> None:
    """Outlive Ctrl-C and SIGTERM: they go to all processes, but the main one has a step to finish.

    Only a SIGTERM that the main process sends is obeyed; with it torch ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler is not told who sent the signal, but a thread that waits for it is.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
