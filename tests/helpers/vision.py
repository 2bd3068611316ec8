"""Tiny random models of `transformers` that read images, and ours with their weights."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.convert.families import family_of
from tencentpretrain.convert.huggingface import import_model, numbers_of
from tencentpretrain.convert.incoming import respell
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import convert
from tencentpretrain.convert.weights import open_weights
from tencentpretrain.model import Model, build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import Batch, Labels, Layout, Stream
from tests.helpers.models import randomise
from tests.helpers.reference import LAYERS, Pair, save

IMAGES, CODES, SIDE = 3, 11, 3
"""Images of a batch, codes of BEiT, patches from one edge of an image to the other."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 8 * SIDE,
    "patch_size": 8,
    "attn_implementation": "eager",
}
BEIT = SIZES | {"vocab_size": CODES, "drop_path_rate": 0.0}
MAE = SIZES | {
    "mask_ratio": 0.5,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 40,
}
SHARED = {"use_mask_token": True, "use_shared_relative_position_bias": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", SIZES | {"num_labels": 5}),
    "vit encoder": ("ViTModel", "ViTConfig", SIZES | {"qkv_bias": False, "image_size": (16, 24)}),
    "beit": ("BeitForMaskedImageModeling", "BeitConfig", BEIT | SHARED),
    "beit classify": (
        "BeitForImageClassification",
        "BeitConfig",
        BEIT | {"use_relative_position_bias": True, "num_labels": 5},
    ),
    "beit encoder": (
        "BeitModel",
        "BeitConfig",
        BEIT | {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    ),
    "mae": ("ViTMAEForPreTraining", "ViTMAEConfig", MAE | {"norm_pix_loss": True}),
    "mae raw pixels": ("ViTMAEForPreTraining", "ViTMAEConfig", MAE),
    "mae encoder": ("ViTMAEModel", "ViTMAEConfig", MAE),
}
"""Class, class of the config, and its keys, by the name of a case."""


def reference(case: str) -> Any:
    """A model of `transformers` with large random weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name, config, keys = CASES[case]
    model = getattr(transformers, name)(getattr(transformers, config)(**keys))
    randomise(model)
    if case.startswith("mae"):
        # What is fixed and not learned, once the library forgets that it has filled it.
        for owner in (*model.modules(), *model.parameters()):
            owner._is_hf_initialized = False
        getattr(model, "vit", model).embeddings.initialize_weights()
        if hasattr(model, "decoder"):
            model.decoder.initialize_weights(SIDE**2)
    return model.eval()


def vision_pair(case: str) -> Pair:
    """A reference and our model with its weights."""
    theirs = reference(case)
    with tempfile.TemporaryDirectory() as folder:
        config = save(theirs, Path(folder))
        family = family_of(config["model_type"])
        incoming = import_model(family, config, open_weights(Path(folder)))
        ours = build_model(incoming.model, 1).eval()
        load_weights(ours, incoming.tensors)
    batch, arguments = vision_inputs(ours, config)
    return Pair(family, config, theirs, incoming, ours, batch, arguments)


def vision_inputs(ours: Model, config: dict[str, Any]) -> tuple[Batch, dict[str, Tensor]]:
    """One batch for both."""
    generator = torch.Generator().manual_seed(0)
    size = config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(IMAGES, 3, height, width, generator=generator)
    count = (height // 8) * (width // 8)
    stream = Stream({"pixels": pixels}, Layout(torch.ones(IMAGES, 1, dtype=torch.bool)))
    batch, arguments = Batch({"src": stream}), {"pixel_values": pixels}
    if "classify" in ours.target.names:
        values = torch.randint(5, (IMAGES,), generator=generator)
        batch.labels["classify"], arguments["labels"] = Labels(values), values
    if "mlm" in ours.target.names:
        masked = torch.rand(IMAGES, count, generator=generator) < 0.5
        stream.inputs["masked"], arguments["bool_masked_pos"] = masked, masked
        image, patch = masked.nonzero().unbind(1)
        values = torch.randint(CODES, image.shape, generator=generator)
        batch.labels["mlm"] = Labels(values, image * (count + 1) + patch + 1)
        arguments["labels"] = values
    if config["model_type"] == "vit_mae":
        noise = torch.rand(IMAGES, count, generator=generator)
        order = noise.argsort(1)
        seen = int(count * (1 - config["mask_ratio"]))
        stream.inputs["kept"], arguments["noise"] = order[:, :seen], noise
        hidden = order[:, seen:].sort(1).values + torch.arange(IMAGES)[:, None] * count
        if ours.target.names:
            batch.labels["masked_pixels"] = Labels(hidden.flatten(), hidden.flatten())
    return batch, arguments


def our_gradients(pair: Pair) -> LazyTensors:
    """The reference's gradients under our names.

    They are saved as if they were weights, because version 5 of `transformers` has other names in
    memory than in files.
    """
    filled = copy.deepcopy(pair.theirs)
    with torch.no_grad():
        originals = pair.theirs.parameters()
        for parameter, original in zip(filled.parameters(), originals, strict=True):
            parameter.copy_(torch.zeros(()) if original.grad is None else original.grad)
    numbers = numbers_of(pair.family, Settings(pair.config), pair.incoming.model)
    with tempfile.TemporaryDirectory() as folder:
        filled.save_pretrained(folder)
        tensors = open_weights(Path(folder))
        read = LazyTensors.of({name: tensors[name].clone() for name in tensors})
    spelled = respell(pair.family.table, read, Report())
    return convert(pair.family.rules(pair.incoming.model.target), "ours", spelled, numbers).tensors
