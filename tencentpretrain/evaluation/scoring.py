"""How likely a causal model finds given tokens.

A sequence that is longer than the rows of the model is read in windows. Shapes: K scored positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.errors import CheckpointError
from tencentpretrain.targets.cross_entropy import CHUNK_BYTES
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.tools.texts import TextFormat, run_sorted
from tencentpretrain.types import Batch, Labels, ModelOutput

Ids = Sequence[int] | NDArray[np.int64]


class Window(NamedTuple):
    """A part of a sequence that is read in one row.

    Args:
        begin: first token that is read.
        end: behind the last token that is read; the last one that is scored, as each position
            scores the token that follows it.
        first: first token that is scored.
    """

    begin: int
    end: int
    first: int


def windows(size: int, length: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Windows that score each token from `first` on of a sequence exactly once.

    Args:
        size: tokens of the sequence.
        length: tokens of a window at most.
        stride: tokens that a window scores at most, unless it is the first: each of them has at
            least `length - stride` tokens before it.
        first: at least 1, as nothing tells the first token.
    """
    while first < size:
        end = min(size - 1, max(first - 1 + stride, length))
        yield Window(max(0, end - length), end, first)
        first = end + 1


@dataclass(frozen=True)
class Score:
    """Of the scored tokens of one sequence.

    Args:
        log_probability: Sum of their natural logarithms.
        count: How many they are.
        is_greedy: Whether each of them is the likeliest one.
    """

    log_probability: float = 0.0
    count: int = 0
    is_greedy: bool = True

    def __add__(self, other: Score) -> Score:
        return Score(
            self.log_probability + other.log_probability,
            self.count + other.count,
            self.is_greedy and other.is_greedy,
        )


class CausalScorer:
    """Scores token ids with a model that predicts each token from those before it.

    Args:
        saved: the model.
        machine: how it is run.
        length: tokens that are read at once; None is what the model was trained on.

    Raises:
        CheckpointError: if the model has not learned that.
        ConfigError: if the model cannot read so many tokens.
    """

    def __init__(self, saved: SavedModel, machine: Machine, length: int | None = None) -> None:
        self._name, self._target = saved.target(LmTarget, "predict the next token")
        encoder = saved.config.encoder
        is_causal = getattr(encoder, "mask", "causal") == "causal"
        if saved.model.decoder or not is_causal or getattr(encoder, "directions", 1) > 1:
            raise CheckpointError(
                f"`{saved.checkpoint.path}` is not of a causal model: its positions see those "
                "behind them, or a decoder writes; give the run of one such as gpt2"
            )
        self.length = saved.length(length)
        self.tokenizer = saved.text_tokenizer()
        self._model, self._machine = saved.model, machine
        self._format = TextFormat(saved, self.length)

    def score(
        self,
        sequences: Sequence[Ids],
        firsts: Sequence[int] | None = None,
        stride: int | None = None,
    ) -> list[Score]:
        """How likely the tokens of each sequence are, given those before them in it.

        Args:
            sequences: token ids.
            firsts: the first token of each that is scored; 1 where None.
            stride: see `windows`; None reads each token once.
        """
        rows, labels, owners = [], [], []
        for number, ids in enumerate(sequences):
            tokens = np.asarray(ids, np.int64)
            first = 1 if firsts is None else firsts[number]
            for window in windows(len(tokens), self.length, stride or self.length, first):
                rows.append(tokens[window.begin : window.end])
                labels.append(tokens[window.first : window.end + 1])
                owners.append(number)
        scores = [Score() for _ in sequences]
        found = run_sorted(rows, self._machine, partial(self._score, rows, labels))
        for number, score in zip(owners, found, strict=True):
            scores[number] += score
        return scores

    def _score(
        self, rows: list[NDArray[np.int64]], labels: list[NDArray[np.int64]], numbers: list[int]
    ) -> list[Score]:
        """Of the last tokens behind those of `rows`, which are `labels`."""
        chosen = [labels[number] for number in numbers]
        index = [len(rows[n]) - len(labels[n]) + np.arange(len(labels[n])) for n in numbers]
        batch, grid = self._format.batch([rows[number] for number in numbers])
        batch = batch.to(self._machine.device)
        out = self._model.encode(batch)
        places = grid.flat(index).to(self._machine.device)
        values = torch.from_numpy(np.concatenate(chosen)).to(self._machine.device)
        logs, hits = [], []
        size = max(1, CHUNK_BYTES // (4 * self.tokenizer.vocab_size))
        for part, wanted in zip(places.split(size), values.split(size), strict=True):
            logits = self._logits(batch, out, part).log_softmax(-1)
            logs.append(logits.gather(-1, wanted[:, None]).squeeze(-1).double())
            hits.append(logits.argmax(-1) == wanted)
        ends = np.cumsum([len(part) for part in chosen])[:-1]
        each = np.split(torch.cat(logs).cpu().numpy(), ends)
        likeliest = np.split(torch.cat(hits).cpu().numpy(), ends)
        return [
            Score(float(log.sum()), len(log), bool(hit.all()))
            for log, hit in zip(each, likeliest, strict=True)
        ]

    def _logits(self, batch: Batch, out: ModelOutput, places: Tensor) -> Tensor:
        """Scores [K, V] in fp32 at flat `places` [K]."""
        supervised = Batch(batch.streams, {self._name: Labels(places, places)})
        return self._target.logits(out, supervised).float()
