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

from pydantic import Field

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    PathLike,
    PositiveInt,
    SerializeAsAny,
)
from tencentpretrain.data.corpora import CorpusConfig, CorpusFile, find_files
from tencentpretrain.data.encode import Encoded, EncoderFactory
from tencentpretrain.data.engine import make_engine
from tencentpretrain.data.progress import Progress, duration
from tencentpretrain.data.segment import build_segmenter
from tencentpretrain.data.shard_format import text_columns
from tencentpretrain.data.shard_writer import SHARD_TOKENS, ShardWriter
from tencentpretrain.data.slices import Slice, slices
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import TOKENIZERS, build_tokenizer

logger = logging.getLogger(__name__)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class PreprocessConfig(Config):
    """Keys of `preprocess.py`."""

    tokenizer: Annotated[SerializeAsAny[ComponentConfig], Choice(TOKENIZERS)]
    """Kind and vocabulary of the tokenizer."""
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


@dataclass
class Summary:
    """Totals of a corpus."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown: int = 0
    size: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, encoded: Encoded) -> None:
        self.documents += encoded.documents
        self.sentences += encoded.sentences
        self.tokens += encoded.tokens
        self.unknown += encoded.unknown
        self.size += encoded.size
        self.remarks.update(encoded.remarks)

    def counts(self) -> dict[str, int]:
        """What the index of the shards records: nothing that depends on how the work was cut."""
        totals = {"sentences": self.sentences, "unknown tokens": self.unknown}
        return totals | dict(sorted(self.remarks.items()))

    def lines(self, seconds: float) -> Iterator[str]:
        rate = self.unknown / self.tokens
        yield f"documents       {self.documents:,}"
        yield f"sentences       {self.sentences:,}"
        yield f"tokens          {self.tokens:,}"
        yield f"unknown tokens  {self.unknown:,} ({rate:.3%})"
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
        writer = ShardWriter(
            config.output,
            tokenizer,
            columns=text_columns(tokenizer.vocab_size, config.segmenter != "none"),
            shard_tokens=config.shard_tokens,
            overwrite=config.overwrite,
        )
        files = find_files(config.corpus)
    factory = EncoderFactory(tokenizer, config.corpus, config.segmenter, tuple(config.plugins))
    try:
        with Interruption() as interruption, writer:
            with interruption.raised():
                summary, seconds = _encode(config, files, factory, writer)
            writer.source = summary.counts()
    except Interrupted as signalled:
        logger.warning("interrupted; %s was not written", config.output)
        return 128 + signalled.number
    print("\n".join(summary.lines(seconds)))
    print(f"output          {config.output}", flush=True)
    return 0


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
