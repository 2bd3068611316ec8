"""What a file of TencentPretrain or UER-py tells beside its JSON config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tencentpretrain.config import nearest
from tencentpretrain.convert.original_images import CODES, PROJECTION
from tencentpretrain.convert.original_speech import FIRST
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

EPS: Final = 1e-6
"""Of the embedding's norm and of that before the output layer, whatever the config says."""


@dataclass(frozen=True)
class Facts:
    """What the file and the tokenizers tell about a model.

    Args:
        tensors: Theirs, spelled as in the table.
        tokenizer_size: Entries of the tokenizer; None where none is given.
        target_tokenizer_size: The same of what a decoder writes, if that is another one.
    """

    tensors: LazyTensors
    tokenizer_size: int | None
    target_tokenizer_size: int | None

    def rows(self, embedding: str) -> int:
        """Rows of a word table.

        Raises:
            CheckpointError: if the file has none.
        """
        name = f"{embedding}.word.embedding.weight"
        second = f"{embedding}.embedding_1.word.embedding.weight"
        if name not in self.tensors.described and second in self.tensors.described:
            name = second
        if name not in self.tensors.described:
            raise CheckpointError(f"the file has no `{name}`; {nearest(name, self.tensors)}")
        return self.tensors.described[name].shape[0]

    def vocabulary(self) -> int:
        """Rows of the word table; without one entries of the output layer, if that is there."""
        if FIRST in self.tensors.described:
            return self.rows("tgt_embedding")
        if self.reads_images:
            return self.classes(CODES) if CODES in self.tensors.described else 1
        return self.rows("embedding")

    @property
    def reads_images(self) -> bool:
        """Whether the file has patches of images instead of words."""
        has_words = any(n.endswith(".word.embedding.weight") for n in self.tensors.described)
        return f"{PROJECTION}.weight" in self.tensors.described and not has_words

    def classes(self, name: str) -> int:
        """Rows of an output layer."""
        return self.tensors.described[name].shape[0]
