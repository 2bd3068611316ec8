"""`transformers` counts the same parameters in one size of each family that it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.zoo import PUBLISHED

transformers = pytest.importorskip("transformers")

CAUSAL = {
    "llama/7b": ("Llama", {"intermediate_size": 11008}),
    "llama2/70b": ("Llama", {"intermediate_size": 28672, "num_key_value_heads": 8}),
    "llama3/8b": ("Llama", {"intermediate_size": 14336, "num_key_value_heads": 8}),
    "llama3_1/405b": ("Llama", {"intermediate_size": 53248, "num_key_value_heads": 8}),
    "llama3_2/1b": (
        "Llama",
        {"intermediate_size": 8192, "num_key_value_heads": 8, "tie_word_embeddings": True},
    ),
    "mistral/7b_v0.3": ("Mistral", {"intermediate_size": 14336, "num_key_value_heads": 8}),
    "qwen2/7b": ("Qwen2", {"intermediate_size": 18944, "num_key_value_heads": 4}),
    "qwen3/4b": (
        "Qwen3",
        {
            "intermediate_size": 9728,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "bloom/176b": ("Bloom", {}),
}
SEQ2SEQ = {
    "bart/base": ("BartForConditionalGeneration", {"d_ff": 3072, "max_position_embeddings": 1024}),
    "pegasus/large": ("PegasusForConditionalGeneration", {"d_ff": 4096}),
    "transformer/big": (
        "MarianMTModel",
        {
            "d_ff": 4096,
            "decoder_vocab_size": 37000,
            "share_encoder_decoder_embeddings": False,
            "pad_token_id": 1,
            "decoder_start_token_id": 1,
        },
    ),
    "t5/11b": ("T5ForConditionalGeneration", {"d_ff": 65536, "d_kv": 128}),
    "t5_v1_1/small": (
        "T5ForConditionalGeneration",
        {"d_ff": 1024, "d_kv": 64, "feed_forward_proj": "gated-gelu"},
    ),
}
FULL = {
    "sbert/base": ("Bert", {"add_pooling_layer": False}, {"intermediate_size": 3072}),
    "modernbert/large": ("ModernBert", {}, {"intermediate_size": 2624}),
}


def count(class_name: str, config: Any, **arguments: Any) -> int:
    """Trained parameters, which fixed waves of positions are not."""
    with torch.device("meta"):
        model = getattr(transformers, class_name)(config, **arguments)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def config_of(family: str, name: str, **keys: Any) -> Any:
    """A config of `transformers` with the published width, layers and heads."""
    published = PUBLISHED[name]
    sizes = {
        "vocab_size": published.vocabulary,
        "hidden_size": published.hidden,
        "num_hidden_layers": published.layers,
        "num_attention_heads": published.heads,
    }
    return getattr(transformers, f"{family}Config")(**sizes, **keys)


def same(name: str, found: int, unlike: int = 0) -> bool:
    """Whether `found`, with what is counted otherwise there, is the published number."""
    return found + unlike == round(PUBLISHED[name].millions * 1e6)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_have_as_many_parameters_as_theirs(name: str) -> None:
    family, keys = CAUSAL[name]
    assert same(name, count(f"{family}ForCausalLM", config_of(family, name, **keys)))


@pytest.mark.parametrize("name", FULL)
def test_encoders_have_as_many_parameters_as_theirs(name: str) -> None:
    family, arguments, keys = FULL[name]
    head = "Model" if family == "Bert" else "ForMaskedLM"
    assert same(name, count(f"{family}{head}", config_of(family, name, **keys), **arguments))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders_have_as_many_parameters_as_theirs(name: str) -> None:
    class_name, given = SEQ2SEQ[name]
    published, keys = PUBLISHED[name], dict(given)
    family = class_name.removesuffix("ForConditionalGeneration").removesuffix("MTModel")
    if family == "T5":
        keys |= {"num_layers": published.layers, "num_heads": published.heads}
    else:
        width = keys.pop("d_ff")
        for side in ("encoder", "decoder"):
            sizes = {"layers": published.layers, "attention_heads": published.heads}
            keys |= {f"{side}_{k}": v for k, v in (sizes | {"ffn_dim": width}).items()}
    keys |= {"d_model": published.hidden, "vocab_size": published.vocabulary}
    found = count(class_name, getattr(transformers, f"{family}Config")(**keys))
    # Two positions that never occur on either side; an output table that only the released weights
    # of T5 v1.1 have, since a config alone always ties it.
    unlike = {"bart/base": -4 * 768, "t5_v1_1/small": 32128 * 512}
    assert same(name, found, unlike.get(name, 0))


@pytest.mark.parametrize(("name", "patch"), [("base_32", 32), ("base_16", 16), ("large_14", 14)])
def test_image_text_models_have_as_many_parameters_as_theirs(name: str, patch: int) -> None:
    published = PUBLISHED[f"clip/{name}"]
    width, layers, heads = (1024, 24, 16) if name == "large_14" else (768, 12, 12)
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": published.hidden,
            "intermediate_size": 4 * published.hidden,
            "num_attention_heads": published.heads,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "patch_size": patch,
        },
        projection_dim=published.hidden,
    )
    assert same(f"clip/{name}", count("CLIPModel", config))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("s2t/")])
def test_speech_to_text_has_as_many_parameters_as_theirs(name: str) -> None:
    published = PUBLISHED[name]
    width = {"tiny": 512, "large": 4096}.get(name.removeprefix("s2t/"), 2048)
    keys = {
        **{f"{side}_attention_heads": published.heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": width for side in ("encoder", "decoder")},
        "encoder_layers": published.layers,
        "decoder_layers": published.decoder_layers,
        "conv_channels": 256 if name == "s2t/tiny" else 1024,
    }
    config = transformers.Speech2TextConfig(d_model=published.hidden, **keys)
    assert same(name, count("Speech2TextForConditionalGeneration", config))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("whisper/")])
def test_whisper_has_as_many_parameters_as_theirs(name: str) -> None:
    published = PUBLISHED[name]
    sizes = {
        "layers": published.layers,
        "attention_heads": published.heads,
        "ffn_dim": 4 * published.hidden,
    }
    keys = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sizes.items()}
    keys |= {"vocab_size": published.vocabulary, "d_model": published.hidden}
    bands = 128 if name == "whisper/large_v3" else 80
    config = transformers.WhisperConfig(**keys, num_mel_bins=bands)
    assert same(name, count("WhisperForConditionalGeneration", config))


def test_vilt_has_as_many_parameters_as_theirs() -> None:
    """Its pooler is there in a model of masked words too; the two classes of a match are not."""
    assert same("vilt/base", count("ViltForMaskedLM", transformers.ViltConfig()), 2 * 769)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("vit/")])
def test_image_classifiers_have_as_many_parameters_as_theirs(name: str) -> None:
    """The layer before the classifier is that of their pooler, which their classifiers lack."""
    patch = int(name.partition("_")[2] or 16)
    width = PUBLISHED[name].hidden
    keys = {"intermediate_size": 4 * width, "patch_size": patch, "num_labels": 1000}
    config = config_of("ViT", name, **keys)
    assert same(name, count("ViTForImageClassification", config), width * (width + 1))


@pytest.mark.parametrize("name", ["beit/tiny", "beit/base", "beit/large"])
def test_models_of_image_codes_have_as_many_parameters_as_theirs(name: str) -> None:
    keys = {"use_mask_token": True, "use_shared_relative_position_bias": True}
    config = config_of("Beit", name, intermediate_size=4 * PUBLISHED[name].hidden, **keys)
    assert same(name, count("BeitForMaskedImageModeling", config))


@pytest.mark.parametrize(("name", "patch"), [("base_16", 16), ("large_16", 16), ("huge_14", 14)])
def test_masked_autoencoders_have_as_many_parameters_as_theirs(name: str, patch: int) -> None:
    width = PUBLISHED[f"mae/{name}"].hidden
    keys = {"intermediate_size": 4 * width, "patch_size": patch}
    config = config_of("ViTMAE", f"mae/{name}", **keys)
    assert same(f"mae/{name}", count("ViTMAEForPreTraining", config))
