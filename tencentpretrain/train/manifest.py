"""What a checkpoint consists of: its manifest, and JSON from which values come back exactly."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import ValidationError

from tencentpretrain.config import Config
from tencentpretrain.data.checksum import Checksum, file_checksum
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.durable import FileRecord

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
Mode = Literal["min", "max"]
_FLOAT: Final = "$float"
"""JSON has no infinite or undefined numbers: they are stored as {"$float": "nan"}."""


def to_json(value: object) -> bytes:
    """JSON text from which `from_json` makes exactly `value` again, floats to the last bit.

    Raises:
        TypeError: for what would come back as something else (tuples, keys that are no strings,
            tensors, ...), with its path; such things do not belong into JSON.
    """
    return (json.dumps(_encode(value, "state"), indent=2, allow_nan=False) + "\n").encode()


def from_json(data: bytes) -> Any:
    """The value that `to_json` was given.

    Raises:
        ValueError: if `data` is not such a text.
    """
    try:
        return json.loads(data, object_hook=_decode, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _encode(value: object, path: str) -> object:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, list):
        return [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise TypeError(f"`{path}` must be plain JSON data to be saved, but is of type {kind}")
    for key in value:
        if not isinstance(key, str) or key == _FLOAT:
            raise TypeError(f"`{path}` has the key {key!r}, but keys must be ordinary strings")
    return {key: _encode(item, f"{path}.{key}") for key, item in value.items()}


def _decode(value: dict[str, Any]) -> Any:
    return float(str(value[_FLOAT])) if _FLOAT in value else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class UnknownFormatError(CheckpointError):
    """The checkpoint is of another version of the format; it may well be whole."""


class Manifest(Config):
    """Everything that tells whether a checkpoint is whole, and which one it is."""

    format_version: Literal[1] = FORMAT_VERSION
    """Version of the layout of the directory."""
    step: int
    """Number of optimiser steps that were done."""
    score: float | None = None
    """What the checkpoint is compared by; None where it was not evaluated."""
    mode: Mode = "min"
    """Whether the smallest or the greatest score is the best."""
    torch_version: str = ""
    """Version of torch that wrote the checkpoint."""
    fingerprints: dict[str, str]
    """What the state belongs to, such as the data and the tokenizer, by name."""
    files: dict[str, FileRecord]
    """Every file of the checkpoint but this one, by its path in the directory."""

    def to_bytes(self) -> bytes:
        """Text of `manifest.json`, with a checksum of its own."""
        content = self.to_dict()
        checksum = Checksum()
        checksum.update(to_json(content))
        return to_json({**content, "checksum": str(checksum)})

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a checkpoint.

        Raises:
            CheckpointError: if it is absent, altered, or names files outside its directory.
            UnknownFormatError: if another version of the toolkit wrote it.
        """
        try:
            raw = read_regular(directory / MANIFEST)
            content = from_json(raw)
        except FileNotFoundError as error:
            raise CheckpointError(f"{MANIFEST} is missing") from error
        except OSError as error:
            raise CheckpointError(f"{MANIFEST} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{MANIFEST} was altered: {error}") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise UnknownFormatError(
                f"{MANIFEST} is of format version {version}, but this toolkit reads version "
                f"{FORMAT_VERSION}; use the toolkit that wrote it"
            )
        try:
            manifest = cls.model_validate({k: v for k, v in content.items() if k != "checksum"})
        except (AttributeError, ValidationError) as error:
            raise CheckpointError(f"{MANIFEST} was altered: {_first_line(error)}") from error
        if manifest.to_bytes() != raw:
            raise CheckpointError(f"{MANIFEST} was altered: its checksum does not fit")
        for name in manifest.files:
            check_name(name)
        return manifest


def check_name(name: str) -> None:
    """Refuse names that lead out of a checkpoint's directory or to its manifest.

    Raises:
        CheckpointError: naming the name.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name in (".", MANIFEST):
        raise CheckpointError(f"`{name}` is not a name that a file of a checkpoint may have")


def read_regular(path: Path) -> bytes:
    """Bytes of an ordinary file; a planted pipe must not make the reader wait for ever.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not an ordinary file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is not an ordinary file")
    return path.read_bytes()


def size_problem(path: Path, record: FileRecord) -> str | None:
    """What is seen to be wrong with a file without reading it, or None."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return "is not an ordinary file"
    if found.st_size < record.bytes:
        return f"is truncated: it has {found.st_size} of {record.bytes} bytes"
    if found.st_size > record.bytes:
        return f"was altered: it has {found.st_size} bytes instead of {record.bytes}"
    return None


def content_problem(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file, or None; reads all of it."""
    problem = size_problem(path, record)
    if problem:
        return problem
    try:
        found = file_checksum(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found == record.checksum:
        return None
    return f"was altered: its checksum is {found} instead of {record.checksum}"


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        item = error.errors()[0]
        return f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}"
    return "it must be a group of keys"
