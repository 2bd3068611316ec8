"""Supervised fine-tuning on conversations: only what the assistant wrote is learned."""

from __future__ import annotations

import numpy as np

from tencentpretrain.data.bins import Bins
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.objectives.records import Records, keep, require_column, tell_cut
from tencentpretrain.data.shard_format import SUPERVISED


@OBJECTIVES.register("sft")
class SftObjective(Objective):
    """Rows of conversations, each token with its next one where an assistant wrote that.

    A conversation that is longer than a row is cut at its end. One whose row would have nothing to
    learn is left out.
    """

    class Config(ObjectiveConfig):
        pack: bool = True
        """Fill rows with as many whole conversations as fit, each seeing only itself; otherwise a
        row holds one."""
        supervise_prompt: bool = False
        """Learn all tokens of a conversation instead of those of the assistant."""

    config: Config
    shards: Records
    supervises = ("lm",)
    needs = ()

    def _prepare(self) -> None:
        require_column(self, SUPERVISED)
        length = self.config.length
        sizes = self.shards.lengths()[self.documents]
        # Position 0 is predicted from nothing, and so never is.
        if self.config.supervise_prompt:
            first = np.ones_like(sizes)
        else:
            first = self.shards.first_set(SUPERVISED, start=1)[self.documents]
        fits = first < np.minimum(sizes, length + 1)
        keep(self, fits, f"conversations: length={length} holds nothing of them to learn")
        # The last token is only ever a label.
        sizes = sizes[fits] - 1
        tell_cut(self, int((sizes > length).sum()), f"conversations to length={length}")
        self._bins = (
            Bins(np.minimum(sizes, length), length, self.seed) if self.config.pack else None
        )

    def __len__(self) -> int:
        return len(self.documents if self._bins is None else self._bins)

    def make(self, epoch: int, index: int) -> Example:
        if self._bins is None:
            return self._conversation(index)
        members = [self._conversation(item) for item in self._bins.items(epoch, index)]
        lengths = np.array([len(member["ids"]) for member in members])
        starts = lengths.cumsum() - lengths
        positions = np.arange(lengths.sum()) - starts.repeat(lengths)
        shifted = [m["index"] + start for m, start in zip(members, starts, strict=True)]
        return {
            "ids": np.concatenate([member["ids"] for member in members]),
            "documents": np.arange(len(members)).repeat(lengths),
            "positions": positions,
            "labels": np.concatenate([member["labels"] for member in members]),
            "index": np.concatenate(shifted),
        }

    def _conversation(self, number: int) -> Example:
        """Tokens [S] of a conversation, and the labels at the positions before those to learn."""
        document = int(self.documents[number])
        ids = self.shards.read(document, 0, self.config.length + 1).astype(np.int64)
        if self.config.supervise_prompt:
            index = np.arange(len(ids) - 1)
        else:
            learned = self.shards.column(SUPERVISED, document, 1, self.config.length + 1)
            index = learned.nonzero()[0]
        return {"ids": ids[:-1], "labels": ids[1:][index], "index": index}
