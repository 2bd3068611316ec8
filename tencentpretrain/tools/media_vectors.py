"""One vector for each file of folders, tar files and lists, whatever it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tools.vector_file import Vectors
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Stream, map_tensors


class MediaVectors(ABC):
    """Computes vectors of files.

    Args:
        read: From the stream of several files to their vectors [B, D].
        machine: How the model is run.
    """

    def __init__(self, read: Callable[[Stream], Tensor], machine: Machine) -> None:
        self._read, self._machine = read, machine

    @abstractmethod
    def stream(self, entries: Sequence[MediaEntry]) -> Stream:
        """What the model reads of some files.

        Raises:
            DataError: naming one that cannot be decoded.
        """

    def vectors(self, entries: Sequence[MediaEntry]) -> Iterator[Vectors]:
        """Vectors [n, D] of some of the files at a time, in their order."""
        rest, machine = iter(entries), self._machine
        while part := list(islice(rest, machine.batch_size)):
            stream = map_tensors(self.stream(part), lambda tensor: tensor.to(machine.device))
            with torch.inference_mode(), autocast(machine.dtype, machine.device):
                found = self._read(stream)
            yield found.float().cpu().numpy()
