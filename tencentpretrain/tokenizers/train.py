"""Vocabularies from a corpus: what `scripts/build_vocab.py` does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    NonNegativeInt,
    PathLike,
    PositiveInt,
    SerializeAsAny,
    check,
)
from tencentpretrain.data.corpora import CorpusConfig, find_files
from tencentpretrain.data.documents import read_documents
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError, before_start
from tencentpretrain.registry import load_plugins
from tencentpretrain.tokenizers.trainers import TRAINERS


class BuildVocabConfig(Config):
    """Keys of `scripts/build_vocab.py`."""

    tokenizer: Annotated[SerializeAsAny[ComponentConfig], Choice(TRAINERS)]
    """Kind of the vocabulary: wordpiece, bpe, sentencepiece, character or space."""
    corpus: CorpusConfig
    """Where the raw text is and how it is laid out."""
    output: PathLike
    """Directory to make; it can be given as `tokenizer.vocab` afterwards."""
    vocab_size: PositiveInt = 30000
    """Most entries, special tokens included."""
    min_frequency: NonNegativeInt = 2
    """Entries must occur this often; SentencePiece decides by itself."""
    overwrite: bool = False
    """Whether a vocabulary at `output` may be replaced."""
    plugins: list[str] = []
    """Packages to import, which may register further kinds."""

    @check("output")
    def _directory(self) -> str | None:
        if self.output.suffix in (".txt", ".json", ".model"):
            return f"output must be a directory, as some kinds have two files, but is {self.output}"
        return None


def run_build_vocab(config: BuildVocabConfig) -> int:
    """Learn and write a vocabulary; return the exit code.

    Raises:
        DataError: if the corpus or the output cannot be used.
    """
    with before_start():
        load_plugins(config.plugins)
        if config.output.exists() and not (config.overwrite and config.output.is_dir()):
            raise DataError(
                f"{config.output} exists; choose another output, or replace the vocabulary in it "
                f"with `overwrite=true`"
            )
        find_files(config.corpus)
    remarks: Counter[str] = Counter()
    trainer = TRAINERS.build(config.tokenizer, partial(_documents, config.corpus, remarks))
    files = trainer.train(config.vocab_size, config.min_frequency)
    _publish(config.output, files)
    for reason, count in sorted(remarks.items()):
        print(f"left out or changed: {count:,} {reason}")
    print(f"output          {config.output} ({', '.join(files)})", flush=True)
    return 0


def _documents(config: CorpusConfig, remarks: Counter[str]) -> Iterator[list[str]]:
    is_empty = True
    remarks.clear()  # some kinds read the corpus twice
    for file in find_files(config):
        for piece in slices(file, config):
            for document in read_documents(piece, config, remarks):
                is_empty = False
                yield document
    if is_empty:
        raise DataError("corpus.path: the files hold no text at all")


def _publish(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files beside their place, and put them there when they are complete."""
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    try:
        for name, content in files.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        directory.mkdir(exist_ok=True)
        for name in files:
            os.replace(temporary / name, directory / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
