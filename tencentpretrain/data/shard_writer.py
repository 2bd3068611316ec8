"""Writing shards: in order, in constant memory, and under the final name only when complete."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.data.shard_format import (
    FORMAT_VERSION,
    INDEX,
    MAIN,
    TARGET,
    TARGET_TOKENIZER,
    TOKENIZER,
    Array,
    ArrayFile,
    Column,
    Shard,
    StoredFile,
    counted_column,
    fingerprint_of,
    offsets_name,
    text_columns,
    values_name,
)
from tencentpretrain.data.work_directory import WorkDirectory
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.tokenizers.base import Tokenizer

SHARD_TOKENS: Final = 1 << 27
SHARD_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Ragged:
    """Values of several documents in a row [N], and how many each document has [D]."""

    values: Array
    lengths: NDArray[np.int64]


class ShardWriter:
    """Writes documents to a new directory; use it in a `with` statement.

    The directory appears when the `with` block is left, complete; an exception leaves nothing.

    Args:
        directory: must not exist, unless `overwrite` allows to replace a directory of shards.
        columns: what each document has; `text_columns` where None.
        vocab_size: ids of the main column are below it; that of the tokenizer where None.
        tokenizer: saved beside the shards.
        target_tokenizer: that of the targets of pairs, if it is another one; saved too.
        target_vocab_size: ids of targets are below it; that of their tokenizer where None.
        shard_tokens: a shard is closed behind the document that reaches this many tokens.
        shard_bytes: the same for the bytes of images and sounds, or of their paths.

    Raises:
        DataError: if `directory` exists, or it cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: Tokenizer | None = None,
        *,
        columns: Mapping[str, Column] | None = None,
        vocab_size: int | None = None,
        target_tokenizer: Tokenizer | None = None,
        target_vocab_size: int | None = None,
        shard_tokens: int = SHARD_TOKENS,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        if vocab_size is None:
            if tokenizer is None:
                raise ValueError("a ShardWriter needs a tokenizer or a vocab_size")
            vocab_size = tokenizer.vocab_size
        check_output(directory, overwrite)
        self.directory = directory
        self.columns = dict(columns or text_columns(vocab_size))
        self.vocab_size = vocab_size
        if target_vocab_size is None and TARGET in self.columns:
            target_vocab_size = target_tokenizer.vocab_size if target_tokenizer else vocab_size
        self.target_vocab_size = target_vocab_size
        self.source: dict[str, int] = {}
        self.labels: list[str] | None = None
        """What the numbers of labels stand for; to be set where there are any."""
        self._tokenizer = tokenizer
        self._target_tokenizer = target_tokenizer
        self.notes: dict[str, str] = {}
        """Texts by the names of files that are saved beside the shards, for people to read."""
        self._counted = counted_column(self.columns)
        self._full = shard_tokens if self._counted == MAIN else shard_bytes
        self._shards: list[Shard] = []
        self._stored: dict[str, StoredFile] = {}
        self._open: _OpenShard | None = None

    def __enter__(self) -> Self:
        parent = self.directory.absolute().parent
        with before_start():
            try:
                self._work = WorkDirectory(self.directory)
            except OSError as error:
                # A temporary name says nothing to those who did not choose it.
                where = parent if os.path.isdir(parent) else error.filename
                raise DataError(
                    f"output `{self.directory}` cannot be written to: {error.strerror} "
                    f"(`{where}`); choose another `output`"
                ) from error
        self._temporary = self._work.path
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with self._told():
                    self._finish()
        finally:
            if self._open is not None:
                self._open.abandon()
            self._work.remove()

    def write(self, documents: Mapping[str, Ragged]) -> None:
        """Append documents; a column along another one needs no lengths of its own.

        Raises:
            DataError: if they cannot be written, for instance because the disk is full.
        """
        with self._told():
            self._write(documents)

    def _write(self, documents: Mapping[str, Ragged]) -> None:
        sizes = documents[self._counted].lengths
        ends = np.concatenate([[0], np.cumsum(sizes)])
        start, count = 0, len(sizes)
        while start < count:
            shard = self._open = self._open or _OpenShard(
                self._temporary, len(self._shards), self.columns
            )
            # The first document that fills the shard is its last one.
            full = ends[start] + self._full - shard.counts[self._counted]
            stop = min(int(np.searchsorted(ends, full)), count)
            shard.append(documents, start, stop)
            start = stop
            if shard.counts[self._counted] >= self._full:
                self._close_shard()

    def add(self, sentences: Sequence[Sequence[int]]) -> None:
        """Append one document, given by the ids of its sentences."""
        lengths = np.array([len(sentence) for sentence in sentences], np.int64)
        ids = np.array([number for sentence in sentences for number in sentence], np.int64)
        one = np.ones(1, np.int64)
        self.write(
            {
                MAIN: Ragged(ids, lengths.sum() * one),
                "sentences": Ragged(np.cumsum(lengths), len(lengths) * one),
            }
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say of which output it is that the disk refuses something."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"output `{self.directory}` cannot be written: {error.strerror}; mend that or "
                "choose another `output`; what was written so far is removed"
            ) from error

    def _close_shard(self) -> None:
        if self._open is not None:
            shard, files = self._open.close()
            self._shards.append(shard)
            self._stored |= files
            self._open = None

    def _finish(self) -> None:
        self._close_shard()
        saved = {TOKENIZER: self._tokenizer, TARGET_TOKENIZER: self._target_tokenizer}
        for name, tokenizer in saved.items():
            if tokenizer is not None:
                tokenizer.save(self._temporary / name)
                _sync(self._temporary / name)
        for name, text in self.notes.items():
            (self._temporary / name).write_text(text, encoding="utf-8")
        content: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "documents": sum(shard.documents for shard in self._shards),
            "tokens": sum(shard.values[MAIN] for shard in self._shards),
            "vocab_size": self.vocab_size,
            "columns": {name: column.model_dump() for name, column in self.columns.items()},
            "shards": [shard.model_dump() for shard in self._shards],
            "files": {name: file.model_dump() for name, file in self._stored.items()},
            "tokenizer": self._tokenizer and self._tokenizer.fingerprint,
            "source": self.source,
        }
        optional = {
            "target_vocab_size": self.target_vocab_size,
            "target_tokenizer": self._target_tokenizer and self._target_tokenizer.fingerprint,
            "labels": self.labels,
        }
        content |= {key: value for key, value in optional.items() if value is not None}
        content["fingerprint"] = fingerprint_of(content)
        with open(self._temporary / INDEX, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self._work.finish()
        _sync(self._temporary)
        self._publish()

    def _publish(self) -> None:
        """Give the complete directory its name; an old one steps aside for the moment."""
        parent = self.directory.absolute().parent
        if self.directory.exists():
            with tempfile.TemporaryDirectory(prefix=f".{self.directory.name}.", dir=parent) as old:
                os.rename(self.directory, Path(old) / "replaced")
                os.rename(self._temporary, self.directory)
        else:
            os.rename(self._temporary, self.directory)
        _sync(parent)


class _OpenShard:
    """The files of the shard that is being written."""

    def __init__(self, directory: Path, number: int, columns: dict[str, Column]) -> None:
        self._columns = columns
        self._documents = 0
        self._max_token = -1
        self._values = {
            name: ArrayFile(directory / values_name(number, name), column.stored_dtype)
            for name, column in columns.items()
        }
        self._offsets = {
            name: ArrayFile(directory / offsets_name(number, name), np.dtype(np.int64))
            for name, column in columns.items()
            if column.along is None
        }
        self.counts = dict.fromkeys(columns, 0)
        self._rest: dict[str, Array] = {
            name: np.zeros(0, bool) for name, column in columns.items() if column.dtype == "bit"
        }
        for file in self._offsets.values():
            file.append(np.zeros(1, np.int64))

    def append(self, documents: Mapping[str, Ragged], start: int, stop: int) -> None:
        """Append the documents `start` to `stop` of a batch."""
        for name, column in self._columns.items():
            lengths = documents[column.along or name].lengths
            ends = np.cumsum(lengths)
            first = int(ends[start] - lengths[start])
            last = int(ends[stop - 1])
            values = documents[name].values[first:last]
            if len(values) != last - first:
                raise ValueError(f"column `{name}` has fewer values than its lengths say")
            if column.along is None:
                self._offsets[name].append(self.counts[name] + ends[start:stop] - first)
            self.counts[name] += last - first
            if column.dtype == "bit":
                values = self._pack(name, values)
            self._values[name].append(values)
            if name == MAIN and last > first:
                self._max_token = max(self._max_token, int(values.max()))
        self._documents += stop - start

    def close(self) -> tuple[Shard, dict[str, StoredFile]]:
        for name, rest in self._rest.items():
            self._values[name].append(np.packbits(rest))
        files = [*self._values.values(), *self._offsets.values()]
        stored = {file.path.name: file.close() for file in files}
        shard = Shard(
            documents=self._documents, values=dict(self.counts), max_token=self._max_token
        )
        return shard, stored

    def abandon(self) -> None:
        for file in [*self._values.values(), *self._offsets.values()]:
            file.abandon()

    def _pack(self, name: str, bits: Array) -> Array:
        """Whole bytes of what is there; bits of an incomplete one wait."""
        bits = np.concatenate([self._rest[name], bits.astype(bool)])
        whole = len(bits) // 8 * 8
        self._rest[name] = bits[whole:]
        return np.packbits(bits[:whole])


def check_output(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that exists, unless it may be replaced.

    Raises:
        DataError: if it exists; also with `overwrite` if it is not a directory of shards.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if not overwrite:
        raise DataError(
            f"{directory} exists; choose another output, or replace it with `overwrite=true`"
        )
    if directory.is_symlink() or not directory.is_dir():
        raise DataError(f"{directory} is not a directory of shards, and is not replaced")
    if any(directory.iterdir()) and not (directory / INDEX).is_file():
        raise DataError(
            f"{directory} holds no {INDEX}: it is not replaced, as it may be something else"
        )


def _sync(directory: Path) -> None:
    """Wait until the names in `directory` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
