"""Classification of sounds: one label for each sound of folders, tar files or lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tencentpretrain.data.media.filter_banks import FilterBank
from tencentpretrain.data.media.hearing import FRAMES
from tencentpretrain.data.objectives.base import Example
from tencentpretrain.data.packing import Integers
from tencentpretrain.errors import DataError
from tencentpretrain.model import ModelConfig
from tencentpretrain.targets.base import TargetConfig
from tencentpretrain.targets.classify import ClassifyTarget, PoolingName
from tencentpretrain.tasks.base import TASKS, Inputs
from tencentpretrain.tasks.classes import HEAD, ClassExamples, ClassTask
from tencentpretrain.tasks.sounds import (
    Sound,
    SoundConfig,
    SoundFrames,
    bank_state,
    choose_bank,
    find_sounds,
    saved_bank,
    sounds_fingerprint,
)
from tencentpretrain.types import Batch, Labels


class LabelledSounds(ClassExamples):
    """One example a sound.

    Args:
        frames: Of the sounds.
        labels: [N] numbers of the labels; None without labels.
    """

    def __init__(self, frames: SoundFrames, labels: Integers | None) -> None:
        super().__init__(labels)
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def vary(self, seed: int) -> None:
        self._frames.vary(seed)

    def make(self, epoch: int, index: int) -> Example:
        example: Example = {FRAMES: self._frames.make(epoch, index)}
        if self.labels is not None:
            example["label"] = self.labels[index : index + 1]
        return example

    def collate(self, examples: list[Example]) -> Batch:
        batch = self._frames.batch([example[FRAMES] for example in examples])
        if self.is_labelled:
            labels = np.concatenate([example["label"] for example in examples])
            batch.labels[HEAD] = Labels(torch.from_numpy(labels))
        return batch

    def sizes(self) -> Integers:
        return self._frames.sizes()


@TASKS.register("audio_classify")
class AudioClassifyTask(ClassTask[Sound, LabelledSounds]):
    """One label for each sound, by the folder that it lies in or as a list says."""

    class Config(SoundConfig):
        label_column: str = "label"
        """Column or key of a list that holds the label."""
        pooling: PoolingName = "mean"
        """What stands for a sound: its first or last position, or the mean or maximum of all."""

    config: Config
    unused = ("decoder", "target_embedding", "target_hidden", "target_vocabulary")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._bank: FilterBank | None = None

    def inherit(self, learned: Mapping[str, Any]) -> None:
        self._bank = saved_bank(learned)

    def read(self, path: Path, needs_labels: bool) -> list[Sound]:
        rows = find_sounds(path, self.config, self.config.label_column)
        for row in rows:
            if needs_labels and not row.entry.label:
                raise DataError(
                    f"{row.where} has no label; put sounds into folders of classes, or list them "
                    f"with a column `{self.config.label_column}`"
                )
        return rows

    def learn(self, rows: Sequence[Sound]) -> None:
        self.learn_labels((row.entry.label for row in rows), "data.train")

    def state(self) -> dict[str, Any]:
        assert self._bank is not None
        return {**super().state(), **bank_state(self._bank)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._bank = saved_bank(state)

    def targets(self, model: ModelConfig) -> dict[str, TargetConfig]:
        self._bank = choose_bank(self.config, model, self.name, self._bank)
        head = ClassifyTarget.Config(
            name=HEAD,
            classes=len(self.labels),
            pooling=self.config.pooling,
            dense=False,
            dropout=0.1,
        )
        return {HEAD: head}

    def examples(self, rows: Sequence[Sound], inputs: Inputs, is_labelled: bool) -> LabelledSounds:
        labels = None
        if is_labelled:
            numbers = [self.labels.number(row.entry.label, row.where) for row in rows]
            labels = np.array(numbers, np.int64)
        bank = choose_bank(self.config, inputs.model, self.name, self._bank)
        return LabelledSounds(SoundFrames(rows, bank, self.config), labels)

    def decode(
        self,
        rows: Sequence[Sound],
        examples: LabelledSounds,
        outputs: Sequence[NDArray[np.float32]],
    ) -> Iterator[dict[str, Any]]:
        """The name of each sound, its likeliest label, and how probable that and all others are."""
        for row, answer in zip(rows, super().decode(rows, examples, outputs), strict=True):
            yield {"path": row.entry.name, **answer}

    def has_labels(self, rows: Sequence[Sound]) -> bool:
        return all(row.entry.label for row in rows)

    def key(self, row: Sound) -> str:
        return row.entry.name

    def fingerprint(self, path: Path) -> str:
        return sounds_fingerprint(path, self.config, self.config.label_column)
