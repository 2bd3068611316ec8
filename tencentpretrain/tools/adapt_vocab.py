"""Another vocabulary for a trained model: what `scripts/adapt_vocab.py` does.

Tensors with a row for each entry are rebuilt: an entry of the old vocabulary keeps its row, and
special tokens keep that of their role, whatever they are called. All other weights stay.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import torch
from torch import Tensor

from tencentpretrain.config import (
    Choice,
    ComponentConfig,
    Config,
    NonNegativeInt,
    PathLike,
    SerializeAsAny,
)
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.shard_format import TARGET_TOKENIZER
from tencentpretrain.errors import CheckpointError, before_start
from tencentpretrain.model import ModelConfig, build_model
from tencentpretrain.tokenizers.base import ROLES, TOKENIZERS, Tokenizer, build_tokenizer
from tencentpretrain.tools.outputs import (
    check_directory,
    model_files,
    model_sections,
    saved_beside,
    write_model,
)
from tencentpretrain.tools.saved_model import saved_parts
from tencentpretrain.train.base import plain_tensors
from tencentpretrain.train.saved_checkpoint import Checkpoint, open_checkpoint
from tencentpretrain.train.source import TOKENIZER, saved_tokenizer

log = logging.getLogger("tencentpretrain")

FREE: Final[dict[str, None]] = {"vocabulary": None, "target_vocabulary": None}
"""Keys of a model whose tables are as long as its vocabulary."""
NEW: Final = -1
"""In the place of the number of an old row: the entry is new."""


class AdaptVocabConfig(Config):
    """Give a model another vocabulary."""

    checkpoint: PathLike
    """Run directory, of which the best checkpoint is taken, or one of its checkpoints."""
    tokenizer: Annotated[SerializeAsAny[ComponentConfig], Choice(TOKENIZERS)]
    """Kind and vocabulary of the new tokenizer."""
    output: PathLike
    """Directory to make; init and checkpoint accept it."""
    overwrite: bool = False
    """Whether a model at output may be replaced."""
    new_entries: Literal["mean", "random"] = "mean"
    """How the rows of new entries start: as the mean of all old rows, or at random as in a new
    model, which tells them apart from the first step on."""
    seed: NonNegativeInt = 0
    """Of random rows."""
    plugins: list[str] = []
    """Packages to import that register components of your own."""


def run_adapt_vocab(config: AdaptVocabConfig) -> int:
    """Adapt as `config` says; returns the exit code."""
    with before_start():
        check_directory(config.output, config.overwrite, [config.checkpoint])
        checkpoint = open_checkpoint(config.checkpoint)
        model = saved_parts(checkpoint).model
        old, new = replaceable_tokenizer(checkpoint), build_tokenizer(config.tokenizer)
        sections = model_sections(checkpoint)
        sections["model"] = {**sections["model"], **FREE}
        sections.pop("wrappers", None)  # adapters become part of the weights
        grown = grown_names(model, old.vocab_size)
        tensors = plain_tensors(checkpoint)
        files = model_files(checkpoint)
    match = match_entries(old, new)
    std = model.init.std if config.new_entries == "random" else None
    random = torch.Generator().manual_seed(config.seed)
    adapted = {
        name: match.apply(tensor, std, random) if name in grown else tensor
        for name, tensor in sorted(tensors.items())
    }
    with saved_beside(new) as replaced:
        fingerprints = {TOKENIZER: new.fingerprint}
        members = files | replaced
        write_model(config.output, adapted, sections, members, checkpoint.step, fingerprints)
    for line in match.lines():
        print(line)
    print(f"tensors with rows  {', '.join(sorted(grown & tensors.keys()))}")
    print(f"output             {config.output}", flush=True)
    return 0


def replaceable_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The only tokenizer in `checkpoint`.

    Raises:
        CheckpointError: if there is none, or a second one.
    """
    found = saved_tokenizer(checkpoint)
    if found is None:
        raise CheckpointError(f"`{checkpoint.path}` has no tokenizer that could be replaced")
    if (checkpoint.path / TARGET_TOKENIZER).exists():
        raise CheckpointError(
            f"`{checkpoint.path}` has two tokenizers, the second for target texts, so that it is "
            "not clear which one is to be replaced"
        )
    return found


@dataclass(frozen=True)
class Match:
    """Where the rows of a new vocabulary come from.

    Args:
        rows: [V] number of the old row of each new entry, or `NEW`.
        by_role: entries that were matched by their role, as "old -> new".
        old_size: entries of the old vocabulary.
    """

    rows: Integers
    by_role: tuple[str, ...]
    old_size: int

    def apply(self, tensor: Tensor, std: float | None, random: torch.Generator) -> Tensor:
        """The rows [V, ...] of the new vocabulary out of those [rows, ...] of the old one.

        Args:
            tensor: with a row for each old entry, maybe with more rows behind them.
            std: deviation of the rows of new entries, whose biases are 0; None for the mean row.
            random: what they are drawn with.
        """
        known = tensor[: self.old_size].float()
        rows = torch.from_numpy(self.rows)
        result = known[rows.clamp(min=0)]
        is_new = rows == NEW
        if std is None:
            result[is_new] = known.mean(0)
        elif result.dim() > 1:
            drawn = torch.randn(int(is_new.sum()), *result.shape[1:], generator=random)
            result[is_new] = drawn * std
        else:
            result[is_new] = 0.0
        return result.to(tensor.dtype)

    def lines(self) -> list[str]:
        """For people."""
        new = int((self.rows == NEW).sum())
        kept = len(np.unique(self.rows[self.rows != NEW]))
        roles = f" ({', '.join(self.by_role)} by role)" if self.by_role else ""
        return [
            f"old entries        {self.old_size:,}, of which {kept:,} are kept",
            f"new entries        {len(self.rows):,}, of which {new:,} start anew{roles}",
        ]


def match_entries(old: Tokenizer, new: Tokenizer) -> Match:
    """The old row of each entry of `new`: that of the same text, for special tokens of the role."""
    rows = np.full(new.vocab_size, NEW, np.int64)
    for number in range(new.vocab_size):
        entry = new.token(number)
        found = old.id(entry) if entry else None
        rows[number] = NEW if found is None else found
    named = []
    # Backwards, so that of several roles of one token the first one counts.
    for role in reversed(ROLES):
        before, after = getattr(old, role), getattr(new, role)
        if before is not None and after is not None:
            rows[after] = before
    for after in sorted(new.special_ids):
        names = old.token(int(rows[after])) if rows[after] != NEW else "", new.token(after)
        if names[0] and names[0] != names[1]:
            named.append(f"{names[0]} -> {names[1]}")
    return Match(rows, tuple(named), old.vocab_size)


def grown_names(model: ModelConfig, vocabulary: int) -> set[str]:
    """Names of the tensors with a row for each entry: those that a larger vocabulary makes longer.

    Raises:
        CheckpointError: if there is none.
    """
    free = model.model_copy(update=FREE)
    shapes = [
        {name: t.shape for name, t in build_model(free, size, "meta").state_dict().items()}
        for size in (vocabulary, vocabulary + 1)
    ]
    grown = {name for name, shape in shapes[0].items() if shape != shapes[1][name]}
    if not grown:
        raise CheckpointError("the model has no tensor with a row for each entry")
    return grown
