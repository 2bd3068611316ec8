"""Lists of images or sounds: a file on each line, with what is known of it.

Imported by worker processes of `preprocess.py`: nothing here may import torch.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tencentpretrain.config import nearest
from tencentpretrain.data.corpora import CorpusConfig, CorpusFile
from tencentpretrain.data.lines import Line, LineReader
from tencentpretrain.data.slices import Slice, slices
from tencentpretrain.errors import DataError

LISTS: Final = (".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".json")
JSON: Final = (".jsonl", ".ndjson", ".json")
BLANK: Final = "blank lines"
NO_FIELD: Final = "lines that lack what they should hold"
SHOWN: Final = 80
"""Characters of a line that a message shows."""


class MediaEntry(NamedTuple):
    """Where an encoded image or sound lies, and what is known of it.

    Args:
        name: Path as the folder, tar file or list has it.
        path: The file, or the tar file that holds it.
        offset: Where it begins in a tar file, in bytes; None for a file of its own.
        size: In bytes; None where there is no such file.
        label: Name of its class, "" without one.
        text: Caption or transcript, "" without one.
        where: What messages call it.
        problem: Why it cannot be read; "" where it can, as far as is known.
    """

    name: str
    path: str
    offset: int | None
    size: int | None
    label: str
    text: str
    where: str
    problem: str = ""


def file_entry(name: str, path: str, where: str, missing: str) -> MediaEntry:
    """The entry of a file of its own, without label and text.

    Args:
        name: Path as the folder or list has it.
        path: The file.
        where: What messages call it.
        missing: What they say where there is no such file.
    """
    size, problem = None, ""
    try:
        found = os.stat(path)
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
        problem = "" if size is not None else f"{path} is no file"
    except FileNotFoundError:
        problem = missing
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror or error}"
    return MediaEntry(name, path, None, size, "", "", where, problem)


def read_list(path: Path, config: CorpusConfig, remarks: Counter[str]) -> Iterator[MediaEntry]:
    """The files that a list names, whether they are there or not.

    Raises:
        DataError: for a bad line, unless the config says to go on.
    """
    is_json = Path(path.name.removesuffix(".gz")).suffix.lower() in JSON
    file = CorpusFile(path, "jsonl" if is_json else "lines", path.stat().st_size)
    header: list[str] | None = None
    for piece in slices(file, config):
        reader = _ListReader(piece, config, remarks, header)
        yield from reader.entries()
        header = reader.header


class _ListReader(LineReader):
    """Reads lines that name a file each.

    Lines of JSON have keys; others have cells between tabs, whose names the first line may say.
    Without them the path is last, and before it is a text or label, as TencentPretrain has it.
    """

    def __init__(
        self, piece: Slice, config: CorpusConfig, remarks: Counter[str], header: list[str] | None
    ) -> None:
        super().__init__(piece, config, remarks)
        self.header = header

    def entries(self) -> Iterator[MediaEntry]:
        for line in self.lines():
            if not line.content.strip():
                self.remarks[BLANK] += 1
                continue
            text = self.decode(line)
            if text is None:
                continue
            values = (
                self._json(text, line) if self.piece.format == "jsonl" else self._cells(text, line)
            )
            if values is not None:
                yield self._entry(values, line)

    def _entry(self, values: dict[str, str], line: Line) -> MediaEntry:
        fields = self.config.fields
        name = values[fields.path].strip()
        path = str(self.piece.path.parent / Path(name).expanduser())
        where = f"{self.piece.path}, line {line.number}, `{name}`"
        missing = f"there is no file {path}; mend the list, whose paths begin in its own folder"
        entry = file_entry(name, path, where, missing)
        label, text = values.get(fields.label, "").strip(), values.get(fields.text, "")
        return entry._replace(label=label, text=self.clean(text))

    def _cells(self, text: str, line: Line) -> dict[str, str] | None:
        fields, cells = self.config.fields, text.split("\t")
        if self.header is None:
            if fields.path in map(str.strip, cells):
                self.header = [cell.strip() for cell in cells]
                return None
            self._require_no_other_header([cell.strip() for cell in cells], line)
            has_text = (self.config.media or "").endswith("_text")
            names = [fields.text if has_text else fields.label, fields.path]
            self.header = names[-len(cells) :]
        if len(cells) == len(self.header) and cells[self.header.index(fields.path)].strip():
            return dict(zip(self.header, cells, strict=True))
        needed = " and ".join(self.header)
        reason = f"there must be {needed} with tabs between them, but there is `{text[:SHOWN]}`"
        self.bad(line, NO_FIELD, reason)
        return None

    def _require_no_other_header(self, cells: list[str], line: Line) -> None:
        """Refuse a first line that names columns, but none of paths."""
        fields, path = self.config.fields, self.piece.path
        if os.path.isfile(path.parent / cells[-1]):  # whatever the text is, and however long
            return
        if len(cells) == 1 and "," in cells[0] and ".csv" in path.suffixes:
            raise DataError(f"{path}, line 1: there must be tabs between columns, not commas")
        if line.number == 1 and {fields.label, fields.text} & {*cells}:
            named = " and ".join(f"`{cell}`" for cell in cells)
            raise DataError(
                f"{path}, line 1: there is no column `{fields.path}`, only {named}; rename the one "
                "of paths, or name it with corpus.fields.path (of a task: task.path_column)"
            )

    def _json(self, text: str, line: Line) -> dict[str, str] | None:
        content = self.parse(text, line, NO_FIELD, "record")
        if content is None:
            return None
        fields = self.config.fields
        if not isinstance(content.get(fields.path), str) or not content[fields.path].strip():
            reason = f"there is no path in `{fields.path}`; {nearest(fields.path, content)}"
            self.bad(line, NO_FIELD, f"{reason}; the keys are chosen with corpus.fields")
            return None
        values: dict[str, str] = {}
        for key in (fields.path, fields.label, fields.text):
            plain = _plain(content.get(key))
            if plain is None:
                self.bad(line, NO_FIELD, f"`{key}` must be a text, but is {content[key]}"[:SHOWN])
                return None
            sound = self.characters(plain, text, line)
            if sound is None:
                return None
            values[key] = sound
        return values


def _plain(value: Any) -> str | None:
    """The text that a JSON value stands for; None if it is no text and no number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None
