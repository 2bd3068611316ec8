"""Tables in files: tab-separated values with a header, or JSON lines; each error names its line.

Fields of a TSV file are raw: quotes, backslashes and spaces are ordinary characters of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tencentpretrain.errors import DataError
from tencentpretrain.problems import nothing_at

JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
SHOWN: Final = 40
"""Characters of a value that a message shows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Args:
        values: Of the columns that were asked for and are there.
        columns: Places in `values` by name, shared by all rows of the file.
        path: The file.
        line: Number of the line, from 1.
    """

    values: tuple[str, ...]
    columns: Mapping[str, int]
    path: Path
    line: int

    def __getitem__(self, column: str) -> str:
        return self.values[self.columns[column]]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    @property
    def where(self) -> str:
        """File and line, as messages name them."""
        return f"{self.path}, line {self.line}"


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Rows of a table with the columns `required` and those of `optional` that it has.

    Files that end in .jsonl, .ndjson or .json hold one JSON object a line, all others are TSV.

    Raises:
        DataError: if the file is missing, empty, not UTF-8, or lacks a column or a field.
    """
    read = _read_json if path.suffix.lower() in JSON_LINES else _read_tsv
    rows = list(read(path, required, optional))
    if not rows:
        raise DataError(f"{path} has no row; give a file with at least one")
    return rows


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines of a UTF-8 file; LF and CRLF end a line, nothing else does.

    Raises:
        DataError: if the file is missing, empty, or not text.
    """
    for number, raw in enumerate(_content(path).split(b"\n"), start=1):
        raw = raw.removesuffix(b"\r")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}, byte {error.start + 1} is not UTF-8; convert the file"
            ) from error
        if "\0" in text:
            place = text.index("\0") + 1
            raise DataError(
                f"{path}, line {number}, character {place} is NUL; is the file UTF-16? Convert it "
                "to UTF-8"
            )
        yield number, text


def _content(path: Path) -> bytes:
    """Bytes of a file without byte-order mark and final newline."""
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else nothing_at(path)}")
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.strip():
        raise DataError(f"{path} is empty; give a file with at least one row")
    return content.removesuffix(b"\n")


def _read_tsv(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    lines = read_lines(path)
    header = [name.strip() for name in next(lines)[1].split("\t")]
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise DataError(f"{path} has the column `{double}` twice; rename one in its first line")
    for column in required:
        _require(column, header, f"{path} (whose first line names the columns)")
    kept = [column for column in (*required, *optional) if column in header]
    places = [header.index(column) for column in kept]
    columns = {column: place for place, column in enumerate(kept)}
    for number, line in lines:
        # Of a table with one column an empty line is a row with an empty text.
        if not line and len(header) > 1:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number} must have {len(header)} fields ({', '.join(header)}) with "
                f"tabs between them, but has {len(fields)}: {shorten(line)}"
            )
        yield Row(tuple(fields[place] for place in places), columns, path, number)


def _read_json(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    columns: dict[str, int] | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} must be a JSON object, but is {shorten(line)}")
        if columns is None:
            kept = [c for c in (*required, *(c for c in optional if c in record))]
            columns = {column: place for place, column in enumerate(kept)}
        values = []
        for column in columns:
            _require(column, record, where)
            values.append(_plain(record[column], column, where))
        yield Row(tuple(values), columns, path, number)


def _require(column: str, columns: Iterable[str], where: str) -> None:
    names = list(columns)
    if column not in names:
        listed = ", ".join(f"`{shorten(name)}`" for name in names[:20])
        raise DataError(
            f"{where} has no column `{column}`; there are {listed}; rename it in the file, or say "
            "which column is meant with task.*_column"
        )


def _plain(value: Any, column: str, where: str) -> str:
    """The text that a JSON value stands for, as a TSV field would hold it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(v, str) and v and " " not in v for v in value):
        return " ".join(value)
    raise DataError(
        f"{where}: `{column}` must be a text, a number, or a list of texts without spaces, but is "
        f"{shorten(json.dumps(value, ensure_ascii=False))}"
    )


def shorten(text: str) -> str:
    """The beginning of `text`, quoted where it could be taken for something else."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
