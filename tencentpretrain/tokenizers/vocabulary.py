"""Reading vocabulary files, with errors that say what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tencentpretrain.errors import DataError

VOCABULARY: Final = "vocab.txt"
JSON_VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
MODEL: Final = "sentencepiece.model"
NEWLINE: Final = r"\n"
"""How a file of characters writes the newline."""


def inside(path: Path, name: str) -> Path:
    """The file `name` where `path` is a directory that holds a vocabulary, else `path`."""
    return path / name if path.is_dir() else path


def read_bytes(path: Path, what: str) -> bytes:
    """The whole of a file that holds a vocabulary.

    Raises:
        DataError: if it is missing, no file, or empty.
    """
    if not path.is_file():
        found = "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"the {what} {path} {found}; give the path of a file that holds one")
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"the {what} {path} is empty")
    return content


def read_text(path: Path, what: str) -> str:
    """The text of a file, without byte-order mark.

    Raises:
        DataError: if it cannot be read or is not UTF-8.
    """
    content = read_bytes(path, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"the {what} {path} is not UTF-8: line {line}, byte {error.start}; convert it"
        ) from error


def read_vocabulary(path: Path) -> dict[str, int]:
    """Ids of the entries of a text file with one entry a line; the first line is id 0.

    Only newline and CRLF end a line: other separators are entries of published vocabularies.

    Raises:
        DataError: if the file cannot be read, or has an empty or doubled line.
    """
    lines = read_text(path, "vocabulary").split("\n")
    if lines[-1] == "":
        lines.pop()
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines):
        entry = line.removesuffix("\r")
        if not entry:
            raise DataError(f"the vocabulary {path} has an empty line {number + 1}; remove it")
        if entry in vocabulary:
            raise DataError(
                f"the vocabulary {path} has {entry!r} twice, in lines {vocabulary[entry] + 1} "
                f"and {number + 1}; entries must differ"
            )
        vocabulary[entry] = number
    return vocabulary


def read_json_vocabulary(path: Path) -> dict[str, int]:
    """Ids of the entries of a JSON object {entry: id}, as byte-level BPE is published.

    Raises:
        DataError: if the file cannot be read, or is no such object, or uses an id twice.
    """
    try:
        vocabulary = json.loads(read_text(path, "vocabulary"))
    except json.JSONDecodeError as error:
        raise DataError(f"the vocabulary {path} is not JSON: {error}") from error
    if not isinstance(vocabulary, dict) or not all(
        isinstance(number, int) and number >= 0 for number in vocabulary.values()
    ):
        raise DataError(f"the vocabulary {path} must be one JSON object of entries and their ids")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise DataError(f"the vocabulary {path} gives one id to several entries")
    return vocabulary
