"""BERT (Devlin et al., 2019) and what has its names: MiniLM, SBERT and other sentence encoders."""

from __future__ import annotations

from typing import Any, Final

from tencentpretrain.convert.family import Family, Filled, Head
from tencentpretrain.convert.keys import ACTIVATIONS, Key
from tencentpretrain.convert.table import Rule, Table, modules

LAYER: Final = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
EMBEDDING: Final = {
    "embedding.word": "word_embeddings",
    "embedding.position": "position_embeddings",
    "embedding.segment": "token_type_embeddings",
    "embedding.norm": "LayerNorm",
}
GAIN_AND_SHIFT: Final = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
"""Files that were made of TensorFlow's have its names."""
KEYS: Final = (
    Key("hidden", "hidden_size"),
    Key("encoder.layers", "num_hidden_layers"),
    Key("encoder.heads", "num_attention_heads"),
    Key("encoder.ffn", "intermediate_size"),
    Key("encoder.activation", "hidden_act", "gelu", ACTIVATIONS),
    Key("encoder.norm_eps", "layer_norm_eps", 1e-12),
    Key("embedding.norm_eps", "layer_norm_eps", 1e-12),
    Key("target.mlm.norm_eps", "layer_norm_eps", 1e-12),
    Key("encoder.dropout", "hidden_dropout_prob", 0.1),
    Key("embedding.dropout", "hidden_dropout_prob", 0.1),
    Key("encoder.attention_dropout", "attention_probs_dropout_prob", 0.1),
    Key("embedding.parts.position.length", "max_position_embeddings", 512),
    Key("embedding.parts.segment.types", "type_vocab_size", 2),
    Key("init.std", "initializer_range", 0.02),
)
EXPECTED: Final = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
BASE: Final[dict[str, Any]] = {
    "embedding": {"parts": {"word": {}, "position": {}, "segment": {}}, "norm": "layer"},
    "encoder": {"name": "transformer", "norm": "layer", "norm_order": "post", "mask": "full"},
}


def mlm_head(dense: str, norm: str, weight: str, bias: str, **others: Any) -> Head:
    """The prediction of masked tokens: two modules, and the tensors of the output layer."""
    rules = (
        *modules({"target.mlm.dense": dense, "target.mlm.norm": norm}),
        Rule(("target.mlm.output.weight",), (weight,)),
        Rule(("target.mlm.output.bias",), (bias,)),
    )
    return Head("mlm", rules, **{"marks": (f"{dense}.weight",), **others})


def row_head(target: str, dense: str, output: str, **config: Any) -> Head:
    """A label for a row: pooler and classifier."""
    names = {f"target.{target}.dense": dense, f"target.{target}.output": output}
    return Head(target, modules(names), (f"{dense}.weight", f"{output}.weight"), config)


def tag_head(output: str = "classifier") -> Head:
    """A label for each token."""
    return Head("tag", modules({"target.tag.output": output}), (f"{output}.weight",))


def span_head(output: str = "qa_outputs") -> Head:
    """Where an answer begins and ends."""
    return Head("span", modules({"target.span.output": output}), (f"{output}.weight",))


def architectures(stem: str, *pairs: tuple[str, str]) -> dict[str, str]:
    """Classes of a family by targets."""
    return {
        "": f"{stem}Model",
        "mlm": f"{stem}ForMaskedLM",
        "classify": f"{stem}ForSequenceClassification",
        "tag": f"{stem}ForTokenClassification",
        "span": f"{stem}ForQuestionAnswering",
        **dict(pairs),
    }


ASIDE: Final = {
    r".*pooler\.(dense\.)?(weight|bias)": "no target reads the pooler",
    r"classifier\..*": "there is no target of this kind",
}
BERT: Final = Family(
    name="bert",
    model_type="bert",
    base=BASE,
    keys=(*KEYS, Key("target.mlm.activation", "hidden_act", "gelu", ACTIVATIONS)),
    expected=EXPECTED,
    prefix="bert.",
    table=Table(
        rules=(
            *modules(EMBEDDING, theirs="bert.embeddings."),
            *modules(LAYER, "encoder.layers.{n}.", "bert.encoder.layer.{n}."),
        ),
        recomputed=(r"bert\.embeddings\.(position|token_type)_ids",),
        spellings=(*GAIN_AND_SHIFT, (r"^(?=(embeddings|encoder|pooler)\.)", "bert.")),
        output_bias=("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    heads=(
        mlm_head(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
        ),
        row_head("nsp", "bert.pooler.dense", "cls.seq_relationship"),
        row_head("classify", "bert.pooler.dense", "classifier"),
        tag_head(),
        span_head(),
    ),
    architectures=architectures(
        "Bert", ("mlm nsp", "BertForPreTraining"), ("nsp", "BertForNextSentencePrediction")
    ),
    aside=ASIDE,
    filled=(
        Filled("bert.pooler.dense.weight", ("hidden_size", "hidden_size"), target=""),
        Filled("bert.pooler.dense.bias", ("hidden_size",), target=""),
        Filled("bert.embeddings.token_type_embeddings.weight", ("type_vocab_size", "hidden_size")),
    ),
)
