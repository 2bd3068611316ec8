"""One table a family, used in both directions."""

from __future__ import annotations

from typing import Final

from tencentpretrain.config import nearest
from tencentpretrain.convert.families.albert import ALBERT
from tencentpretrain.convert.families.bart import BART, PEGASUS
from tencentpretrain.convert.families.beit import BEIT
from tencentpretrain.convert.families.bert import BERT
from tencentpretrain.convert.families.bloom import BLOOM
from tencentpretrain.convert.families.clip import CLIP
from tencentpretrain.convert.families.distilbert import DISTILBERT
from tencentpretrain.convert.families.gpt2 import GPT2
from tencentpretrain.convert.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from tencentpretrain.convert.families.mae import MAE
from tencentpretrain.convert.families.modernbert import MODERNBERT
from tencentpretrain.convert.families.roberta import ROBERTA, XLM_R
from tencentpretrain.convert.families.speech import S2T, WHISPER
from tencentpretrain.convert.families.t5 import T5
from tencentpretrain.convert.families.vilt import VILT
from tencentpretrain.convert.families.vit import VIT
from tencentpretrain.convert.family import Family
from tencentpretrain.errors import CheckpointError

_ALL = (
    *(BERT, ALBERT, DISTILBERT, ROBERTA, XLM_R, MODERNBERT),
    *(GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, BLOOM),
    *(T5, BART, PEGASUS),
    *(S2T, WHISPER),
    *(VIT, BEIT, MAE),
    *(CLIP, VILT),
)
FAMILIES: Final[dict[str, Family]] = {family.name: family for family in _ALL}
"""By name; of several that a model fits the first one is exported."""


def find_family(name: str) -> Family:
    """The family that users call `name`.

    Raises:
        CheckpointError: if there is none.
    """
    if name not in FAMILIES:
        raise CheckpointError(f"there is no family `{name}`; {nearest(name, FAMILIES)}")
    return FAMILIES[name]


def family_of(model_type: object) -> Family:
    """The family that a config.json calls `model_type`.

    Raises:
        CheckpointError: if there is none.
    """
    by_type = {family.model_type: family for family in FAMILIES.values()}
    if not isinstance(model_type, str) or model_type not in by_type:
        hint = nearest(str(model_type), by_type)
        known = ", ".join(by_type)
        raise CheckpointError(
            f"config.json is of model_type `{model_type}`, which cannot be converted; {hint}; "
            f"the families are {known}"
        )
    return by_type[model_type]
