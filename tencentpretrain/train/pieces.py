"""Tensors that lie in pieces in several safetensors files, one of each process that saved them.

The files are `<stem>/00000-of-00004.safetensors` and so on. Their metadata say of every tensor how
long the whole is along each axis, and where the piece starts, so that any number of processes can
read what another number wrote, each only what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tencentpretrain.distributed.layout import Box, cut_axes, is_shared, local_box, local_part
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import SUFFIX, LazyTensors, described

SHAPES: Final = "shapes"
STARTS: Final = "starts"


def lie_in_pieces(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of `tensors` is cut; all processes find the same."""
    return any(
        is_shared(tensor) and any(tensor.device_mesh.size(axis) > 1 for axis, _ in cut_axes(tensor))
        for tensor in tensors.values()
    )


def piece_file(stem: str, rank: int, world: int) -> str:
    """Name of the file of a process."""
    return f"{stem}/{rank:05}-of-{world:05}{SUFFIX}"


def pieces_of(
    tensors: Mapping[str, Tensor], keeps: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What this process writes of `tensors`, and the metadata of its file.

    Args:
        tensors: By name.
        keeps: Names of those that this process, of all that have its piece of them, writes.
    """
    found: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    starts: dict[str, list[int]] = {}
    for name in keeps:
        box = local_box(tensors[name])
        if not box.is_empty:
            found[name] = local_part(tensors[name])
            shapes[name], starts[name] = list(tensors[name].shape), list(box.start)
    return found, {SHAPES: json.dumps(shapes), STARTS: json.dumps(starts)}


class _Piece(NamedTuple):
    """A piece of a tensor: the open file that has it, and which part it is."""

    file: Any
    box: Box


class PieceTensors(LazyTensors):
    """Tensors that are put together from their pieces when they are looked up.

    Args:
        paths: All files of one stem.

    Raises:
        CheckpointError: if a file cannot be read, or a part of a tensor is in none of them.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._pieces: dict[str, list[_Piece]] = {}
        wholes: dict[str, Tensor] = {}
        for path in paths:
            self._open(path, wholes)
        super().__init__(dict(sorted(wholes.items())), self._whole)
        for name, whole in wholes.items():
            boxes = {piece.box for piece in self._pieces[name]}
            if sum(torch.Size(box.shape).numel() for box in boxes) != whole.numel():
                raise CheckpointError(f"a piece of tensor `{name}` is in none of its files")

    def _open(self, path: Path, wholes: dict[str, Tensor]) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
            shapes, starts = json.loads(metadata[SHAPES]), json.loads(metadata[STARTS])
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                piece = described(file.get_slice(name))
                box = Box(tuple(starts[name]), tuple(piece.shape))
                whole = torch.empty(shapes[name], dtype=piece.dtype, device="meta")
                known = wholes.setdefault(name, whole)
                if (known.shape, known.dtype) != (whole.shape, whole.dtype):
                    raise CheckpointError(f"`{path}` disagrees with its siblings on `{name}`")
                self._pieces.setdefault(name, []).append(_Piece(file, box))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"`{path}` holds no readable pieces: {error}") from error

    def _whole(self, name: str) -> Tensor:
        return self.part(name, Box.whole(self.described[name].shape))

    def part(self, name: str, box: Box) -> Tensor:
        """The part `box` of a tensor; only what it overlaps is read."""
        made: Tensor | None = None
        for file, place in self._pieces[name]:
            shared = box.overlap(place)
            if shared.is_empty and not box.is_empty:
                continue
            values = _read(file, name, shared.within(place))
            if shared == box:
                return values
            if made is None:
                made = torch.empty(box.shape, dtype=values.dtype)
            made[shared.within(box).slices] = values
        assert made is not None, name
        return made


def _read(file: Any, name: str, box: Box) -> Tensor:
    # A slice needs an axis, which single numbers have not.
    values: Tensor = file.get_slice(name)[box.slices] if box.shape else file.get_tensor(name)
    return values
