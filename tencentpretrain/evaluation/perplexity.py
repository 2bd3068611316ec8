"""How well a causal model predicts a text: what `scripts/perplexity.py` does."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from tencentpretrain.config import ConfigError, PathLike, PositiveInt, check
from tencentpretrain.data.corpora import CorpusConfig, CorpusFile, find_files
from tencentpretrain.data.documents import read_documents
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.evaluation.scoring import CausalScorer
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools.outputs import check_file, write_lines
from tencentpretrain.tools.saved_model import ToolConfig, load_model

log = logging.getLogger("tencentpretrain")


class PerplexityConfig(ToolConfig):
    """Measure how well a causal model predicts a text."""

    input: PathLike
    """File or directory with text, as preprocess.py reads it."""
    documents: Literal["auto", "sentences", "lines", "text", "jsonl", "tsv"] = "auto"
    """What a document is; the model sees nothing across its borders. As corpus.format of
    preprocess.py: sentences a line and blank lines between documents, a document a line, or a
    document a file, newlines included; auto goes by the extension."""
    keep_newlines: bool = False
    """Whether the newline behind a sentence is part of it, as corpus.keep_newlines was in
    preprocessing."""
    length: PositiveInt | None = None
    """Tokens that the model reads at once; null is the length of training."""
    stride: PositiveInt | None = None
    """Tokens by which the window moves in long documents: behind the first window, each token has
    at least length - stride others before it. Null is half of length."""
    bos: bool | None = None
    """Begin documents with [bos], so that their first token counts; null does as training did."""
    eos: bool = False
    """Whether the token behind a document, which training predicts, counts too."""
    output: PathLike | None = None
    """File for the figures as JSON."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""

    @check("length", "stride")
    def _windows_overlap(self) -> str | None:
        if self.length is None or self.stride is None or self.stride <= self.length:
            return None
        return f"stride must be at most length={self.length}, but is {self.stride}"


@dataclass
class Perplexity:
    """Totals over documents, and what follows from them.

    Args:
        documents: How many.
        tokens: That were predicted.
        unpredicted: First tokens, of which nothing could tell.
        words: Between white space, in the whole text.
        bytes: Of the whole text in UTF-8.
        log_probability: Sum over the predicted tokens, natural.
    """

    documents: int = 0
    tokens: int = 0
    unpredicted: int = 0
    words: int = 0
    bytes: int = 0
    log_probability: float = 0.0

    def figures(self) -> dict[str, float]:
        """The perplexities by name; each is exp(-log p / count)."""
        nats = -self.log_probability
        return {
            "loss": nats / self.tokens,
            "token_perplexity": _power(nats / self.tokens),
            "word_perplexity": _power(nats / max(1, self.words)),
            "byte_perplexity": _power(nats / self.bytes),
            "bits_per_byte": nats / self.bytes / math.log(2),
        }

    def lines(self) -> Iterator[str]:
        """A table for people."""
        for name in ("documents", "tokens", "unpredicted", "words", "bytes"):
            yield f"{name.replace('_', ' '):<18}{getattr(self, name):,}"
        for name, value in self.figures().items():
            yield f"{name.replace('_', ' '):<18}{value:,.4f}"

    def to_json(self) -> str:
        """All figures; what is beyond any number is null."""
        figures = {k: v if math.isfinite(v) else None for k, v in self.figures().items()}
        return json.dumps(asdict(self) | figures, indent=2) + "\n"


def _power(exponent: float) -> float:
    """E to the `exponent`; a text without spaces is one word of any improbability."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def run_perplexity(config: PerplexityConfig) -> int:
    """Measure as `config` says; returns the exit code."""
    with before_start():
        if config.output is not None:
            check_file(config.output, config.overwrite, [config.input])
        corpus = CorpusConfig(
            path=str(config.input), format=config.documents, keep_newlines=config.keep_newlines
        )
        files = find_files(corpus)
        machine = config.machine()
        saved = load_model(config, machine)
        scorer = CausalScorer(saved, machine, config.length)
        stride = config.stride or -(-scorer.length // 2)
        if stride > scorer.length:
            message = f"must be at most length={scorer.length}, but is {stride}"
            raise ConfigError.at("stride", message)
        has_bos = getattr(saved.config.objective, "bos", False)
        has_bos = has_bos if config.bos is None else config.bos
        around = _ends(scorer.tokenizer, has_bos, config.eos)
    result = measure(scorer, corpus, files, stride, around)
    if not result.tokens:
        with before_start():  # nothing was written
            raise DataError(f"{config.input} holds no text of which a token could be predicted")
    print("\n".join(result.lines()), flush=True)
    if config.output is not None:
        write_lines(config.output, [result.to_json()])
    return 0


def _ends(tokenizer: Tokenizer, has_bos: bool, has_eos: bool) -> tuple[list[int], list[int]]:
    """Ids before and behind each document; a tokenizer without [eos] ends texts with [sep]."""
    end = "sep" if tokenizer.eos is None and tokenizer.sep is not None else "eos"
    return (
        [tokenizer.require("bos")] if has_bos else [],
        [tokenizer.require("sep" if end == "sep" else "eos")] if has_eos else [],
    )


def measure(
    scorer: CausalScorer,
    corpus: CorpusConfig,
    files: list[CorpusFile],
    stride: int,
    around: tuple[list[int], list[int]],
) -> Perplexity:
    """Score all documents of `files`, a slice at a time.

    Args:
        scorer: with the model.
        corpus: how the files are laid out.
        files: of the corpus.
        stride: of the windows, in tokens.
        around: ids before and behind each document.

    Raises:
        DataError: for text that cannot be read, naming the line.
    """
    result, remarks = Perplexity(), Counter[str]()
    before, behind = around
    for piece in (piece for file in files for piece in slices(file, corpus)):
        sequences = []
        for sentences in read_documents(piece, corpus, remarks):
            ids = scorer.tokenizer.encode_flat(sentences)[0].tolist()
            sequences.append([*before, *ids, *behind])
            result.words += sum(len(sentence.split()) for sentence in sentences)
            result.bytes += sum(len(sentence.encode()) for sentence in sentences)
            result.unpredicted += bool(ids) and not before
        for score in scorer.score(sequences, stride=stride):
            result.documents += 1
            result.tokens += score.count
            result.log_probability += score.log_probability
    for reason, count in sorted(remarks.items()):
        log.warning(f"left out or changed: {count:,} {reason}")
    return result
