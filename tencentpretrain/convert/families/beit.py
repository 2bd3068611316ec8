"""BEiT (Bao et al., 2022): layer scale, keys without biases, positions by the offset of patches."""

from __future__ import annotations

from typing import Final

from tencentpretrain.convert.families.vit import (
    ENCODER,
    SIZES,
    VECTOR,
    edges,
    image_size,
    linear_head,
    patch_rules,
)
from tencentpretrain.convert.family import Family, Filled, Head, Plain, Specials, never_tied
from tencentpretrain.convert.image_preparation import Usual, image_preparation
from tencentpretrain.convert.keys import Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import Squeezed
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

BLOCK: Final = "beit.encoder.layer.{n}."
SCORES: Final = "relative_position_bias.relative_position_bias_table"
BY_PLACE: Final = {
    "shared": "use_shared_relative_position_bias",
    "apart": "use_relative_position_bias",
}
"""Which of their keys each of our values of `patch_scores` turns on."""


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    """What keys say that turn parts on and off."""
    encoder, parts = data["encoder"], data["embedding"]["parts"]
    placed = [place for place, key in BY_PLACE.items() if settings.get(key, False)]
    if len(placed) > 1:
        raise CheckpointError(f"config.json: only one of {', '.join(BY_PLACE.values())} may be set")
    encoder["patch_scores"] = next(iter(placed), None)
    _require_square_grid(data)
    encoder["layer_scale"] = settings.get("layer_scale_init_value", 0.1) or None
    parts["patch"]["mask_token"] = settings.get("use_mask_token", False)
    if settings.get("use_absolute_position_embeddings", False):
        parts["patch_position"] = {}
    # The norm before the codes is the last one of the encoder here; a classifier has its own.
    encoder["last_norm"] = "mlm" in data["target"]
    return ()


def _require_square_grid(data: Plain) -> None:
    """Refuse scores of patches that `transformers` takes for those of the transposed grid.

    It reads the table of a grid of other rows than columns as if these were swapped (5.23), so that
    no table gives there what it gives here.

    Raises:
        CheckpointError: for such a grid.
    """
    patch = data["embedding"]["parts"]["patch"]
    image, one = (patch[key] for key in ("image_size", "patch_size"))
    image, one = ([edge, edge] if isinstance(edge, int) else edge for edge in (image, one))
    rows, columns = (whole // part for whole, part in zip(image, one, strict=True))
    if data["encoder"]["patch_scores"] is not None and rows != columns:
        raise CheckpointError(
            f"the scores of {rows} x {columns} patches cannot be converted, as transformers reads "
            "the tables of grids that are not square the other way round"
        )


def _objective(settings: Settings) -> Plain | None:
    if settings.values.get("architectures") != ["BeitForMaskedImageModeling"]:
        return image_size(settings)
    found = edges(settings)
    if found is None:
        return None
    # What is published, as far as so many patches allow it.
    block = max(1, min(16, int((found[0] // found[1]) ** 2 * 0.4)))
    return {"transform": {"size": found[0]}, "patch_size": found[1], "least_block": block}


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    encoder, parts = data["encoder"], data["embedding"]["parts"]
    _require_square_grid(data)
    for place, key in BY_PLACE.items():
        config[key] = encoder["patch_scores"] == place
    config["layer_scale_init_value"] = encoder["layer_scale"] or 0.0
    config["use_mask_token"] = parts["patch"]["mask_token"]
    config["use_absolute_position_embeddings"] = "patch_position" in parts
    config["use_mean_pooling"] = True


BEIT: Final = Family(
    name="beit",
    model_type="beit",
    base={
        "embedding": {"parts": {"patch": {}}, "norm": "none"},
        "encoder": {**ENCODER, "key_bias": False},
    },
    keys=(
        *SIZES,
        Key("embedding.dropout", "hidden_dropout_prob", 0.0),
        Key("encoder.depth_dropout", "drop_path_rate", 0.1),
        Key("target.classify.norm_eps", "layer_norm_eps", 1e-12),
    ),
    expected={"use_mean_pooling": True},
    prefix="beit.",
    words="target.mlm.output.weight",
    table=Table(
        rules=(
            *patch_rules("beit."),
            Rule(("embedding.patch.mask_token",), ("beit.embeddings.mask_token",), VECTOR),
            Rule(
                ("embedding.patch_position.weight",),
                ("beit.embeddings.position_embeddings",),
                Squeezed(),
            ),
            Rule(("encoder.layers.{n}.attention_residual.scale",), (f"{BLOCK}lambda_1",)),
            Rule(("encoder.layers.{n}.feed_forward_residual.scale",), (f"{BLOCK}lambda_2",)),
            Rule(
                ("encoder.patch_scores.0.weight",),
                (f"beit.encoder.{SCORES}",),
                only=("has_shared_scores", 1),
            ),
            Rule(
                ("encoder.patch_scores.{n}.weight",),
                (f"{BLOCK}attention.attention.{SCORES}",),
                only=("has_shared_scores", 0),
            ),
        ),
        recomputed=(r"beit\..*relative_position_index",),
        spellings=((r"^(?=(embeddings|encoder|pooler)\.)", "beit."),),
    ),
    heads=(
        Head(
            "mlm",
            modules({"target.mlm.output": "lm_head", "encoder.norm": "layernorm"}),
            ("lm_head.weight",),
            {"dense": False},
        ),
        linear_head(
            *modules({"target.classify.norm": "beit.pooler.layernorm"}),
            pooling="rest",
            norm="layer",
        ),
    ),
    architectures={
        "": "BeitModel",
        "mlm": "BeitForMaskedImageModeling",
        "classify": "BeitForImageClassification",
    },
    objectives={"": "image", "mlm": "beit", "classify": "image"},
    objective_keys=_objective,
    preparation=image_preparation(Usual("BeitImageProcessor")),
    aside={
        r"beit\.pooler\.layernorm\.(weight|bias)": "no target reads the pooler",
        r"classifier\..*": "there is no target of this kind",
    },
    filled=(
        Filled("beit.pooler.layernorm.weight", ("hidden_size",), target="", fill=lambda z: z + 1),
        Filled("beit.pooler.layernorm.bias", ("hidden_size",), target=""),
    ),
    is_tied=never_tied,
    numbers=lambda settings: {
        "has_shared_scores": int(settings.get("use_shared_relative_position_bias", False))
    },
    to_model=_to_model,
    to_config=_to_config,
)
