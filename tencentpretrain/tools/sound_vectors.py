"""One vector for each sound of folders, tar files and lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig, Frames
from tencentpretrain.data.media.hearing import Hearing, VariationConfig, frames_stream
from tencentpretrain.data.media.lists import MediaEntry
from tencentpretrain.data.media.records import read_entry
from tencentpretrain.embeddings.speech import FramesEmbedding
from tencentpretrain.errors import CheckpointError, named
from tencentpretrain.tasks.inference import Machine
from tencentpretrain.tasks.sounds import saved_bank
from tencentpretrain.tools.media_vectors import MediaVectors
from tencentpretrain.tools.saved_model import SavedModel
from tencentpretrain.train.source import saved_task
from tencentpretrain.types import Stream


def trained_bank(saved: SavedModel) -> FilterBank:
    """How sounds became frames when the model was trained.

    Raises:
        CheckpointError: if the model reads no sounds, or the checkpoint does not say.
    """
    parts = saved.config.embedding.parts.values()
    if not any(isinstance(part, FramesEmbedding.Config) for part in parts):
        raise CheckpointError(
            f"`{saved.checkpoint.path}` reads no sounds; give the run of a model such as s2t/tiny"
        )
    told = getattr(saved.config.objective, "bank", None)
    if isinstance(told, FilterBankConfig):
        return FilterBank(told)
    found = saved_bank(saved_task(saved.checkpoint))
    if found is None:
        raise CheckpointError(
            f"`{saved.checkpoint.path}` does not say how sounds become frames; give the run of a "
            "model that was trained on sounds"
        )
    return found


class SoundVectors(MediaVectors):
    """Computes vectors of sounds.

    Args:
        read: From the stream of several sounds to their vectors [B, D].
        bank: Makes frames of samples.
        machine: How the model is run.
    """

    def __init__(
        self, read: Callable[[Stream], Tensor], bank: FilterBank, machine: Machine
    ) -> None:
        super().__init__(read, machine)
        self._hearing = Hearing(bank, VariationConfig())

    def stream(self, entries: Sequence[MediaEntry]) -> Stream:
        rows = [self._frames(entry) for entry in entries]
        stream, _ = frames_stream(rows, 1, max(map(len, rows)))
        return stream

    def _frames(self, entry: MediaEntry) -> Frames:
        data = read_entry(entry)
        with named(entry.where):
            return self._hearing(data)
