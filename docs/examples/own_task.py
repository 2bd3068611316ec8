"""A task of your own: marks such as 1 to 5 stars, where a near miss is better than a far one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.base import TASKS
from tencentpretrain.tasks.classify import ClassifyExamples, ClassifyTask
from tencentpretrain.tasks.table import Row

Outputs = Sequence[NDArray[np.float32]]


@TASKS.register("stars")
class StarsTask(ClassifyTask):
    """Learns the marks as classes, and answers with the mean of their distribution."""

    score = "error"  # of an evaluation; it decides which checkpoint is the best
    mode = "min"

    class Config(ClassifyTask.Config):
        digits: int = 2
        """Digits behind the point of an answer."""

    config: Config

    def learn(self, rows: Sequence[Row]) -> None:
        """As the labels of classification, but all of them must be integers."""
        super().learn(rows)
        wrong = [label for label in self.labels if not label.lstrip("-").isdigit()]
        if wrong:
            raise DataError(f"{rows[0].path}: marks must be integers, but one is `{wrong[0]}`")

    def metrics(self, examples: ClassifyExamples, outputs: Outputs) -> dict[str, float]:
        """Mean absolute error beside the scores of classification."""
        assert examples.labels is not None
        error = np.abs(self._means(outputs) - self._marks()[examples.labels]).mean()
        return {"error": float(error), **super().metrics(examples, outputs)}

    def decode(
        self, rows: Sequence[Row], examples: ClassifyExamples, outputs: Outputs
    ) -> Iterator[dict[str, Any]]:
        """The mean mark of each row; what is yielded here becomes a line of the predictions."""
        for mean in self._means(outputs):
            yield {"stars": round(float(mean), self.config.digits)}

    def _marks(self) -> NDArray[np.float64]:
        return np.array([int(label) for label in self.labels], np.float64)

    def _means(self, outputs: Outputs) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.stack(outputs) @ self._marks()
        return means
