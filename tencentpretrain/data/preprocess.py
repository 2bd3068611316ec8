"""A corpus to shards: what `preprocess.py` does.

Imports neither torch nor anything that does, so that it starts at once.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Final, Self

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
from tencentpretrain.data.corpora import CorpusConfig, find_files
from tencentpretrain.data.encode import EncoderFactory
from tencentpretrain.data.encoded import Encoded
from tencentpretrain.data.engine import Engine, EngineName, make_engine
from tencentpretrain.data.media.encode import MediaEncoderFactory
from tencentpretrain.data.media.records import find_media, grouped, total_size
from tencentpretrain.data.progress import Progress
from tencentpretrain.data.segment import build_segmenter
from tencentpretrain.data.shard_format import LABEL, media_columns, record_columns
from tencentpretrain.data.shard_writer import SHARD_BYTES, SHARD_TOKENS, ShardWriter
from tencentpretrain.data.slices import Part, part_slices
from tencentpretrain.data.summary import Summary
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer

logger = logging.getLogger(__name__)


class PreprocessConfig(Config):
    """Keys of `preprocess.py`."""

    tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Kind and vocabulary of the tokenizer; only images and sounds without texts need none."""
    target_tokenizer: Annotated[SerializeAsAny[ComponentConfig] | None, Choice(TOKENIZERS)] = None
    """Kind and vocabulary of the tokenizer of the targets of pairs; null is that of the sources."""
    corpus: CorpusConfig
    """Where the raw text is and how it is laid out."""
    output: PathLike
    """Directory to make; it holds the shards and the tokenizer."""
    engine: EngineName = "local"
    """Where the work is done: by processes of this machine (`local`), or by a Ray cluster (`ray`).
    The output does not depend on it."""
    workers: PositiveInt | None = None
    """Number of processes, null is one for each core. The output does not depend on it."""
    part: str = "1/1"
    """K/N makes only the K-th of N parts of the corpus, for an array of jobs; all directories
    together, in their order, are one data.path with the documents of the whole."""
    shard_tokens: PositiveInt = SHARD_TOKENS
    """A shard is closed behind the document that reaches this many tokens."""
    shard_bytes: PositiveInt = SHARD_BYTES
    """The same for the bytes of images and sounds, which count instead of tokens."""
    segmenter: str = "none"
    """Finds words to be masked as a whole: `none` (spaces and pieces tell), `jieba` (Chinese), or
    `package.module:function`, from a sentence to its words."""
    overwrite: bool = False
    """Whether a directory of shards at `output` may be replaced."""
    plugins: list[str] = []
    """Packages to import, which may register tokenizers and define segmenters."""

    @check("part", "corpus")
    def _is_part(self) -> str | None:
        number, _, count = self.part.partition("/")
        are_numbers = number.isdecimal() and count.isdecimal()
        if not are_numbers or not 1 <= int(number) <= int(count):
            return f"part must be K/N with K from 1 to N, such as 3/16, but is {self.part}"
        if self.corpus.media is not None and int(count) > 1:
            return "part is for texts; divide images and sounds by corpus.path"
        return None

    @property
    def chosen_part(self) -> Part:
        """What of the corpus is made."""
        number, count = self.part.split("/")
        return Part(int(number), int(count))

    @check("tokenizer", "corpus")
    def _texts_have_tokenizer(self) -> str | None:
        kind = self.corpus.kind
        if kind in ("image", "audio"):
            has_one = self.tokenizer is not None
            return f"tokenizer is for texts, but corpus.format={kind} has none" * has_one
        return None if self.tokenizer else "tokenizer is required, but was not given"

    @check("target_tokenizer", "corpus")
    def _only_pairs_have_targets(self) -> str | None:
        if self.target_tokenizer is None or self.corpus.kind == "pair":
            return None
        return (
            f"target_tokenizer is for corpus.content=pair, but that is {self.corpus.kind}; "
            "leave one of them out"
        )

    @check("segmenter", "corpus")
    def _only_text_has_words(self) -> str | None:
        if self.segmenter == "none" or self.corpus.kind in ("text", "label"):
            return None
        return f"segmenter must be none for corpus.content={self.corpus.kind}"


def run_preprocess(config: PreprocessConfig) -> int:
    """Write the shards of a corpus; return the exit code.

    Raises:
        DataError: if the corpus, the vocabulary or the output cannot be used.
    """
    with before_start():
        load_plugins(config.plugins)
        build_segmenter(config.segmenter)
        tokenizer = None if config.tokenizer is None else build_tokenizer(config.tokenizer)
        second = config.target_tokenizer
        target = None if second is None else build_tokenizer(second)
        writer = _writer(config, tokenizer, target)
        work = _work(config, tokenizer, target)
        engine = make_engine(config.workers, config.engine)
    try:
        with Interruption() as interruption, writer:
            with interruption.raised():
                summary, seconds = _encode(config, work, engine, writer)
            writer.source = summary.counts()
            writer.notes = summary.notes()
            writer.labels = list(summary.labels) if LABEL in writer.columns else None
    except Interrupted as signalled:
        logger.warning("interrupted; %s was not written", config.output)
        return 128 + signalled.number
    print("\n".join(summary.lines(seconds)))
    print(f"output          {config.output}", flush=True)
    return 0


def _writer(
    config: PreprocessConfig, tokenizer: Tokenizer | None, target_tokenizer: Tokenizer | None
) -> ShardWriter:
    corpus, vocab_size = config.corpus, 1 if tokenizer is None else tokenizer.vocab_size
    if corpus.media is not None:
        columns = media_columns(corpus.media, vocab_size, corpus.store)
    else:
        columns = record_columns(
            corpus.content,
            vocab_size,
            None if target_tokenizer is None else target_tokenizer.vocab_size,
            has_words=config.segmenter != "none",
        )
    return ShardWriter(
        config.output,
        tokenizer,
        columns=columns,
        vocab_size=vocab_size,
        target_tokenizer=target_tokenizer,
        shard_tokens=config.shard_tokens,
        shard_bytes=config.shard_bytes,
        overwrite=config.overwrite,
    )


@dataclass(frozen=True)
class Work:
    """What there is to encode.

    Args:
        make: Makes the function that a worker applies to each piece.
        pieces: Parts of the corpus, in its order.
        total: Bytes on the disk.
        remarks: Counts what is left out while the pieces are made, by reason.
        source: What messages call the corpus.
    """

    make: Callable[[], Callable[[Any], Encoded]]
    pieces: Iterable[Any]
    total: int
    remarks: Counter[str]
    source: str


def _work(config: PreprocessConfig, tokenizer: Tokenizer | None, target: Tokenizer | None) -> Work:
    """What there is to encode; nothing of it is read but lists of files."""
    corpus, plugins, remarks = config.corpus, tuple(config.plugins), Counter[str]()
    if corpus.media is not None:
        media = MediaEncoderFactory(corpus, tokenizer, plugins)
        pieces = grouped(find_media(corpus, remarks))
        return Work(media, pieces, total_size(corpus), remarks, f"{corpus.path} holds")
    assert tokenizer is not None
    files = find_files(corpus)
    if corpus.content == "chat":
        template = TEMPLATES[corpus.template](tokenizer)
        if template.warning:
            logger.warning(template.warning)
    make = EncoderFactory(tokenizer, corpus, config.segmenter, plugins, target)
    source = f"{len(files)} files hold" if len(files) > 1 else f"{files[0].path} holds"
    part = config.chosen_part
    if part.count > 1:
        source = f"part {config.part} of {source.replace('holds', 'hold')}"
    total = sum(file.size for file in files) // part.count
    return Work(make, part_slices(files, corpus, part), total, remarks, source)


def _encode(
    config: PreprocessConfig, work: Work, engine: Engine, writer: ShardWriter
) -> tuple[Summary, float]:
    """Write all documents; return their totals and the seconds it took."""
    summary = Summary() if config.corpus.media is None else Summary("files")
    encoder = engine.map(work.make, work.pieces)
    with Progress(work.total) as progress, closing(encoder):
        for encoded in encoder:
            summary.number(encoded)
            writer.write(encoded.columns)
            summary.add(encoded)
            progress.add(encoded.consumed, encoded.documents)
    summary.remarks.update(work.remarks)
    if summary.documents == 0:
        reasons = "".join(f"; {count} {reason}" for reason, count in summary.remarks.items())
        what = "text" if config.corpus.media is None else config.corpus.media
        with before_start():  # nothing was written
            raise DataError(f"corpus.path: {work.source} no {what} at all{reasons}")
    return summary, progress.seconds


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
