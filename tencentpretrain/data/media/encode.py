"""From files of images or sounds to columns of shards: the work of one worker of `preprocess.py`.

Imported by worker processes: nothing here may import torch, but for sounds, which need it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tencentpretrain.data.corpora import CorpusConfig
from tencentpretrain.data.encode_records import EMPTY_RECORDS, whole
from tencentpretrain.data.encoded import Encoded, TextEncoder, note, sentence_columns
from tencentpretrain.data.media.images import decode_image
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import medium_of, read_entry
from tencentpretrain.data.shard_format import (
    DURATION,
    LABEL,
    MAIN,
    MEDIA,
    PATH,
    PATH_CRC,
    PATH_SIZE,
    Array,
    token_dtype,
)
from tencentpretrain.data.shard_writer import Ragged
from tencentpretrain.errors import DataError
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import Tokenizer

BAD: Final = "files that cannot be decoded"
MISSING: Final = "missing files"
RATE: Final = 16_000
"""Samples a second that sounds are decoded at, to see whether they can be."""

Decode = Callable[[bytes], Sized]


class Decoded(NamedTuple):
    """A file that can be decoded.

    Args:
        entry: What is known of it.
        data: Its bytes.
        size: Samples of a sound, rows of an image.
    """

    entry: MediaEntry
    data: bytes
    size: int


@dataclass(frozen=True)
class MediaEncoderFactory:
    """Makes the encoder of one worker process; small enough to be sent there."""

    corpus: CorpusConfig
    tokenizer: Tokenizer | None
    plugins: tuple[str, ...] = ()

    def __call__(self) -> Callable[[Sequence[MediaEntry]], Encoded]:
        load_plugins(self.plugins)
        return MediaEncoder(self.corpus, self.tokenizer, decoder(self.corpus))


class MediaEncoder:
    """Reads and decodes files, and tokenises their texts.

    Args:
        corpus: What the files are, and what is done about bad ones.
        tokenizer: Of the texts; None where there are none.
        decode: Raises `DataError` for bytes that cannot be decoded.
    """

    def __init__(self, corpus: CorpusConfig, tokenizer: Tokenizer | None, decode: Decode) -> None:
        self._corpus = corpus
        self._encode = None if tokenizer is None else TextEncoder(tokenizer)
        self._decode = decode

    def __call__(self, entries: Sequence[MediaEntry]) -> Encoded:
        remarks: Counter[str] = Counter()
        left_out: list[tuple[str, str]] = []
        kept: list[Decoded] = []
        for entry in entries:
            try:
                data = read_entry(entry)
                size = len(self._decode(data))
            except DataError as error:
                reason = str(error) if entry.size is None else f"{entry.where}: {error}"
                if self._corpus.bad_files == "error":
                    raise DataError(
                        f"{reason}; or leave such files out with corpus.bad_files=skip"
                    ) from error
                remarks[MISSING if entry.size is None else BAD] += 1
                left_out.append((entry.name, reason))
            else:
                kept.append(Decoded(entry, data, size))
        encoded = self._columns(kept, remarks)
        encoded.consumed = sum(entry.size or 0 for entry in entries)
        encoded.left_out = tuple(left_out)
        return encoded

    def _columns(self, kept: list[Decoded], remarks: Counter[str]) -> Encoded:
        columns: dict[str, Ragged] = {}
        unknown = sentences = 0
        if self._encode is None:
            nothing = np.zeros(0, token_dtype(1))
            columns[MAIN] = Ragged(nothing, np.zeros(len(kept), np.int64))
        else:
            tokens = whole(self._encode, [entry.text for entry, *_ in kept], remarks)
            has_tokens = tokens.lengths > 0
            note(remarks, EMPTY_RECORDS, int((~has_tokens).sum()))
            kept = [pair for pair, is_kept in zip(kept, has_tokens, strict=True) if is_kept]
            lengths = tokens.lengths[has_tokens]
            columns |= sentence_columns(tokens.ids, lengths, np.ones_like(lengths))
            unknown, sentences = self._encode.count_unknown(tokens.ids), len(lengths)
        labels = [entry.label for entry, *_ in kept if entry.label]
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        counts = np.array([bool(entry.label) for entry, *_ in kept], np.int64)
        columns[LABEL] = Ragged(np.array([numbers[label] for label in labels], np.int32), counts)
        columns |= self._stored(kept)
        if medium_of(self._corpus) == "audio":
            durations = np.array([1000 * size / RATE for *_, size in kept])
            columns[DURATION] = _one_each(np.ceil(durations).astype(np.uint32))
        return Encoded(
            columns,
            documents=len(kept),
            sentences=sentences,
            tokens=len(columns[MAIN].values),
            unknown=unknown,
            consumed=0,
            size=sum(len(data) for _, data, _ in kept),
            remarks=remarks,
            labels=tuple(numbers),
        )

    def _stored(self, kept: list[Decoded]) -> dict[str, Ragged]:
        """The columns that stand for the files: their bytes, or how to find and know them again."""
        if self._corpus.store == "bytes":
            return {MEDIA: _joined([data for _, data, _ in kept])}
        return {
            PATH: _joined([str(Path(entry.path).absolute()).encode() for entry, *_ in kept]),
            PATH_SIZE: _one_each(np.array([len(data) for _, data, _ in kept], np.int64)),
            PATH_CRC: _one_each(np.array([zlib.crc32(data) for _, data, _ in kept], np.uint32)),
        }


def _joined(parts: list[bytes]) -> Ragged:
    """A column of the bytes of each document."""
    lengths = np.array([len(part) for part in parts], np.int64)
    return Ragged(np.frombuffer(b"".join(parts), np.uint8), lengths)


def _one_each(values: Array) -> Ragged:
    """A column of one value for each document."""
    return Ragged(values, np.ones(len(values), np.int64))


def decoder(corpus: CorpusConfig) -> Decode:
    """What decodes the files of a corpus, and raises `DataError` where they cannot be."""
    if medium_of(corpus) == "image":
        return decode_image
    # Imports torch, which images can do without.
    from tencentpretrain.data.media.audio import decode_audio

    return lambda data: decode_audio(data, RATE)
