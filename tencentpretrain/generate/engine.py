"""Continues rows of ids with a model: greedily, by drawing, or by beam search.

Shapes: B rows, V vocabulary, T tokens that may be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.generate.beam import BeamSearch
from tencentpretrain.generate.choice import Chooser, Seen, uniform_draws
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.rows import (
    GrowingRows,
    Ids,
    RowOptions,
    TargetRows,
    read_sources,
    table_length,
)
from tencentpretrain.generate.written import Written
from tencentpretrain.model import Model
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.train.precision import autocast
from tencentpretrain.types import Hidden

HOST: Final = ("cpu",)
"""Kinds of devices that never have to be waited for."""
LOOK_EVERY: Final = 8
"""Steps of other devices between two questions of the host whether all rows have ended."""
ALL: Final = RowOptions()
"""Every entry of the output layer may be written."""
Watch = Callable[[Sequence[Written]], None]


def writing_target(model: Model, wanted: str | None = None) -> LmTarget:
    """What predicts the next token in `model`: the target `wanted`, else the first one.

    Raises:
        CheckpointError: if nothing does.
    """
    for name in model.target.names:
        target = model.target[name]
        if isinstance(target, LmTarget) and wanted in (None, name):
            return target
    found = ", ".join(model.target.names) or "none"
    raise CheckpointError(
        f"the model has not learned to write {wanted or 'text'}: its targets are {found}; give one "
        f"with the target {wanted or 'lm'}"
    )


class Engine:
    """A model that continues rows of ids.

    Args:
        model: Without dropout, on its device; with a decoder, prompts are what its encoder reads.
        start: Ids that the decoder begins with, if there is one.
        options: How rows are read.
        dtype: Of matrix products.
        target: Name of the target that writes; None is the first one that can.

    Raises:
        CheckpointError: if the model cannot write.
    """

    def __init__(
        self,
        model: Model,
        *,
        start: Ids = (),
        options: RowOptions = ALL,
        dtype: torch.dtype = torch.float32,
        target: str | None = None,
    ) -> None:
        self.model = model
        self._target = writing_target(model, target)
        self._start = start
        self._options = options
        self._dtype = dtype
        self._device = next(model.parameters()).device
        self._source_table = table_length(model.embedding)
        self._table = self._source_table
        if model.target_embedding is not None:
            self._table = table_length(model.target_embedding)

    def limit(self, prompt: Ids, steps: int) -> int:
        """How many of `steps` tokens there is room for; the last one need not be read."""
        if self._table is None:
            return steps
        read = len(prompt if self.model.decoder is None else self._start)
        return min(steps, self._table - read + 1)

    def check(self, prompt: Ids, number: int) -> None:
        """Refuse what the model cannot read; prompts are numbered from 0.

        Raises:
            DataError: in that case.
        """
        if not prompt:
            raise DataError(
                f"prompt {number + 1} is empty, and the vocabulary has no token that begins a text"
            )
        table = self._source_table
        if table is not None and len(prompt) > table:
            raise DataError(
                f"prompt {number + 1} has {len(prompt):,} tokens, but the model reads at most "
                f"{table:,} positions; shorten it"
            )

    def write(
        self,
        prompts: Sequence[Ids] | Hidden,
        written: Sequence[Written],
        decoding: Decoding,
        numbers: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Fill `written` with what follows on `prompts`.

        Args:
            prompts: Ids; or what the encoder said of inputs that are none, such as sounds.
            written: Limit and ends of each; beam search reads the ends of the first for all.
            decoding: How tokens are chosen.
            numbers: Of the prompts, from 0; what is drawn for one depends on its own.
            watch: Called with `written` whenever some was added.

        Raises:
            DataError: if the model cannot read a prompt.
        """
        if not written:
            return
        numbers = range(len(written)) if numbers is None else numbers
        if not isinstance(prompts, Hidden):
            for prompt, number in zip(prompts, numbers, strict=True):
                self.check(prompt, number)
        look_every = 1 if watch is not None or self._device.type in HOST else LOOK_EVERY
        with torch.inference_mode(), autocast(self._dtype, self._device):
            rows = self._rows(prompts, max(row.limit for row in written))
            seen = self._seen(prompts) if decoding.repetition_penalty != 1 else None
            if decoding.beams > 1:
                BeamSearch(rows, written, decoding, seen).run(look_every)
            else:
                draws = None
                if decoding.temperature > 0:
                    steps = max(row.limit for row in written)
                    draws = uniform_draws(decoding.seed, numbers, steps).to(self._device)
                chooser = Chooser(decoding, seen, draws)
                continue_rows(rows, written, chooser, look_every, watch)
        if watch is not None:
            watch(written)

    def _rows(self, prompts: Sequence[Ids] | Hidden, steps: int) -> GrowingRows:
        model, options = self.model, self._options
        if model.decoder is None:
            assert not isinstance(prompts, Hidden)
            return GrowingRows(model, self._target, prompts, steps, options)
        memory = prompts if isinstance(prompts, Hidden) else read_sources(model, prompts)
        return TargetRows(model, self._target, memory, self._start, steps, options)

    def _seen(self, prompts: Sequence[Ids] | Hidden) -> Seen:
        """What the rows hold before anything is written."""
        if isinstance(prompts, Hidden):
            begun: Sequence[Ids] = [self._start] * len(prompts.states)
        else:
            begun = prompts if self.model.decoder is None else [self._start] * len(prompts)
        vocabulary = self._options.vocabulary or len(self._target.output.weight)
        return Seen(begun, vocabulary, self._device)


def continue_rows(
    rows: GrowingRows,
    written: Sequence[Written],
    chooser: Chooser,
    look_every: int,
    watch: Watch | None,
) -> None:
    """Add token after token until all rows have ended.

    Args:
        rows: The prompts.
        written: What is filled.
        chooser: Chooses tokens.
        look_every: Tokens that are computed before the host looks at them.
        watch: Called with `written` whenever some was added.
    """
    still_open = list(range(len(written)))
    tokens = chooser(rows.start())
    while True:
        steps = [tokens]
        room = max(w.limit - len(w.ids) for w in written if w.is_open)
        while len(steps) < min(look_every, room):
            tokens = chooser(rows.append(tokens))
            steps.append(tokens)
        for number, new in zip(still_open, torch.stack(steps, 1).tolist(), strict=True):
            written[number].push(new)
        if watch is not None:
            watch(written)
        kept = [place for place, number in enumerate(still_open) if written[number].is_open]
        if not kept:
            return
        if 2 * len(kept) <= len(still_open):
            # Rows that have ended are computed in vain; leaving them out costs a copy of the cache.
            still_open = [still_open[place] for place in kept]
            chosen = torch.tensor(kept, device=tokens.device)
            rows.select(kept)
            chooser.select(chosen)
            tokens = tokens.index_select(0, chosen)
        tokens = chooser(rows.append(tokens))
