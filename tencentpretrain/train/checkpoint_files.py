"""The files of a checkpoint, written into a directory that nobody reads yet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tencentpretrain.distributed.layout import local_part
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.durable import FileRecord, copy_file, write_bytes
from tencentpretrain.train.manifest import MANIFEST, Manifest, check_name
from tencentpretrain.train.pieces import lie_in_pieces, piece_file, pieces_of
from tencentpretrain.train.saved_checkpoint import STATE
from tencentpretrain.train.tensor_file import SUFFIX, write_tensors

if TYPE_CHECKING:
    from tencentpretrain.distributed.parallel import Parallel

Source = bytes | Path


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors that this process is to write.

    Args:
        name: Path in the checkpoint.
        tensors: What is in it, by name.
        metadata: What its header says beside.
    """

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def tensor_files(
    tensors: Mapping[str, Mapping[str, Tensor]], parallel: Parallel | None = None
) -> list[TensorFile]:
    """What this process writes of `tensors`, which are given by stem, then by name."""
    files = (_tensor_file(stem, members, parallel) for stem, members in tensors.items())
    return [file for file in files if file is not None]


def _tensor_file(
    stem: str, tensors: Mapping[str, Tensor], parallel: Parallel | None
) -> TensorFile | None:
    if parallel is None:
        return TensorFile(stem + SUFFIX, tensors)
    if not lie_in_pieces(tensors):
        whole = {name: local_part(tensor) for name, tensor in tensors.items()}
        return TensorFile(stem + SUFFIX, whole) if parallel.is_main else None
    kept = [name for name, tensor in tensors.items() if parallel.is_keeper(tensor)]
    pieces, metadata = pieces_of(tensors, kept)
    name = piece_file(stem, parallel.circle.rank, parallel.circle.world)
    return TensorFile(name, pieces, metadata) if pieces else None


def fill_checkpoint(
    directory: Path,
    manifest: Manifest,
    tensors: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, Source],
) -> None:
    """Write all files of a checkpoint into the empty `directory`, the manifest last.

    Raises:
        OSError: if it cannot be written; a part of it may be left.
    """
    records = write_parts(directory, tensor_files(tensors), files)
    complete = manifest.model_copy(update={"files": dict(sorted(records.items()))})
    write_bytes(directory / MANIFEST, complete.to_bytes())


def check_names(tensors: Mapping[str, object], files: Mapping[str, object]) -> None:
    """Refuse names that lead elsewhere or that two parts share."""
    taken = {STATE}
    for name in [*files, *(stem + SUFFIX for stem in tensors)]:
        check_name(name)
        if name in taken:
            raise CheckpointError(f"`{name}` would be in the checkpoint twice; rename one of them")
        taken.add(name)


def write_parts(
    directory: Path,
    tensors: Iterable[TensorFile],
    files: Mapping[str, Source],
) -> dict[str, FileRecord]:
    """Write this process's part of all but the manifest; records by path in `directory`."""
    records: dict[str, FileRecord] = {}
    for name, source in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            records[name] = write_bytes(path, source)
        elif source.is_dir():
            records.update(_copy_tree(source, directory, name))
        else:
            records[name] = copy_file(source, path)
    for file in tensors:
        path = directory / file.name
        path.parent.mkdir(exist_ok=True)
        records[file.name] = write_tensors(path, file.tensors, file.metadata)
    return records


def _copy_tree(source: Path, directory: Path, name: str) -> dict[str, FileRecord]:
    records: dict[str, FileRecord] = {}
    for folder, _, members in os.walk(source, onerror=_fail, followlinks=True):
        inside = Path(name) / Path(folder).relative_to(source)
        (directory / inside).mkdir(parents=True, exist_ok=True)
        for member in sorted(members):
            path = inside / member
            records[path.as_posix()] = copy_file(Path(folder) / member, directory / path)
    return records


def _fail(error: OSError) -> None:
    raise error
