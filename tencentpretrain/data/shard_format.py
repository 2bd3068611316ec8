"""What a directory of shards looks like: columns, file names and the index.

index.json        written last: format, counts, columns, sizes and checksums of all files
tokenizer/        the tokenizer that made the ids
target_tokenizer/ the tokenizer of the targets of pairs, if that is another one
00000.tokens.npy  the values of the main column, all documents in a row
00000.offsets.npy where each document begins in it, and where the last one ends [documents + 1]
00000.sentences.npy, 00000.sentences.offsets.npy   another ragged column, with its own offsets
00000.words.npy   a column along another one, here one bit for each token, eight to a byte

Text has tokens and sentences, and maybe words. Pairs of texts have a ragged column "target"; one or
two labelled texts are the sentences of a document with one value in the column "label";
conversations, whose sentences are the turns, have a bit "supervised" for each token. Images and
sounds have their encoded bytes in a column "media", or where they are in "path", with the size and
CRC-32 of each file in "path_size" and "path_crc", and a label or none, sounds also their length in
"duration"; those without texts have no tokens, no sentences and no tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from tencentpretrain.data.checksum import file_checksum
from tencentpretrain.data.corpora import Content, MediaFormat
from tencentpretrain.errors import DataError

FORMAT_VERSION: Final = 1
INDEX: Final = "index.json"
TOKENIZER: Final = "tokenizer"
TARGET_TOKENIZER: Final = "target_tokenizer"
MAIN: Final = "tokens"
"""Column whose values are counted and which says where documents begin."""
TARGET: Final = "target"
"""Column of the ids of the second text of a pair."""
LABEL: Final = "label"
"""Column of the number of the label of a document."""
MEDIA: Final = "media"
"""Column of the encoded bytes of an image or sound."""
PATH: Final = "path"
"""Column of the absolute path of the file of an image or sound, in UTF-8."""
PATH_SIZE: Final = "path_size"
"""Column of the bytes that the file at a path has; shards of earlier versions have none."""
PATH_CRC: Final = "path_crc"
"""Column of the CRC-32 of the file at a path, beside its size."""
DURATION: Final = "duration"
"""Column of the length of a sound in milliseconds."""
SUPERVISED: Final = "supervised"
"""Column of what is learned of a conversation, along the main one."""

OPTIONAL: Final = ("target_vocab_size", "target_tokenizer", "labels")
"""Keys of the index that only some directories have."""

Array = NDArray[Any]
Dtype = Literal["bit", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Stored):
    """One column of numbers, ragged over the documents."""

    dtype: Dtype
    """Type of the values; "bit" is stored eight to a byte."""
    along: Name | None = None
    """Another column that this one has one value for each value of; None: lengths of its own."""

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return np.dtype("uint8" if self.dtype == "bit" else self.dtype)


class StoredFile(_Stored):
    """Size and checksum of a file."""

    bytes: NonNegativeInt
    checksum: str


class Shard(_Stored):
    """Counts of one shard."""

    documents: NonNegativeInt
    values: dict[Name, NonNegativeInt]
    """Number of values by column."""
    max_token: int
    """Largest value of the main column, -1 where it is empty."""


class Index(_Stored):
    """The content of `index.json`."""

    format: int
    documents: NonNegativeInt
    tokens: NonNegativeInt
    vocab_size: PositiveInt
    columns: dict[Name, Column]
    shards: tuple[Shard, ...]
    files: dict[str, StoredFile]
    tokenizer: str | None
    """Fingerprint of the tokenizer; None for columns that need none."""
    source: dict[str, int]
    """Counts of what the corpus held and what was left out, by name."""
    fingerprint: str
    """Equal where all values are equal."""
    target_vocab_size: PositiveInt | None = None
    """Ids of targets are below it; None where there is no such column."""
    target_tokenizer: str | None = None
    """Fingerprint of the tokenizer of the targets; None where it is that of the sources."""
    labels: tuple[str, ...] | None = None
    """What the numbers of labels stand for; None where there is no such column."""


def values_name(shard: int, column: str) -> str:
    return f"{shard:05d}.{column}.npy"


def offsets_name(shard: int, column: str) -> str:
    return f"{shard:05d}.offsets.npy" if column == MAIN else f"{shard:05d}.{column}.offsets.npy"


def shard_files(shard: int, columns: dict[str, Column]) -> list[str]:
    """Names of all files of one shard."""
    names = [values_name(shard, name) for name in columns]
    return names + [offsets_name(shard, n) for n, column in columns.items() if not column.along]


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds all ids of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def text_columns(vocab_size: int, has_words: bool = False) -> dict[str, Column]:
    """Columns of tokenised text: ids, ends of sentences in tokens, and maybe starts of words."""
    columns = {MAIN: Column(dtype=token_dtype(vocab_size)), "sentences": Column(dtype="uint32")}
    return columns | ({"words": Column(dtype="bit", along=MAIN)} if has_words else {})


def media_columns(
    content: MediaFormat, vocab_size: int, store: Literal["bytes", "path"]
) -> dict[str, Column]:
    """Columns of images or sounds: their texts, where they have some, labels, and themselves."""
    columns = text_columns(vocab_size)
    if not content.endswith("_text"):
        del columns["sentences"]
    stored = MEDIA if store == "bytes" else PATH
    columns |= {LABEL: Column(dtype="int32"), stored: Column(dtype="uint8")}
    if store == "path":
        columns |= {PATH_SIZE: Column(dtype="int64"), PATH_CRC: Column(dtype="uint32")}
    if content.startswith("audio"):
        columns[DURATION] = Column(dtype="uint32")
    return columns


def counted_column(columns: Collection[str]) -> str:
    """The column whose values say how large a shard is."""
    return next((name for name in (MEDIA, PATH) if name in columns), MAIN)


def kind_of(columns: Collection[str]) -> str:
    """What messages call documents with these columns, such as "images without texts"."""
    if counted_column(columns) == MAIN:
        return "texts"
    what = "sounds" if DURATION in columns else "images"
    return f"{what} {'with' if 'sentences' in columns else 'without'} texts"


def record_columns(
    content: Content, vocab_size: int, target_vocab_size: int | None = None, has_words: bool = False
) -> dict[str, Column]:
    """Columns of a corpus of text; those of tokenised text, and one more for records."""
    columns = text_columns(vocab_size, has_words)
    if content == "pair":
        columns[TARGET] = Column(dtype=token_dtype(target_vocab_size or vocab_size))
    if content == "label":
        columns[LABEL] = Column(dtype="int32")
    if content == "chat":
        columns[SUPERVISED] = Column(dtype="bit", along=MAIN)
    return columns


def fingerprint_of(content: dict[str, Any]) -> str:
    """SHA-256 over everything that the values depend on."""
    parts = {key: content[key] for key in ("format", "vocab_size", "columns", "files", "tokenizer")}
    parts |= {key: content[key] for key in OPTIONAL if key in content}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_index(directory: Path) -> Index:
    """The index of a directory of shards.

    Raises:
        DataError: if there is none, it is damaged, or of another version.
    """
    path = directory / INDEX
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise DataError(f"{directory} {found}; give a directory that preprocess.py has made")
    if not path.is_file():
        raise DataError(
            f"{directory} holds no shards: there is no {INDEX}; make them with preprocess.py"
        )
    try:
        content = json.loads(path.read_bytes())
        version = content["format"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version!r}, but this program reads {FORMAT_VERSION}; "
                f"preprocess the corpus again"
            )
        index = Index.model_validate(content)
    except (ValueError, TypeError, KeyError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"{path} is damaged ({reason}); preprocess the corpus again") from error
    _check_index(path, content, index)
    return index


def _check_index(path: Path, content: dict[str, Any], index: Index) -> None:
    """Whether the parts of the index agree with each other."""
    expected = {name for s in range(len(index.shards)) for name in shard_files(s, index.columns)}
    sums = [
        (index.documents, sum(shard.documents for shard in index.shards)),
        (index.tokens, sum(shard.values.get(MAIN, -1) for shard in index.shards)),
    ]
    along = {column.along for column in index.columns.values() if column.along}
    has_target, has_labels = TARGET in index.columns, LABEL in index.columns
    if (
        MAIN not in index.columns
        or not along <= {name for name, column in index.columns.items() if not column.along}
        or expected != set(index.files)
        or any(total != parts for total, parts in sums)
        or any(set(shard.values) != set(index.columns) for shard in index.shards)
        or has_target != (index.target_vocab_size is not None)
        or (index.target_tokenizer is not None and not has_target)
        or has_labels != (index.labels is not None)
        or index.fingerprint != fingerprint_of(content)
    ):
        raise DataError(f"{path} is damaged (its parts disagree); preprocess the corpus again")
    largest = max((shard.max_token for shard in index.shards), default=-1)
    if largest >= index.vocab_size:
        raise DataError(
            f"{path}: the token id {largest} is not in the vocabulary of {index.vocab_size} entries"
        )


class ArrayFile:
    """A one-dimensional `.npy` file that grows while it is written."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self.size = 0
        self._file = open(path, "wb")  # noqa: SIM115 - stays open until `close`
        self._write_header()

    def append(self, values: Array) -> None:
        """Write `values` [N] behind what is there."""
        data = np.ascontiguousarray(values, self.dtype)
        self._file.write(data.data)
        self.size += len(data)

    def close(self) -> StoredFile:
        """Complete the header, wait for the disk, and describe the file."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        # The header is known last, so the checksum takes a second reading, from the page cache.
        return StoredFile(bytes=end, checksum=file_checksum(self.path))

    def abandon(self) -> None:
        """Close without completing; on a full disk the last bytes have nowhere to go."""
        with suppress(OSError):
            self._file.close()

    def _write_header(self) -> None:
        # numpy reserves room for a first axis of 21 digits, so the length never changes.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
