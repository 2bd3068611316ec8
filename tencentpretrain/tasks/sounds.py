"""What tasks on sounds share: reading files, filter banks, and frames for a batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from pydantic import Field

from tencentpretrain.config import ConfigError, PositiveInt, decode
from tencentpretrain.data.corpora import CorpusConfig, FieldsConfig
from tencentpretrain.data.media.audio import Samples, decode_audio
from tencentpretrain.data.media.filter_banks import STEP, FilterBank, FilterBankConfig, Frames
from tencentpretrain.data.media.hearing import Hearing, VariationConfig, frames_stream
from tencentpretrain.data.media.lists import LISTS, MediaEntry
from tencentpretrain.data.media.records import find_media, read_entry
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.embeddings.speech import FramesEmbedding
from tencentpretrain.errors import named
from tencentpretrain.model import ModelConfig
from tencentpretrain.tasks.base import TaskConfig
from tencentpretrain.tasks.windows import starts
from tencentpretrain.types import SRC, Batch

log = logging.getLogger("tencentpretrain")

RATE: Final = 16_000
"""Samples a second at which sounds are decoded to see whether and how long they are."""


class Sound(NamedTuple):
    """A sound of a list, folder or tar file.

    Args:
        entry: Where it lies, and what is known of it.
        milliseconds: Its length.
    """

    entry: MediaEntry
    milliseconds: int

    @property
    def where(self) -> str:
        """What messages call it."""
        return self.entry.where


class SoundConfig(VariationConfig, TaskConfig):
    """Keys of tasks that read sounds."""

    bank: FilterBankConfig | None = None
    """How sounds become frames; keys that are not given are as in the model's training."""
    length: Annotated[int, Field(ge=8)] = 3000
    """Greatest length of a sound, in frames of 10 ms; longer ones are cut, or read window by window
    where speech2text writes what is said."""
    pad_to: PositiveInt = 8
    """Rows are padded to the longest of their batch, rounded up to a multiple of this (frames)."""
    path_column: str = "path"
    """Column or key of a list that holds the path of the sound, from the list's folder on; a list
    without names of columns has the path behind the label or text."""


def find_sounds(path: Path, config: SoundConfig, label_column: str) -> list[Sound]:
    """All sounds of a list, folder or tar file with their labels, each decoded once.

    Raises:
        DataError: naming what cannot be read or decoded.
    """
    entries = find_media(_corpus(path, config, label_column), Counter())
    return [_decoded(entry) for entry in entries]


def sounds_fingerprint(path: Path, config: SoundConfig, label_column: str) -> str:
    """Over names, sizes and labels; the content of the files is not read."""
    found = sha256()
    for entry in find_media(_corpus(path, config, label_column), Counter()):
        found.update(f"{entry.name}\t{entry.size}\t{entry.label}\n".encode())
    return found.hexdigest()


def is_list(path: Path) -> bool:
    """Whether `path` lists sounds, and so may say more of them than folders do."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in LISTS


def _corpus(path: Path, config: SoundConfig, label_column: str) -> CorpusConfig:
    fields = FieldsConfig(path=config.path_column, label=label_column)
    return CorpusConfig(path=str(path), format="audio", fields=fields)


def _decoded(entry: MediaEntry) -> Sound:
    data = read_entry(entry)
    with named(entry.where):
        samples = decode_audio(data, RATE)
    return Sound(entry, -(-1000 * len(samples) // RATE))


def choose_bank(
    config: SoundConfig, model: ModelConfig, task: str, inherited: FilterBank | None
) -> FilterBank:
    """The filter bank for `model`: that of its training until now, with the keys of the config.

    Args:
        config: Of the task.
        model: What reads the frames.
        task: Name of the task.
        inherited: That of an earlier fine-tuning, if there was one.

    Raises:
        ConfigError: if the model reads no frames, or such with another number of bands.
    """
    part = next(
        (p for p in model.embedding.parts.values() if isinstance(p, FramesEmbedding.Config)), None
    )
    if part is None:
        raise ConfigError.at("model", f"must read sounds for task={task}, such as s2t/small")
    told = inherited.config if inherited else getattr(model.objective, "bank", None)
    bank = told or FilterBankConfig(bands=part.bands)
    statistics = inherited.statistics if inherited else None
    if config.bank is not None:
        given = config.bank.to_dict()
        changes = {name: given[name] for name in config.bank.model_fields_set}
        if changes.get("normalise", "global") != "global":
            changes.setdefault("statistics", None)
        bank = decode(FilterBankConfig, bank.to_dict() | changes, "task.bank")
        if changes.keys() & {"kind", "rate", "bands", "normalise", "statistics"}:
            statistics = None  # those are of other frames
    if bank.bands != part.bands:
        message = f"must be {part.bands}, as the model reads, but is {bank.bands}"
        raise ConfigError.at("task.bank.bands", message)
    return FilterBank(bank, statistics)


def bank_state(bank: FilterBank) -> dict[str, Any]:
    """What a trained run keeps of its filter bank; the file of statistics is not needed again."""
    state: dict[str, Any] = {"bank": bank.config.to_dict()}
    if bank.statistics is not None:
        state["statistics"] = [values.tolist() for values in bank.statistics]
    return state


def saved_bank(state: Mapping[str, Any]) -> FilterBank | None:
    """The filter bank that `bank_state` was told of; None where it was not."""
    if "bank" not in state:
        return None
    config = decode(FilterBankConfig, state["bank"], "bank")
    given = state.get("statistics")
    if given is None:
        return FilterBank(config)
    mean, deviation = (np.array(values, np.float32) for values in given)
    return FilterBank(config, (mean, deviation))


class SoundFrames:
    """Frames of sounds, made when they are asked for; long sounds are windows of them.

    Args:
        rows: The sounds.
        bank: Makes frames.
        config: Of the task.
        overlap: Seconds that windows of a long sound share, so that it is read to its end; None
            reads its beginning only.
    """

    def __init__(
        self,
        rows: Sequence[Sound],
        bank: FilterBank,
        config: SoundConfig,
        overlap: float | None = None,
    ) -> None:
        self.rows = rows
        self._config = config
        self._hearing = Hearing(bank, config)
        self._seed: int | None = None
        self._limit = min(config.length, bank.frame_limit or config.length)
        self._window = round(1000 * STEP * self._limit)
        self._heard: tuple[int, Samples] | None = None
        shared = 0 if overlap is None else round(1000 * overlap)
        self.places = [
            (number, start)
            for number, row in enumerate(rows)
            for start in starts(row.milliseconds, self._window, shared)
        ]
        """Number of a sound and millisecond in which a window of it begins."""
        if overlap is None:
            self._keep_beginnings()

    def vary(self, seed: int) -> None:
        """Make sounds differ between epochs, as those do that are learned from."""
        self._seed = seed
        self._keep_beginnings()

    def _keep_beginnings(self) -> None:
        """Read nothing of long sounds but their first window."""
        self.places = [(number, start) for number, start in self.places if not start]
        cut = int((self._hearing.frames(self.lengths()) > self._limit).sum())
        if cut:
            log.warning(f"{cut:,} of {len(self.rows):,} sounds are cut to {self._limit:,} frames")

    def __len__(self) -> int:
        return len(self.places)

    def lengths(self) -> Integers:
        """Lengths [N] in milliseconds, of sounds from where windows begin."""
        return np.array([self.rows[row].milliseconds - start for row, start in self.places])

    def sizes(self) -> Integers:
        """Milliseconds [N] that are read of each window.

        Full windows are alike, so that those of one recording follow each other in evaluation and
        it is decoded once for them.
        """
        return np.minimum(self.lengths(), self._window)

    def make(self, epoch: int, index: int) -> Frames:
        """Frames [T, F] of window number `index`."""
        row, start = self.places[index]
        if self._seed is not None:
            random = generator(self._seed, epoch, index)
            entry = self.rows[row].entry
            data = read_entry(entry)
            with named(entry.where):
                return self._hearing(data, random, self._limit)
        samples = self._samples(row)
        if start or self.rows[row].milliseconds > self._window:
            rate = self._hearing.bank.config.rate
            first = start * rate // 1000
            samples = samples[first : first + self._window * rate // 1000]
        return self._hearing.bank(samples)[: self._config.length]

    def _samples(self, row: int) -> Samples:
        """A decoded sound; windows of a long one are asked for one after another."""
        if self._heard is None or self._heard[0] != row:
            entry, rate = self.rows[row].entry, self._hearing.bank.config.rate
            data = read_entry(entry)
            with named(entry.where):
                self._heard = row, decode_audio(data, rate)
        return self._heard[1]

    def batch(self, rows: Sequence[Frames]) -> Batch:
        """A batch with nothing but the frames of several sounds."""
        stream, tokens = frames_stream(rows, self._config.pad_to, self._config.length)
        return Batch({SRC: stream}, tokens=tokens)
