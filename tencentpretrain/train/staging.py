"""Copies of tensors in the memory of the host, to be written while training goes on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tencentpretrain.train.checkpoint_files import TensorFile


class Staging:
    """Memory for the copies of one checkpoint, which the next one uses again.

    Fresh memory costs more time than the copying itself: its pages have to be found, and for a GPU
    pinned. So it stays as large as a checkpoint for as long as the run lasts.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def copy(self, files: list[TensorFile]) -> list[TensorFile]:
        """`files` with copies, which training does not change; those of before are overwritten."""
        before, self._kept = self._kept, {}
        copied = []
        for file in files:
            for name, tensor in file.tensors.items():
                kept = before.pop((file.name, name), None)
                if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                    kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._kept[file.name, name] = kept.copy_(tensor.detach(), non_blocking=True)
            copies = {name: self._kept[file.name, name] for name in file.tensors}
            copied.append(replace(file, tensors=copies))
        if any(tensor.is_cuda for file in files for tensor in file.tensors.values()):
            torch.cuda.synchronize()
        return copied
