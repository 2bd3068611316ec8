"""What a model learns from documents: rows, masks and labels, made while reading."""

from tencentpretrain.data.objectives import (
    albert,
    bart,
    bert,
    bilm,
    cls,
    lm,
    mlm,
    pegasus,
    prefix_lm,
    sft,
    siamese,
    t5,
    translate,
)
from tencentpretrain.data.objectives.base import OBJECTIVES, Objective, ObjectiveConfig

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveConfig",
    "albert",
    "bart",
    "bert",
    "bilm",
    "cls",
    "lm",
    "mlm",
    "pegasus",
    "prefix_lm",
    "sft",
    "siamese",
    "t5",
    "translate",
]
