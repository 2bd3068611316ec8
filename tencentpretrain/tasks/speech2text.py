"""Speech to text: what is said in each sound of a list, scored by its wrong words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tencentpretrain.config import ConfigError, NonNegativeFloat, PositiveInt, check, decode
from tencentpretrain.data.media.filter_banks import STEP, FilterBank
from tencentpretrain.data.media.hearing import FRAMES
from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.objectives.s2t import WritingConfig, written, written_frame
from tencentpretrain.data.objectives.seq2seq import with_targets
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.rows import Grid
from tencentpretrain.errors import DataError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.rows import RowOptions
from tencentpretrain.generate.written import Written
from tencentpretrain.model import Model, ModelConfig
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.lm import LmTarget
from tencentpretrain.tasks.base import TASKS, Inputs, Task, TaskExamples
from tencentpretrain.tasks.error_rates import error_rates
from tencentpretrain.tasks.sounds import (
    Sound,
    SoundConfig,
    SoundFrames,
    bank_state,
    choose_bank,
    find_sounds,
    is_list,
    saved_bank,
    sounds_fingerprint,
)
from tencentpretrain.tasks.windows import join
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.types import SRC, Batch, Hidden, ModelOutput, TargetOutput

log = logging.getLogger("tencentpretrain")

HEAD = "lm"


class Writer(NamedTuple):
    """What texts are made of.

    Args:
        tokenizer: Of the texts.
        prompt: Ids that the decoder starts from.
        end: Id that ends a text.
    """

    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    end: int


class SpokenTexts(TaskExamples):
    """One example a sound, or several of a long one, the first of which has the text.

    Args:
        frames: Of the sounds.
        texts: Ids of what is said in each; None where it is not known.
        writer: Of the texts.
        length: Greatest number of tokens that the decoder reads.
    """

    def __init__(
        self,
        frames: SoundFrames,
        texts: Sequence[Sequence[int]] | None,
        writer: Writer,
        length: int,
    ) -> None:
        self.is_labelled = texts is not None
        self.frames = frames
        self._texts = texts
        self._writer = writer
        self._length = length
        cut = sum(len(writer.prompt) + len(text) > length for text in texts or ())
        if cut:
            log.warning(f"{cut:,} of {len(frames.rows):,} texts are cut to {length:,} tokens")

    def __len__(self) -> int:
        return len(self.frames)

    def vary(self, seed: int) -> None:
        self.frames.vary(seed)

    def make(self, epoch: int, index: int) -> Example:
        example: Example = {FRAMES: self.frames.make(epoch, index)}
        if self._texts is None:
            return example
        row, start = self.frames.places[index]
        if start:
            # Which words are said in it, nobody knows.
            nothing = np.zeros(0, np.int64)
            prompt = np.array(self._writer.prompt, np.int64)
            return {**example, "target_ids": prompt, "labels": nothing, "index": nothing}
        text = np.array(self._texts[row], np.int64)
        made = written(self._writer.prompt, text, self._writer.end)
        read = made["target_ids"][: self._length]
        # The end of a text that was cut is nothing to learn.
        kept = made["index"] < len(read)
        return {
            **example,
            "target_ids": read,
            "labels": made["labels"][kept],
            "index": made["index"][kept],
        }

    def collate(self, examples: list[Example]) -> Batch:
        batch = self.frames.batch([example[FRAMES] for example in examples])
        if not self.is_labelled:
            return batch
        grid = Grid([example["target_ids"] for example in examples], 1, self._length)
        return with_targets(batch, examples, grid, self._writer.tokenizer.pad or 0, HEAD)

    def sizes(self) -> Integers:
        return self.frames.sizes()


@TASKS.register("speech2text")
class Speech2TextTask(Task[Sound, SpokenTexts]):
    """Writes what is said in each sound, as a list says for those to train on."""

    class Config(SoundConfig):
        text_column: str = "text"
        """Column or key of a list that holds what is said."""
        target_length: PositiveInt = 256
        """Greatest number of tokens that the decoder reads; longer texts are cut in training."""
        overlap: NonNegativeFloat | None = None
        """Seconds that windows of a long sound share, so that words at their borders are heard as a
        whole; null is a sixth of a window, which is as long as `length` or `bank.seconds` says."""
        writing: WritingConfig | None = None
        """What the decoder starts from; null is as in the model's pre-training."""
        decoding: Decoding = Decoding()
        """How texts are written, in evaluation and in prediction."""

        @check("overlap", "length")
        def _windows_go_on(self) -> str | None:
            if self.overlap is None or 2 * self.overlap <= STEP * self.length:
                return None
            return (
                f"overlap must be at most half of length={self.length} frames, which are "
                f"{STEP * self.length:g} seconds, but is {self.overlap:g}"
            )

    config: Config
    is_uniform = False
    heads = (HEAD,)
    score = "wer"
    mode = "min"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._bank: FilterBank | None = None
        self._writing = config.writing or WritingConfig()
        self._writer: Writer | None = None
        self._share = 0.0

    def inherit(self, learned: Mapping[str, Any]) -> None:
        self._bank = saved_bank(learned)
        if self.config.writing is None and "writing" in learned:
            self._writing = decode(WritingConfig, learned["writing"], "writing")

    def read(self, path: Path, needs_labels: bool) -> list[Sound]:
        rows = find_sounds(path, self.config, self.config.text_column)
        if not is_list(path):
            # What folders say of a sound is no text.
            rows = [Sound(row.entry._replace(label=""), row.milliseconds) for row in rows]
        for row in rows:
            if needs_labels and not row.entry.label:
                raise DataError(
                    f"{row.where} has no text; list sounds in a .tsv or .jsonl file with a column "
                    f"`{self.config.text_column}`"
                )
        return rows

    def learn(self, rows: Sequence[Sound]) -> None:
        """There is nothing to learn from texts alone."""

    def state(self) -> dict[str, Any]:
        assert self._bank is not None
        writing = {"start": self._writing.start, "prompt": self._writing.prompt}
        return {**bank_state(self._bank), "writing": writing}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._bank = saved_bank(state)
        if self.config.writing is None:
            self._writing = decode(WritingConfig, state["writing"], "writing")

    def adopt(self, model: ModelConfig) -> None:
        if HEAD not in model.target:
            message = f"must hold `{HEAD}` for task={self.name}; the model has not learned to write"
            raise ConfigError.at("model.target", message)
        self.targets(model)

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        self._bank = choose_bank(self.config, model, self.name, self._bank)
        if model.decoder is None:
            message = f"is needed by task={self.name}; choose a model with one such as s2t/small"
            raise ConfigError.at("model.decoder", message)
        known: object = model.objective
        if self.config.writing is None and isinstance(known, WritingConfig):
            self._writing = WritingConfig(start=known.start, prompt=known.prompt)
        head = model.target.get(HEAD)
        return {HEAD: head if isinstance(head, LmTarget.Config) else LmTarget.Config(name=HEAD)}

    def ties(self, model: ModelConfig) -> dict[str, str]:
        return {
            name: kept for name, kept in model.ties.items() if name.startswith(f"target.{HEAD}")
        }

    def examples(self, rows: Sequence[Sound], inputs: Inputs, is_labelled: bool) -> SpokenTexts:
        tokenizer = inputs.text_tokenizer()
        writer = Writer(tokenizer, *written_frame(self.name, tokenizer, self._writing))
        texts = None
        if is_labelled:
            texts = tokenizer.encode_batch([row.entry.label for row in rows])
            empty = next((row for row, ids in zip(rows, texts, strict=True) if not ids), None)
            if empty is not None:
                raise DataError(f"{empty.where} has no text that the tokenizer knows")
            unknown = sum(tokenizer.unk in ids for ids in texts)
            if unknown:
                log.warning(
                    f"{unknown:,} of {len(rows):,} texts hold what the tokenizer cannot write"
                )
        bank = choose_bank(self.config, inputs.model, self.name, self._bank)
        window = STEP * min(self.config.length, bank.frame_limit or self.config.length)
        overlap = window / 6 if self.config.overlap is None else self.config.overlap
        self._share = min(overlap / window, 0.5)
        frames = SoundFrames(rows, bank, self.config, self._share * window)
        self._writer = writer
        return SpokenTexts(frames, texts, writer, self.config.target_length)

    def infer(
        self, model: Model, batch: Batch, is_labelled: bool
    ) -> tuple[TargetOutput | None, list[Any]]:
        if not is_labelled:
            return None, self._write(model, model.read(batch.streams[SRC]))
        out = model.encode(batch)
        return model.target(out, batch), self.outputs(model, out, batch)

    def outputs(self, model: Model, out: ModelOutput, batch: Batch) -> list[tuple[int, ...]]:
        """Tokens of what is written for each window."""
        return self._write(model, out.encoded[SRC])

    def _write(self, model: Model, memory: Hidden) -> list[tuple[int, ...]]:
        assert self._writer is not None
        (tokenizer, prompt, end), decoding = self._writer, self.config.decoding
        options = RowOptions(vocabulary=tokenizer.vocab_size)
        device = memory.states.device.type
        is_cast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_cast else torch.float32
        engine = Engine(model, start=prompt, options=options, dtype=dtype)
        limit = engine.limit((), decoding.max_new_tokens)
        rows = [Written(limit, (end,)) for _ in memory.states]
        engine.write(memory, rows, decoding)
        return [tuple(row.ids) for row in rows]

    def _texts(self, examples: SpokenTexts, outputs: Sequence[tuple[int, ...]]) -> list[str]:
        """What is said in each sound, whose windows follow each other."""
        assert self._writer is not None
        found: dict[int, list[tuple[int, ...]]] = {}
        for (row, _), ids in zip(examples.frames.places, outputs, strict=True):
            found.setdefault(row, []).append(ids)
        decode = self._writer.tokenizer.decode
        return [
            " ".join(decode(passage).strip() for passage in join(parts, self._share))
            for parts in found.values()
        ]

    def metrics(
        self, examples: SpokenTexts, outputs: Sequence[tuple[int, ...]]
    ) -> dict[str, float]:
        """Errors per word and per character."""
        texts = [row.entry.label for row in examples.frames.rows]
        return error_rates(texts, self._texts(examples, outputs))

    def decode(
        self, rows: Sequence[Sound], examples: SpokenTexts, outputs: Sequence[tuple[int, ...]]
    ) -> Iterator[dict[str, Any]]:
        """The name of each sound and what is said in it."""
        for row, text in zip(rows, self._texts(examples, outputs), strict=True):
            yield {"path": row.entry.name, "text": " ".join(text.split())}

    def has_labels(self, rows: Sequence[Sound]) -> bool:
        return all(row.entry.label for row in rows)

    def key(self, row: Sound) -> str:
        return row.entry.name

    def fingerprint(self, path: Path) -> str:
        return sounds_fingerprint(path, self.config, self.config.text_column)
