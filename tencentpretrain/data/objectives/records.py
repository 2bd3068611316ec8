"""What objectives share that read more than text: pairs, labelled texts, conversations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from tencentpretrain.data.objectives.base import Objective, Vocabulary
from tencentpretrain.data.packing import Documents, Flags, Integers
from tencentpretrain.data.shard_format import (
    LABEL,
    MAIN,
    SUPERVISED,
    TARGET,
    counted_column,
    kind_of,
)
from tencentpretrain.errors import DataError

log = logging.getLogger("tencentpretrain")

CONTENT: Final = {TARGET: "pair", LABEL: "label", SUPERVISED: "chat"}
"""What to preprocess for each column, as `corpus.content`."""


class Records(Documents, Protocol):
    """What is read of stored records; `ShardSet` is one."""

    has_target_tokenizer: bool

    @property
    def columns(self) -> Mapping[str, Any]: ...
    def lengths(self, name: str = MAIN) -> Integers: ...
    def column(
        self, name: str, document: int, start: int = 0, stop: int | None = None
    ) -> NDArray[Any]: ...
    def sentence_ends(self, document: int) -> NDArray[Any]: ...
    def label(self, document: int) -> int: ...
    def first_set(self, name: str, start: int = 0) -> Integers: ...
    def target_tokenizer(self) -> Vocabulary: ...


def require_column(objective: Objective, column: str) -> None:
    """Refuse shards without what `objective` reads.

    Raises:
        DataError: naming how to preprocess.
    """
    found: Sequence[str] = [*getattr(objective.shards, "columns", ())]
    if column not in found:
        stored = next((content for c, content in CONTENT.items() if c in found), "text")
        is_text = counted_column(found) == MAIN
        stored = f"{stored} that was" if is_text else f"{kind_of(found)} that were"
        raise DataError(
            f"objective `{objective.name}` needs data of another kind than the {stored} "
            f"preprocessed; preprocess with corpus.content={CONTENT[column]} or choose another "
            "objective"
        )


def require_one_tokenizer(objective: Objective, shards: Records) -> None:
    """Refuse pairs whose texts have different ids for the same tokens.

    Raises:
        DataError: naming how to preprocess.
    """
    if shards.has_target_tokenizer:
        raise DataError(
            f"objective `{objective.name}` reads both texts of a pair with one vocabulary, but "
            "these were preprocessed with two; preprocess without target_tokenizer"
        )


def keep(objective: Objective, fits: Flags, what: str) -> None:
    """Leave out those documents of `objective` that do not fit, and tell how many.

    Args:
        objective: whose `documents` are shortened.
        fits: whether each of them can be used.
        what: the documents, and what is the matter with those that cannot.

    Raises:
        DataError: if none is left of some.
    """
    lost = len(fits) - int(fits.sum())
    if not lost:
        return
    message = f"objective `{objective.name}` leaves out {lost:,} of {len(fits):,} {what}"
    if lost == len(fits):
        raise DataError(f"{message}, which is all; raise model.objective.length")
    log.warning(message)
    objective.documents = objective.documents[fits]


def tell_cut(objective: Objective, cut: int, what: str) -> None:
    """Tell how many of the examples are cut."""
    if cut:
        log.info(
            f"objective `{objective.name}` cuts {cut:,} of {len(objective.documents):,} {what}"
        )


def end_token(objective: Objective) -> int:
    """Id of [eos]; of [sep], which ends a text just as well, where there is no other.

    Raises:
        DataError: if the tokenizer has neither.
    """
    tokenizer = objective.tokenizer
    has_only_sep = tokenizer.eos is None and tokenizer.sep is not None
    return objective.special("sep" if has_only_sep else "eos")
