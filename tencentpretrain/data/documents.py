"""Documents out of slices of a corpus: decoding, parsing, and what is done about bad lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.slices import Slice
from tencentpretrain.errors import DataError

MAX_CHARACTERS: Final = 1 << 16
"""A longer sentence is cut, as tokenizers need a hundred bytes and more for each character."""

UNDECODABLE: Final = "lines that are not UTF-8"
REPLACED: Final = "lines with replaced bytes"
BAD_JSON: Final = "malformed JSON lines"
NO_TEXT: Final = "lines without the text field or column"
TOO_LONG: Final = "overlong lines"
NUL: Final = "NUL characters"
EMPTY: Final = "empty documents"
CUT_DOCUMENTS: Final = "documents cut for their length"
CUT_SENTENCES: Final = "sentences cut for their length"
SPACES: Final = " \t\r\x0b\x0c"
"""What a blank line may hold; the same as `bytes.strip` removes."""
BETWEEN_DOCUMENTS: Final = re.compile(r"\n(?:[ \t\r\x0b\x0c]*+\n)+")


class _Line(NamedTuple):
    """A line without its end, and where it is."""

    content: bytes
    position: int
    number: int
    has_newline: bool
    size: int
    """Bytes with the end of the line, as they count towards the length of a document."""


def read_documents(
    piece: Slice, config: CorpusConfig, remarks: Counter[str]
) -> Iterator[list[str]]:
    """The documents of a slice, each a list of its sentences, none of them empty.

    Args:
        piece: what to read.
        config: how it is laid out.
        remarks: counts what is left out or changed, by reason.

    Raises:
        DataError: for a bad line, unless the config says to go on; names file, line and byte.
    """
    reader = _Reader(piece, config, remarks)
    if piece.format in ("sentences", "text"):
        return reader.joined()
    return reader.separate()


class _Reader:
    def __init__(self, piece: Slice, config: CorpusConfig, remarks: Counter[str]) -> None:
        self._piece = piece
        self._config = config
        self._remarks = remarks
        self._keeps_newlines = config.keep_newlines or piece.format == "text"

    def joined(self) -> Iterator[list[str]]:
        """Documents of several lines, one sentence each."""
        text = self._plain()
        if text is not None:
            yield from self._joined_plain(text)
            return
        document: list[str] = []
        size = 0
        is_continued = self._piece.is_continued
        for line in self._lines():
            if self._piece.format == "sentences" and not line.content.strip():
                if document:
                    yield document
                document, size, is_continued = [], 0, False
                continue
            if is_continued and size == 0:
                self._remarks[CUT_DOCUMENTS] += 1
            text = self._decode(line)
            if text is not None:
                end = "\n" if self._keeps_newlines and line.has_newline else ""
                document += self._bounded(self._clean(text) + end)
            size += line.size
            if size >= self._config.max_document_bytes:
                if document:
                    yield document
                document, size, is_continued = [], 0, True
        if document:
            yield document

    def _plain(self) -> str | None:
        """The whole slice as text if nothing in it needs care, which is several times faster."""
        data, config = self._piece.data, self._config
        limit = min(config.max_document_bytes, config.max_line_bytes)
        if len(data) >= limit or b"\0" in data or self._keeps_newlines:
            return None
        try:
            return data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError:
            return None

    def _joined_plain(self, text: str) -> Iterator[list[str]]:
        """What `joined` yields for a slice in which nothing needs care."""
        blocks = [block.split("\n") for block in BETWEEN_DOCUMENTS.split(text)]
        # Only here a blank line or a carriage return may stand without the newline that follows.
        final = blocks[-1][-1].removesuffix("\r")
        blocks[-1][-1] = final if final.strip(SPACES) else ""
        for number, block in enumerate(blocks):
            lines = [line for line in block if line]
            if lines and number == 0 and self._piece.is_continued:
                self._remarks[CUT_DOCUMENTS] += 1
            if max(map(len, lines), default=0) > MAX_CHARACTERS:
                lines = [part for line in lines for part in self._bounded(line)]
            if lines:
                yield lines

    def separate(self) -> Iterator[list[str]]:
        """Documents of one line each."""
        for line in self._lines():
            if not line.content.strip():
                continue
            text = self._decode(line)
            if text is not None and self._piece.format == "jsonl":
                text = self._parse_json(text, line)
            elif text is not None and self._piece.format == "tsv":
                text = self._cell(text, line)
            if text is None:
                continue
            document = self._sentences(self._clean(text))
            if document:
                yield document
            else:
                self._remarks[EMPTY] += 1

    def _lines(self) -> Iterator[_Line]:
        data, position = self._piece.data, 0
        lines = data.split(b"\n")
        last = len(lines) - 1
        for number, content in enumerate(lines):
            if number < last or content:
                where = self._piece.line + number
                text = content.removesuffix(b"\r")
                yield _Line(text, position, where, number < last, len(content) + 1)
            position += len(content) + 1

    def _decode(self, line: _Line) -> str | None:
        """The text of a line; None if it is to be left out."""
        if len(line.content) > self._config.max_line_bytes:
            self._bad(
                line, TOO_LONG, f"longer than corpus.max_line_bytes={self._config.max_line_bytes}"
            )
            return None
        try:
            return line.content.decode()
        except UnicodeDecodeError as error:
            reason = f"byte {line.content[error.start : error.start + 1].hex()} is not UTF-8"
            position = line.position + error.start
        return self._undecodable(line, position, reason, line.content.decode(errors="replace"))

    def _undecodable(self, line: _Line, position: int, reason: str, replaced: str) -> str | None:
        policy = self._config.encoding_errors
        if policy == "error":
            raise DataError(
                f"{self._where(line, position)}: {reason}; convert the file, or go on with "
                f"corpus.encoding_errors=replace or skip"
            )
        self._remarks[REPLACED if policy == "replace" else UNDECODABLE] += 1
        return replaced if policy == "replace" else None

    def _parse_json(self, text: str, line: _Line) -> str | None:
        field = self._config.field
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._bad(line, BAD_JSON, f"not valid JSON ({error})")
            return None
        value = content.get(field) if isinstance(content, dict) else None
        if not isinstance(value, str):
            found = (
                f"the keys are {', '.join(content)}" if isinstance(content, dict) else "no object"
            )
            self._bad(line, NO_TEXT, f"there is no text under the key `{field}` ({found[:200]})")
            return None
        if "\\u" in text and not _is_encodable(value):
            replaced = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            reason = "an escape \\ud800 to \\udfff stands alone, which is no character"
            return self._undecodable(line, line.position, reason, replaced)
        return value

    def _cell(self, text: str, line: _Line) -> str | None:
        cells = text.split("\t")
        if self._piece.column < len(cells):
            return cells[self._piece.column]
        column = self._config.column
        self._bad(line, NO_TEXT, f"{len(cells)} cells, so none in the column `{column}`")
        return None

    def _bad(self, line: _Line, kind: str, reason: str) -> None:
        if self._config.bad_lines == "error":
            raise DataError(
                f"{self._where(line, line.position)}: {reason}; mend the line, or leave such lines "
                f"out with corpus.bad_lines=skip"
            )
        self._remarks[kind] += 1

    def _where(self, line: _Line, position: int) -> str:
        return f"{self._piece.path}, line {line.number}, byte {self._piece.locate(position)}"

    def _clean(self, text: str) -> str:
        if "\0" in text:
            self._remarks[NUL] += text.count("\0")
            return text.replace("\0", "")
        return text

    def _sentences(self, text: str) -> list[str]:
        """The lines of a text that came in one piece; blank ones only where newlines are kept."""
        lines = text.replace("\r\n", "\n").split("\n")
        if self._keeps_newlines:
            whole = [line + "\n" for line in lines[:-1]] + lines[-1:]
            kept = [line for line in whole if line] if text.strip() else []
        else:
            kept = [line for line in lines if line.strip()]
        return [part for line in kept for part in self._bounded(line)]

    def _bounded(self, text: str) -> Iterator[str]:
        """A sentence, in parts where it is too long to tokenise at once."""
        start = 0
        while len(text) - start > MAX_CHARACTERS:
            limit = start + MAX_CHARACTERS
            space = text.rfind(" ", start + 1, limit)
            stop = space if space > 0 else limit
            yield text[start:stop]
            self._remarks[CUT_SENTENCES] += 1
            start = stop
        if len(text) > start:
            yield text[start:]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
