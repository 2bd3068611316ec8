"""An objective of your own: some tokens of a row swap places, and the model restores the order."""

import numpy as np

from tencentpretrain.config import Probability
from tencentpretrain.data.objectives.base import OBJECTIVES, Example, Objective, ObjectiveConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import DocumentPieces


@OBJECTIVES.register("shuffle")
class ShuffleObjective(Objective):
    """[cls] piece of a document [sep], in which a share of the tokens is permuted."""

    class Config(ObjectiveConfig):
        shuffle_rate: Probability = 0.15
        """Share of the tokens of a row that swap places."""

    config: Config
    supervises = ("mlm",)  # the target that finds its labels here
    needs = ("cls", "sep")

    def _prepare(self) -> None:
        """Cut the documents into pieces that leave room for [cls] and [sep]."""
        self._pieces = DocumentPieces(self.shards, self.documents, self.config.length - 2)

    def __len__(self) -> int:
        return len(self._pieces)

    def make(self, epoch: int, index: int) -> Example:
        """A pure function of (seed, epoch, index): all chance comes from `generator`."""
        text, _ = self._pieces.read(index)
        random = generator(self.seed, epoch, index)
        count = max(1, round(len(text) * self.config.shuffle_rate))
        chosen = np.sort(random.permutation(len(text))[:count])
        shuffled = np.array(text, np.int64)
        shuffled[chosen] = shuffled[random.permutation(chosen)]
        ids = np.concatenate(([self.special("cls")], shuffled, [self.special("sep")]))
        return {"ids": ids, "index": chosen + 1, "labels": np.array(text, np.int64)[chosen]}
