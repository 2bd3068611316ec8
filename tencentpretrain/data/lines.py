"""Lines out of slices of a corpus: decoding, parsing, and what is done about bad ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.slices import Slice
from tencentpretrain.errors import DataError

MAX_CHARACTERS: Final = 1 << 16
"""A longer sentence is cut, as tokenizers need a hundred bytes and more for each character."""

UNDECODABLE: Final = "lines that are not UTF-8"
REPLACED: Final = "lines with replaced bytes"
BAD_JSON: Final = "malformed JSON lines"
TOO_LONG: Final = "overlong lines"
NUL: Final = "NUL characters"
CUT_SENTENCES: Final = "sentences cut for their length"


class Line(NamedTuple):
    """A line without its end, and where it is."""

    content: bytes
    position: int
    number: int
    has_newline: bool
    size: int
    """Bytes with the end of the line, as they count towards the length of a document."""


class LineReader:
    """Reads the lines of a slice.

    Args:
        piece: what to read.
        config: how it is laid out, and what to do about bad lines.
        remarks: counts what is left out or changed, by reason.
    """

    def __init__(self, piece: Slice, config: CorpusConfig, remarks: Counter[str]) -> None:
        self.piece = piece
        self.config = config
        self.remarks = remarks

    def lines(self) -> Iterator[Line]:
        """All lines, blank ones too."""
        data, position = self.piece.data, 0
        lines = data.split(b"\n")
        last = len(lines) - 1
        for number, content in enumerate(lines):
            if number < last or content:
                where = self.piece.line + number
                text = content.removesuffix(b"\r")
                yield Line(text, position, where, number < last, len(content) + 1)
            position += len(content) + 1

    def decode(self, line: Line) -> str | None:
        """The text of a line; None if it is to be left out."""
        if len(line.content) > self.config.max_line_bytes:
            self.bad(
                line, TOO_LONG, f"longer than corpus.max_line_bytes={self.config.max_line_bytes}"
            )
            return None
        try:
            return line.content.decode()
        except UnicodeDecodeError as error:
            reason = f"byte {line.content[error.start : error.start + 1].hex()} is not UTF-8"
            position = line.position + error.start
        return self._undecodable(line, position, reason, line.content.decode(errors="replace"))

    def parse(self, text: str, line: Line, kind: str, needed: str) -> dict[str, Any] | None:
        """The JSON object in a line; None if it is to be left out.

        Args:
            text: the line.
            line: where it is.
            kind: what to count lines without an object as.
            needed: what is missing in them.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.bad(line, BAD_JSON, f"not valid JSON ({error})")
            return None
        if isinstance(content, dict):
            return content
        self.bad(line, kind, f"there is no {needed} (no object)")
        return None

    def characters(self, value: str, text: str, line: Line) -> str | None:
        """A `value` of the JSON `text`, whose escapes may stand for no character.

        None if the line is to be left out.
        """
        if "\\u" not in text or _is_encodable(value):
            return value
        replaced = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        reason = "an escape \\ud800 to \\udfff stands alone, which is no character"
        return self._undecodable(line, line.position, reason, replaced)

    def bad(self, line: Line, kind: str, reason: str) -> None:
        """Count a bad line.

        Raises:
            DataError: unless the config says to go on.
        """
        if self.config.bad_lines == "error":
            raise DataError(
                f"{self._where(line, line.position)}: {reason}; mend the line, or leave such lines "
                f"out with corpus.bad_lines=skip"
            )
        self.remarks[kind] += 1

    def clean(self, text: str) -> str:
        """A text without NUL characters."""
        if "\0" in text:
            self.remarks[NUL] += text.count("\0")
            return text.replace("\0", "")
        return text

    def _undecodable(self, line: Line, position: int, reason: str, replaced: str) -> str | None:
        policy = self.config.encoding_errors
        if policy == "error":
            raise DataError(
                f"{self._where(line, position)}: {reason}; convert the file, or go on with "
                f"corpus.encoding_errors=replace or skip"
            )
        self.remarks[REPLACED if policy == "replace" else UNDECODABLE] += 1
        return replaced if policy == "replace" else None

    def _where(self, line: Line, position: int) -> str:
        return f"{self.piece.path}, line {line.number}, byte {self.piece.locate(position)}"


def bounded(text: str, remarks: Counter[str]) -> Iterator[str]:
    """A sentence, in parts where it is too long to tokenise at once."""
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        limit = start + MAX_CHARACTERS
        space = text.rfind(" ", start + 1, limit)
        stop = space if space > 0 else limit
        yield text[start:stop]
        remarks[CUT_SENTENCES] += 1
        start = stop
    if len(text) > start:
        yield text[start:]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
