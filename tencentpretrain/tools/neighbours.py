"""Entries of the vocabulary that are most alike: what `scripts/neighbours.py` does.

Without a text two entries are compared by their rows in the word table. With a text, each candidate
takes the place of the word in it, and the states of the last layer at that place are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.config import ConfigError, PositiveInt, check
from tencentpretrain.errors import before_start
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tools.cloze import readable
from tencentpretrain.tools.saved_model import SavedModel, ToolConfig, load_model
from tencentpretrain.tools.text_vectors import TextVectors
from tencentpretrain.tools.texts import TextFormat, run_sorted
from tencentpretrain.tools.word_vectors import word_table

Vectors = NDArray[np.float32]


class NeighboursConfig(ToolConfig):
    """List the entries that are most like given words."""

    words: list[str]
    """Words that are entries of the vocabulary."""
    text: str | None = None
    """Text that holds the words: their neighbours are then those in this context."""
    top: PositiveInt = 10
    """Neighbours for each word."""
    candidates: PositiveInt | None = None
    """With text: try only so many entries, those nearest in the word table; null tries all."""

    @check("words")
    def _some_words(self) -> str | None:
        return None if self.words else "words must name at least one word, but is empty"

    @check("text", "candidates")
    def _candidates_need_text(self) -> str | None:
        if self.candidates is not None and self.text is None:
            return "candidates needs text"
        return None


def run_neighbours(config: NeighboursConfig) -> int:
    """Print the neighbours of each word; returns the exit code."""
    with before_start():
        machine = config.machine()
        saved = load_model(config, machine)
        tokenizer = saved.text_tokenizer()
        entries = [find_entry(tokenizer, word) for word in config.words]
        table = word_table(saved.model)[: tokenizer.vocab_size]
        context = None if config.text is None else Context(saved, machine, config.text)
        places = [0 if context is None else context.place(word) for word in entries]
    for word, entry, place in zip(config.words, entries, places, strict=True):
        found = nearest_rows(table[entry], table)
        found = [pair for pair in found if pair[0] != entry and tokenizer.token(pair[0])]
        if context is not None:
            numbers = [number for number, _ in found[: config.candidates]]
            found = context.nearest(place, entry, numbers)
        listed = (f"{readable(tokenizer, n)} {cosine:.4f}" for n, cosine in found[: config.top])
        print(f"{word}: " + "  ".join(listed), flush=True)
    return 0


def find_entry(tokenizer: Tokenizer, word: str) -> int:
    """The id of a word that is one entry of the vocabulary.

    Raises:
        ConfigError: if it is none, or is cut into several.
    """
    found = tokenizer.id(word)
    ids = tokenizer.encode(word) if found is None else [found]
    if len(ids) == 1 and ids[0] != tokenizer.unk:
        return ids[0]
    pieces = " ".join(tokenizer.token(number) for number in ids) or "nothing"
    message = f"must be entries of the vocabulary, but `{word}` is read as {pieces}"
    raise ConfigError.at("words", message)


def nearest_rows(vector: Vectors, rows: Vectors) -> list[tuple[int, float]]:
    """Numbers of `rows` [N, D] and their cosines to `vector` [D], the greatest first."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    cosines = rows @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
    order = np.argsort(-cosines, kind="stable")
    return list(zip(order.tolist(), cosines[order].tolist(), strict=True))


class Context:
    """A text in which entries take each other's place.

    Args:
        saved: a model that reads text.
        machine: how it is run.
        text: what is around the words.

    Raises:
        ConfigError: if the text is longer than the rows of the model.
    """

    def __init__(self, saved: SavedModel, machine: Machine, text: str) -> None:
        self._format = TextFormat(saved, saved.length())
        self._reader = TextVectors(saved, machine, "first")
        self._machine = machine
        (ids,) = self._format.encode([text])
        if len(ids) > self._format.room:
            message = f"must have at most {self._format.room} tokens, but has {len(ids)}"
            raise ConfigError.at("text", message)
        self._row = self._format.row(ids)

    def place(self, entry: int) -> int:
        """Where `entry` first is in the text.

        Raises:
            ConfigError: if it is not there.
        """
        found = np.flatnonzero(self._row == entry)
        if not len(found):
            word = self._format.tokenizer.token(entry)
            raise ConfigError.at("text", f"must hold all words, but there is no `{word}` in it")
        return int(found[0])

    def nearest(self, place: int, entry: int, numbers: Sequence[int]) -> list[tuple[int, float]]:
        """Those entries `numbers` and their cosines to `entry` at `place`, the greatest first."""
        tried = [entry, *numbers]
        rows = [self._row] * len(tried)
        found_states = run_sorted(rows, self._machine, partial(self._states, place, tried))
        states: Vectors = np.stack(found_states)
        found = nearest_rows(states[0], states[1:])
        return [(numbers[position], cosine) for position, cosine in found]

    def _states(self, place: int, tried: list[int], chosen: list[int]) -> list[Vectors]:
        """States [D] at `place` with each of the chosen entries there."""
        rows = [self._row.copy() for _ in chosen]
        for row, number in zip(rows, chosen, strict=True):
            row[place] = tried[number]
        batch, _ = self._format.batch(rows)
        hidden = self._reader.hidden(batch.to(self._machine.device))
        return list(hidden.states[:, place].float().cpu().numpy())
