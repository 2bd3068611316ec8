"""Opening weights that others wrote: safetensors or torch files, whole or in pieces, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import SUFFIX, LazyTensors, open_tensors

TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
WHOLE: Final = (f"model{SUFFIX}", "pytorch_model.bin")
"""Files of a folder that hold all weights, the preferred one first."""
INDICES: Final = (
    f"model{SUFFIX}.index.json",
    "pytorch_model.bin.index.json",
    "tencentpretrain_model.bin.index.json",
)
"""Files that say which piece holds which tensor."""


def open_weights(path: Path) -> LazyTensors:
    """Tensors of a file, or of the folder that a model was saved in; nothing is read yet.

    Raises:
        CheckpointError: if there are none, or they are of a kind that cannot be read safely.
    """
    if not path.is_dir():
        return open_file(path)
    whole = next((path / name for name in WHOLE if (path / name).is_file()), None)
    if whole is not None:
        return open_file(whole)
    index = next((path / name for name in INDICES if (path / name).is_file()), None)
    if index is not None:
        return _open_pieces(index)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        f"`{path}` holds no weights: looked for {', '.join(WHOLE + INDICES)}; it has {found}"
    )


def open_file(path: Path) -> LazyTensors:
    """Tensors of one file, views of the mapped file where its format allows that.

    Raises:
        CheckpointError: as `open_weights`.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file `{path}`")
    if path.suffix == SUFFIX:
        return open_tensors(path)
    if path.suffix in TORCH_SUFFIXES or not path.suffix:
        return LazyTensors.of(_read_torch(path))
    raise CheckpointError(
        f"`{path}` must be a file of weights ({SUFFIX}, {', '.join(TORCH_SUFFIXES)}), but ends in "
        f"`{path.suffix}`"
    )


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of `torch.save`; torch's restricted reader runs no code of the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # torch raises errors of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"`{path}` cannot be read as plain weights ({type(error).__name__}: {reason:.200}); a "
            "file with anything but tensors in it may hold code and is not opened: save its "
            "state_dict() as safetensors where you trust it"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"`{path}` must hold tensors by name, but holds {_kind(content)}")
    for wrapper in ("state_dict", "module"):
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            content = inner
    return {_name(path, key): _tensor(path, key, value) for key, value in content.items()}


def _is_zip(path: Path) -> bool:
    """Whether the file is of torch 1.6 or newer, which can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _name(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"`{path}` must hold tensors by name, but has the key {key!r}")
    return key


def _tensor(path: Path, key: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"`{path}` must hold tensors by name, but `{key}` is {_kind(value)}; save the "
            "state_dict() of the model alone"
        )
    return value.detach()


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"


def _open_pieces(index: Path) -> LazyTensors:
    """Tensors of all pieces that an index lists."""
    files: Any = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
        raise CheckpointError(f"`{index}` must have a `weight_map` of names and files")
    strange = next((f for f in files.values() if Path(f).name != f), None)
    if strange is not None:
        raise CheckpointError(f"`{index}` names `{strange}`, which is not beside it")
    pieces = {file: open_file(index.parent / file) for file in sorted(set(files.values()))}
    absent = [name for name, file in files.items() if name not in pieces[file].described]
    if absent:
        raise CheckpointError(
            f"`{index.parent / files[absent[0]]}` lacks `{absent[0]}`, which {index.name} says it "
            "has; the download may be incomplete"
        )
    described = {name: piece.described[name] for piece in pieces.values() for name in piece}
    places = {name: file for file, piece in pieces.items() for name in piece}
    return LazyTensors(described, lambda name: pieces[places[name]][name])


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        CheckpointError: if it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` must hold a JSON object, but holds {_kind(content)}")
    return content


def in_type(tensors: LazyTensors, dtype: str) -> LazyTensors:
    """Floating-point tensors in another type: float32, bfloat16 or float16; or keep."""
    if dtype == "keep":
        return tensors
    wanted: torch.dtype = getattr(torch, dtype)

    def turn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        # Contiguous at once: the writer would copy a second time.
        return tensor.to(wanted, memory_format=torch.contiguous_format)

    described = {name: turn(tensor) for name, tensor in tensors.described.items()}
    return LazyTensors(described, lambda name: turn(tensors[name]))
