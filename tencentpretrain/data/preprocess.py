"""A corpus to shards: what `preprocess.py` does.

Imports neither torch nor anything that does, so that it starts at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Annotated, Final, Self

import numpy as np
from pydantic import Field

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    check,
)
from tencentpretrain.data.chat import TEMPLATES
from tencentpretrain.data.corpora import CorpusConfig, CorpusFile, find_files
from tencentpretrain.data.encode import EncoderFactory
from tencentpretrain.data.encoded import Encoded
from tencentpretrain.data.engine import make_engine
from tencentpretrain.data.progress import Progress, duration
from tencentpretrain.data.segment import build_segmenter
from tencentpretrain.data.shard_format import LABEL, record_columns
from tencentpretrain.data.shard_writer import SHARD_TOKENS, Ragged, ShardWriter
from tencentpretrain.data.slices import Slice, slices
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer

logger = logging.getLogger(__name__)

SHOWN_LABELS: Final = 20
"""Labels that the summary names."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class PreprocessConfig(Config):
    """Keys of `preprocess.py`."""

    tokenizer: Annotated[SerializeAsAny[ComponentConfig], Choice(TOKENIZERS)]
    """Kind and vocabulary of the tokenizer."""
    target_tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Kind and vocabulary of the tokenizer of the targets of pairs; null is that of the sources."""
    corpus: CorpusConfig
    """Where the raw text is and how it is laid out."""
    output: PathLike
    """Directory to make; it holds the shards and the tokenizer."""
    workers: PositiveInt = Field(default_factory=available_cores)
    """Number of local processes; by default one for each core. The output does not depend on it."""
    shard_tokens: PositiveInt = SHARD_TOKENS
    """A shard is closed behind the document that reaches this many tokens."""
    segmenter: str = "none"
    """Finds words to be masked as a whole: `none` (spaces and pieces tell), `jieba` (Chinese), or
    `package.module:function`, from a sentence to its words."""
    overwrite: bool = False
    """Whether a directory of shards at `output` may be replaced."""
    plugins: list[str] = []
    """Packages to import, which may register tokenizers and define segmenters."""

    @check("target_tokenizer", "corpus")
    def _only_pairs_have_targets(self) -> str | None:
        if self.target_tokenizer is None or self.corpus.content == "pair":
            return None
        return (
            f"target_tokenizer is for corpus.content=pair, but that is {self.corpus.content}; "
            "leave one of them out"
        )

    @check("segmenter", "corpus")
    def _only_text_has_words(self) -> str | None:
        if self.segmenter == "none" or self.corpus.content in ("text", "label"):
            return None
        return f"segmenter must be none for corpus.content={self.corpus.content}"


@dataclass
class Summary:
    """Totals of a corpus."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown: int = 0
    size: int = 0
    target_tokens: int = 0
    target_unknown: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    """Number of each label, in the order of the first documents that have them."""
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, encoded: Encoded) -> None:
        self.documents += encoded.documents
        self.sentences += encoded.sentences
        self.tokens += encoded.tokens
        self.unknown += encoded.unknown
        self.size += encoded.size
        self.target_tokens += encoded.target_tokens
        self.target_unknown += encoded.target_unknown
        self.remarks.update(encoded.remarks)

    def number(self, encoded: Encoded) -> None:
        """Put the numbers of labels in the whole corpus for those in the slice."""
        if LABEL in encoded.columns:
            found = [self.labels.setdefault(name, len(self.labels)) for name in encoded.labels]
            column = encoded.columns[LABEL]
            numbers = np.array(found, np.int32)[column.values]
            encoded.columns[LABEL] = Ragged(numbers, column.lengths)

    def counts(self) -> dict[str, int]:
        """What the index of the shards records: nothing that depends on how the work was cut."""
        totals = {"sentences": self.sentences, "unknown tokens": self.unknown}
        if self.target_tokens:
            totals["target tokens"] = self.target_tokens
            totals["unknown target tokens"] = self.target_unknown
        return totals | dict(sorted(self.remarks.items()))

    def lines(self, seconds: float) -> Iterator[str]:
        rate = self.unknown / self.tokens
        yield f"documents       {self.documents:,}"
        yield f"sentences       {self.sentences:,}"
        yield f"tokens          {self.tokens:,}"
        yield f"unknown tokens  {self.unknown:,} ({rate:.3%})"
        if self.target_tokens:
            rate = self.target_unknown / self.target_tokens
            yield f"target tokens   {self.target_tokens:,} ({rate:.3%} unknown)"
        if self.labels:
            names = list(self.labels)
            shown = ", ".join(names[:SHOWN_LABELS]) + ", ..." * (len(names) > SHOWN_LABELS)
            yield f"labels          {len(names):,} ({shown})"
        yield f"text            {self.size:,} bytes"
        yield f"time            {duration(seconds)} ({self.size / 1e6 / seconds:.2f} MB/s)"
        for reason, count in sorted(self.remarks.items()):
            yield f"left out or changed: {count:,} {reason}"
        if not self.remarks:
            yield "left out or changed: nothing"


def run_preprocess(config: PreprocessConfig) -> int:
    """Write the shards of a corpus; return the exit code.

    Raises:
        DataError: if the corpus, the vocabulary or the output cannot be used.
    """
    with before_start():
        load_plugins(config.plugins)
        build_segmenter(config.segmenter)
        tokenizer = build_tokenizer(config.tokenizer)
        second = config.target_tokenizer
        target = None if second is None else build_tokenizer(second)
        writer = _writer(config, tokenizer, target)
        files = find_files(config.corpus)
        if config.corpus.content == "chat":
            template = TEMPLATES[config.corpus.template](tokenizer)
            if template.warning:
                logger.warning(template.warning)
    plugins = tuple(config.plugins)
    factory = EncoderFactory(tokenizer, config.corpus, config.segmenter, plugins, target)
    try:
        with Interruption() as interruption, writer:
            with interruption.raised():
                summary, seconds = _encode(config, files, factory, writer)
            writer.source = summary.counts()
            writer.labels = list(summary.labels) if config.corpus.content == "label" else None
    except Interrupted as signalled:
        logger.warning("interrupted; %s was not written", config.output)
        return 128 + signalled.number
    print("\n".join(summary.lines(seconds)))
    print(f"output          {config.output}", flush=True)
    return 0


def _writer(
    config: PreprocessConfig, tokenizer: Tokenizer, target_tokenizer: Tokenizer | None
) -> ShardWriter:
    return ShardWriter(
        config.output,
        tokenizer,
        columns=record_columns(
            config.corpus.content,
            tokenizer.vocab_size,
            None if target_tokenizer is None else target_tokenizer.vocab_size,
            has_words=config.segmenter != "none",
        ),
        target_tokenizer=target_tokenizer,
        shard_tokens=config.shard_tokens,
        overwrite=config.overwrite,
    )


def _encode(
    config: PreprocessConfig,
    files: Sequence[CorpusFile],
    factory: EncoderFactory,
    writer: ShardWriter,
) -> tuple[Summary, float]:
    """Write all documents; return their totals and the seconds it took."""
    summary = Summary()
    engine = make_engine(config.workers)
    encoder = engine.map(factory, _all_slices(files, config.corpus))
    with Progress(sum(file.size for file in files)) as progress, closing(encoder):
        for encoded in encoder:
            summary.number(encoded)
            writer.write(encoded.columns)
            summary.add(encoded)
            progress.add(encoded.consumed, encoded.documents)
    if summary.tokens == 0:
        reasons = "".join(f"; {count} {reason}" for reason, count in summary.remarks.items())
        count = f"{len(files)} files hold" if len(files) > 1 else f"{files[0].path} holds"
        with before_start():  # nothing was written
            raise DataError(f"corpus.path: {count} no text at all{reasons}")
    return summary, progress.seconds


def _all_slices(files: Sequence[CorpusFile], config: CorpusConfig) -> Iterator[Slice]:
    for file in files:
        yield from slices(file, config)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Turns Ctrl-C and SIGTERM into an exception, but only where that does no harm.

    Outside `raised` they wait: the output is being published, or rubbish is being removed.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._is_raising = False
        self._before: list[object] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._handle) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(SIGNALS, self._before, strict=False):
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within, a signal raises `Interrupted`, once."""
        if self._number is not None:
            raise Interrupted(self._number)
        self._is_raising = True
        try:
            yield
        finally:
            self._is_raising = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if self._is_raising:
            self._is_raising = False
            raise Interrupted(number)
