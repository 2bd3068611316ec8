"""Cutting the files of a corpus into slices of bytes, at borders of documents.

One process reads each file once, front to back, and hands out slices. Where a slice ends does not
change what is read: a slice holds whole documents, and a document that is longer than
`max_document_bytes` is cut at the same line whatever the slices are.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tencentpretrain.config import nearest
from tencentpretrain.data.corpora import CorpusConfig, CorpusFile, Format
from tencentpretrain.errors import DataError

SLICE_BYTES: Final = 1 << 20
"""Enough to make starting a task cheap, and little enough that all workers have some."""
BOM: Final = b"\xef\xbb\xbf"
BLANK_LINES: Final = re.compile(rb"(?:[ \t\r\x0b\x0c]*+\n)+")


@dataclass(frozen=True)
class Gap:
    """Bytes of an overlong line that a slice leaves out behind `position` in its data."""

    position: int
    size: int


@dataclass(frozen=True)
class Slice:
    """Whole documents of a file.

    Args:
        offset: where `data` begins in the (uncompressed) file, in bytes.
        line: number of its first line, from 1.
        is_continued: whether it begins inside a document that was too long.
        columns: numbers of the TSV columns to read, in the order of `CorpusConfig.columns`.
        consumed: bytes on the disk that it stands for.
    """

    path: Path
    format: Format
    data: bytes
    offset: int
    line: int
    is_continued: bool = False
    columns: tuple[int, ...] = ()
    gaps: tuple[Gap, ...] = ()
    consumed: int = 0

    def locate(self, position: int) -> int:
        """Offset in the file of a position in `data`."""
        return self.offset + position + sum(g.size for g in self.gaps if g.position <= position)


@dataclass(frozen=True)
class Part:
    """One of several parts of a corpus, which one after another are the whole of it.

    Args:
        number: From 1.
        count: Of all parts.
    """

    number: int = 1
    count: int = 1


def part_slices(files: Sequence[CorpusFile], config: CorpusConfig, part: Part) -> Iterator[Slice]:
    """Slices of the files that begin in one part of their bytes on the disk.

    A part has whole slices in their order, and files that lie outside it are not read.

    Raises:
        DataError: as `slices` does.
    """
    total = sum(file.size for file in files)

    def owner(position: int) -> int:
        # What follows the last byte read from the disk belongs to the last part.
        return min(position * part.count // max(total, 1) + 1, part.count)

    base = 0
    for file in files:
        start, base = base, base + file.size
        if owner(base) < part.number:
            continue
        if owner(start) > part.number:
            return
        for piece in slices(file, config):
            if owner(start) == part.number:
                yield piece
            start += piece.consumed


def slices(
    file: CorpusFile, config: CorpusConfig, slice_bytes: int = SLICE_BYTES
) -> Iterator[Slice]:
    """Cut a file into slices of about `slice_bytes`; reads as the slices are taken.

    Raises:
        DataError: if the file cannot be read, is damaged, or lacks the TSV column.
    """
    try:
        with open(file.path, "rb") as raw, _uncompressed(file.path, raw) as stream:
            yield from _Cutter(file, config, slice_bytes, raw, stream).run()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file.path} is damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}") from error


def _uncompressed(path: Path, raw: IO[bytes]) -> IO[bytes]:
    magic = raw.read(2)
    raw.seek(0)
    if magic == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if path.suffix == ".gz" and magic:
        raise DataError(f"{path} is not compressed with gzip, although its name says so")
    return raw


class _Cutter:
    """Reads one stream and finds where it may be cut."""

    def __init__(
        self,
        file: CorpusFile,
        config: CorpusConfig,
        slice_bytes: int,
        raw: IO[bytes],
        stream: IO[bytes],
    ) -> None:
        self._file = file
        self._config = config
        self._slice_bytes = slice_bytes
        self._raw = raw
        self._stream = stream
        self._buffer = b""
        self._offset = 0  # of the buffer in the stream
        self._line = 1
        self._consumed = 0
        self._columns: tuple[int, ...] = ()
        self._gaps: list[Gap] = []
        self._is_continued = False

    def run(self) -> Iterator[Slice]:
        self._start()
        scanned = 0
        while block := self._stream.read(self._slice_bytes):
            self._buffer += block
            self._bound_line()
            if self._skip_blank_lines():
                scanned = 0
            position, is_forced = self._border(scanned)
            scanned = len(self._buffer)
            if position:
                yield self._take(position, is_forced)
                scanned = 0
        self._skip_blank_lines()
        if self._buffer:
            yield self._take(len(self._buffer), is_forced=False)

    def _start(self) -> None:
        """Read what only the beginning of a file has: byte-order mark and header."""
        self._buffer = self._stream.read(4)
        if self._buffer.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self._file.path} is UTF-16 text; convert it to UTF-8")
        if self._buffer.startswith(BOM):
            self._drop(len(BOM))
        if self._file.format == "tsv":
            self._read_header()

    def _read_header(self) -> None:
        while b"\n" not in self._buffer and len(self._buffer) <= self._config.max_line_bytes:
            block = self._stream.readline(self._config.max_line_bytes)
            if not block:
                break
            self._buffer += block
        header = self._buffer.partition(b"\n")[0]
        names = header.decode(errors="replace").strip("\r").split("\t")
        required, optional = self._config.columns
        for column in required if self._buffer else ():
            if column not in names:
                raise DataError(f"{self._file.path} has {self._lacking(column, names)}")
        self._columns = tuple(names.index(c) for c in (*required, *optional) if c in names)
        self._drop(min(len(header) + 1, len(self._buffer)))

    def _lacking(self, column: str, names: list[str]) -> str:
        hint = f"no column `{column}`; {nearest(column, names)}; choose one with"
        if self._config.content == "text":
            return f"{hint} `corpus.column`"
        return (
            f"{hint} `corpus.fields`, or say `corpus.format=lines` if the first line of the file "
            f"does not name columns"
        )

    def _bound_line(self) -> None:
        """Leave out what an overlong line has beyond the byte that makes it so."""
        limit = self._config.max_line_bytes + 1
        while True:
            keep = self._buffer.rfind(b"\n") + 1 + limit
            if len(self._buffer) <= keep:
                return
            dropped, rest = len(self._buffer) - keep, b""
            while block := self._stream.read(self._slice_bytes):
                end = block.find(b"\n")
                if end >= 0:
                    dropped, rest = dropped + end, block[end:]
                    break
                dropped += len(block)
            self._gaps.append(Gap(keep, dropped))
            self._buffer = self._buffer[:keep] + rest
            if not rest:
                return

    def _skip_blank_lines(self) -> bool:
        """Drop blank lines in front, so that the buffer begins where a document does."""
        found = BLANK_LINES.match(self._buffer) if self._file.format == "sentences" else None
        if found:
            self._drop(found.end())
            self._is_continued = False
        return found is not None

    def _border(self, scanned: int) -> tuple[int, bool]:
        """Where the buffer can be cut last, 0 for nowhere, and whether that is in a document."""
        if self._file.format not in ("sentences", "text"):
            return self._buffer.rfind(b"\n") + 1, False
        if self._file.format == "sentences":
            position = _last_blank_line_end(self._buffer, scanned)
            if position:
                return position, False
        position, limit = 0, self._config.max_document_bytes
        # The same lines at which a reader of the whole document cuts it.
        while (end := self._buffer.find(b"\n", position + limit - 1)) >= 0:
            position = end + 1
        return position, position > 0

    def _take(self, position: int, is_forced: bool) -> Slice:
        consumed = self._raw.tell() - self._consumed
        taken = Slice(
            path=self._file.path,
            format=self._file.format,
            data=self._buffer[:position],
            offset=self._offset,
            line=self._line,
            is_continued=self._is_continued,
            columns=self._columns,
            gaps=tuple(gap for gap in self._gaps if gap.position <= position),
            consumed=consumed,
        )
        self._consumed += consumed
        self._is_continued = is_forced
        self._drop(position)
        return taken

    def _drop(self, count: int) -> None:
        """Remove `count` bytes from the front of the buffer."""
        self._offset += count + sum(gap.size for gap in self._gaps if gap.position <= count)
        self._gaps = [Gap(g.position - count, g.size) for g in self._gaps if g.position > count]
        self._line += self._buffer.count(b"\n", 0, count)
        self._buffer = self._buffer[count:]


def _last_blank_line_end(buffer: bytes, floor: int) -> int:
    """Position behind the last complete blank line that ends at `floor` or later, 0 for none."""
    end = buffer.rfind(b"\n")
    while end >= floor:
        previous = buffer.rfind(b"\n", 0, end)
        if not buffer[previous + 1 : end].strip():
            return end + 1
        end = previous
    return 0
