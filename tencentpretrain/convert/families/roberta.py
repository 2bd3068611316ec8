"""RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2020): BERT's names, other heads.

Their positions begin behind the id of padding, so their table has rows that no token reads. Their
only segment is a constant; it is zero in the published models, which then have none here.
"""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.families.bert import (
    ASIDE,
    BASE,
    EMBEDDING,
    EXPECTED,
    GAIN_AND_SHIFT,
    KEYS,
    LAYER,
    architectures,
    mlm_head,
    row_head,
    span_head,
    tag_head,
)
from tencentpretrain.convert.family import Family, Filled, Plain, Specials
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import SkippedRows
from tencentpretrain.train.tensor_file import LazyTensors

SEGMENT: Final = "roberta.embeddings.token_type_embeddings.weight"
PAD: Final = 1


def _numbers(settings: Settings) -> dict[str, int]:
    return {"first_position": settings.number("pad_token_id", PAD) + 1}


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    parts = data["embedding"]["parts"]
    parts["position"]["length"] -= _numbers(settings)["first_position"]
    if parts["segment"]["types"] == 1 and not tensors[SEGMENT].any():
        del parts["segment"]
        return (SEGMENT,)
    return ()


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    pad = specials.get("pad")
    config["pad_token_id"] = PAD if pad is None else pad
    config["max_position_embeddings"] += config["pad_token_id"] + 1
    if "segment" not in data["embedding"]["parts"]:
        config["type_vocab_size"] = 1


def _family(name: str, model_type: str, stem: str) -> Family:
    others = {key: value for key, value in EMBEDDING.items() if key != "embedding.position"}
    return Family(
        name=name,
        model_type=model_type,
        base=BASE,
        keys=KEYS,
        expected=EXPECTED,
        prefix="roberta.",
        table=Table(
            rules=(
                *modules(others, theirs="roberta.embeddings."),
                Rule(
                    ("embedding.position.weight",),
                    ("roberta.embeddings.position_embeddings.weight",),
                    SkippedRows("first_position"),
                ),
                *modules(LAYER, "encoder.layers.{n}.", "roberta.encoder.layer.{n}."),
            ),
            recomputed=(r"roberta\.embeddings\.(position|token_type)_ids",),
            spellings=(*GAIN_AND_SHIFT, (r"^(?=(embeddings|encoder|pooler)\.)", "roberta.")),
            output_bias=("lm_head.decoder.bias", "lm_head.bias"),
        ),
        heads=(
            mlm_head(
                "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias"
            ),
            row_head("classify", "classifier.dense", "classifier.out_proj"),
            tag_head(),
            span_head(),
        ),
        architectures=architectures(stem),
        aside=ASIDE,
        filled=(
            Filled("roberta.pooler.dense.weight", ("hidden_size", "hidden_size"), target=""),
            Filled("roberta.pooler.dense.bias", ("hidden_size",), target=""),
            Filled(SEGMENT, ("type_vocab_size", "hidden_size")),
        ),
        numbers=_numbers,
        to_model=_to_model,
        to_config=_to_config,
    )


ROBERTA: Final = _family("roberta", "roberta", "Roberta")
XLM_R: Final = _family("xlm_r", "xlm-roberta", "XLMRoberta")
