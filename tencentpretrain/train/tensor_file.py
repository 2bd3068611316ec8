"""Tensors in safetensors files: written one after another, read by the `safetensors` library.

A file is the length of its header in 8 little-endian bytes, a JSON header with type, shape and
place of every tensor, and their raw bytes (https://github.com/huggingface/safetensors). We write it
ourselves because the library holds all bytes in memory at once and computes no checksum; we leave
reading, where the input may be hostile, to the library. Nothing is ever pickled or unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tencentpretrain.config import nearest
from tencentpretrain.distributed.layout import Box
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.durable import DurableFile, FileRecord

SUFFIX: Final = ".safetensors"
_HEADER_ALIGNMENT: Final = 8
_TYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES_READ: Final = {name: dtype for dtype, name in _TYPES.items()}


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are looked up, so that one at a time is in memory.

    Args:
        described: By name, on the meta device, with the shape and type of what will be made.
        read: Makes the tensor of a name.
    """

    def __init__(self, described: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.described = described
        self._read = read

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> LazyTensors:
        """Those that are in memory already."""
        described = {name: tensor.to("meta") for name, tensor in tensors.items()}
        return cls(described, tensors.__getitem__)

    def without(self, names: Iterable[str]) -> LazyTensors:
        """All but those called `names`."""
        left = self.described.keys() - set(names)
        return LazyTensors({n: t for n, t in self.described.items() if n in left}, self._read)

    def part(self, name: str, box: Box) -> Tensor:
        """The part `box` of the tensor `name`."""
        return self[name][box.slices]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.described:
            raise KeyError(name)
        made, described = self._read(name), self.described[name]
        assert (made.shape, made.dtype) == (described.shape, described.dtype), name
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileRecord:
    """Write `tensors` to the new file `path` and wait until they are on the disk.

    Equal tensors and metadata give equal bytes, whatever their order. Contiguous tensors in CPU
    memory are not copied; from other devices one tensor at a time is. `LazyTensors` are made one
    after another.

    Raises:
        TypeError: if a tensor has a type or layout that the format cannot hold.
        OSError: if the file exists or cannot be written; a part of it may be left.
    """
    kinds = tensors.described if isinstance(tensors, LazyTensors) else tensors
    for name, tensor in kinds.items():
        _check(name, tensor, is_described=tensors is not kinds)
    # Wide types first: then every tensor starts at a multiple of its width, as readers require.
    ordered = sorted(kinds, key=lambda name: (-kinds[name].element_size(), name))
    with DurableFile(path) as file:
        file.write(_header(kinds, ordered, metadata or {}))
        for name in ordered:
            file.write(_raw(tensors[name]))
    return file.record


def read_tensors(
    path: Path, device: torch.device | str = "cpu", names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Read all tensors, or those called `names`; on the CPU they are views of the mapped file.

    Raises:
        CheckpointError: if the file is absent or malformed, or lacks one of `names`.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            present = file.keys()
            wanted = present if names is None else list(names)
            absent = sorted(set(wanted) - set(present))
            if absent:
                hint = nearest(absent[0], present)
                raise CheckpointError(f"`{path}` has no tensor `{absent[0]}`; {hint}")
            return {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{path}` is no readable safetensors file: {error}") from error


def open_tensors(path: Path) -> LazyTensors:
    """The tensors of a file, each a view of the mapped file when it is looked up.

    Raises:
        CheckpointError: if the file is absent or malformed.
    """
    try:
        file: Any = safe_open(path, framework="pt")
        kinds = {name: described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"`{path}` is no readable safetensors file: {error}") from error
    return LazyTensors(kinds, file.get_tensor)


def described(piece: Any) -> Tensor:
    """A tensor on the meta device like that of a slice of an open file."""
    return torch.empty(piece.get_shape(), dtype=_TYPES_READ[piece.get_dtype()], device="meta")


def part_of(tensors: Mapping[str, Tensor], name: str, box: Box) -> Tensor:
    """The part `box` of the tensor `name`; where tensors are read on demand, no more is read."""
    if isinstance(tensors, LazyTensors):
        return tensors.part(name, box)
    return tensors[name][box.slices]


def _check(name: str, tensor: Tensor, is_described: bool = False) -> None:
    if name == "__metadata__":
        raise TypeError("a tensor must not be called `__metadata__`: the format reserves the name")
    if tensor.dtype not in _TYPES:
        raise TypeError(f"tensor `{name}` is of type {tensor.dtype}, which no safetensors file has")
    if tensor.layout is not torch.strided or (tensor.is_meta and not is_described):
        kind = "meta" if tensor.is_meta else str(tensor.layout)
        raise TypeError(f"tensor `{name}` must be dense and have values, but is {kind}")


def _header(
    tensors: Mapping[str, Tensor], ordered: list[str], metadata: Mapping[str, str]
) -> bytes:
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name in ordered:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; a view of its memory where that is contiguous and on the CPU."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
