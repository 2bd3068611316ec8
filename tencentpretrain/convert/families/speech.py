"""Speech2Text (Wang et al., 2020) and Whisper (Radford et al., 2022): sound in, text out.

Both compute the positions of sounds; Whisper stores them nevertheless. Its keys have no bias.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from tencentpretrain.convert.families.bart import block_rules
from tencentpretrain.convert.family import Family, Filled, Head, Plain, Specials, add_decoder
from tencentpretrain.convert.keys import ACTIVATIONS, Key, Settings
from tencentpretrain.convert.preparation import Preparation
from tencentpretrain.convert.sound_preparation import (
    bank_to_ours,
    bank_to_theirs,
    log_mel_to_ours,
    log_mel_to_theirs,
)
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

EPS: Final = 1e-5
"""Of all norms; config.json does not say it."""
PADDING: Final = 1
"""Id of padding in S2T, whose code numbers positions from the next one on."""
POSITIONS: Final = "model.encoder.embed_positions.weight"
CLOSE: Final = 1e-3
"""Greatest error of positions that another machine computed."""
SHORT: Final = (torch.bfloat16, torch.float16)
"""Types that positions may have been rounded to, the coarser one first."""
ENGLISH: Final = 51864
"""Entries of the vocabulary of Whisper models that know no other language."""
WORDS: Final = "target_embedding.word.weight"
CONVOLUTIONS: Final = "embedding.frames.layers"


def _keys(
    hidden: int, layers: tuple[int, int], heads: int, ffn: int, activation: str, dropout: float
) -> tuple[Key, ...]:
    """Keys that both have, with their usual values."""
    stacks = zip(("encoder", "decoder"), layers, strict=True)
    return (
        Key("hidden", "d_model", hidden),
        *(
            key
            for side, count in stacks
            for key in (
                Key(f"{side}.layers", f"{side}_layers", count),
                Key(f"{side}.heads", f"{side}_attention_heads", heads),
                Key(f"{side}.ffn", f"{side}_ffn_dim", ffn),
                Key(f"{side}.activation", "activation_function", activation, ACTIVATIONS),
                Key(f"{side}.dropout", "dropout", dropout),
                Key(f"{side}.attention_dropout", "attention_dropout", 0.0),
            )
        ),
        Key("embedding.dropout", "dropout", dropout),
        Key("target_embedding.dropout", "dropout", dropout),
        Key("init.std", "init_std", 0.02),
    )


def _base(frames: Plain, waves: Plain, positions: Plain, keys: Plain) -> Plain:
    stack = {"name": "transformer", "norm": "layer", "norm_eps": EPS, "norm_order": "pre", **keys}
    return {
        "embedding": {"parts": {"frames": frames, "sinusoidal": waves}, "norm": "none"},
        "encoder": {**stack, "mask": "full"},
        "target_embedding": {"parts": {"word": {}, **positions}, "norm": "none"},
        "decoder": {**stack, "mask": "causal"},
    }


def _s2t_to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    for name in ("activation_dropout", "max_source_positions", "max_target_positions"):
        settings.get(name, None)
    frames = data["embedding"]["parts"]["frames"]
    count = settings.number("num_conv_layers", 2)
    frames["kernels"] = list(frames["kernels"])
    if len(frames["kernels"]) != count:
        raise CheckpointError(
            f"config.json: `num_conv_layers` is {count}, but `conv_kernel_sizes` has "
            f"{len(frames['kernels'])}"
        )
    frames["strides"] = [2] * count
    return ()


def _s2t_to_config(config: Plain, data: Plain, specials: Specials) -> None:
    if specials.get("pad") not in (None, PADDING):
        raise CheckpointError(
            f"their positions need the padding token {PADDING}, but it is {specials['pad']}"
        )
    config["pad_token_id"] = PADDING
    config["num_conv_layers"] = len(data["embedding"]["parts"]["frames"]["kernels"])
    config.setdefault("max_source_positions", 6000)
    config.setdefault("max_target_positions", 1024)
    add_decoder(config, data, specials, "eos")


def _s2t_objective(settings: Settings) -> Plain:
    length = settings.number("max_target_positions", 1024)
    return {
        "length": settings.number("max_source_positions", 6000),
        "target_length": length,
        "start": "eos",
        "bank": {"bands": settings.number("input_feat_per_channel", 80)},
    }


def _whisper_to_model(data: Plain, settings: Settings, tensors: LazyTensors) -> tuple[str, ...]:
    unused = ("activation_dropout", "median_filter_width", "classifier_proj_size")
    masks = ("time_prob", "time_length", "time_min_masks")
    features = ("feature_prob", "feature_length", "feature_min_masks")
    for name in (*unused, *(f"mask_{key}" for key in (*masks, *features)), "forced_decoder_ids"):
        settings.get(name, None)
    settings.get("max_source_positions", None)
    if POSITIONS not in tensors.described:
        return ()
    if not _are_waves(tensors[POSITIONS].float()):
        raise CheckpointError(
            f"`{POSITIONS}` must hold the fixed waves of Whisper, which are computed here, but "
            "holds other values"
        )
    return (POSITIONS,)


def _are_waves(table: Tensor) -> bool:
    """Whether `table` [S, D] in fp32 holds what `waves` gives, as precisely as it was stored."""
    # The type of the file does not tell: fp32 may hold what bf16 left.
    rounded = next((t for t in SHORT if torch.equal(table.to(t).float(), table)), torch.float32)
    # Small errors can round to the next number, which is half of eps away just below 1.
    close = max(CLOSE, torch.finfo(rounded).eps / 2)
    expected = waves(table).to(rounded).float()
    return bool((expected - table).abs().max() <= close)


def _whisper_to_config(config: Plain, data: Plain, specials: Specials) -> None:
    config["is_encoder_decoder"] = True
    # [start of transcript] is behind [end of text], and that behind all pieces.
    published = 50257 if config["vocab_size"] <= ENGLISH else 50258
    if not specials and config["vocab_size"] >= ENGLISH:
        # Without a tokenizer only the size tells that the vocabulary is a published one.
        config.setdefault("decoder_start_token_id", published)
    if config.get("decoder_start_token_id") != published:
        # By default the ids of a space and of [end of text] in a published vocabulary.
        config.setdefault("begin_suppress_tokens", None)
    config.setdefault("max_source_positions", 1500)


def _whisper_objective(settings: Settings) -> Plain:
    is_english = settings.number("vocab_size", 51865) <= ENGLISH
    bands = settings.number("num_mel_bins", 80)
    task = [] if is_english else ["<|en|>", "<|transcribe|>"]
    return {
        "length": 2 * settings.number("max_source_positions", 1500),
        "target_length": settings.number("max_target_positions", 448),
        "prompt": ["<|startoftranscript|>", *task, "<|notimestamps|>"],
        "bank": {"kind": "whisper", "bands": bands, "normalise": "none", "seconds": 30},
    }


def waves(table: Tensor) -> Tensor:
    """Sines of all positions [S, D/2] beside their cosines, in the place of `table` [S, D]."""
    length, width = table.shape
    step = math.log(10000) / (width // 2 - 1)
    frequencies = torch.exp(-step * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).to(table.dtype)


def _table(rules: tuple[Rule, ...], recomputed: tuple[str, ...] = ()) -> Table:
    norms = {f"{side}.norm": f"model.{side}.layer_norm" for side in ("encoder", "decoder")}
    words = {"target_embedding.word": "model.decoder.embed_tokens"}
    return Table(
        rules=(*block_rules(), *modules({**norms, **words}), *rules),
        recomputed=recomputed,
        spellings=((r"^(?=(encoder|decoder)\.)", "model."),),
    )


def _head(output: str) -> tuple[Head, ...]:
    return (Head("lm", (Rule(("target.lm.output.weight",), (output,)),)),)


S2T: Final = Family(
    name="s2t",
    model_type="speech_to_text",
    objectives={"": "s2t", "lm": "s2t"},
    objective_keys=_s2t_objective,
    prefix="model.",
    words=WORDS,
    table=_table(
        modules({f"{CONVOLUTIONS}.{{n}}": "model.encoder.conv.conv_layers.{n}"}),
        (r"model\.(encoder|decoder)\.embed_positions\.weights?",),
    ),
    base=_base(
        {"activation": "glu"},
        {"layout": "halves", "offset": PADDING + 1, "inclusive": True},
        {"sinusoidal": {"layout": "halves", "offset": PADDING + 1, "inclusive": True}},
        {},
    ),
    keys=(
        *_keys(256, (12, 6), 4, 2048, "relu", 0.1),
        Key("embedding.parts.frames.bands", "input_feat_per_channel", 80),
        Key("embedding.parts.frames.channels", "conv_channels", 1024),
        Key("embedding.parts.frames.kernels", "conv_kernel_sizes", (5, 5)),
        Key("embedding.parts.frames.scale", "scale_embedding", True),
        Key("target_embedding.parts.word.scale", "scale_embedding", True),
    ),
    expected={"input_channels": 1, "pad_token_id": PADDING},
    architectures={"": "Speech2TextModel", "lm": "Speech2TextForConditionalGeneration"},
    heads=_head("lm_head.weight"),
    preparation=Preparation(bank_to_ours, bank_to_theirs),
    to_model=_s2t_to_model,
    to_config=_s2t_to_config,
)
WHISPER: Final = Family(
    name="whisper",
    model_type="whisper",
    objectives={"": "s2t", "lm": "s2t"},
    objective_keys=_whisper_objective,
    prefix="model.",
    words=WORDS,
    table=_table(
        (
            *modules({f"{CONVOLUTIONS}.{n}": f"model.encoder.conv{n + 1}" for n in (0, 1)}),
            Rule(
                ("target_embedding.position.weight",),
                ("model.decoder.embed_positions.weight",),
            ),
        )
    ),
    base=_base(
        {"activation": "gelu", "kernels": [3, 3], "strides": [1, 2]},
        {"layout": "halves", "inclusive": True},
        {"position": {}},
        {"key_bias": False},
    ),
    keys=(
        *_keys(384, (4, 4), 6, 1536, "gelu", 0.0),
        Key("embedding.parts.frames.bands", "num_mel_bins", 80),
        Key("target_embedding.parts.position.length", "max_target_positions", 448),
    ),
    expected={
        "scale_embedding": False,
        "apply_spec_augment": False,
        "use_weighted_layer_sum": False,
    },
    architectures={"": "WhisperModel", "lm": "WhisperForConditionalGeneration"},
    heads=_head("proj_out.weight"),
    filled=(Filled(POSITIONS, ("max_source_positions", "d_model"), fill=waves),),
    preparation=Preparation(log_mel_to_ours, log_mel_to_theirs),
    to_model=_whisper_to_model,
    to_config=_whisper_to_config,
)
