"""MAE (He et al., 2022): fixed waves as positions, and a decoder that predicts pixels."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from tencentpretrain.convert.families.vit import (
    ENCODER,
    LAYER,
    SIZES,
    VECTOR,
    edges,
    patch_rules,
)
from tencentpretrain.convert.family import Family, Filled, Head, Plain, Specials, never_tied
from tencentpretrain.convert.image_preparation import Usual, image_preparation
from tencentpretrain.convert.keys import Key, Settings
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import ChannelsFirst
from tencentpretrain.embeddings.patch import PatchWaves
from tencentpretrain.errors import CheckpointError
from tencentpretrain.sizes import Patches
from tencentpretrain.train.tensor_file import LazyTensors

TARGET: Final = "target.masked_pixels"
DECODER: Final = f"{TARGET}.decoder"
POSITIONS: Final = {
    "vit.embeddings.position_embeddings": "hidden_size",
    "decoder.decoder_pos_embed": "decoder_hidden_size",
}
"""Their tables of fixed waves, and the key of their width."""
CLOSE: Final = 1e-3
"""Greatest difference of a table that was rounded to a shorter type."""


def waves_like(zeros: Tensor) -> Tensor:
    """The fixed waves in the shape of their table [1, 1 + P, E], for a square grid."""
    side = math.isqrt(zeros.shape[1] - 1)
    made = PatchWaves(Patches((1, 1), side, side, before=1), zeros.shape[2])
    made.init_weights(0.0)
    return made.table[None].to(zeros.dtype)


def _to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    """Their tables of positions have no place, as they can be computed.

    Raises:
        CheckpointError: if one holds something else.
    """
    names = [name for name in POSITIONS if name in tensors.described]
    for name in names:
        table = tensors[name]
        if not torch.allclose(table.float(), waves_like(table).float(), atol=CLOSE):
            raise CheckpointError(f"`{name}` must hold the fixed waves of MAE, but does not")
    target = data["target"].get("masked_pixels")
    if target is not None:
        shared = ("activation", "norm_eps", "qkv_bias", "dropout")
        target["decoder"] |= {key: data["encoder"][key] for key in shared}
    return tuple(names)


def _to_config(config: Plain, data: Plain, specials: Specials) -> None:
    objective = data["objective"] or {}
    config["mask_ratio"] = objective.get("mask_rate", config.get("mask_ratio", 0.75))


def _objective(settings: Settings) -> Plain | None:
    found, rate = edges(settings), settings.get("mask_ratio", 0.75)
    if found is None:
        return None
    return {"transform": {"size": found[0]}, "patch_size": found[1], "mask_rate": rate}


def _table(name: str, width: str) -> Filled:
    """Their table of fixed waves, whose rows follow from two keys."""

    def shape(config: Plain) -> tuple[int, ...]:
        return 1, 1 + (config["image_size"] // config["patch_size"]) ** 2, config[width]

    target = None if name.startswith("vit.") else "masked_pixels"
    return Filled(name, shape, target, waves_like)


MAE: Final = Family(
    name="mae",
    model_type="vit_mae",
    base={
        "embedding": {"parts": {"patch": {}, "patch_waves": {}}, "norm": "none", "dropout": 0.0},
        "encoder": ENCODER,
    },
    keys=(
        *SIZES,
        Key("encoder.qkv_bias", "qkv_bias", True),
        Key(f"{DECODER}.hidden", "decoder_hidden_size", 512),
        Key(f"{DECODER}.layers", "decoder_num_hidden_layers", 8),
        Key(f"{DECODER}.heads", "decoder_num_attention_heads", 16),
        Key(f"{DECODER}.ffn", "decoder_intermediate_size", 2048),
        Key(f"{TARGET}.normalise", "norm_pix_loss", False),
    ),
    prefix="vit.",
    words=None,
    table=Table(
        rules=(*patch_rules("vit."), *modules({"encoder.norm": "vit.layernorm"})),
        spellings=(
            (r"^(?=(embeddings|encoder|layernorm)\.)", "vit."),
            # As version 5 of their library writes it.
            (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
        ),
    ),
    heads=(
        Head(
            "masked_pixels",
            (
                *modules({f"{TARGET}.input": "decoder.decoder_embed"}),
                Rule((f"{TARGET}.mask_token",), ("decoder.mask_token",), VECTOR),
                *modules(LAYER, f"{DECODER}.layers.{{n}}.", "decoder.decoder_layers.{n}."),
                *modules({f"{DECODER}.norm": "decoder.decoder_norm"}),
                *modules({f"{TARGET}.output": "decoder.decoder_pred"}, transform=ChannelsFirst()),
            ),
            ("decoder.decoder_pred.weight",),
            {"decoder": {}},
        ),
    ),
    architectures={"": "ViTMAEModel", "masked_pixels": "ViTMAEForPreTraining"},
    objectives={"": "mae", "masked_pixels": "mae"},
    objective_keys=_objective,
    preparation=image_preparation(Usual("ViTImageProcessor")),
    filled=tuple(_table(name, width) for name, width in POSITIONS.items()),
    is_tied=never_tied,
    numbers=lambda settings: {"channels": settings.get("num_channels", 3)},
    to_model=_to_model,
    to_config=_to_config,
)
