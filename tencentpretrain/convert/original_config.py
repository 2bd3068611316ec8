"""JSON configs of TencentPretrain and UER-py as configs of ours."""

from __future__ import annotations

from typing import Final

from tencentpretrain.config import nearest
from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_facts import EPS, Facts
from tencentpretrain.convert.original_image_text import (
    BOTH,
    both_objective,
    both_parts,
    clip_objective,
    codes_objective,
)
from tencentpretrain.convert.original_images import image_parts, reads_images
from tencentpretrain.convert.original_speech import (
    SPEECH,
    WAVES,
    speech_objective,
    speech_parts,
)
from tencentpretrain.convert.original_targets import ACTIVATIONS, add_ties, targets
from tencentpretrain.convert.original_towers import NORMS as SECOND_NORMS
from tencentpretrain.convert.original_towers import Pair, contrast_target
from tencentpretrain.convert.report import Report
from tencentpretrain.errors import CheckpointError

NORMS: Final = {"normal": "legacy", "t5": "t5", "rms": "rms"}
MASKS: Final = {
    "fully_visible": "full",
    "causal": "causal",
    "causal_with_prefix": "prefix",
    "prefix": "prefix",
}
RECURRENT: Final = {"rnn": "rnn", "lstm": "lstm", "gru": "gru"}
SEPARATE: Final = {"birnn": "rnn", "bilstm": "lstm", "bigru": "gru"}
"""Encoders of two stacks that read in opposite directions."""
PARTS: Final = {"word": "word", "pos": "position", "seg": "segment", "sinusoidalpos": "sinusoidal"}
OBJECTIVES: Final = {"t5": "t5", "bart": "bart", "gsg": "pegasus", "mt": "translate"}
ENCODER_OBJECTIVES: Final = {"mlm nsp": "bert", "mlm sop": "albert", "mlm": "mlm", "lm": "lm"}
LENGTH: Final = 512
HARMLESS: Final = (
    *("tokenizer", "tgt_tokenizer", "data_processor", "optimizer", "scheduler", "deep_init"),
    *("learning_rate", "warmup", "fp16", "deepspeed", "seq_length", "tgt_seq_length", "beta1"),
    *("labels_num", "prefix_lm_loss", "ignore_index", "pooling", "bidirectional", "beta2"),
)
"""Keys about training, or about parts that a file may not have."""


def model_data(settings: Settings, facts: Facts, report: Report, pair: Pair | None = None) -> Plain:
    """Plain data of our model.

    Args:
        settings: Their config; of two equal towers that of the first.
        facts: What else is known.
        report: To be completed.
        pair: Two towers that differ.

    Raises:
        CheckpointError: if a key has a value that means nothing here.
    """
    for name in HARMLESS:
        settings.get(name, None)
    first, second = SECOND_NORMS
    # Equal towers are one, which has a second norm where these are equal, too.
    is_apart = pair is None and f"{second}.weight" in facts.tensors.described
    data = _side(pair.first if pair else settings, facts, "" if is_apart else first, report)
    data["ties"] = {}
    if pair is not None:
        data["towers"] = {pair.streams[1]: _side(pair.second, facts, second, report)}
    if settings.get("decoder", None):
        data["target_embedding"] = _embedding(settings, "tgt_embedding")
        data["decoder"] = _stack(settings, settings.number("decoder_layers_num"))
        data["decoder"] |= {"mask": "causal", "relative": _relative(settings)}
        if data["decoder"]["norm"] == "rms" and data["decoder"]["norm_order"] == "pre":
            raise CheckpointError(
                "their decoders end in a layer norm where all others are rms (D25), which has no "
                "counterpart here"
            )
    data["target"] = targets(settings, facts, report)
    if pair is not None and "contrast" in data["target"]:
        data["target"]["contrast"] = contrast_target(pair, facts.tensors, report)
    add_ties(data, settings)
    _add_rows(data, facts)
    data["objective"] = _objective(settings, data, pair)
    return data


def _side(settings: Settings, facts: Facts, norm: str, report: Report) -> Plain:
    """Embedding and encoder of a model, or of one of its towers."""
    hidden = settings.number("hidden_size", 768)
    emb_size = settings.number("emb_size", hidden)
    embedding = _embedding(settings, "embedding")
    if f"{norm}.weight" in facts.tensors.described:
        embedding["norm_again"] = True
    embedding["size"] = None if emb_size == hidden else emb_size
    return {"hidden": hidden, "embedding": embedding, "encoder": _encoder(settings, report)}


def _embedding(settings: Settings, key: str) -> Plain:
    names = settings.listed(key, ["word", "pos", "seg"] if key == "embedding" else ["word"])
    length = settings.number("max_seq_length", 512)
    others = {
        "norm": "none" if settings.get("remove_embedding_layernorm", False) else "legacy",
        "norm_eps": EPS,
        "dropout": settings.get("dropout", 0.1),
    }
    if reads_images(names):
        return {"parts": image_parts(settings, names, length), **others}
    if SPEECH in names:
        return {"parts": speech_parts(settings, names), **others}
    if BOTH in names:
        return {"parts": both_parts(settings, names, length), **others}
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise CheckpointError(
            f"the config names the embedding `{unknown[0]}`, which cannot be converted; "
            f"{nearest(unknown[0], PARTS)}"
        )
    details: dict[str, Plain] = {
        "word": {"scale": "sinusoidalpos" in names},
        "pos": {"length": length},
        "seg": {"types": 2},
        # Token i is at position i + 2, and the longest wave is exactly 10,000 times the shortest.
        "sinusoidalpos": {"layout": "interleaved", "offset": 2, "inclusive": True},
    }
    if key != "embedding" and SPEECH in settings.listed("embedding", []):
        details["sinusoidalpos"] = WAVES
    return {"parts": {PARTS[name]: details[name] for name in names}, **others}


def _encoder(settings: Settings, report: Report) -> Plain:
    name = settings.get("encoder", "transformer")
    layers, dropout = settings.number("layers_num", 12), settings.get("dropout", 0.1)
    if name in RECURRENT or name in SEPARATE:
        is_double = name in SEPARATE or bool(settings.get("bidirectional", False))
        return {
            "name": RECURRENT.get(name) or SEPARATE[name],
            "layers": layers,
            "directions": 2 if is_double else 1,
            "separate": name in SEPARATE,
            "dropout": dropout,
        }
    if name == "gatedcnn":
        return {
            "name": "gated_cnn",
            "layers": layers,
            "kernel_size": settings.number("kernel_size", 3),
            "block_size": settings.number("block_size", 2),
            "dropout": dropout,
        }
    if name != "transformer":
        known = ["transformer", "gatedcnn", *RECURRENT, *SEPARATE]
        raise CheckpointError(f"the encoder `{name}` cannot be converted; {nearest(name, known)}")
    mask = str(settings.get("mask", "fully_visible"))
    if mask not in MASKS:
        raise CheckpointError(f"the config has the mask `{mask}`; {nearest(mask, MASKS)}")
    for key in ("alibi_position_embedding", "layer_number_scale"):
        if settings.get(key, False):
            report.remarks.append(
                f"nothing in TencentPretrain reads `{key}`: the model was trained without it (D12)"
            )
    return {
        **_stack(settings, layers),
        "mask": MASKS[mask],
        "relative": _relative(settings),
        "rotary": _rotary(settings),
        "share_blocks": bool(settings.get("parameter_sharing", False)),
        "residual_attention": bool(settings.get("has_residual_attention", False)),
        "kv_heads": settings.get("local_kv_heads_num", None),
    }


def _stack(settings: Settings, layers: int) -> Plain:
    """What encoder and decoder share."""
    activation = str(settings.get("hidden_act", "gelu"))
    norm = str(settings.get("layernorm", "normal"))
    for value, known in ((activation, ACTIVATIONS), (norm, NORMS)):
        if value not in known:
            raise CheckpointError(f"the config says `{value}`; {nearest(value, known)}")
    is_scaled = not settings.get("remove_attention_scale", False)
    if is_scaled and settings.get("relative_position_embedding", False):
        raise CheckpointError(
            "relative positions that are added before scores are divided have no counterpart here"
        )
    return {
        "name": "transformer",
        "layers": layers,
        "heads": settings.number("heads_num", 12),
        "head_size": settings.get("attention_head_size", None),
        "ffn": settings.number("feedforward_size"),
        "gated": settings.get("feed_forward", "dense") == "gated",
        "activation": ACTIVATIONS[activation],
        "norm": NORMS[norm],
        "norm_eps": settings.get("layernorm_eps", EPS),
        "norm_order": settings.get("layernorm_positioning", "post"),
        "bias": not settings.get("remove_transformer_bias", False),
        "scale_scores": is_scaled,
        "dropout": settings.get("dropout", 0.1),
    }


def _relative(settings: Settings) -> Plain | None:
    if not settings.get("relative_position_embedding", False):
        return None
    return {"buckets": settings.number("relative_attention_buckets_num", 32), "distance": 128}


def _rotary(settings: Settings) -> Plain | None:
    if not settings.get("rotary_position_embedding", False):
        return None
    return {"theta": 10000.0, "layout": "interleaved"}


def _add_rows(data: Plain, facts: Facts) -> None:
    """Rows of the word tables, where they are not those of the tokenizers."""
    rows = facts.vocabulary()
    data["vocabulary"] = None if rows == facts.tokenizer_size else rows
    if "decoder" in data and "target_embedding.word.weight" not in data["ties"]:
        written = facts.rows("tgt_embedding")
        # Null would be the rows of the source's table, where those are given.
        is_known = data["vocabulary"] is None and written == facts.target_tokenizer_size
        data["target_vocabulary"] = None if is_known else written


def _objective(settings: Settings, data: Plain, pair: Pair | None) -> Plain | None:
    """What supervises the targets; their decoders start from the token that begins sources."""
    parts = data["embedding"]["parts"]
    length = min(parts.get("position", {}).get("length", LENGTH), LENGTH)
    if pair is not None:
        return clip_objective(pair, length) if "contrast" in data["target"] else None
    if "patch" in parts:
        return None
    if "concat" in parts:
        return both_objective(settings) if {"mlm", "match"} <= data["target"].keys() else None
    if "frames" in parts:
        return speech_objective(settings) if "lm" in data["target"] else None
    if "image" in data["target"]:
        return codes_objective(settings, length)
    if "decoder" not in data:
        name = ENCODER_OBJECTIVES.get(" ".join(sorted(data["target"])))
        return None if name is None else {"name": name, "length": length}
    name = OBJECTIVES.get(str(settings.get("data_processor", "")))
    if name is None or "lm" not in data["target"]:
        return None
    return {"name": name, "length": length, "target_length": length, "start": "cls"}
