"""Named entities: a tag for each word of a sentence that somebody has cut into words already."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.packing import Integers
from tencentpretrain.errors import DataError
from tencentpretrain.model import Model, ModelConfig
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.tag import TagTarget
from tencentpretrain.tasks.base import TASKS, Inputs, Task, TaskExamples
from tencentpretrain.tasks.labels import LabelSet
from tencentpretrain.tasks.metrics import accuracy, entity_scores, find_entities
from tencentpretrain.tasks.table import Row, read_lines, read_table, shorten
from tencentpretrain.tasks.text import (
    Ragged,
    RaggedBuilder,
    RowFormat,
    TextConfig,
    TextRows,
    check_length,
)
from tencentpretrain.types import IGNORE, Batch, Labels, ModelOutput

HEAD = "tag"
OUTSIDE: Final = "O"
TAG: Final = re.compile(r"[BIES]-\S+|O")
CONLL: Final = (".conll", ".bio")
"""Files with a word and its tag a line, and empty lines between sentences."""


class NerExamples(TaskExamples):
    """One example a sentence.

    Args:
        rows: Encoded sentences.
        places: Where in its row the first piece of each word is; words that were cut have none.
        words: [N] words of each sentence.
        tags: Numbers of the tags of all words; None without labels.
    """

    def __init__(
        self, rows: TextRows, places: Ragged, words: Integers, tags: Ragged | None
    ) -> None:
        self.rows, self.places, self.words, self.tags = rows, places, words, tags
        self.is_labelled = tags is not None

    def __len__(self) -> int:
        return len(self.rows)

    def make(self, epoch: int, index: int) -> Example:
        example = self.rows.make(index)
        places = self.places[index]
        if self.tags is None:
            labels = np.full(len(places), IGNORE, np.int32)
        else:
            labels = self.tags[index][: len(places)]
        return example | {"index": places, "labels": labels}

    def collate(self, examples: list[Example]) -> Batch:
        stream = self.rows.stream(examples)
        width = stream.layout.valid.shape[1]
        index = np.concatenate([e["index"] + row * width for row, e in enumerate(examples)])
        labels = np.concatenate([example["labels"] for example in examples])
        return Batch(
            {"src": stream},
            {
                HEAD: Labels(
                    torch.from_numpy(labels.astype(np.int64)),
                    torch.from_numpy(index.astype(np.int64)),
                )
            },
            tokens=sum(len(example["ids"]) for example in examples),
        )

    def sizes(self) -> Integers:
        return self.rows.ids.lengths


@TASKS.register("ner")
class NerTask(Task[Row, NerExamples]):
    """Tags in BIO or BIOES; the first piece of a word speaks for it."""

    class Config(TextConfig):
        pass

    config: Config
    heads = (HEAD,)
    score = "f1"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.tags = LabelSet((OUTSIDE,))

    def read(self, path: Path, needs_labels: bool) -> list[Row]:
        text, label = self.config.text_a_column, self.config.label_column
        if path.suffix.lower() in CONLL:
            return read_conll(path, text, label, needs_labels)
        required = [text, label] if needs_labels else [text]
        return read_table(path, required, [] if needs_labels else [label])

    def learn(self, rows: Sequence[Row]) -> None:
        """All kinds of entities, each with all prefixes that are in use."""
        found: set[str] = set()
        for row in rows:
            for tag in self._tags(row):
                if tag not in found and not TAG.fullmatch(tag):
                    raise DataError(
                        f"{row.where}: a tag must be O or have the form B-KIND (or I, E, S), but "
                        f"is `{shorten(tag)}`"
                    )
                found.add(tag)
        entities = found - {OUTSIDE}
        if not entities:
            raise DataError(f"{rows[0].path} has no tag but O; give training data with entities")
        prefixes = sorted({tag[0] for tag in entities})
        kinds = sorted({tag[2:] for tag in entities})
        self.tags = LabelSet([OUTSIDE, *(f"{p}-{kind}" for kind in kinds for p in prefixes)])

    def state(self) -> dict[str, Any]:
        return {"tags": list(self.tags)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.tags = LabelSet(state["tags"])

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        check_length(self.config.length, model)
        return {HEAD: TagTarget.Config(name=HEAD, classes=len(self.tags))}

    def examples(self, rows: Sequence[Row], inputs: Inputs, is_labelled: bool) -> NerExamples:
        tags = None
        if is_labelled:
            numbers = RaggedBuilder()
            for row in rows:
                numbers.append(self.tags.number(tag, row.where) for tag in self._tags(row))
            tags = numbers.build()
        sentences = [self._words(row) for row in rows]
        encoded, places = RowFormat(inputs, self.config.length).sentences(sentences)
        words = np.array([len(sentence) for sentence in sentences], np.int64)
        return NerExamples(encoded, places, words, tags)

    def outputs(self, model: Model, out: ModelOutput, batch: Batch) -> list[Integers]:
        """Numbers of the tags of those words of each row that were not cut."""
        best = model.target[HEAD].logits(out, batch).argmax(-1).cpu().numpy()
        index = batch.labels[HEAD].index
        assert index is not None
        rows, width = batch.streams["src"].layout.valid.shape
        counts = np.bincount(index.cpu().numpy() // width, minlength=rows)
        return np.split(best, counts.cumsum()[:-1])

    def metrics(self, examples: NerExamples, outputs: Sequence[Integers]) -> dict[str, float]:
        assert examples.tags is not None
        predicted = [
            self._complete(output, int(count))
            for output, count in zip(outputs, examples.words, strict=True)
        ]
        names = self.tags.names
        given = [[names[n] for n in examples.tags[row]] for row in range(len(examples))]
        scores = entity_scores(given, predicted)
        flat = [self.tags.number(tag, "") for tags in predicted for tag in tags]
        return {
            "accuracy": accuracy(examples.tags.flat.astype(np.int64), np.array(flat, np.int64)),
            **scores._asdict(),
        }

    def decode(
        self, rows: Sequence[Row], examples: NerExamples, outputs: Sequence[Integers]
    ) -> Iterator[dict[str, Any]]:
        """Tags of all words of each row, and the entities with their places counted in words."""
        for row, output in zip(rows, outputs, strict=True):
            words = self._words(row)
            tags = self._complete(output, len(words))
            entities = [
                {
                    "text": join_words(words[entity.start : entity.stop]),
                    "type": entity.kind,
                    "start": entity.start,
                    "end": entity.stop,
                }
                for entity in find_entities(tags)
            ]
            yield {"label": " ".join(tags), "entities": entities}

    def has_labels(self, rows: Sequence[Row]) -> bool:
        return self.config.label_column in rows[0]

    def key(self, row: Row) -> str:
        return row[self.config.text_a_column]

    def _complete(self, output: Integers, words: int) -> list[str]:
        """Tags by name; words behind the end of the row have none and count as outside."""
        names = self.tags.names
        return [names[n] for n in output] + [OUTSIDE] * (words - len(output))

    def _words(self, row: Row) -> list[str]:
        return split_words(row[self.config.text_a_column])

    def _tags(self, row: Row) -> list[str]:
        """Tags of `row`.

        Raises:
            DataError: if there is not one for each word.
        """
        tags = split_words(row[self.config.label_column])
        words = self._words(row)
        if len(tags) != len(words):
            raise DataError(
                f"{row.where} must have one tag for each word, but has {len(words)} words and "
                f"{len(tags)} tags"
            )
        return tags


def split_words(text: str) -> list[str]:
    """Words between plain spaces: other white space may be a word of its own."""
    return [word for word in text.split(" ") if word]


def join_words(words: Sequence[str]) -> str:
    """The text of `words`, with spaces only where the script has them (not in Chinese)."""
    parts: list[str] = []
    for word in words:
        if parts and not (_is_dense(parts[-1][-1]) or _is_dense(word[0])):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def _is_dense(character: str) -> bool:
    """Whether `character` is of a script without spaces between words, or its punctuation."""
    is_wide = unicodedata.east_asian_width(character) in "WF"
    return is_wide and "HANGUL" not in unicodedata.name(character, "")


def read_conll(path: Path, text_column: str, label_column: str, needs_labels: bool) -> list[Row]:
    """Sentences of a file with a word a line, its tag in the last column, empty lines between.

    Raises:
        DataError: if a line has another number of columns than the first one, or no tag.
    """
    sentences: list[tuple[int, list[list[str]]]] = []
    is_open = False
    for number, line in read_lines(path):
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            is_open = False
            continue
        if not is_open:
            sentences.append((number, []))
            is_open = True
        sentences[-1][1].append(fields)
        width = len(sentences[0][1][0])
        if len(fields) != width or (needs_labels and width < 2):
            wanted = width if width > 1 else "a word and its tag, so 2"
            raise DataError(f"{path}, line {number} must have {wanted} columns: {shorten(line)}")
    if not sentences:
        raise DataError(f"{path} has no sentence; give a file with at least one")
    columns = {text_column: 0}
    if len(sentences[0][1][0]) > 1:
        columns[label_column] = 1
    rows = []
    for number, fields_of_words in sentences:
        words = " ".join(fields[0] for fields in fields_of_words)
        tags = " ".join(fields[-1] for fields in fields_of_words)
        rows.append(Row((words, tags)[: len(columns)], columns, path, number))
    return rows
