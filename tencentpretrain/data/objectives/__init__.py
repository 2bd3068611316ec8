"""What a model learns from documents: rows, masks and labels, made while reading."""

from tencentpretrain.data.objectives import albert, bert, lm, mlm
from tencentpretrain.data.objectives.base import OBJECTIVES, Objective, ObjectiveConfig

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "albert", "bert", "lm", "mlm"]
