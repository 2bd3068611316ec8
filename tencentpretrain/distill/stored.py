"""Stored teachers: what one said of the examples of an objective, read in place of asking it.

A directory of shards with a document for each example of each epoch, in their order. Examples are
functions of (seed, epoch, index), masks included, so what is stored is what the teacher would say.

tokens   ids of the likeliest entries, k for each supervised position, the likeliest first
scores   their log-probabilities
labels   labels of the supervised positions; an example that has others is not the stored one
rest     log-probability of all other entries together, for each position
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.config import ConfigError
from tencentpretrain.data.loader import Examples
from tencentpretrain.data.shard_format import INDEX, MAIN, Column, token_dtype
from tencentpretrain.data.shards import ShardSet, open_shards
from tencentpretrain.distill.answers import StatesAnswer, Teaching, TopAnswer, add_teaching
from tencentpretrain.distill.divergences import Divergence
from tencentpretrain.distill.outcomes import LOWEST
from tencentpretrain.errors import DataError
from tencentpretrain.targets.companion import Setting
from tencentpretrain.targets.cross_entropy import row_chunks
from tencentpretrain.types import Batch

Arrays = dict[str, NDArray[Any]]
COLUMNS: Final = {"scores", "labels", "rest"}


def stored_columns(vocabulary: int) -> dict[str, Column]:
    """Columns of a stored teacher."""
    return {
        MAIN: Column(dtype=token_dtype(vocabulary)),
        "scores": Column(dtype="float32", along=MAIN),
        "labels": Column(dtype="int32"),
        "rest": Column(dtype="float32", along="labels"),
    }


def top_of(answer: StatesAnswer, count: int) -> dict[str, Tensor]:
    """The `count` likeliest entries [K, count] at each position: "ids", "scores" and "rest" [K]."""
    parts: dict[str, list[Tensor]] = {"ids": [], "scores": [], "rest": []}
    weight = answer.states if answer.weight is None else answer.weight
    for chunk in row_chunks(len(answer.states), *weight.shape):
        log = answer.part(chunk).states.float().log_softmax(-1)
        top = log.topk(count)
        others = log.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
        parts["ids"].append(top.indices)
        parts["scores"].append(top.values)
        parts["rest"].append(others.clamp_(min=LOWEST))
    return {name: torch.cat(values) for name, values in parts.items()}


class StoredExamples:
    """Examples with what the teacher said of them, for target `label`.

    Args:
        examples: As they are without a teacher.
        store: What was stored of them.
        label: Name of the target.
    """

    def __init__(self, examples: Examples, store: ShardSet, label: str) -> None:
        self._examples = examples
        self._store = store
        self._label = label

    def __len__(self) -> int:
        return len(self._examples)

    def make(self, epoch: int, index: int) -> tuple[Any, Arrays]:
        """The example, and what the teacher said of it.

        Raises:
            DataError: if what is stored is of another example.
        """
        example = self._examples.make(epoch, index)
        number = epoch * len(self) + index
        stored = {name: self._store.column(name, number) for name in (MAIN, *sorted(COLUMNS))}
        given = example.get("labels") if isinstance(example, Mapping) else None
        if given is None or not np.array_equal(stored["labels"], given):
            raise DataError(
                f"the teacher stored in {self._store.directories[0]} has read other rows than "
                "these: the documents, the objective, data.holdout or the seed differ; store it "
                "with those of this run"
            )
        return example, stored

    def collate(self, examples: list[tuple[Any, Arrays]]) -> Batch:
        """As without a teacher, and its `Teaching` beside."""
        batch = self._examples.collate([example for example, _ in examples])
        joined = {
            name: np.concatenate([stored[name] for _, stored in examples])
            for name in (MAIN, "scores", "rest")
        }
        positions = len(joined["rest"])
        shape = positions, len(joined[MAIN]) // max(1, positions)
        answer = TopAnswer(
            torch.from_numpy(joined[MAIN].astype(np.int64)).view(shape),
            torch.from_numpy(joined["scores"]).view(shape),
            torch.from_numpy(joined["rest"]),
            self._store.vocab_size,
        )
        return add_teaching(batch, {self._label: Teaching(answer)})


def open_store(path: Path, setting: Setting) -> ShardSet:
    """The stored teacher at `path`, if it is one for the examples of `setting`.

    Raises:
        DataError: if it is none, has another vocabulary, or knows too few epochs.
    """
    store = open_shards(path) if (path / INDEX).is_file() else None
    if store is None or not store.columns.keys() >= COLUMNS:
        problem = "is not a stored teacher" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}; make a stored teacher with scripts/store_teacher.py")
    written = setting.target_tokenizer or setting.tokenizer
    if written is not None and store.tokenizer_fingerprint != written.fingerprint:
        raise DataError(
            f"the teacher stored in {path} has another vocabulary than the data; store one again "
            "that was trained on it"
        )
    if setting.is_mixed:
        raise DataError("stored teachers are for one source: give data.path, not data.mix")
    epochs = -(-setting.samples // len(setting.examples))
    stored, rest = divmod(store.documents, len(setting.examples))
    if rest:
        raise DataError(
            f"the teacher stored in {path} has read {store.documents} examples, which are not "
            f"epochs of {len(setting.examples)}: it was stored for other data"
        )
    if stored < epochs:
        raise DataError(
            f"the teacher stored in {path} has read {stored} epochs, but this run takes {epochs}; "
            "store more of them, or train for fewer steps"
        )
    return store


def check_stored(store: ShardSet, divergence: Divergence, temperature: float) -> None:
    """Whether what was stored is enough.

    Raises:
        ConfigError: if it is not.
    """
    first = next(n for n in range(store.documents) if len(store.column("labels", n)))
    known = len(store.read(first)) // len(store.column("labels", first))
    if known == store.vocab_size:
        return
    where = f"{store.directories[0]} has the {known} likeliest of {store.vocab_size} entries"
    if divergence.needs_all:
        raise ConfigError.at(
            "divergence",
            f"`{divergence.config.name}` needs the probability of every entry, but {where}; store "
            "all of them, or choose akl_topk, which counts all others as one",
        )
    if temperature != 1:
        raise ConfigError.at(
            "temperature",
            f"must be 1, because {where}, and without a temperature, but is {temperature}",
        )
