"""ViT (Dosovitskiy et al., 2021), and what it shares with others that read patches."""

from __future__ import annotations

from typing import Any, Final

from tencentpretrain.convert.family import Family, Filled, Head, LeftOut, Plain, never_tied
from tencentpretrain.convert.image_preparation import Usual, image_preparation
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Squeezed
from tencentpretrain.train.tensor_file import LazyTensors

LAYER: Final = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "layernorm_after",
}
VECTOR: Final = Squeezed(dims=2)
SIZES: Final = (
    Key("embedding.parts.patch.image_size", "image_size", 224),
    Key("embedding.parts.patch.patch_size", "patch_size", 16),
    Key("embedding.parts.patch.channels", "num_channels", 3),
    Key("hidden", "hidden_size", 768),
    Key("encoder.layers", "num_hidden_layers", 12),
    Key("encoder.heads", "num_attention_heads", 12),
    Key("encoder.ffn", "intermediate_size", 3072),
    Key("encoder.activation", "hidden_act", "gelu", ACTIVATIONS),
    Key("encoder.norm_eps", "layer_norm_eps", 1e-12),
    Key("encoder.dropout", "hidden_dropout_prob", 0.0),
    Key("encoder.attention_dropout", "attention_probs_dropout_prob", 0.0),
    Key("init.std", "initializer_range", 0.02),
)
"""What all of them have."""
ENCODER: Final[dict[str, Any]] = {
    "name": "transformer",
    "norm": "layer",
    "norm_order": "pre",
    "mask": "full",
}


def patch_rules(prefix: str) -> tuple[Rule, ...]:
    """Patches, class token and blocks below `prefix` of their names."""
    return (
        *modules({"embedding.patch": f"{prefix}embeddings.patch_embeddings.projection"}),
        Rule(("embedding.patch.class_token",), (f"{prefix}embeddings.cls_token",), VECTOR),
        *modules(LAYER, "encoder.layers.{n}.", f"{prefix}encoder.layer.{{n}}."),
    )


def edges(settings: Settings) -> tuple[int, int] | None:
    """Height of images and of patches; None where either is no square, as objectives make them."""
    sizes = settings.get("image_size", 224), settings.get("patch_size", 16)
    squares = [size if isinstance(size, int) else size[0] for size in sizes]
    is_square = all(isinstance(s, int) or len(set(s)) == 1 for s in sizes)
    return (squares[0], squares[1]) if is_square else None


def image_size(settings: Settings) -> Plain | None:
    """What an objective is told of the size of images; None where they are no coloured squares."""
    size = settings.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    has_colours = settings.get("num_channels", 3) == 3
    return {"transform": {"size": height}} if height == width and has_colours else None


def linear_head(*others: Rule, **config: Any) -> Head:
    """A linear classifier, and rules of what precedes it."""
    rules = (*modules({"target.classify.output": "classifier"}), *others)
    return Head("classify", rules, ("classifier.weight",), {"dense": False, **config})


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    for name in ("pooler_act", "pooler_output_size"):
        settings.get(name, None)  # of the pooler, which is kept aside
    return ()


VIT: Final = Family(
    name="vit",
    model_type="vit",
    base={
        "embedding": {"parts": {"patch": {}, "patch_position": {}}, "norm": "none"},
        "encoder": ENCODER,
    },
    keys=(
        *SIZES,
        Key("embedding.dropout", "hidden_dropout_prob", 0.0),
        Key("encoder.qkv_bias", "qkv_bias", True),
    ),
    prefix="vit.",
    words=None,
    table=Table(
        rules=(
            *patch_rules("vit."),
            Rule(
                ("embedding.patch_position.weight",),
                ("vit.embeddings.position_embeddings",),
                Squeezed(),
            ),
            *modules({"encoder.norm": "vit.layernorm"}),
        ),
        spellings=((r"^(?=(embeddings|encoder|layernorm|pooler)\.)", "vit."),),
    ),
    heads=(linear_head(),),
    architectures={"": "ViTModel", "classify": "ViTForImageClassification"},
    objectives={"": "image", "classify": "image"},
    objective_keys=image_size,
    preparation=image_preparation(Usual("ViTImageProcessor")),
    aside={
        r"vit\.pooler\.dense\.(weight|bias)": "no target reads the pooler",
        r"classifier\..*": "there is no target of this kind",
    },
    # Theirs have no hidden layer before the classes, as ViT has in its pre-training.
    left_out=(LeftOut("classify", lambda targets: targets["classify"].dense, "vit.pooler.dense"),),
    filled=(
        Filled("vit.pooler.dense.weight", ("hidden_size", "hidden_size"), target=""),
        Filled("vit.pooler.dense.bias", ("hidden_size",), target=""),
    ),
    is_tied=never_tied,
    to_model=_to_model,
)
