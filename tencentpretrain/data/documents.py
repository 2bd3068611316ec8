"""Documents out of slices of a corpus, each a list of sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tencentpretrain.data import lines
from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.lines import Line, LineReader, bounded
from tencentpretrain.data.records import read_records
from tencentpretrain.data.slices import Slice

NO_TEXT: Final = "lines without the text field or column"
EMPTY: Final = "empty documents"
CUT_DOCUMENTS: Final = "documents cut for their length"
SPACES: Final = " \t\r\x0b\x0c"
"""What a blank line may hold; the same as `bytes.strip` removes."""
BETWEEN_DOCUMENTS: Final = re.compile(r"\n(?:[ \t\r\x0b\x0c]*+\n)+")


def read_documents(
    piece: Slice, config: CorpusConfig, remarks: Counter[str]
) -> Iterator[list[str]]:
    """The documents of a slice, each a list of its sentences, none of them empty.

    Where the content is not text, a document has the texts of one record.

    Args:
        piece: what to read.
        config: how it is laid out.
        remarks: counts what is left out or changed, by reason.

    Raises:
        DataError: for a bad line, unless the config says to go on; names file, line and byte.
    """
    if config.content != "text":
        return (
            [part for text in record.texts for part in bounded(text, remarks)]
            for record in read_records(piece, config, remarks)
        )
    reader = _Reader(piece, config, remarks)
    if piece.format in ("sentences", "text"):
        return reader.joined()
    return reader.separate()


class _Reader(LineReader):
    def __init__(self, piece: Slice, config: CorpusConfig, remarks: Counter[str]) -> None:
        super().__init__(piece, config, remarks)
        self._keeps_newlines = config.keep_newlines or piece.format == "text"

    def joined(self) -> Iterator[list[str]]:
        """Documents of several lines, one sentence each."""
        text = self._plain()
        if text is not None:
            yield from self._joined_plain(text)
            return
        document: list[str] = []
        size = 0
        is_continued = self.piece.is_continued
        for line in self.lines():
            if self.piece.format == "sentences" and not line.content.strip():
                if document:
                    yield document
                document, size, is_continued = [], 0, False
                continue
            if is_continued and size == 0:
                self.remarks[CUT_DOCUMENTS] += 1
            text = self.decode(line)
            if text is not None:
                end = "\n" if self._keeps_newlines and line.has_newline else ""
                document += bounded(self.clean(text) + end, self.remarks)
            size += line.size
            if size >= self.config.max_document_bytes:
                if document:
                    yield document
                document, size, is_continued = [], 0, True
        if document:
            yield document

    def _plain(self) -> str | None:
        """The whole slice as text if nothing in it needs care, which is several times faster."""
        data, config = self.piece.data, self.config
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
            kept = [line for line in block if line]
            if kept and number == 0 and self.piece.is_continued:
                self.remarks[CUT_DOCUMENTS] += 1
            if max(map(len, kept), default=0) > lines.MAX_CHARACTERS:
                kept = [part for line in kept for part in bounded(line, self.remarks)]
            if kept:
                yield kept

    def separate(self) -> Iterator[list[str]]:
        """Documents of one line each."""
        for line in self.lines():
            if not line.content.strip():
                continue
            text = self.decode(line)
            if text is not None and self.piece.format == "jsonl":
                text = self._member(text, line)
            elif text is not None and self.piece.format == "tsv":
                text = self._cell(text, line)
            if text is None:
                continue
            document = self._sentences(self.clean(text))
            if document:
                yield document
            else:
                self.remarks[EMPTY] += 1

    def _member(self, text: str, line: Line) -> str | None:
        needed = f"text under the key `{self.config.field}`"
        content = self.parse(text, line, NO_TEXT, needed)
        if content is None:
            return None
        value = content.get(self.config.field)
        if isinstance(value, str):
            return self.characters(value, text, line)
        found = f"the keys are {', '.join(content)}"
        self.bad(line, NO_TEXT, f"there is no {needed} ({found[:200]})")
        return None

    def _cell(self, text: str, line: Line) -> str | None:
        cells, (place,) = text.split("\t"), self.piece.columns
        if place < len(cells):
            return cells[place]
        column = self.config.column
        self.bad(line, NO_TEXT, f"{len(cells)} cells, so none in the column `{column}`")
        return None

    def _sentences(self, text: str) -> list[str]:
        """The lines of a text that came in one piece; blank ones only where newlines are kept."""
        parts = text.replace("\r\n", "\n").split("\n")
        if self._keeps_newlines:
            whole = [line + "\n" for line in parts[:-1]] + parts[-1:]
            kept = [line for line in whole if line] if text.strip() else []
        else:
            kept = [line for line in parts if line.strip()]
        return [part for line in kept for part in bounded(line, self.remarks)]
