"""The word table of a model, in the text format of word2vec (Mikolov et al., 2013)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.embeddings.text import WordEmbedding
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model
from tencentpretrain.tokenizers.base import Tokenizer

log = logging.getLogger("tencentpretrain")


def word_table(model: Model) -> NDArray[np.float32]:
    """The rows [V, E] of the word table.

    Raises:
        CheckpointError: if the model has none.
    """
    for part in model.embedding.parts():
        if isinstance(part, WordEmbedding):
            return part.weight.detach().float().cpu().numpy()
    raise CheckpointError("the model has no word table; give the run of a model that reads text")


def word_lines(tokenizer: Tokenizer, model: Model) -> Iterator[str]:
    """A line with the numbers of entries and components, then a line for each entry.

    Entries that are empty or hold white space, which the format cannot write, are left out.

    Raises:
        CheckpointError: at once, if the model has no word table.
    """
    return _lines(tokenizer, word_table(model))


def _lines(tokenizer: Tokenizer, table: NDArray[np.float32]) -> Iterator[str]:
    entries = [tokenizer.token(number) for number in range(tokenizer.vocab_size)]
    kept = [number for number, entry in enumerate(entries) if entry.split() == [entry]]
    if len(kept) < len(entries):
        log.warning(f"{len(entries) - len(kept):,} entries with white space are left out")
    yield f"{len(kept)} {table.shape[1]}\n"
    for number in kept:
        values = " ".join(f"{value:.7g}" for value in table[number].tolist())
        yield f"{entries[number]} {values}\n"
