"""What an objective is: rows made from stored documents while reading, and their supervision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tencentpretrain.config import ComponentConfig, PositiveInt
from tencentpretrain.data.packing import Documents, Integers
from tencentpretrain.data.rows import Grid
from tencentpretrain.errors import DataError
from tencentpretrain.registry import Registry
from tencentpretrain.types import SRC, Batch, Labels, Stream

if TYPE_CHECKING:
    from tencentpretrain.targets.companion import Companion, Setting

Example = dict[str, NDArray[Any]]


class Vocabulary(Protocol):
    """What objectives ask of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def cls(self) -> int | None: ...
    @property
    def sep(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def continues(self) -> NDArray[np.bool_]: ...
    def id(self, token: str) -> int | None: ...


class NoVocabulary:
    """Stands for a tokenizer where the documents have no texts."""

    vocab_size = 1
    pad = cls = sep = mask = bos = eos = None
    special_ids: frozenset[int] = frozenset()
    continues = np.zeros(1, np.bool_)

    def id(self, token: str) -> int | None:
        return None


def require_texts(name: str, tokenizer: Vocabulary) -> None:
    """Refuse images or sounds without texts for the objective `name`, which reads texts.

    Raises:
        DataError: naming how to preprocess.
    """
    if isinstance(tokenizer, NoVocabulary):
        raise DataError(
            f"objective `{name}` reads texts, but the data holds images or sounds without any; "
            "preprocess texts, or corpus.format=image_text or audio_text, or choose another "
            "objective"
        )


class ObjectiveConfig(ComponentConfig):
    """Keys of every objective."""

    length: Annotated[int, Field(ge=8)] = 128
    """Greatest length of a row, in tokens, special tokens included."""
    pad_to: PositiveInt = 8
    """Rows are padded to the longest of their batch, rounded up to a multiple of this (tokens)."""


class Objective(ABC):
    """Makes examples; every subclass has a nested `Config`, an `ObjectiveConfig`.

    An example is a pure function of (seed, epoch, index). It holds "ids" [S], "labels" [K] and the
    supervised positions "index" [K], and maybe "segments", "positions" and "documents" [S].

    Args:
        config: an instance of the class's `Config`.
        shards: the stored documents.
        tokenizer: the one that they were made with.
        seed: of all choices.
        documents: numbers of the documents to use; all where None.

    Raises:
        DataError: if a special token is missing, or there is no example at all.
    """

    supervises: ClassVar[tuple[str, ...]]
    """Targets that find their labels in the batches; the first is the one with a label a token."""
    needs: ClassVar[tuple[str, ...]] = ("cls", "sep", "mask")
    """Special tokens that the tokenizer must have."""
    streams: ClassVar[tuple[str, ...]] = (SRC,)
    """Streams of the batches, other than the one for a decoder."""
    is_training = True
    """Whether examples may vary as in training; to be cleared where they serve to evaluate."""

    def __init__(
        self,
        config: Any,
        shards: Documents,
        tokenizer: Vocabulary,
        seed: int,
        documents: Integers | None = None,
    ) -> None:
        self.config = config
        self.shards = shards
        self.tokenizer = tokenizer
        self.seed = seed
        self.name: str = config.name or type(self).__name__
        for role in self.needs:
            self.special(role)
        every = np.arange(shards.documents, dtype=np.int64)
        self.documents = every if documents is None else documents
        self._prepare()
        if not len(self):
            raise DataError(
                f"objective `{self.name}` finds no example: the {len(self.documents)} documents "
                f"that it may use of the {shards.documents} stored hold no token; preprocess a "
                "corpus with text in it or hold out fewer documents"
            )

    @abstractmethod
    def _prepare(self) -> None:
        """Index the documents `self.documents`; called once."""

    @abstractmethod
    def __len__(self) -> int:
        """Examples in an epoch."""

    @abstractmethod
    def make(self, epoch: int, index: int) -> Example:
        """Example number `index` of `epoch`."""

    def sizes(self) -> Integers | None:
        """Cost [N] of each example, such as its length; None where all are alike."""
        return None

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to one grid [B, S] on the CPU."""
        grid = self.grid(examples, "ids", self.config.length)
        fills = {"ids": self.tokenizer.pad or 0, "segments": 0, "positions": 0}
        inputs = {
            key: grid.fill([example[key] for example in examples], fill)
            for key, fill in fills.items()
            if key in examples[0]
        }
        documents = None
        if "documents" in examples[0]:
            # Padding belongs to document 0: no position is left without one that it may attend to.
            documents = grid.fill([example["documents"] for example in examples], 0)
        return Batch(
            streams={"src": Stream(inputs, grid.layout(documents))},
            labels={self.supervises[0]: supervision(examples, grid)},
            tokens=grid.tokens,
        )

    def companion(self, setting: Setting) -> Companion | None:
        """What must accompany training and evaluation, because batches are not complete without.

        Raises:
            UserError: if that cannot be had, or does not fit.
        """
        return None

    def grid(self, examples: Sequence[Example], key: str, limit: int) -> Grid:
        """The grid for rows `key` of `examples`, which are at most `limit` tokens long."""
        step: int = self.config.pad_to
        return Grid([example[key] for example in examples], step, limit)

    def special(self, role: str) -> int:
        """Id of the special token `role`, such as "sep".

        Raises:
            DataError: if the tokenizer has none, or the data no texts.
        """
        require_texts(self.name, self.tokenizer)
        found: int | None = getattr(self.tokenizer, role)
        if found is None:
            raise DataError(
                f"objective `{self.name}` needs the special token `{role}`, but the tokenizer of "
                "the data has none; preprocess with a vocabulary that has it or choose another "
                "objective"
            )
        return found


def supervision(examples: Sequence[Example], grid: Grid) -> Labels:
    """The "labels" of `examples` at their positions "index" of `grid`."""
    labels = torch.from_numpy(np.concatenate([example["labels"] for example in examples]))
    index = grid.flat([example["index"] for example in examples])
    # Without an index the target reads the states as they are.
    if len(labels) == len(examples) * grid.width:
        return Labels(labels.view(len(examples), grid.width))
    return Labels(labels, index)


OBJECTIVES: Registry[Objective] = Registry("objective", "tencentpretrain.data.objectives")
